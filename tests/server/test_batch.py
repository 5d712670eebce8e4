"""Batches: what races with them, what fails within them, and who waits too long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from reconciler.adapters.sql import open_store
from reconciler.controller.reports import Received, Recorded, record
from reconciler.model.observed import DeviceObservation, Health
from reconciler.model.plan import Facts
from reconciler.ports import Decision, TransientError
from reconciler.server.batch import Batcher
from tests.server.service import NOW, report

DEVICE = "SITE-2847-1"


def test_a_mark_that_is_set_while_a_report_is_folded_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "store.db")
    record(store, [Received(report(), NOW)], 900)
    epoch = store.begin_epoch()
    mark = DeviceObservation(name=DEVICE, updating_to="v1.4.2", updating_since=NOW)
    decision = Decision(NOW, None, Facts(), observations=(mark,))
    tick = threading.Thread(target=lambda: store.record(epoch, decision))
    observed = store.observed

    def observed_then_ticked(devices: Sequence[str]) -> object:
        found = observed(devices)
        tick.start()
        tick.join(0.3)  # Either it is through by now, or it waits for this transaction.
        return found

    monkeypatch.setattr(store, "observed", observed_then_ticked)
    record(store, [Received(report(sequence=2, health="warning"), NOW)], 900)
    tick.join(60)
    monkeypatch.undo()
    found = store.observation(DEVICE)
    store.close()
    assert found is not None
    assert (found[0].updating_to, found[0].health, found[2]) == ("v1.4.2", Health.WARNING, 2)


def test_several_reports_of_one_device_are_folded_in_turn(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store.db")
    batch = [Received(report(sequence=n, health=health), NOW) for n, health in ((2, "critical"), (1, "ok"), (3, "ok"))]
    outcomes = record(store, batch, 900)
    found = store.observation(DEVICE)
    store.close()
    assert [outcome.taken for outcome in outcomes if isinstance(outcome, Recorded)] == [True, False, True]
    assert found is not None and (found[0].health, found[2]) == (Health.OK, 3)


def test_a_report_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store.db")
    # The protocol takes a site of any length that the model's name does not.
    bad = report("B-1", site="x" * 80)
    outcomes = record(store, [Received(report("A-1"), NOW), Received(bad, NOW), Received(report("C-1"), NOW)], 900)
    names = [device.name for device in store.snapshot().devices]
    store.close()
    assert isinstance(outcomes[1], ValueError)
    assert names == ["A-1", "C-1"]


def test_what_fails_fails_for_whom_it_failed_and_the_next_batch_goes_on() -> None:
    calls: list[int] = []

    def work(items: Sequence[int]) -> Sequence[int | Exception]:
        calls.append(len(items))
        if 13 in items:
            raise TransientError("busy")
        return [ValueError("odd") if item % 2 else item * 10 for item in items]

    async def run() -> list[object]:
        batcher: Batcher[int, int] = Batcher(work, batch=2, queue=100)
        first = await asyncio.gather(*(batcher.submit(n) for n in (2, 3, 13, 4, 6)), return_exceptions=True)
        return [*first, await batcher.submit(8)]

    outcomes = asyncio.run(run())
    assert [type(o) if isinstance(o, Exception) else o for o in outcomes] == [
        20,
        ValueError,
        TransientError,
        TransientError,
        60,
        80,
    ]
    assert max(calls) == 2


def test_a_queue_that_is_full_says_come_again_and_a_caller_that_left_stops_nobody() -> None:
    release = threading.Event()
    worked: list[int] = []

    def work(items: Sequence[int]) -> Sequence[int]:
        assert release.wait(60)
        worked.extend(items)
        return items

    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(work, batch=1, queue=2)
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)
        second, third = asyncio.create_task(batcher.submit(2)), asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0.05)
        with pytest.raises(TransientError, match="too many"):
            await batcher.submit(4)
        second.cancel()
        release.set()
        assert [await first, await third] == [1, 3]
        await batcher.drain()

    asyncio.run(run())
    assert worked == [1, 2, 3]
