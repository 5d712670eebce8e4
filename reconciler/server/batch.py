"""Puts the work of concurrent requests together: reports into common transactions, tokens into common look-ups.

While one batch is being written, the next one gathers: a lone report waits for nobody, and under load a hundred share
one fsync. A report is answered only after its transaction is on disk, so what a device was told is never lost.
Reports are folded under the store's write lock, from the observation as it is then, so that the marks of a tick are
kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from reconciler.ports import TransientError

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Gathers items of concurrent requests while earlier ones are worked on in a thread. One event loop.

    `work` gets up to `batch` items and returns one outcome each, an exception where it fails alone; what it raises fails
    them all. `queue` items may wait.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Sequence[R | Exception]],
        *,
        batch: int,
        queue: int,
        worked: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._work, self._worked, self._batch, self._queue = work, worked, batch, queue
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: T) -> R:
        """Wait for the item's outcome. TransientError: too many wait. Raises what the work raised for it."""
        if len(self._waiting) >= self._queue:
            raise TransientError("too many requests wait", needed_for="an answer", retry_after_s=5)
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._run())
        return await done

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            try:
                outcomes = await run_in_threadpool(self._work, [item for item, _ in batch])
            except Exception as error:  # noqa: BLE001  whoever waits gets it
                outcomes = [error] * len(batch)
            except BaseException:
                for _, done in batch:
                    done.cancel()
                raise
            else:
                self._worked(len(batch))
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                # A caller that has gone away no longer listens; its item is worked on all the same.
                if done.done():
                    continue
                if isinstance(outcome, Exception):
                    done.set_exception(outcome)
                else:
                    done.set_result(outcome)

    async def drain(self) -> None:
        """Wait until everything submitted is worked on."""
        if self._worker is not None:
            await asyncio.wait([self._worker])
