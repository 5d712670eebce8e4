"""An explanation ends with the cause: each reason of the ladder, down to the device, the line of git or the store behind it."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from reconciler.model.observed import Snapshot
from reconciler.model.plan import Reason
from reconciler.model.scalars import parse_instant
from reconciler.planner import Columns, Roster, State, decide, render
from reconciler.planner.explain import AmbiguousName, UnknownName, explain
from reconciler.planner.explain_parts import DeviceExplanation, Part
from reconciler.planner.explain_site import SiteExplanation
from reconciler.planner.explain_values import Link, arrows, elapsed, names
from reconciler.planner.explain_wave import WaveExplanation
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.planner.windows import micros
from reconciler.repo.scenario_read import read_scenario
from reconciler.repo.scenario_run import Scenario
from tests.planner.fleets import Case, cases

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted((TESTS / "scenarios").glob("*.yaml")) + sorted((TESTS / "contract" / "scenarios").glob("*.yaml"))


@cache
def scenario(stem: str) -> tuple[Scenario, State]:
    path = next(path for path in FILES if path.stem == stem)
    given, _ = read_scenario(path.name, path.read_bytes())
    return given, planned(given)


def planned(given: Scenario | Case) -> State:
    roster = Roster(given.desired)
    return decide(roster, Columns.bind(roster, given.snapshot), micros(given.now))


def device(state: State, name: str, observed: Any = None) -> DeviceExplanation:
    said = explain(state, name, "device", observed)
    assert isinstance(said, DeviceExplanation)
    return said


def wave(state: State, name: str) -> WaveExplanation:
    said = explain(state, name, "wave")
    assert isinstance(said, WaveExplanation)
    return said


def site(state: State, name: str) -> SiteExplanation:
    said = explain(state, name, "site")
    assert isinstance(said, SiteExplanation)
    return said


def part(state: State, name: str, subject: str, observed: Any = None) -> Part:
    return next(part for part in device(state, name, observed).parts if part.subject == subject)


def at(text: str) -> datetime:
    return parse_instant(text)


# scenario, device, track, reason, the last link (kind, name, code), a part of what is said
CASES: list[tuple[str, str, str, Reason, tuple[str, str, str], str]] = [
    (
        "two-devices-that-claim-one-name-are-held", "SITE-0001-1", "image", Reason.IDENTITY_CONFLICT,
        ("device", "SITE-0001-1", "identity-conflict"), "claimed by two devices",
    ),
    (
        "a-suspended-site-is-held", "SITE-0002-1", "image", Reason.SUSPENDED,
        ("site", "SITE-0002", "suspended"), "site SITE-0002 suspended in git",
    ),
    (
        "a-restart-in-flight-keeps-the-image-waiting", "SITE-0001-1", "video-ingest", Reason.IN_PROGRESS,
        ("device", "SITE-0001-1", "in-progress"), "restarting video-ingest",
    ),
    (
        "a-restart-in-flight-keeps-the-image-waiting", "SITE-0001-1", "image", Reason.SERIALISED,
        ("device", "SITE-0001-1", "in-progress"), "restarting video-ingest",
    ),
    (
        "a-flash-goes-before-a-new-configuration", "SITE-0001-1", "configuration", Reason.SERIALISED,
        ("device", "SITE-0001-1", "serialised"), "is flashed to v2 now, and that goes first",
    ),
    (
        "a-tag-that-does-not-exist-yet-is-made", "SITE-0001-1", "video-ingest", Reason.SERIALISED,
        ("tag", "canary", "serialised"), "is moved in this plan",
    ),
    (
        "a-device-that-does-not-report-is-held", "SITE-0002-1", "image", Reason.OFFLINE,
        ("device", "SITE-0002-1", "offline"), "silent for",
    ),
    (
        "a-device-on-an-image-that-git-does-not-know-is-held-and-the-others-go", "SITE-0002-1", "image",
        Reason.UNKNOWN_IMAGE, ("device", "SITE-0002-1", "unknown-image"), "which git does not name",
    ),
    (
        "a-device-ahead-of-its-wave-stays-while-the-wave-that-took-it-still-wants-the-release", "SITE-0002-1", "image",
        Reason.AHEAD, ("wave", "canary", "ahead"), "took site SITE-0002 for v2 and still wants it",
    ),
    (
        "nothing-moves-to-a-withdrawn-release", "SITE-0001-1", "image", Reason.WITHDRAWN,
        ("release", "v2", "withdrawn"), "withdrawn in git: leaks memory",
    ),
    (
        "33-per-cent-of-three-devices-tolerates-no-failure", "SITE-0004-1", "image", Reason.GATE_FAILED,
        ("device", "SITE-0003-1", "failed"), "critical for 72 h 30 min",
    ),
    (
        "paused-goes-before-frozen-and-frozen-before-a-waiting-wave", "SITE-0002-1", "image", Reason.PAUSED,
        ("fleet", "fleet", "paused"), "the fleet is paused in git",
    ),
    (
        "a-paused-wave-is-shown-as-paused", "SITE-0001-1", "image", Reason.PAUSED,
        ("wave", "all", "paused"), "wave all is paused in git",
    ),
    (
        "a-change-downward-to-a-release-that-never-ran-takes-the-gates", "SITE-0001-1", "image", Reason.FROZEN,
        ("fleet", "fleet", "frozen"), "the fleet is frozen",
    ),
    (
        "critical-for-one-second-less-than-criticalfor-has-not-failed", "SITE-0002-1", "image", Reason.WAVE_WAITS,
        ("device", "SITE-0001-1", "pending"), "critical for 9 min",
    ),
    (
        "a-release-is-made-while-its-waves-still-wait", "SITE-0002-1", "image", Reason.WAVE_WAITS,
        ("wave", "canary", "wave-waits"), "wave canary asks for v1, and has no proof for v2",
    ),
    (
        "a-tolerated-silence-never-shortens-the-soak", "SITE-0003-1", "image", Reason.SOAKING,
        ("device", "SITE-0002-1", "offline"), "silent for 14 h 30 min",
    ),
    (
        "a-device-that-fell-silent-after-its-update-holds-the-rest-of-its-wave", "SITE-0003-1", "image",
        Reason.GATE_UNRESOLVED, ("device", "SITE-0002-1", "offline"), "maxOffline is 0",
    ),
    (
        "a-critical-device-charges-what-changed-last", "SITE-0002-1", "image", Reason.GATE_UNRESOLVED,
        ("device", "SITE-0001-1", "neither"), "none of its 1 devices is healthy on it",
    ),
    (
        "a-rollback-that-failed-as-often-as-allowed-is-held", "SITE-0001-1", "image", Reason.ATTEMPTS_EXHAUSTED,
        ("device", "SITE-0001-1", "attempts-exhausted"), "3 of 3 attempts used",
    ),
    (
        "a-broken-artifact-gets-no-action", "SITE-0001-1", "image", Reason.IMAGE_NOT_READY,
        ("artifact", "v2", "image-not-ready"), "artifact v2 is broken",
    ),
    (
        "a-rollback-to-a-missing-artifact-is-held-and-nothing-is-rebuilt", "SITE-0001-1", "image",
        Reason.NO_ROLLBACK_IMAGE, ("artifact", "v1", "no-rollback-image"), "never built anew",
    ),
    (
        "with-tagdrift-report-a-moved-tag-is-held-and-nothing-restarts-under-it", "SITE-0001-1", "video-ingest",
        Reason.TAG_DRIFT, ("tag", "canary", "tag-drift"), "moved by somebody else",
    ),
    (
        "in-new-york-a-window-that-the-clock-skips-is-no-window-that-night", "SITE-0001-1", "image", Reason.NO_WINDOW,
        ("device", "SITE-0001-1", "no-window"), "daylight saving removes the one of 2026-03-08",
    ),
    (
        "a-closed-window-goes-before-a-budget", "SITE-0001-1", "image", Reason.OUTSIDE_WINDOW,
        ("device", "SITE-0001-1", "outside-window"), "outside the window 02:00 to 04:00 UTC, it is 12:00 UTC there",
    ),
    (
        "a-device-in-flight-keeps-the-others-of-its-site-waiting", "SITE-0001-2", "image", Reason.BUDGET,
        ("device", "SITE-0001-1", "in-progress"), "one device of a site at a time",
    ),
    (
        "a-restart-in-flight-uses-up-the-budget", "SITE-0002-1", "video-ingest", Reason.BUDGET,
        ("device", "SITE-0001-1", "in-progress"), "1 in flight or starting of 1 (maxInFlight: 1)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("stem", "name", "subject", "reason", "last", "said"), CASES, ids=[f"{case[3]}: {case[0]}" for case in CASES]
)
def test_the_chain_ends_with_the_cause(
    stem: str, name: str, subject: str, reason: Reason, last: tuple[str, str, str], said: str
) -> None:
    given, state = scenario(stem)
    found = part(state, name, subject, given.snapshot)
    assert found.decision == reason.value
    end = found.chain[-1]
    assert (end.kind, end.name, end.code) == last
    assert said in " ← ".join(link.sentence for link in found.chain)


def test_every_reason_has_a_case() -> None:
    assert {case[3] for case in CASES} == set(Reason)


def holds_of(state: State, name: str, subject: str) -> dict[str, datetime | None]:
    """Reason → until of the plan's own holds that speak of a device, on a track."""
    out = {}
    found = device(state, name)
    for hold in render(state).holds:
        mine = name in hold.devices or (not hold.devices and hold.wave == found.wave)
        track = hold.app or ("image" if hold.image is not None else "configuration")
        if mine and track == subject:
            out[hold.reason.value] = hold.until
    return out


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_instants_and_reasons_are_the_plans(path: Path) -> None:
    """Of every device of every scenario: the first link says what the plan's hold says, and no link lies about time."""
    given, state = scenario(path.stem)
    for name in state.roster.device_names:
        for found in device(state, name, given.snapshot).parts:
            check(found, state, name)


def check(found: Part, state: State, name: str) -> None:
    if found.decision in ("settled", "start"):
        return
    assert found.chain[0].code == found.decision
    assert len(found.chain) > 1, f"{name}: {found.decision} without a cause"
    holds = holds_of(state, name, found.subject)
    assert holds[found.decision] == found.until == found.chain[0].until
    depth = 0
    for link in found.chain:
        assert link.depth <= depth + 1
        depth = link.depth
        # Freezes that touch are one, so that a chain may hold one that has not begun.
        assert link.since is None or micros(link.since) <= state.now or link.code == Reason.FROZEN.value
        assert link.until is None or micros(link.until) > state.now
        assert not link.devices or set(link.devices) <= state.roster.row_of.keys()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_whatever_is_observed_everything_can_be_explained(case: Case) -> None:
    state = planned(case)
    for name in state.roster.device_names:
        said = device(state, name, case.snapshot)
        for found in said.parts:
            check(found, state, name)
        assert all(line.isprintable() for line in said.lines())
    for name in state.roster.site_names:
        found_site = site(state, name)
        assert (found_site.wave is None) == (found_site.membership.rule == "none")
        json.dumps(found_site.to_dict())
    for one in state.roster.waves:
        told = wave(state, one.spec.name)
        assert told.lines()
        for track, of in zip((n for n in state.roster.tracks if not n or one.ask(n) >= 0), told.parts, strict=True):
            judged = state.ground.gates[track].judged[one.index]
            assert sum(map(len, of.devices.values())) == judged.devices
            assert len(of.devices["healthy"]) == judged.healthy


# ---------------------------------------------------------------- the sentence, and what would change it


def test_the_chain_reads_as_one_line() -> None:
    _, state = scenario("a-tolerated-silence-never-shortens-the-soak")
    assert arrows(part(state, "SITE-0003-1", "image").chain) == (
        "SITE-0003-1 is not on v2 ← wave all waits ← wave canary soaks v2, 14 h 30 min of 48 h"
        " ← SITE-0002-1 silent for 14 h 30 min"
    )


def test_a_soak_says_when_it_opens_and_that_nothing_is_earlier() -> None:
    _, state = scenario("a-tolerated-silence-never-shortens-the-soak")
    lines = device(state, "SITE-0003-1").lines()
    start = lines.index("    what would change it")
    assert [line.strip() for line in lines[start + 1 : start + 3]] == [
        "opens at 2026-01-16T12:00:00Z if wave canary stays healthy",
        "earlier: nothing",
    ]


def test_a_failure_names_the_checks_that_got_worse() -> None:
    given, state = scenario("a-check-that-got-worse-is-charged-though-the-device-was-critical-before")
    chain = part(state, "SITE-0003-1", "image", given.snapshot).chain
    assert "(worse than before the update: cameras)" in chain[-1].statement
    assert chain[-1].since == at("2026-01-10T02:20:00Z")


ILL: dict[str, Any] = {
    "checks": [
        {"name": "cameras", "before": "ok", "now": "critical", "message": "no frames " * 18, "since": "2026-01-10T02:20:00Z"},
        {"name": "vpn", "now": "unknown", "since": "2026-01-10T02:30:00Z"},
        {"name": "a\nb", "before": "warning", "now": "critical", "message": "x\x1b[2J", "since": "2026-01-10T02:40:00Z"},
    ],
    "checksWorse": ["a\nb", "cameras", "disk", "vpn"],
    "attempt": {"release": "v3", "checks": [{"name": "boot", "now": "critical", "since": "2026-01-09T02:40:00Z"}]},
}  # fmt: skip


def ill(name: str) -> tuple[Snapshot, State]:
    """The scenario of a check that got worse, where `name` says which and what they say."""
    given, _ = scenario("a-check-that-got-worse-is-charged-though-the-device-was-critical-before")
    tree = given.snapshot.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    tree["devices"] = [each | (ILL if each["name"] == name else {}) for each in tree["devices"]]
    snapshot, roster = Snapshot.model_validate(tree), Roster(given.desired)
    return snapshot, decide(roster, Columns.bind(roster, snapshot), micros(given.now))


def test_a_device_lists_its_worse_checks_with_what_they_say() -> None:
    snapshot, state = ill("SITE-0002-1")
    said = device(state, "SITE-0002-1", snapshot)
    lines = said.lines()
    assert lines[1] == "  checks that are worse than before the last update"
    assert lines[2] == f"    cameras: ok before, critical since 2026-01-10T02:20:00Z: {'no frames ' * 18}"
    assert lines[3] == "    vpn: not there before, unknown since 2026-01-10T02:30:00Z"
    assert lines[4] == "    'a\\nb': warning before, critical since 2026-01-10T02:40:00Z: 'x\\x1b[2J'"
    assert lines[5:7] == [
        "  checks that were worse during the last attempt at v3",
        "    boot: not there before, critical since 2026-01-09T02:40:00Z",
    ]
    assert all(line.isprintable() for line in lines)
    told = json.loads(json.dumps(said.to_dict()))
    assert told["checks"] == [{"before": None, "message": ""} | each for each in ILL["checks"]]
    assert told["attempt"]["release"] == "v3" and told["attempt"]["checks"][0]["name"] == "boot"
    assert any(
        line == "  checks that are worse than before the last update"
        for line in explain(state, "SITE-0002", None, snapshot).lines()
    )


def test_a_device_says_what_its_clock_is_and_what_it_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = {"code": "clock-unsynchronised", "reason": "x\x1b[2J", "serial": [1, 7], "since": "2026-01-10T02:20:00Z"}
    monkeypatch.setitem(ILL, "clock", {"synchronised": False, "aheadS": -90})
    monkeypatch.setitem(ILL, "refusals", [refusal])
    snapshot, state = ill("SITE-0002-1")
    said = device(state, "SITE-0002-1", snapshot)
    lines = [line for line in said.lines() if "clock" in line]
    assert lines[0].startswith("  clock: 90 s behind the recorder's, and its time service does not say")
    assert lines[1] == "  it says clock-unsynchronised, since 2026-01-10T02:20:00Z: 'x\\x1b[2J'"
    told = json.loads(json.dumps(said.to_dict()))
    assert (told["clock"], told["refusals"]) == ({"synchronised": False, "aheadS": -90}, [refusal])
    assert device(state, "SITE-0003-1", snapshot).to_dict()["clock"] is None


def test_who_waits_is_told_what_the_failed_device_says() -> None:
    snapshot, state = ill("SITE-0002-1")
    last = part(state, "SITE-0003-1", "image", snapshot).chain[-1].statement
    short = ("no frames " * 18)[:79]
    assert f'(worse than before the update: cameras: "{short}…", vpn, ' in last
    assert last.endswith(" and 1 more)") and last.isprintable()


def test_the_plan_is_the_same_whatever_the_checks_say() -> None:
    _, state = scenario("a-check-that-got-worse-is-charged-though-the-device-was-critical-before")
    _, worse = ill("SITE-0002-1")
    assert render(worse).to_dict() == render(state).to_dict()


def test_a_window_tells_both_clocks_and_daylight_saving() -> None:
    _, state = scenario("in-new-york-a-window-that-the-clock-skips-is-no-window-that-night")
    change = part(state, "SITE-0001-1", "image").chain[-1].changes[0]
    assert change.at == at("2026-03-09T06:15:00Z")
    assert change.what == (
        "the window opens at 2026-03-09T06:15:00Z (2026-03-09 02:15 EDT), after the clocks there go forward by 1 h"
    )


def test_what_is_in_flight_says_when_it_will_have_timed_out() -> None:
    _, state = scenario("a-restart-in-flight-uses-up-the-budget")
    last = part(state, "SITE-0002-1", "video-ingest").chain[-1]
    assert (last.since, last.until) == (at("2026-01-15T11:59:30Z"), at("2026-01-15T13:59:30Z"))
    assert [change.at for change in last.changes] == [None, last.until]
    assert last.instants() == " (since 2026-01-15T11:59:30Z, times out 2026-01-15T13:59:30Z)"


def test_where_git_asks_is_named_by_its_keys() -> None:
    _, state = scenario("a-paused-wave-is-shown-as-paused")
    found = part(state, "SITE-0001-1", "image")
    assert found.ask is not None
    assert found.ask.where == ("spec", "waves", 0, "image")
    ask = found.chain[-1].ask
    assert ask is not None
    assert (ask.kind, ask.where) == ("Waves", ("spec", "waves", 0, "paused"))


def test_a_pin_is_said_with_its_why() -> None:
    _, state = scenario("a-pin-to-a-withdrawn-release-is-held")
    found = part(state, "SITE-0002-1", "image")
    assert found.because is not None
    assert found.because.startswith("the site pins it in git: ")
    assert found.ask is not None
    assert (found.ask.kind, found.ask.name, found.ask.where) == ("Site", "SITE-0002", ("spec", "pin", "image"))


# ---------------------------------------------------------------- waves and sites


def test_a_wave_says_how_far_its_soak_is_and_when_the_next_may_begin() -> None:
    _, state = scenario("a-tolerated-silence-never-shortens-the-soak")
    found = wave(state, "canary").parts[0]
    assert (found.soaked, found.soak_until) == ("14 h 30 min of 48 h", at("2026-01-16T12:00:00Z"))
    assert (found.next.wave, found.next.at) == ("all", at("2026-01-16T12:00:00Z"))
    assert found.devices["silent"] == ("SITE-0002-1",)


def test_a_wave_that_waits_says_for_whom() -> None:
    _, state = scenario("critical-for-one-second-less-than-criticalfor-has-not-failed")
    found = wave(state, "all").parts[0]
    assert [link.name for link in found.chain] == ["all", "canary", "SITE-0001-1"]


def test_a_site_says_why_it_is_in_its_wave() -> None:
    _, state = scenario("a-tolerated-silence-never-shortens-the-soak")
    listed, drawn = site(state, "SITE-0001").membership, site(state, "SITE-0003").membership
    assert (listed.rule, drawn.rule) == ("listed", "drawn")
    assert drawn.place == 1 + state.roster.site_names.index("SITE-0003")
    assert drawn.of == len(state.roster.site_names)
    assert f"place {drawn.place} of {drawn.of}" in drawn.statement


def test_a_site_taken_on_record_says_for_which_release() -> None:
    found = []
    for path in FILES:
        _, state = scenario(path.stem)
        found += [m for name in state.roster.site_names if (m := site(state, name).membership).rule == "recorded"]
    assert found
    assert all(one.release is not None and one.release.replace("@", " ") in one.statement for one in found)


# ---------------------------------------------------------------- names and words


def test_an_unknown_name_tells_the_names_of_all_kinds() -> None:
    _, state = scenario("a-suspended-site-is-held")
    with pytest.raises(UnknownName, match="'nobody' is no device, site or wave of this fleet") as told:
        explain(state, "nobody")
    assert set(told.value.known) == {"device", "site", "wave"}
    with pytest.raises(UnknownName, match="'all' is no device of this fleet"):
        explain(state, "all", "device")


def test_a_name_that_two_kinds_have_must_be_said_which() -> None:
    given, _ = scenario("a-suspended-site-is-held")
    spec = given.desired.sites["SITE-0001"].model_copy(update={"devices": ("SITE-0001",)})
    roster = Roster(replaced(given, {**given.desired.sites, "SITE-0001": spec}))
    state = decide(roster, Columns.bind(roster, given.snapshot), micros(given.now))
    with pytest.raises(AmbiguousName, match="a device and of a site; say which with --kind"):
        explain(state, "SITE-0001")
    assert isinstance(explain(state, "SITE-0001", "site"), SiteExplanation)
    assert isinstance(explain(state, "SITE-0001", "device"), DeviceExplanation)


def replaced(given: Scenario, sites: Any) -> Any:
    from dataclasses import replace

    return replace(given.desired, sites=sites)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (3600, "1 h"), (3660, "61 min"), (7200, "2 h"), (9000, "2 h 30 min"),
     (48 * 3600, "48 h"), (4 * 86400, "4 d"), (4 * 86400 + 7200, "4 d 2 h")],
)  # fmt: skip
def test_lengths_of_time_are_said_plainly(seconds: int, said: str) -> None:
    assert elapsed(seconds * 1_000_000) == said


def test_many_names_are_cut_with_their_count() -> None:
    assert names(["a", "b"]) == "a and b"
    assert names([str(n) for n in range(5000)]) == "5000 devices (0, 1, 2 and 4997 more)"
    link = Link("device", "a", "offline", "silent", devices=tuple(str(n) for n in range(5000)))
    assert len(link.to_dict({})["devices"]) == 5000
    assert len(link.sentence) < 100


def test_the_image_track_comes_first() -> None:
    _, state = scenario("a-suspended-site-is-held")
    assert device(state, "SITE-0001-1").parts[IMAGE_TRACK].subject == "image"
