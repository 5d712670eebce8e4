"""The fold of reports: one rule a test, then properties over histories that arrive late, doubled and out of order."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.controller.observe import fold
from reconciler.model.observed import NO_CONFIG, DeviceObservation, Health, Snapshot
from reconciler.protocol.report import Check, Report, Slot

T0 = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
STALE_S = 900
D1, D2 = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def slots(a: str | None, b: str | None, good: tuple[bool, bool] = (True, True)) -> dict[str, Slot]:
    return {"a": Slot(a, D1 if a else None, good[0]), "b": Slot(b, D2 if b else None, good[1])}


BASE = Report(
    device="SITE-2847-1",
    site="SITE-2847",
    boot_id="boot-1",
    sequence=1,
    booted="a",
    slots=slots("v1.4.1", "v1.4.0"),
    image="v1.4.1",
    previous="v1.4.0",
    health="ok",
    checks=(Check("disk", "ok"), Check("vpn", "ok")),
    apps={"video-ingest": D1},
    config=D1,
)


def report(sequence: int, **changes: Any) -> Report:
    return dataclasses.replace(BASE, sequence=sequence, **changes)


def told(*steps: tuple[float, Report], start: DeviceObservation | None = None) -> DeviceObservation:
    """Fold reports, each with its instant of receipt in seconds after T0."""
    seen = start
    for seconds, item in steps:
        seen = fold(seen, item, at(seconds), STALE_S)
    assert seen is not None
    return seen


def marked(seen: DeviceObservation, **marks: Any) -> DeviceObservation:
    return seen.model_copy(update=marks)


def test_a_first_report_starts_every_run() -> None:
    seen = told((0, report(1)))
    assert (seen.image, seen.image_since, seen.previous_image, seen.inactive_slot) == ("v1.4.1", T0, "v1.4.0", "v1.4.0")
    assert (seen.health, seen.health_since, seen.last_seen) == (Health.OK, T0, T0)
    assert seen.apps["video-ingest"].since == T0
    assert seen.config == D1 and not seen.conflict


def test_an_observation_survives_the_snapshot() -> None:
    seen = told((0, report(1, attempts={"v1.4.2": 1}, serial=(3, 7))), (60, report(1, boot_id="boot-2")))
    text = Snapshot(devices=(seen,)).model_dump_json(by_alias=True)
    assert Snapshot.model_validate_json(text).devices == (seen,)


@pytest.mark.parametrize("silence, unbroken", [(STALE_S, True), (STALE_S + 0.001, False)])
def test_exactly_stale_after_is_still_fresh(silence: float, unbroken: bool) -> None:
    seen = told((0, report(1)), (silence, report(2)))
    assert seen.health_since == (T0 if unbroken else at(silence))
    assert seen.image_since == T0, "silence ends the run of health, not the fact that the image runs since"


@pytest.mark.parametrize(
    "first, then, unbroken",
    [
        ("ok", "ok", True),
        ("ok", "warning", True),
        ("warning", "ok", True),
        ("ok", "critical", False),
        ("critical", "critical", True),
        ("critical", "warning", False),
        ("critical", "unknown", False),
        ("unknown", "unknown", True),
    ],
)
def test_a_run_of_health_breaks_when_good_turns_bad_or_bad_changes(first: str, then: str, unbroken: bool) -> None:
    seen = told((0, report(1, health=first)), (60, report(2, health=then)))
    assert seen.health_since == (T0 if unbroken else at(60))


@pytest.mark.parametrize("health, unbroken", [("ok", False), ("warning", False), ("critical", True), ("unknown", True)])
def test_a_reboot_ends_a_good_run_and_not_a_bad_one(health: str, unbroken: bool) -> None:
    seen = told((0, report(1, health=health)), (60, report(2, health=health, boot_id="boot-2")))
    assert seen.health_since == (T0 if unbroken else at(60))


def test_a_new_image_starts_both_runs_and_a_critical_one_too() -> None:
    new = report(2, image="v1.4.2", booted="b", slots=slots("v1.4.1", "v1.4.2"), previous="v1.4.1", health="critical")
    seen = told((0, report(1, health="critical")), (60, new))
    assert (seen.image_since, seen.health_since) == (at(60), at(60))
    assert seen.inactive_slot == "v1.4.1"


def test_a_trial_is_not_yet_the_image() -> None:
    trial = report(
        2,
        boot_id="boot-2",
        image="v1.4.2",
        booted="b",
        phase="trial",
        target="v1.4.2",
        health="unknown",
        slots=slots("v1.4.1", "v1.4.2", (True, False)),
    )
    start = marked(told((0, report(1))), updating_to="v1.4.2", updating_since=T0)
    seen = told((60, trial), start=start)
    assert (seen.image, seen.health, seen.health_since) == ("v1.4.1", Health.OK, T0)
    assert seen.updating_to == "v1.4.2" and seen.last_seen == at(60)
    good = dataclasses.replace(trial, sequence=3, phase="idle", health="ok", slots=slots("v1.4.1", "v1.4.2"))
    seen = told((90, good), start=seen)
    assert (seen.image, seen.image_since, seen.health_since) == ("v1.4.2", at(90), at(90))
    assert seen.updating_to is None and seen.updating_since is None


def test_on_the_way_back_from_a_trial_it_is_not_the_image_either() -> None:
    back = report(
        3,
        boot_id="boot-2",
        image="v1.4.2",
        booted="b",
        phase="rebooting",
        health="critical",
        attempts={"v1.4.2": 1},
        slots=slots("v1.4.1", "v1.4.2", (True, False)),
    )
    start = marked(told((0, report(1))), updating_to="v1.4.2", updating_since=T0)
    seen = told((60, back), start=start)
    assert (seen.image, seen.image_since, seen.health, seen.health_since) == ("v1.4.1", T0, Health.OK, T0)
    assert (seen.updating_to, seen.failed_attempts, seen.rebooting_since) == (None, {"v1.4.2": 1}, at(60))


@pytest.mark.parametrize(("told_last", "taken"), [((3, 12), False), ((3, 9), True), (None, True)])
def test_what_it_does_by_an_older_word_than_it_was_told_is_not_in_flight(
    told_last: tuple[int, int] | None, taken: bool
) -> None:
    # It was called off while it fetched, and hears of that with the answer to this very report.
    writes = report(2, phase="writing", target="v1.4.2", serial=(3, 9))
    seen = fold(told((0, report(1))), writes, at(60), STALE_S, told_last)
    assert (seen.updating_to is not None) is taken


def test_a_fall_back_leaves_the_old_images_record_and_counts_once() -> None:
    start = marked(told((0, report(1))), updating_to="v1.4.2", updating_since=T0)
    back = report(2, boot_id="boot-3", attempts={"v1.4.2": 1}, slots=slots("v1.4.1", "v1.4.2", (True, False)))
    seen = told((60, back), (120, dataclasses.replace(back, sequence=3)), start=start)
    assert seen.failed_attempts == {"v1.4.2": 1}
    assert seen.attempt_failed_at == at(60)
    assert seen.updating_to is None and seen.image_since == T0
    assert seen.inactive_slot is None, "a slot that fell back is nothing to switch to"


def test_a_late_outcome_of_a_timed_out_attempt_is_not_charged_again() -> None:
    timed_out = marked(told((0, report(1))), failed_attempts={"v1.4.2": 1})
    seen = told((60, report(2, attempts={"v1.4.2": 1})), start=timed_out)
    assert seen.failed_attempts == {"v1.4.2": 1}
    again = marked(seen, updating_to="v1.4.2", updating_since=at(60))
    seen = told((120, report(3, attempts={"v1.4.2": 2})), start=again)
    assert seen.failed_attempts == {"v1.4.2": 2}


def test_a_release_that_was_closed_is_counted_from_its_next_attempt() -> None:
    closed = marked(told((0, report(1, attempts={"v1.4.2": 3}))), failed_attempts={})
    assert told((60, report(2, attempts={"v1.4.2": 3})), start=closed).failed_attempts == {}
    assert told((60, report(2, attempts={"v1.4.2": 4})), start=closed).failed_attempts == {"v1.4.2": 1}


def test_a_device_installed_anew_keeps_what_it_was_charged() -> None:
    seen = told((0, report(1, attempts={"v1.4.2": 2})), (60, report(1, boot_id="boot-2", attempts={})))
    seen = told((120, report(2, boot_id="boot-2", attempts={"v1.4.2": 1})), start=seen)
    assert seen.failed_attempts["v1.4.2"] == 3


def test_an_update_ends_only_at_its_own_outcome() -> None:
    start = marked(told((0, report(1))), updating_to="v1.4.2", updating_since=T0)
    for late in (report(2), report(2, attempts={"v1.4.0": 1}), report(2, phase="writing", target="v1.4.2")):
        assert told((60, late), start=start).updating_to == "v1.4.2"


def test_an_update_that_nothing_here_started_is_marked() -> None:
    seen = told((0, report(1)), (60, report(2, phase="writing", target="v1.4.2")))
    assert (seen.updating_to, seen.updating_since) == ("v1.4.2", at(60))
    prefetch = told((0, report(1)), (60, report(2, phase="prefetching", target="v1.4.2")))
    assert prefetch.updating_to is None, "prefetching is not in flight"


def test_an_update_judged_timed_out_is_not_marked_again() -> None:
    start = marked(told((0, report(1))), failed_attempts={"v1.4.2": 1})
    assert told((60, report(2, phase="writing", target="v1.4.2")), start=start).updating_to is None


def test_rebooting_runs_from_its_first_report_to_the_next_phase() -> None:
    seen = told((0, report(1)), (60, report(2, phase="rebooting")), (90, report(3, phase="rebooting")))
    assert seen.rebooting_since == at(60)
    assert told((120, report(4, boot_id="boot-2")), start=seen).rebooting_since is None


def test_health_before_the_update_counts_from_the_change_of_image() -> None:
    before = (Check("disk", "critical"), Check("vpn", "ok"))
    writing = report(2, phase="writing", target="v1.4.2", checks_before=before)
    seen = told((0, report(1, checks_before=(Check("disk", "ok"),))), (60, writing))
    assert seen.health_before_update is Health.OK, "the image is still the old one"
    done = report(3, image="v1.4.2", checks_before=before, checks=(Check("disk", "critical"), Check("vpn", "critical")))
    seen = told((120, done), start=seen)
    assert seen.health_before_update is Health.CRITICAL
    assert seen.checks_worse == ("vpn",)


def test_a_restart_ends_when_the_digest_moves_or_the_attempt_fails() -> None:
    marks = {"restarting_since": T0, "restarting_app": "video-ingest"}
    start = marked(told((0, report(1))), **marks)
    assert told((60, report(2)), start=start).restarting_app == "video-ingest"
    moved = told((60, report(2, apps={"video-ingest": D2})), start=start)
    assert (moved.restarting_app, moved.restarting_since, moved.apps["video-ingest"].since) == (None, None, at(60))
    failed = told((60, report(2, attempts={"video-ingest@2.8.0": 1})), start=start)
    assert failed.restarting_app is None and failed.failed_attempts == {"video-ingest@2.8.0": 1}


def test_a_device_that_says_it_has_no_configuration_reports_another_one() -> None:
    seen = told((0, report(1, config=None)))
    assert seen.config == NO_CONFIG
    start = marked(seen, configuring_since=T0)
    assert told((60, report(2, config=None)), start=start).configuring_since == T0
    assert told((60, report(2, config=D1)), start=start).configuring_since is None


def test_configuring_ends_when_the_digest_changes() -> None:
    start = marked(told((0, report(1))), configuring_since=T0)
    assert told((60, report(2)), start=start).configuring_since == T0
    assert told((60, report(2, config=D2)), start=start).configuring_since is None


def test_late_and_doubled_reports_return_the_same_object() -> None:
    seen = told((0, report(5)), (60, report(6, boot_id="boot-2")))
    for late in (report(6, boot_id="boot-2"), report(5), report(4), report(3, boot_id="boot-2")):
        assert fold(seen, late, at(61), STALE_S) is seen


def test_a_device_that_counts_from_the_start_after_a_new_installation_is_heard() -> None:
    seen = told((0, report(500)), (60, report(1, boot_id="boot-2", image="v1.4.2")))
    assert seen.image == "v1.4.2" and not seen.conflict


def test_two_devices_under_one_name_conflict_and_the_first_values_stand() -> None:
    seen = told((0, report(500)), (10, report(5, boot_id="other")), (30, report(501, image="v9")))
    assert seen.conflict and seen.image == "v1.4.1"
    seen = told((40, report(6, boot_id="other")), (70, report(502)), start=seen)
    assert seen.conflict


def test_a_conflict_with_far_apart_numbers_is_found_after_stale_after() -> None:
    steps: list[tuple[float, Report]] = [(0, report(5)), (10, report(1000, boot_id="other"))]
    for n in range(1, 40):
        steps += [(n * 60, report(5 + n)), (n * 60 + 10, report(1000 + n, boot_id="other"))]
    assert told(*steps).conflict


def test_a_conflict_ends_when_one_of_the_two_falls_silent() -> None:
    seen = told((0, report(500)), (10, report(5, boot_id="other")), (30, report(501)))
    alone = [(30 + n * 60, report(6 + n, boot_id="other")) for n in range(1, 20)]
    ended = told(*alone, start=seen)
    assert not ended.conflict and ended.boot is not None and ended.boot.id == "other"
    # The displaced one is left alone instead: the name becomes its again.
    taken = told((2000, report(502)), start=seen)
    assert not taken.conflict and taken.boot is not None and taken.boot.id == "boot-1"


def test_a_clock_set_back_is_followed_and_breaks_the_run() -> None:
    seen = told((86400, report(1)), (0, report(2)))
    assert (seen.last_seen, seen.health_since) == (T0, T0)
    jitter = told((10, report(1)), (9, report(2)))
    assert (jitter.last_seen, jitter.health_since) == (at(10), at(10))


# ---------------------------------------------------------------- properties

HISTORY = st.lists(
    st.tuples(
        st.integers(1, 1200),
        st.sampled_from(["ok", "warning", "critical", "unknown"]),
        st.booleans(),
        st.sampled_from(["idle", "writing", "rebooting", "trial"]),
    ),
    min_size=1,
    max_size=12,
)


def _history(steps: list[tuple[int, str, bool, str]]) -> list[tuple[float, Report]]:
    """One device's true history: numbers rise over reboots."""
    seconds, boot, out = 0.0, 1, []
    for number, (gap, health, reboots, phase) in enumerate(steps):
        seconds += gap
        boot += reboots
        out.append((seconds, report(number + 1, boot_id=f"boot-{boot}", health=health, phase=phase, target="v1.4.2")))
    return out


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(HISTORY, st.data())
def test_doubled_reports_change_nothing(steps: list[tuple[int, str, bool, str]], data: st.DataObject) -> None:
    history = _history(steps)
    doubled = []
    for index, item in enumerate(history):
        doubled.append(item)
        first = max(0, index - 1)
        echo = history[data.draw(st.integers(first, index))]
        # Of the two boots that are remembered: what was under way at most.
        if echo[1].boot_id in (item[1].boot_id, history[first][1].boot_id):
            doubled.append((item[0], echo[1]))
    assert told(*doubled) == told(*history)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(HISTORY, st.randoms(use_true_random=False))
def test_reordering_within_stale_after_claims_no_conflict_and_ends_on_the_newest_number(
    steps: list[tuple[int, str, bool, str]], random: Any
) -> None:
    history = [(seconds / 100, item) for seconds, item in _history(steps)]
    boots = sorted({item.boot_id for _, item in history}, key=lambda name: int(name[5:]))[-2:]
    arrivals = [item for _, item in history if item.boot_id in boots]
    rest = arrivals[1:]
    random.shuffle(rest)
    seen = told(*((float(n), item) for n, item in enumerate([arrivals[0], *rest])))
    assert not seen.conflict
    assert seen.boot is not None and (seen.boot.id, seen.boot.sequence) == (boots[-1], arrivals[-1].sequence)
    assert seen.last_seen is not None
    assert seen.health_since is None or seen.health_since <= seen.last_seen


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(HISTORY)
def test_a_run_never_begins_before_the_reports_that_prove_it(steps: list[tuple[int, str, bool, str]]) -> None:
    """The run at the end, walked backwards by hand, against the fold's `healthSince`."""
    history = [(seconds, dataclasses.replace(item, phase="idle")) for seconds, item in _history(steps)]
    seen = told(*history)
    good = {"ok", "warning"}
    begin, (last, end) = history[-1][0], history[-1]
    for (earlier, old), (later, new) in zip(reversed(history[:-1]), reversed(history[1:]), strict=True):
        same = old.health == new.health or {old.health, new.health} <= good
        rebooted = old.boot_id != new.boot_id and new.health in good
        if later - earlier > STALE_S or not same or rebooted:
            break
        begin = earlier
    assert seen.health_since == at(begin)
    assert seen.last_seen == at(last) and seen.health == end.health


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_attempts_never_fall_and_never_exceed_what_was_reported_and_charged(counts: list[int]) -> None:
    seen: DeviceObservation | None = None
    charged = 0
    for number, count in enumerate(counts):
        seen = fold(seen, report(number + 1, attempts={"v1.4.2": count}), at(number), STALE_S)
        assert seen.failed_attempts.get("v1.4.2", 0) >= charged
        charged = seen.failed_attempts.get("v1.4.2", 0)
    rises = sum(max(0, new - old) for old, new in zip([0, *counts], counts, strict=False))
    assert charged == rises
