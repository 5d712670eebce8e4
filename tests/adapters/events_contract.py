"""The contract of what a store keeps of what happened (`ports_events.EventLog`). A part of `StoreContract`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from reconciler.model.events import MOST_HEALTH, CheckSaid, Event, EventKind, HealthChange
from reconciler.ports import Store, TerminalError

NOW = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

Opener = Callable[[], Store]


def event(key: str, kind: EventKind = EventKind.DEVICE_FLAGGED, **more: str | None) -> Event:
    return Event(None, NOW, kind, key, message=f"{key} happened", reason="critical", **more)


def numbers(store: Store, **asked: object) -> list[int | None]:
    return [found.id for found in store.events(**asked)]  # type: ignore[arg-type]


class EventContract:
    """Events, the health log, accepted commits."""

    def test_an_event_comes_back_as_it_was_told_with_a_number(self, stores: Opener) -> None:
        store = stores()
        whole = Event(
            None, NOW, EventKind.WAVE_OPENED, "all v1.4.2", "c0ffee", "all", "SITE-1", "SITE-1-1", "v1.4.2", "why", "✗ text"
        )  # fmt: skip
        (new,) = store.add_events(store.begin_epoch(), [whole])
        assert new.id is not None and replace(new, id=None) == whole
        assert stores().events() == [new]

    def test_an_event_is_told_once(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        first, second = store.add_events(epoch, [event("a"), event("b"), event("a")])
        assert (first.key, second.key) == ("a", "b")
        # The same key of another kind is another event.
        third, fourth = store.add_events(epoch, [event("b"), event("c"), event("a", EventKind.DEVICE_RECOVERED)])
        assert (third.key, fourth.kind) == ("c", EventKind.DEVICE_RECOVERED)
        assert numbers(store) == [first.id, second.id, third.id, fourth.id]
        assert sorted(numbers(store)) == numbers(store)  # type: ignore[type-var]
        assert store.last_event() == fourth.id

    def test_what_was_told_is_kept_with_the_events_or_not_at_all(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        assert store.told() is None
        store.add_events(epoch, [event("a")], "one")
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.add_events(epoch, [event("b")], "two")
            raise ZeroDivisionError
        assert (stores().told(), [found.key for found in stores().events()]) == ("one", ["a"])

    def test_a_writer_out_of_office_tells_nothing(self, stores: Opener) -> None:
        store = stores()
        old = store.begin_epoch()
        store.begin_epoch()
        with pytest.raises(TerminalError, match="fenced"):
            store.add_events(old, [event("a")], "x")
        with pytest.raises(TerminalError, match="fenced"):
            store.prune_events(old, NOW)
        assert (store.events(), store.told()) == ([], None)
        # What a person did needs no office.
        assert len(store.add_events(None, [event("b", EventKind.FLAG_ACKNOWLEDGED)])) == 1

    def test_events_are_found_by_number_kind_wave_device_and_commit(self, stores: Opener) -> None:
        store = stores()
        told = [
            event("1", wave="all", commit="aa"),
            event("2", EventKind.WAVE_OPENED, wave="canary", commit="aa"),
            event("3", device="SITE-1-1"),
            event("4", EventKind.COMMIT_ACCEPTED, commit="bb"),
        ]
        one, two, three, four = (found.id for found in store.add_events(store.begin_epoch(), told))
        assert one is not None and four is not None
        assert numbers(store, after=one) == [two, three, four]
        assert numbers(store, before=four, newest_first=True, limit=2) == [three, two]
        assert numbers(store, kinds=[EventKind.WAVE_OPENED, EventKind.COMMIT_ACCEPTED]) == [two, four]
        assert numbers(store, wave="all") == [one]
        assert numbers(store, device="SITE-1-1") == [three]
        assert numbers(store, commit="aa", limit=1) == [one]
        assert numbers(store, commit="aa", wave="canary") == [two]

    def test_old_events_go_and_their_numbers_do_not_return(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        old = replace(event("old"), at=NOW - MINUTE)
        last = store.add_events(epoch, [event("a"), old])[1].id
        store.add_health([HealthChange("d", NOW - MINUTE, "ok"), HealthChange("d", NOW, "critical")])
        assert last is not None and store.prune_events(epoch, NOW) == 2
        assert [found.key for found in store.events()] == ["a"]
        assert [row.health for row in store.health_log("d")] == ["critical"]
        assert store.add_events(epoch, [event("old")])[0].id == last + 1

    def test_writers_at_once_leave_no_number_out(self, stores: Opener) -> None:
        """A reader that has seen a number must not find a lower one later."""
        stores()
        failures: list[BaseException] = []

        def tell(writer: int) -> None:
            try:
                store = stores()
                for number in range(5):
                    store.add_events(None, [event(f"{writer} {number}")])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=tell, args=(writer,)) for writer in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert numbers(stores()) == list(range(1, 16))

    def test_the_health_log_keeps_a_devices_newest_rows(self, stores: Opener) -> None:
        store = stores()
        checks = (CheckSaid("camera", "critical", "no frames ✗"),)
        store.add_health([HealthChange("a", NOW, "critical", "v1.4.2", checks, ("camera",))])
        (row,) = stores().health_log("a")
        assert replace(row, id=None) == HealthChange("a", NOW, "critical", "v1.4.2", checks, ("camera",))
        rows = [HealthChange("b", NOW + number * MINUTE, "ok") for number in range(MOST_HEALTH + 3)]
        store.add_health(rows[:5])
        store.add_health(rows[5:])
        kept = store.health_log("b", limit=10_000)
        assert len(kept) == MOST_HEALTH
        assert (kept[0].at, kept[-1].at) == (rows[-1].at, rows[3].at)
        assert len(store.health_log("b", limit=7)) == 7 and len(store.health_log("a")) == 1

    def test_commits_that_came_into_force_are_listed(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        assert store.accepted_commits() == []
        for number, sha in enumerate(("a" * 40, "b" * 40, "b" * 40, "c" * 40)):
            store.accept_commit(epoch, sha, NOW + number * MINUTE)
        rows = stores().accepted_commits()
        assert [(row.sha[0], row.at) for row in rows] == [("c", NOW + 3 * MINUTE), ("b", NOW + MINUTE), ("a", NOW)]
        assert [row.sha[0] for row in store.accepted_commits(before=rows[0].number, limit=1)] == ["b"]
