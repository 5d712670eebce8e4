"""The store port's contract: what any `ports.Store` must do. Subclass `StoreContract` and give it a `stores` fixture.

`stores()` opens the same store again, as another process would; the first call makes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconciler.model.observed import Attempt, CheckChange, DeviceObservation, Health, Proposal
from reconciler.model.plan import Action, ActionKind, DeviceFact, Facts, VerdictFact
from reconciler.ports import AssignmentRow, ConditionRow, Decision, Store, TerminalError
from tests.adapters.events_contract import EventContract

NOW = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DIGEST = "sha256:" + "0" * 64

Opener = Callable[[], Store]


def flash(device: str, to: str, **more: str | None) -> Action:
    return Action(ActionKind.FLASH, {"device": device, "to": to, **more})


def decision(*actions: Action, facts: Facts | None = None, **more: Any) -> Decision:
    return Decision(at=NOW, commit="c0ffee", facts=facts or Facts(), actions=actions, **more)


def assignment(device: str, epoch: int, n: int, root: bytes = b"root") -> AssignmentRow:
    return AssignmentRow(
        device, epoch, n, f"{device} {n}".encode(), (b"\x00" * 32, b"\xff" * 32), 1, root, b"signature", NOW + MINUTE
    )


def seen(device: str, **more: Any) -> DeviceObservation:
    return DeviceObservation(name=device, last_seen=NOW, **more)


def observed(store: Store, device: str) -> DeviceObservation:
    found = store.observation(device)
    assert found is not None
    return found[0]


def tried(release: str) -> Attempt:
    return Attempt(release=release, checks=(CheckChange(name="vpn", now=Health.CRITICAL, since=NOW),))


class ObservationContract:
    """Reports in, marks merged, facts applied."""

    def test_an_observation_comes_back_as_it_was_written(self, stores: Opener) -> None:
        store = stores()
        full = DeviceObservation.model_validate(
            {
                "name": "SITE-2847-1",
                "site": "SITE-2847",
                "image": "v1.4.1",
                "imageSince": "2026-01-02T01:31:00Z",
                "health": "warning",
                "healthSince": "2026-01-02T01:35:00.000123Z",
                "lastSeen": "2026-01-15T01:29:30Z",
                "checksWorse": ["vpn"],
                "checks": [
                    {
                        "name": "vpn",
                        "before": "ok",
                        "now": "critical",
                        "message": "dönt ✗",
                        "since": "2026-01-15T01:00:00Z",
                    }
                ],
                "attempt": {
                    "release": "v1.4.2",
                    "checks": [{"name": "camera", "now": "unknown", "since": "2026-01-14T01:00:00.5Z"}],
                },
                "failedAttempts": {"v1.4.2": 1, "video-ingest@2.8.0": 2},
                "apps": {"video-ingest": {"digest": DIGEST, "since": "2026-01-02T01:35:00Z"}},
                "config": DIGEST,
            }
        )
        store.observe([full], sequences={"SITE-2847-1": ("boot-a", 7)})
        assert store.observation("SITE-2847-1") == (full, "boot-a", 7)
        assert stores().snapshot().devices == (full,)
        assert store.observed(["SITE-2847-1", "nobody"]) == {"SITE-2847-1": (full, "boot-a", 7)}
        assert store.observation("nobody") is None

    @pytest.mark.parametrize(
        ("boot", "sequence", "taken"),
        [
            ("b", 6, True),
            ("b", 5, False),
            ("b", 4, False),
            ("c", 0, True),
            ("a", 3, False),
            ("a", 2, False),
        ],
    )
    def test_only_newer_reports_are_taken(self, stores: Opener, boot: str, sequence: int, taken: bool) -> None:
        store = stores()
        store.observe([seen("A", image="v1")], sequences={"A": ("a", 3)})
        store.observe([seen("A", image="v2")], sequences={"A": ("b", 5)})
        cursor = store.changes_since(0).cursor
        store.observe([seen("A", image="v3")], sequences={"A": (boot, sequence)})
        assert observed(store, "A").image == ("v3" if taken else "v2")
        assert (store.changes_since(cursor).devices != ()) is taken

    def test_changes_are_handed_out_once_and_in_order(self, stores: Opener) -> None:
        store = stores()
        cursor = store.observe([seen("B"), seen("A")], sequences={"A": ("a", 1), "B": ("b", 1)})
        first = store.changes_since(0)
        assert {device.name for device in first.devices} == {"A", "B"}
        assert first.cursor == cursor
        assert store.changes_since(cursor).devices == ()
        pages, at = [], 0
        while found := store.changes_since(at, 1).devices:
            assert len(found) == 1
            pages += found
            at = store.changes_since(at, 1).cursor
        assert tuple(pages) == first.devices
        store.observe([seen("B", image="v2")], sequences={"B": ("b", 2)})
        later = stores().changes_since(cursor)
        assert [device.image for device in later.devices] == ["v2"]
        assert later.cursor > cursor

    def test_marks_are_changes_too(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        cursor = store.observe([seen("A")], sequences={"A": ("a", 1)})
        store.record(epoch, decision(observations=(DeviceObservation(name="A", configuring_since=NOW),)))
        assert [device.configuring_since for device in store.changes_since(cursor).devices] == [NOW]

    def test_a_mark_does_not_undo_a_report_that_came_meanwhile(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        store.observe([seen("A", image="v1", health=Health.OK)], sequences={"A": ("a", 1)})
        # The tick has read the observation, and a report arrives before the tick records.
        store.observe([seen("A", image="v1", health=Health.CRITICAL)], sequences={"A": ("a", 2)})
        mark = DeviceObservation(name="A", updating_to="v2", updating_since=NOW)
        store.record(epoch, decision(flash("A", "v2"), observations=(mark,)))
        found = store.observation("A")
        assert found is not None and found[1:] == ("a", 2)
        assert (found[0].health, found[0].updating_to, found[0].updating_since) == (Health.CRITICAL, "v2", NOW)

    def test_a_patch_sets_its_marks_and_nothing_else(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        store.observe([seen("A", image="v1", restarting_app="x", restarting_since=NOW)], sequences={"A": ("a", 1)})
        store.record(epoch, decision(observations=(DeviceObservation(name="A", image="v9", updating_to="v2"),)))
        assert observed(store, "A").image == "v1"
        assert observed(store, "A").restarting_since == NOW
        clear = DeviceObservation(name="A", restarting_app=None, restarting_since=None)
        store.record(epoch, decision(observations=(clear,)))
        assert observed(store, "A") == seen("A", image="v1", updating_to="v2")

    def test_a_time_out_counts_one_attempt_and_ends_the_update(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        mark = {"updating_to": "v2", "updating_since": NOW, "rebooting_since": NOW}
        store.observe([seen("A", failed_attempts={"v2": 1}, **mark)], sequences={"A": ("a", 1)})
        facts = Facts(timeouts=(DeviceFact("A", "v2", NOW),))
        store.record(epoch, decision(facts=facts))
        assert observed(store, "A") == seen("A", failed_attempts={"v2": 2}, attempt_failed_at=NOW)
        # Judged again from an older view: the update that it speaks of has ended, so nothing is counted twice.
        store.record(epoch, decision(facts=facts))
        assert observed(store, "A").failed_attempts == {"v2": 2}

    def test_a_time_out_of_an_app_leaves_the_image_alone(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        start = seen("A", updating_to="v2", updating_since=NOW, restarting_app="app", restarting_since=NOW)
        store.observe([start], sequences={"A": ("a", 1)})
        store.record(epoch, decision(facts=Facts(timeouts=(DeviceFact("A", "app@2.8.0", NOW),))))
        after = observed(store, "A")
        assert (after.updating_to, after.restarting_since, after.restarting_app) == ("v2", None, None)
        assert after.failed_attempts == {"app@2.8.0": 1}

    def test_a_time_out_that_a_report_has_overtaken_is_not_charged(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        store.observe([seen("A", image="v2")], sequences={"A": ("a", 1)})
        store.record(epoch, decision(facts=Facts(timeouts=(DeviceFact("A", "v2", NOW),))))
        assert observed(store, "A").failed_attempts == {}

    def test_a_rescue_is_written_on_the_device(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        store.observe([seen("A")], sequences={"A": ("a", 1)})
        store.record(epoch, decision(facts=Facts(rescues=(DeviceFact("A", "v2", NOW),))))
        assert observed(store, "A").rescued_from == {"v2": NOW}

    def test_a_transaction_is_all_or_nothing(self, stores: Opener) -> None:
        store = stores()
        with pytest.raises(RuntimeError), store.transaction():
            store.observe([seen("A")], sequences={"A": ("a", 1)})
            with store.transaction():
                store.observe([seen("B")], sequences={"B": ("b", 1)})
            raise RuntimeError("stop")
        assert store.snapshot().devices == ()
        with store.transaction():
            store.observe([seen("A")], sequences={"A": ("a", 1)})
            assert stores().observation("A") is None
        assert stores().observation("A") is not None

    def test_a_failed_part_undoes_the_whole_transaction(self, stores: Opener) -> None:
        store = stores()
        with pytest.raises(TerminalError, match="nothing of it is kept"), store.transaction():
            store.observe([seen("A")], sequences={"A": ("a", 1)})
            with pytest.raises(TerminalError, match="fenced"):
                store.record(999, decision())
        assert store.snapshot().devices == ()

    def test_read_and_write_of_many_threads_lose_nothing(self, stores: Opener) -> None:
        store, other = stores(), stores()
        store.observe([seen("A")], sequences={"A": ("a", 0)})

        def count(mine: Store) -> None:
            for _ in range(10):
                with mine.transaction():
                    found = mine.observation("A")
                    assert found is not None
                    attempts = {"v2": found[0].failed_attempts.get("v2", 0) + 1}
                    mine.observe([seen("A", failed_attempts=attempts)], sequences={"A": ("a", found[2] + 1)})

        threads = [threading.Thread(target=count, args=(mine,)) for mine in (store, store, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert observed(store, "A").failed_attempts == {"v2": 30}


class JournalContract:
    """Decisions, the action journal, and who may write."""

    def test_a_decision_comes_back_in_the_snapshot(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        facts = Facts(
            proofs=(VerdictFact("canary", "v1.4.1", NOW), VerdictFact("canary", "video-ingest@2.8.0", NOW)),
            failures=(VerdictFact("canary", "v1.4.2", NOW),),
            members={"v1.4.2": {"tenth": ("SITE-2", "SITE-1")}},
        )
        tags = {"video-ingest": {"canary": DIGEST, "stable": None}}
        store.record(epoch, decision(facts=facts, tags_set=tags))
        snapshot = stores().snapshot()
        assert stores().facts() == snapshot.model_copy(update={"devices": ()})
        assert [(v.wave, v.key, v.at, v.closed) for v in snapshot.proofs] == [
            ("canary", "v1.4.1", NOW, False),
            ("canary", "video-ingest@2.8.0", NOW, False),
        ]
        assert [v.key for v in snapshot.failures] == ["v1.4.2"]
        assert snapshot.members == {"v1.4.2": {"tenth": ("SITE-1", "SITE-2")}}
        assert snapshot.tags_set == tags

    def test_facts_only_append_and_a_verdict_is_not_doubled(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        for sites, at in ((("S-1",), NOW), (("S-1", "S-2"), NOW + MINUTE)):
            facts = Facts(
                proofs=(VerdictFact("w", "v1", at),),
                failures=(VerdictFact("w", "v1", at),),
                members={"v1": {"w": sites}},
            )
            store.record(epoch, decision(facts=facts))
        snapshot = store.snapshot()
        assert [v.at for v in snapshot.proofs] == [NOW] == [v.at for v in snapshot.failures]
        assert snapshot.members == {"v1": {"w": ("S-1", "S-2")}}

    def test_closing_a_release_keeps_its_verdicts_and_drops_the_rest(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        attempts = {"v2": 3, "v2.1": 1, "app@2": 1}
        store.observe(
            [
                seen("A", failed_attempts=attempts, attempt=tried("v2"), rescued_from={"v2": NOW, "v3": NOW}),
                seen("B", image="v2"),
                seen("C", failed_attempts={"v2": 1, "v3": 1}, attempt=tried("v3")),
            ],
            sequences={"A": ("a", 1), "B": ("b", 1), "C": ("c", 1)},
        )
        opened = Facts(
            proofs=(VerdictFact("w", "v2", NOW), VerdictFact("w", "v3", NOW)),
            failures=(VerdictFact("x", "v2", NOW),),
            members={"v2": {"w": ("S",)}, "v3": {"w": ("S",)}},
        )
        (proposed,) = store.record(epoch, decision(Action(ActionKind.PROPOSE_REVERT, {"image": "v2"}), facts=opened))
        store.finish(epoch, proposed, "done", "", NOW)
        cursor = store.changes_since(0).cursor
        store.record(epoch, decision(facts=Facts(closed=("v2",))))
        snapshot = store.snapshot()
        assert [(v.key, v.closed) for v in snapshot.proofs] == [("v2", True), ("v3", False)]
        assert [(v.key, v.closed) for v in snapshot.failures] == [("v2", True)]
        assert snapshot.members == {"v3": {"w": ("S",)}}
        assert snapshot.proposals == ()
        assert observed(store, "A").failed_attempts == {"v2.1": 1, "app@2": 1}
        assert observed(store, "A").rescued_from == {"v3": NOW}
        assert (observed(store, "A").attempt, observed(store, "C").attempt) == (None, tried("v3"))
        assert [device.name for device in store.changes_since(cursor).devices] == ["A", "C"]
        # Raised again, it starts anew beside its history.
        store.record(epoch, decision(facts=Facts(proofs=(VerdictFact("w", "v2", NOW + MINUTE),))))
        assert [(v.at, v.closed) for v in store.snapshot().proofs if v.key == "v2"] == [
            (NOW, True),
            (NOW + MINUTE, False),
        ]

    def test_an_open_action_is_not_doubled(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        a, b = flash("A", "v2", why="promote", wave="w"), flash("B", "v2")
        first = store.record(epoch, decision(a, b, a))
        assert [intent.action for intent in first] == [a, b]
        assert [intent.commit for intent in first] == ["c0ffee", "c0ffee"]
        again = store.record(epoch, decision(b, flash("C", "v2"), flash("A", "v2", why="repair", wave="w")))
        assert [intent.action.fields["device"] for intent in again] == ["C"]
        assert stores().open_intents() == (*first, *again)
        store.finish(epoch, first[0], "failed", "no such slot", NOW)
        (new,) = store.record(epoch, decision(a))
        assert new.id > again[0].id
        assert [intent.key for intent in store.open_intents()] == [first[1].key, again[0].key, new.key]

    def test_a_try_that_failed_is_counted_and_waits(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        (intent,) = store.record(epoch, decision(flash("A", "v2")))
        for _ in range(2):
            store.retry(epoch, intent, "bucket unreachable", NOW + MINUTE)
        (open_one,) = store.open_intents()
        assert (open_one.attempts, open_one.not_before, open_one.last_error) == (2, NOW + MINUTE, "bucket unreachable")
        store.finish(epoch, intent, "done", "", NOW)
        assert store.open_intents() == ()
        with pytest.raises(TerminalError, match="not open"):
            store.retry(epoch, intent, "late", NOW)

    def test_an_outcome_stands(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        (intent,) = store.record(epoch, decision(flash("A", "v2")))
        store.retry(epoch, intent, "not yet", NOW)
        store.finish(epoch, intent, "done", "assignment 1.1", NOW)
        store.finish(epoch, intent, "done", "", NOW + MINUTE)
        with pytest.raises(TerminalError, match="is done already"):
            store.finish(epoch, intent, "failed", "", NOW)
        with pytest.raises(TerminalError, match="not an outcome"):
            store.finish(epoch, intent, "maybe", "", NOW)
        (row,) = store.journal()
        assert (row["kind"], row["outcome"], row["finishedAt"]) == ("flash", "done", "2026-01-15T01:30:00Z")
        assert (row["detail"], row["error"], row["attempts"]) == ("assignment 1.1", "not yet", "2")

    def test_a_proposal_is_on_record_once_its_action_is_done(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        image = Action(ActionKind.PROPOSE_REVERT, {"image": "v1.4.2"})
        app = Action(ActionKind.PROPOSE_REVERT, {"app": "video-ingest", "release": "2.8.0"})
        failed = Action(ActionKind.PROPOSE_REVERT, {"image": "v1.4.3"})
        intents = store.record(epoch, decision(image, app, failed))
        assert store.snapshot().proposals == ()
        for intent, outcome in zip(intents, ("done", "done", "failed"), strict=True):
            store.finish(epoch, intent, outcome, "", NOW)
        assert store.snapshot().proposals == (
            Proposal(image="v1.4.2", at=NOW),
            Proposal(app="video-ingest", release="2.8.0", at=NOW),
        )

    def test_pruning_drops_what_is_finished_and_old_only(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        old, new, _ = store.record(epoch, decision(flash("A", "v2"), flash("B", "v2"), flash("C", "v2")))
        store.finish(epoch, old, "done", "", NOW - MINUTE)
        store.finish(epoch, new, "done", "", NOW)
        assert store.prune_journal(epoch, NOW) == 1
        assert [row["key"] for row in store.journal()] == ["flash device=C to=v2", "flash device=B to=v2"]
        assert len(store.journal(limit=1)) == 1

    def test_serials_rise_and_epochs_fence(self, stores: Opener) -> None:
        store, other = stores(), stores()
        epoch = store.begin_epoch()
        assert store.next_serial(epoch, 3) + 3 == store.next_serial(epoch, 1)
        (intent,) = store.record(epoch, decision(flash("A", "v2")))
        later = other.begin_epoch()
        assert later > epoch
        writes: list[Callable[[], object]] = [
            lambda: store.record(epoch, decision(flash("B", "v2"))),
            lambda: store.finish(epoch, intent, "done", "", NOW),
            lambda: store.retry(epoch, intent, "x", NOW),
            lambda: store.next_serial(epoch, 1),
            lambda: store.accept_commit(epoch, "beef", NOW),
            lambda: store.save_plan(epoch, "{}"),
            lambda: store.prune_journal(epoch, NOW),
            lambda: store.record(later + 1, decision(flash("B", "v2"))),
        ]
        for write in writes:
            with pytest.raises(TerminalError, match="fenced"):
                write()
        assert store.open_intents() == (intent,)
        assert (store.last_good_commit(), store.last_plan()) == (None, None)
        other.finish(later, intent, "done", "", NOW)
        assert other.raise_epoch(above=40) == 41
        assert other.raise_epoch(above=7) == 42

    def test_assignments_replace_and_never_go_back(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        store.record(epoch, decision(assignments=(assignment("A", epoch, 5), assignment("B", epoch, 6))))
        assert stores().assignment("A") == assignment("A", epoch, 5)
        store.record(epoch, decision(assignments=(assignment("A", epoch, 7, b"next"), assignment("B", epoch, 4))))
        assert store.assignment("A") == assignment("A", epoch, 7, b"next")
        assert store.assignment("B") == assignment("B", epoch, 6)
        assert store.assignment("nobody") is None
        both = {"A": assignment("A", epoch, 7, b"next"), "B": assignment("B", epoch, 6)}
        assert store.assignments(["B", "A", "nobody"]) == both

    def test_conditions_commits_and_the_last_plan_are_kept(self, stores: Opener) -> None:
        store = stores()
        epoch = store.begin_epoch()
        assert (store.last_good_commit(), store.last_plan(), store.conditions()) == (None, None, ())
        first = ConditionRow("StoresReady", "True", "Fine", "all answer", NOW)
        second = ConditionRow("GitReady", "False", "Unreachable", "no route to host", NOW)
        store.record(epoch, decision(conditions=(first, second)))
        store.record(epoch, decision(conditions=(ConditionRow("GitReady", "True", "Fine", "", NOW + MINUTE),)))
        assert stores().conditions() == (ConditionRow("GitReady", "True", "Fine", "", NOW + MINUTE), first)
        for sha in ("aa", "bb", "bb", "aa"):
            store.accept_commit(epoch, sha, NOW)
            assert store.last_good_commit() == sha
        store.save_plan(epoch, '{"kind": "Plan"}')
        store.save_plan(epoch, '{"kind": "Plan", "é": 1}')
        assert stores().last_plan() == '{"kind": "Plan", "é": 1}'

    def test_tokens_name_their_device_until_replaced_or_revoked(self, stores: Opener) -> None:
        store = stores()
        store.add_token("A", "aa", NOW)
        store.add_token("B", "bb", NOW + MINUTE)
        assert [stores().device_of_token(token) for token in ("aa", "bb", "cc", "")] == ["A", "B", None, None]
        assert store.devices_of_tokens(["bb", "cc", "aa", "bb"]) == {"aa": "A", "bb": "B"}
        store.add_token("A", "a2", NOW + MINUTE)
        assert [store.device_of_token(token) for token in ("aa", "a2")] == [None, "A"]
        with pytest.raises(TerminalError, match="B's already"):
            store.add_token("A", "bb", NOW)
        assert store.tokens() == {"A": NOW + MINUTE, "B": NOW + MINUTE}
        assert [store.revoke_token("A"), store.revoke_token("A")] == [True, False]
        assert store.device_of_token("a2") is None


class StoreContract(ObservationContract, JournalContract, EventContract):
    """All of it."""
