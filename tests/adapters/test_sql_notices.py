"""Notifications on their way, in the store, over SQLite and PostgreSQL: what a controller that goes on relies on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.model.events import Event, EventKind
from reconciler.model.notices import Batch, Delivery, Outcome
from reconciler.ports import PortError

NOW = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def store(place: str) -> Iterator[SqlStore]:
    opened = open_store(place)
    yield opened
    opened.close()


def event(number: int) -> Event:
    return Event(number, NOW, EventKind.WAVE_OPENED, f"k{number}", wave="lab", message="begins <é>")


def delivery(
    number: int, target: str = "ops", at: datetime = NOW, count: int = 1, known: int | None = None
) -> Delivery:
    batch = Batch.of([event(number) for _ in range(count)])
    return Delivery(known, target, f"m{number}", batch, at, at)


def test_a_target_begins_with_what_comes_and_is_forgotten_with_what_was_on_its_way(store: SqlStore) -> None:
    epoch = store.begin_epoch()
    (first,) = store.add_events(epoch, [event(0)])
    store.notices.open(epoch, ["ops"])
    assert store.notices.told("ops") == first.id
    store.notices.plan(epoch, "ops", 7, [delivery(1)])
    store.notices.open(epoch, ["ops", "chat"])
    assert (store.notices.told("ops"), store.notices.told("chat")) == (7, first.id)
    store.notices.open(epoch, ["chat"])
    store.notices.open(epoch, ["ops"])
    assert store.notices.waiting("ops", 9) == [] and store.notices.told("ops") == first.id


def test_deliveries_come_back_as_they_were_in_their_order_and_grow(store: SqlStore) -> None:
    epoch = store.begin_epoch()
    store.notices.open(epoch, ["ops", "chat"])
    store.notices.plan(epoch, "ops", 3, [delivery(2, at=NOW + MINUTE), delivery(1), delivery(3, "chat")])
    one, two = store.notices.waiting("ops", 9)
    assert (one.message_id, two.message_id, one.batch) == ("m1", "m2", delivery(1).batch)
    assert one.created_at == NOW and one.not_before is None
    store.notices.plan(epoch, "ops", 4, [delivery(1, count=2, known=one.id)])
    assert store.notices.waiting("ops", 1)[0].batch.count == 2
    assert store.notices.counts("ops", NOW - MINUTE) == {EventKind.WAVE_OPENED: 3}
    assert store.notices.counts("ops", NOW) == {EventKind.WAVE_OPENED: 1}


def test_attempts_refusals_and_ends_are_kept(store: SqlStore) -> None:
    epoch = store.begin_epoch()
    store.notices.open(epoch, ["ops"])
    store.notices.plan(epoch, "ops", 2, [delivery(1), delivery(2, at=NOW + MINUTE)])
    one, two = store.notices.waiting("ops", 9)
    assert one.id is not None and two.id is not None
    store.notices.attempt(epoch, one.id)
    store.notices.failed(epoch, one.id, "503", refused=True, not_before=NOW + MINUTE)
    again = store.notices.waiting("ops", 1)[0]
    assert (again.attempts, again.refusals, again.not_before) == (1, 1, NOW + MINUTE)
    store.notices.finish(epoch, one.id, Outcome.DELIVERED, "", NOW)
    store.notices.failed(epoch, one.id, "late", refused=True, not_before=None)
    assert [item.id for item in store.notices.waiting("ops", 9)] == [two.id]
    assert [store.notices.prune(epoch, NOW + MINUTE) for _ in range(2)] == [1, 0]


def test_a_controller_that_is_not_in_office_sends_nothing_and_a_message_is_on_record_once(store: SqlStore) -> None:
    old = store.begin_epoch()
    store.notices.open(old, ["ops"])
    store.notices.plan(old, "ops", 1, [delivery(1)])
    epoch = store.begin_epoch()
    (one,) = store.notices.waiting("ops", 9)
    assert one.id is not None
    with pytest.raises(PortError):
        store.notices.attempt(old, one.id)
    with pytest.raises(PortError):
        store.notices.plan(epoch, "ops", 9, [delivery(1)])
    assert store.notices.told("ops") == 1, "undone as a whole"
