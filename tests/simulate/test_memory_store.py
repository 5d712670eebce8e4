"""The store in memory keeps the store's contract; and what the simulator does with it besides."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings

from reconciler.model.observed import Snapshot
from reconciler.model.plan import Facts
from reconciler.ports import TransientError
from reconciler.simulate.memory_book import Book
from reconciler.simulate.memory_store import MemoryStore
from tests.adapters.store_contract import NOW, Opener, StoreContract, decision, flash, seen
from tests.adapters.test_store_model import StoreModel


@pytest.fixture
def stores() -> Iterator[Opener]:
    book = Book()
    yield lambda: MemoryStore(book)


class TestMemoryStore(StoreContract):
    """The whole contract."""


class MemoryModel(StoreModel):
    """The model test, over memory."""

    def open_store(self) -> MemoryStore:
        self.book = getattr(self, "book", None) or Book()
        return MemoryStore(self.book)


MemoryModel.TestCase.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMemoryModel = MemoryModel.TestCase


def test_last_seen_is_amended_with_and_without_announcing_it(stores: Opener) -> None:
    store = MemoryStore()
    store.observe([seen("A", image="v1"), seen("B")], sequences={"A": ("a", 1), "B": ("b", 1)})
    cursor = store.changes_since(0).cursor
    later = NOW + timedelta(days=1)
    store.set_last_seen("A", later, announce=False)
    assert store.changes_since(cursor).devices == ()
    found = store.observation("A")
    assert (
        found is not None
        and found[1:] == ("a", 1)
        and found[0] == seen("A", image="v1").model_copy(update={"last_seen": later})
    )
    store.set_last_seen("A", NOW)
    assert [device.name for device in store.changes_since(cursor).devices] == ["A"]
    store.set_last_seen("A", NOW)
    assert len(store.changes_since(cursor).devices) == 1
    assert [store.set_last_seen("A", later), store.set_last_seen("nobody", NOW)] == [True, False]


def test_a_snapshot_is_loaded_whole() -> None:
    told = Snapshot.model_validate(
        {
            "devices": [{"name": "A", "image": "v1", "lastSeen": "2026-01-15T01:00:00Z"}, {"name": "B"}],
            "proofs": [{"wave": "canary", "image": "v1", "at": "2026-01-01T00:00:00Z"}],
            "failures": [{"wave": "canary", "app": "x", "release": "2", "at": "2026-01-01T00:00:00Z", "closed": True}],
            "members": {"v1": {"canary": ["S-2", "S-1"]}},
            "proposals": [{"image": "v2", "at": "2026-01-01T00:00:00Z"}],
            "tagsSet": {"x": {"canary": None}},
        }
    )
    store = MemoryStore()
    store.load(told, "c0ffee")
    expected = told.model_copy(update={"members": {"v1": {"canary": ("S-1", "S-2")}}})
    assert store.snapshot() == expected
    assert store.last_good_commit() == "c0ffee"
    assert {device.name for device in store.changes_since(0).devices} == {"A", "B"}


def test_what_was_taken_back_is_not_handed_out_and_numbers_are_not_reused() -> None:
    store = MemoryStore()
    cursor = store.observe([seen("A", image="v1")], sequences={"A": ("a", 1)})
    with pytest.raises(RuntimeError), store.transaction():
        store.observe([seen("A", image="v2")], sequences={"A": ("a", 2)})
        raise RuntimeError("stop")
    assert store.changes_since(cursor).devices == ()
    store.observe([seen("A", image="v3")], sequences={"A": ("a", 2)})
    assert [device.image for device in store.changes_since(cursor).devices] == ["v3"]


def test_another_writer_of_the_same_thread_is_told_that_the_store_is_busy(stores: Opener) -> None:
    store, other = stores(), stores()
    with store.transaction(), pytest.raises(TransientError, match="busy"):
        other.begin_epoch()


def test_changes_stay_findable_when_the_log_of_them_is_shortened() -> None:
    store = MemoryStore()
    store.observe([seen("quiet")], sequences={})
    cursor = 0
    for number in range(3000):
        store.observe([seen("A", image=f"v{number}")], sequences={"A": ("a", number)})
        cursor = cursor or store.changes_since(0).cursor
    assert len(store.book.changes) < 1500
    assert [device.name for device in store.changes_since(0).devices] == ["quiet", "A"]
    assert [device.image for device in store.changes_since(cursor).devices] == ["v2999"]


def test_facts_that_did_not_change_are_the_same_objects() -> None:
    store = MemoryStore()
    epoch = store.begin_epoch()
    store.record(epoch, decision(facts=Facts(members={"v1": {"w": ("S",)}})))
    before = store.facts()
    store.record(epoch, decision(flash("A", "v1")))
    assert store.facts().members is before.members
    store.record(epoch, decision(facts=Facts(members={"v1": {"w": ("T",)}})))
    assert store.facts().members == {"v1": {"w": ("S", "T")}}
