"""Records the reports of concurrent requests in common transactions. Called by the exchange, once a report.

While one batch is being written, the next one gathers: a lone report waits for nobody, and under load a hundred share
one fsync. A report is answered only after its transaction is on disk, so what a device was told is never lost.
Reports are folded under the store's write lock, from the observation as it is then, so that the marks of a tick are
kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from starlette.concurrency import run_in_threadpool

from reconciler.controller.observe import fold
from reconciler.model.observed import DeviceObservation
from reconciler.ports import AssignmentRow, Store, TransientError
from reconciler.protocol.report import Report
from reconciler.server.options import Policy


@dataclass(frozen=True, slots=True)
class Received:
    """A report and the server's own instant of its receipt."""

    report: Report
    at: datetime


@dataclass(frozen=True, slots=True)
class Recorded:
    """What came of a report: whether it was taken (a late or doubled one is not), and the device's assignment."""

    taken: bool
    assignment: AssignmentRow | None


def record(store: Store, batch: Sequence[Received], stale_after_s: float) -> list[Recorded | ValueError]:
    """Fold and record reports in one transaction. A report that does not fit the model fails alone, as a ValueError."""
    devices = sorted({received.report.device for received in batch})
    outcomes: list[bool | ValueError] = []
    with store.transaction():
        current: dict[str, DeviceObservation] = {name: row[0] for name, row in store.observed(devices).items()}
        folded: dict[str, DeviceObservation] = {}
        sequences: dict[str, tuple[str, int]] = {}
        for received in batch:
            report = received.report
            before = current.get(report.device)
            try:
                after = fold(before, report, received.at, stale_after_s)
            except ValueError as error:
                outcomes.append(error)
                continue
            taken = after is not before
            outcomes.append(taken)
            if taken:
                current[report.device] = folded[report.device] = after
                # A rival's report changes what is known, but the recorded order is that of the present boot.
                if after.boot is not None and after.boot.id == report.boot_id:
                    sequences[report.device] = (report.boot_id, report.sequence)
        store.observe(list(folded.values()), sequences=sequences)
        assignments = store.assignments(devices)
    return [
        outcome if isinstance(outcome, ValueError) else Recorded(outcome, assignments.get(received.report.device))
        for received, outcome in zip(batch, outcomes, strict=True)
    ]


class Batcher:
    """Gathers reports while others are written. One event loop."""

    def __init__(
        self,
        store: Store,
        policy: Callable[[], Policy],
        *,
        batch: int,
        queue: int,
        written: Callable[[int], None],
    ) -> None:
        self._store, self._policy, self._written = store, policy, written
        self._batch, self._queue = batch, queue
        self._waiting: list[tuple[Received, asyncio.Future[Recorded]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def submit(self, received: Received) -> Recorded:
        """Wait until the report is recorded. TransientError: too many wait, or the store is busy. ValueError: no
        fit."""
        if len(self._waiting) >= self._queue:
            raise TransientError("too many reports wait to be recorded", needed_for="a report", retry_after_s=5)
        done: asyncio.Future[Recorded] = asyncio.get_running_loop().create_future()
        self._waiting.append((received, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await done

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            try:
                stale_after_s = self._policy().stale_after_s
                outcomes = await run_in_threadpool(record, self._store, [item for item, _ in batch], stale_after_s)
            except BaseException as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
                if not isinstance(error, Exception):
                    raise
                continue
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                # A caller that has gone away no longer listens; its report is recorded all the same.
                if done.done():
                    continue
                if isinstance(outcome, ValueError):
                    done.set_exception(outcome)
                else:
                    done.set_result(outcome)
            self._written(len(batch))

    async def drain(self) -> None:
        """Wait until everything submitted is written."""
        if self._writer is not None:
            await asyncio.wait([self._writer])
