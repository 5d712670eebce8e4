"""Several who begin to listen at once: each is told everything, and nothing twice."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.responses import StreamingResponse

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.model.events import Event, EventKind
from reconciler.server import stream as module
from reconciler.server.options import Options
from reconciler.server.stream import Stream
from tests.server.service import NOW


class Gates:
    """Holds up each look at the last event until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looking, self.gates = list[int](), [threading.Event(), threading.Event()]
        read, lock = SqlStore.last_event, threading.Lock()

        def held(store: SqlStore) -> int:
            with lock:
                self.looking.append(len(self.looking))
                gate = self.gates[self.looking[-1]]
            assert gate.wait(60)
            return read(store)

        monkeypatch.setattr(SqlStore, "last_event", held)


async def until(true: Callable[[], object]) -> None:
    """Wait for something on the loop."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)


async def told(answer: StreamingResponse, last: int) -> list[int]:
    """The numbers of the events of a stream, up to the last."""
    found: list[int] = []
    async with asyncio.timeout(60):
        async for piece in answer.body_iterator:
            assert isinstance(piece, bytes)
            found += map(int, re.findall(rb"^id: (\d+)$", piece, re.MULTILINE))
            if last in found:
                break
    return found


async def still() -> bool:
    return True


@pytest.mark.parametrize("after", [None, 0], ids=["wants what comes", "comes again"])
@pytest.mark.parametrize("handed_out", [False, True], ids=["before the first is told", "after the first is told"])
def test_who_begins_while_another_begins_takes_nothing_from_it_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed_out: bool, after: int | None
) -> None:
    store = open_store(tmp_path / "store.db")
    # Nothing is looked for before it is asked here.
    monkeypatch.setattr(module, "LOOK_S", 250.0)
    gates = Gates(monkeypatch)

    def happens(*numbers: int) -> None:
        store.add_events(
            None, [Event(None, NOW, EventKind.DEVICE_FLAGGED, f"k{n}", device="S0-1", message="") for n in numbers]
        )

    async def run() -> None:
        stream = Stream(Options(store=store, now=lambda: NOW, access=store.access, wall=lambda: NOW))
        begin = asyncio.create_task(stream.answer(None, still, "a"))
        await until(lambda: len(gates.looking) == 1)
        later = asyncio.create_task(stream.answer(after, still, "b"))
        await until(lambda: len(gates.looking) == 2)
        gates.gates[0].set()
        first = await begin
        happens(1, 2)
        if handed_out:
            assert stream._news is not None
            stream._news.set()
            await until(lambda: stream._cursor == 2)
        gates.gates[1].set()
        second = await later
        happens(3)
        assert stream._news is not None
        stream._news.set()
        assert await told(first, 3) == [1, 2, 3]
        assert await told(second, 3) == [1, 2, 3]

    asyncio.run(run())
    store.close()
