"""What happened is told once, whatever is killed, and what did not happen is not told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconciler.controller.chronicle import Chronicle, Watched
from reconciler.controller.conditions import Conditions, Finding, Type
from reconciler.controller.events import Seen, Told, baseline, happened
from reconciler.controller.gather import World
from reconciler.model.desired import Desired
from reconciler.model.events import Event, EventKind
from reconciler.model.observed import DeviceObservation, Health, Proposal, Snapshot, Verdict
from reconciler.model.plan import AppStatus, DeviceFact, Facts, Plan, VerdictFact, WaveState, WaveStatus
from reconciler.planner.live import Live
from reconciler.ports import AssignmentRow, ConditionRow, Decision, PublicKey, TerminalError
from reconciler.simulate.memory_store import MemoryStore

T0 = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


def wave(name: str, state: WaveState, image: str | None = "v1.4.2", **more: Any) -> WaveStatus:
    values: dict[str, Any] = {"sites": 1, "devices": 2, "on_release": 2, "healthy": 2, "failed": 0, "offline": 0}
    values |= {"in_flight": 0, "soak_ends_at": None} | more
    return WaveStatus(name, image, state, **values)


def condition(kind: Type, status: str, reason: str, at: datetime = T0) -> ConditionRow:
    return ConditionRow(kind.value, status, reason, "because", at)


def seen(*waves: WaveStatus, at: datetime = T0, commit: str | None = "c1", **more: Any) -> Seen:
    values: dict[str, Any] = {"flagged": (), "recorded": Snapshot(), "conditions": ()} | more
    return Seen(at, commit, waves, **values)


def kinds(events: Iterable[Event]) -> list[str]:
    return [event.kind.value for event in events]


def after(*steps: Seen) -> tuple[Event, ...]:
    """Events of the last step, where the others were told."""
    told = Told()
    events: tuple[Event, ...] = ()
    for step in steps:
        events, told = happened(told, step)
        assert Told.from_json(told.to_json()) == told
    return events


def proof(name: str, release: str = "v1.4.2", at: datetime = T0) -> Verdict:
    return Verdict(wave=name, image=release, at=at)


# ---------------------------------------------------------------- the difference


def test_nothing_new_is_nothing_to_tell() -> None:
    one = seen(wave("lab", WaveState.ROLLING), conditions=(condition(Type.GIT_READY, "False", "Unreachable"),))
    assert after(one, one) == ()


def test_a_wave_opens_when_it_begins_to_move_and_a_pause_opens_it_no_second_time() -> None:
    waiting, rolling = seen(wave("lab", WaveState.WAITING)), seen(wave("lab", WaveState.ROLLING))
    assert after(waiting) == ()
    (opened,) = after(waiting, rolling)
    assert (opened.kind, opened.wave, opened.release, opened.commit) == ("wave-opened", "lab", "v1.4.2", "c1")
    assert opened.message == "wave 'lab' begins to move to v1.4.2: 2 devices at 1 site"
    assert after(waiting, rolling, seen(wave("lab", WaveState.PAUSED)), rolling) == ()


def test_going_back_is_told_as_that() -> None:
    (opened,) = after(seen(wave("lab", WaveState.ROLLING_BACK, "v1.4.1")))
    assert (opened.kind, opened.reason) == ("wave-opened", "going-back") and "goes back to v1.4.1" in opened.message


def test_a_release_that_is_raised_again_opens_again() -> None:
    first, other = seen(wave("lab", WaveState.ROLLING)), seen(wave("lab", WaveState.ROLLING, "v1.4.1"), commit="c2")
    again = after(first, other, seen(wave("lab", WaveState.ROLLING), commit="c3"))
    assert [(event.kind, event.key) for event in again] == [("wave-opened", "lab v1.4.2 c3")]


def test_a_soak_that_begins_again_is_told_again_with_its_new_end() -> None:
    soaking = seen(wave("lab", WaveState.SOAKING, soak_ends_at=T0 + DAY))
    broken = seen(wave("lab", WaveState.ROLLING))
    later = seen(wave("lab", WaveState.SOAKING, soak_ends_at=T0 + 2 * DAY))
    assert kinds(after(soaking)) == ["wave-opened", "wave-soaking"]
    (again,) = after(soaking, broken, later)
    assert again.kind == "wave-soaking" and "2026-01-17T01:30:00Z" in again.message


def test_a_proof_is_told_from_the_record_and_the_wave_is_complete_after_it() -> None:
    done = wave("lab", WaveState.COMPLETE)
    soaking = seen(wave("lab", WaveState.SOAKING, soak_ends_at=T0))
    # The tick that establishes the proof has it in its facts alone.
    assert after(soaking, seen(done)) == ()
    soaked, complete = after(soaking, seen(done), seen(done, recorded=Snapshot(proofs=(proof("lab"),))))
    assert (soaked.kind, soaked.at, complete.kind) == ("wave-soaked", T0, "wave-complete")


def test_a_wave_with_stragglers_is_complete_when_they_have_come() -> None:
    recorded = Snapshot(proofs=(proof("lab"),))
    some = seen(wave("lab", WaveState.COMPLETE, on_release=1), recorded=recorded)
    assert "wave-complete" not in kinds(after(some))
    assert kinds(after(some, seen(wave("lab", WaveState.COMPLETE), recorded=recorded))) == ["wave-complete"]


def test_an_app_is_told_by_its_own_name() -> None:
    status = AppStatus("2.8.0", WaveState.SOAKING, 2, 2, 0, T0 + DAY)
    told = after(seen(wave("lab", WaveState.IDLE, None, apps={"video-ingest": status})))
    assert [(event.kind, event.release) for event in told] == [
        ("wave-opened", "video-ingest@2.8.0"),
        ("wave-soaking", "video-ingest@2.8.0"),
    ]


def test_a_failed_gate_and_its_revert_are_told() -> None:
    failure = Verdict(wave="lab", image="v1.4.2", at=T0 + MINUTE)
    recorded = Snapshot(failures=(failure,), proposals=(Proposal(image="v1.4.2", at=T0 + 2 * MINUTE),))
    # Devices that go back at once hide the wave's failed state: the record does not.
    before = seen(wave("lab", WaveState.ROLLING))
    failed, proposed = after(before, seen(wave("lab", WaveState.ROLLING_BACK), recorded=recorded))
    assert (failed.kind, failed.wave, failed.at) == ("gate-failed", "lab", T0 + MINUTE)
    assert (proposed.kind, proposed.release, proposed.at) == ("revert-proposed", "v1.4.2", T0 + 2 * MINUTE)


def test_a_device_is_flagged_once_and_recovers_once() -> None:
    rolling = wave("lab", WaveState.ROLLING)
    flagged = seen(rolling, flagged=(DeviceFact("a", "v1.4.2", T0),))
    moved = seen(rolling, flagged=(DeviceFact("a", "v1.4.2", T0 + MINUTE),))
    (flag,) = after(seen(rolling), flagged)
    assert (flag.kind, flag.device, flag.release) == ("device-flagged", "a", "v1.4.2")
    assert after(seen(rolling), flagged, moved) == (), "since when it counts as failed may move; the flag stands"
    (well,) = after(seen(rolling), flagged, moved, seen(rolling))
    assert (well.kind, well.reason) == ("device-recovered", "recovered")
    (left,) = after(seen(rolling), flagged, seen(wave("lab", WaveState.WAITING, "v1.4.3")))
    assert (left.kind, left.reason) == ("device-recovered", "not-asked")


def test_conditions_are_told_when_they_turn_and_not_while_nothing_is_known() -> None:
    rows = [
        condition(Type.GIT_READY, "Unknown", "NotYetKnown"),
        condition(Type.GIT_READY, "True", "UpToDate"),
        condition(Type.GIT_READY, "False", "Unreachable", T0 + MINUTE),
        condition(Type.GIT_READY, "True", "UpToDate", T0 + 2 * MINUTE),
    ]
    steps = [seen(conditions=(row, condition(Type.PROGRESSING, row.status, "AtWork"))) for row in rows]
    assert [len(after(*steps[: number + 1])) for number in range(4)] == [0, 0, 1, 1]
    assert after(*steps)[0].message == "GitReady is True (UpToDate): because"
    # Stalled is well when it is False.
    assert after(seen(conditions=(condition(Type.STALLED, "False", "NothingStalled"),))) == ()
    assert kinds(after(seen(conditions=(condition(Type.STALLED, "True", "NeedsAttention"),)))) == ["condition-changed"]


def test_a_refused_head_is_told_once_and_not_as_a_condition_too() -> None:
    invalid = condition(Type.FLEET_VALID, "False", "Invalid")
    refused = seen(conditions=(invalid,), refused=("f" * 40, "Invalid", "it has 2 errors"))
    (told,) = after(refused)
    assert (told.kind, told.commit, told.reason, told.message) == (
        "commit-refused",
        "f" * 40,
        "Invalid",
        "it has 2 errors",
    )
    assert after(refused, refused) == ()
    mended = seen(conditions=(condition(Type.FLEET_VALID, "True", "InForce"),))
    assert kinds(after(refused, mended)) == ["condition-changed"]


def test_without_a_plan_waves_and_flags_stay_as_they_were_told() -> None:
    flagged = seen(wave("lab", WaveState.ROLLING), flagged=(DeviceFact("a", "v1.4.2", T0),))
    nothing = Seen(T0, None, None, None, None, ())
    assert after(flagged, nothing) == () and after(flagged, nothing, flagged) == ()


def test_what_stood_on_record_before_is_no_news() -> None:
    recorded = Snapshot(proofs=(proof("lab"),), failures=(proof("all"),), proposals=(Proposal(image="v1.4.2", at=T0),))
    now = seen(wave("lab", WaveState.COMPLETE), recorded=recorded)
    events, _ = happened(baseline(now), now)
    assert events == ()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"commit": 1}'])
def test_a_memory_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Told.from_json(text)


# ---------------------------------------------------------------- the teller


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Bench:
    """A store that outlives its tellers, and what the loop would hand them."""

    store: MemoryStore = field(default_factory=MemoryStore)
    now: datetime = T0
    waves: tuple[WaveStatus, ...] = ()
    flagged: tuple[DeviceFact, ...] = ()
    refused: tuple[str, str] | None = None
    watched: Watched = field(default_factory=Watched)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.epoch = self.store.begin_epoch()
        self.restart()

    def restart(self) -> None:
        """Another process: nothing in memory."""
        self.chronicle = Chronicle(self.store, self.log, self.watched)
        self.conditions = Conditions(self.store.conditions(), self.now, lambda *_, **__: None)

    def log(self, event: str, **fields: object) -> None:
        self.lines.append(f"{event} {fields}")

    def tick(self, facts: Facts | None = None, *, plan: bool = True) -> tuple[Event, ...]:
        """A tick: decide (the facts, in a transaction), then record and tell."""
        commit = self.store.last_good_commit()
        desired: Any = Desired.__new__(Desired)
        object.__setattr__(desired, "commit", commit)
        world = World(self.now, desired, self.store.facts(), (), True, self.store)
        made = Plan(self.now, commit, (), (), self.waves, facts or Facts(), self.flagged)
        known, planned = (world, made) if plan else (None, None)
        self.chronicle.begin(self.epoch, known, planned, self.conditions)
        if facts is not None:
            self.store.record(self.epoch, Decision(self.now, commit, facts))
        return self.chronicle.tell(self.epoch, known, planned, self.conditions, self.refused, self.now, Live())


def story(bench: Bench) -> Iterator[None]:
    """A rollout, a tick a step: what is done at a step can be done again."""
    bench.store.accept_commit(bench.epoch, "a" * 40, T0)
    bench.waves = (wave("lab", WaveState.WAITING),)
    bench.tick()
    yield
    bench.store.accept_commit(bench.epoch, "b" * 40, T0 + MINUTE)
    bench.waves = (wave("lab", WaveState.SOAKING, soak_ends_at=T0 + DAY),)
    bench.tick()
    yield
    bench.waves = (wave("lab", WaveState.COMPLETE),)
    bench.tick(Facts(proofs=(VerdictFact("lab", "v1.4.2", T0 + DAY),)))
    yield
    bench.tick()
    yield
    bench.waves = (wave("lab", WaveState.COMPLETE), wave("all", WaveState.ROLLING))
    bench.flagged = (DeviceFact("SITE-1-1", "v1.4.2", T0 + DAY),)
    bench.tick()
    yield
    bench.tick(Facts(failures=(VerdictFact("all", "v1.4.2", T0 + DAY),)))
    yield
    bench.flagged = ()
    bench.refused = ("c" * 40, "it has an error")
    bench.tick()
    yield


WRITES = ("record", "add_events", "accept_commit")


def played(at: int | None) -> tuple[list[tuple[str, str]], int]:
    """The story, killed before or after one of the writes, and started again at the step that was cut off."""
    bench = Bench()
    passed = 0

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def step() -> None:
            nonlocal passed
            passed += 1
            if passed == at:
                raise Killed

        def guard(*args: Any, **kwargs: Any) -> Any:
            step()
            result = call(*args, **kwargs)
            step()
            return result

        return guard

    for name in WRITES:
        setattr(bench.store, name, guarded(getattr(bench.store, name)))
    done = 0
    while True:
        steps = story(bench)
        try:
            # Steps that were done are played again as the world they left; their facts stand on record already.
            for number, _ in enumerate(steps):
                done = max(done, number + 1)
            break
        except Killed:
            bench.restart()
            bench.waves, bench.flagged, bench.refused = (), (), None
            steps = _from(bench, done)
            for _ in steps:
                pass
            break
    events = bench.store.events(limit=1000)
    numbers = [event.id or 0 for event in events]
    assert numbers == sorted(set(numbers))
    return [(event.kind.value, event.key) for event in events], passed


def _from(bench: Bench, done: int) -> Iterator[None]:
    """The story from the step that was cut off: the steps before it are only set up, not ticked."""
    tick, accept = bench.tick, bench.store.accept_commit
    bench.tick = lambda *_, **__: ()  # type: ignore[method-assign]
    bench.store.accept_commit = lambda *_: None  # type: ignore[method-assign]
    steps = story(bench)
    if done == 0:
        bench.tick, bench.store.accept_commit = tick, accept  # type: ignore[method-assign]
    for number, _ in enumerate(steps, 1):
        if number == done:
            bench.tick, bench.store.accept_commit = tick, accept  # type: ignore[method-assign]
        yield


def test_a_kill_between_any_two_steps_doubles_and_loses_nothing() -> None:
    wanted, boundaries = played(None)
    assert Counter(kind for kind, _ in wanted) == {
        "commit-accepted": 2,
        "wave-opened": 2,
        "wave-soaking": 1,
        "wave-soaked": 1,
        "wave-complete": 1,
        "device-flagged": 1,
        "gate-failed": 1,
        "device-recovered": 1,
        "commit-refused": 1,
    }
    assert boundaries > 20
    for at in range(1, boundaries + 1):
        found, _ = played(at)
        assert sorted(found) == sorted(wanted), f"killed at boundary {at} of {boundaries}"


def test_a_tick_that_has_nothing_to_tell_writes_nothing() -> None:
    bench = Bench(waves=(wave("lab", WaveState.ROLLING),))
    assert len(bench.tick()) == 1
    bench.store.add_events = None  # type: ignore[assignment]
    assert bench.tick() == ()


def test_before_there_is_a_plan_conditions_are_told_once() -> None:
    bench = Bench()
    bench.conditions.set(Finding(Type.GIT_READY, False, "Unreachable", "no route"), T0)
    assert kinds(bench.tick(plan=False)) == ["condition-changed"]
    assert bench.tick(plan=False) == ()
    bench.waves = (wave("lab", WaveState.COMPLETE),)
    assert bench.tick() == (), "and not again when there is one; what is complete by then was so before"


def test_every_commit_that_came_into_force_is_told() -> None:
    bench = Bench(waves=(wave("lab", WaveState.IDLE, None),))
    bench.store.accept_commit(bench.epoch, "a" * 40, T0)
    bench.tick()
    for letter in "bcd":
        bench.store.accept_commit(bench.epoch, letter * 40, T0)
    assert [(event.commit or "")[0] for event in bench.tick()] == ["b", "c", "d"]


def test_a_flag_says_where_and_which_checks_are_worse() -> None:
    bench = Bench(waves=(wave("lab", WaveState.ROLLING),), flagged=(DeviceFact("a", "v1.4.2", T0),))
    device = DeviceObservation(
        name="a", site="SITE-1", health=Health.CRITICAL, health_since=T0, checks_worse=("camera", "vpn")
    )
    bench.store.observe([device], sequences={})
    flag = bench.tick()[-1]
    assert (flag.site, flag.reason) == ("SITE-1", "critical")
    assert flag.message == (
        "a failed on v1.4.2: its healthcheck is critical since 2026-01-15T01:30:00Z; worse than before the update: camera, vpn"
    )


def test_a_flag_is_one_line_whatever_a_device_calls_its_checks() -> None:
    bench = Bench(waves=(wave("lab", WaveState.ROLLING),), flagged=(DeviceFact("a", "v1.4.2", T0),))
    named = ("camera\n- b has recovered", "\x1b[2J\u202evpn")
    bench.store.observe([DeviceObservation(name="a", health=Health.CRITICAL, checks_worse=named)], sequences={})
    said = bench.tick()[-1].message
    assert said.isprintable() and said.endswith("update: camera - b has recovered, [2J vpn")


def test_keys_are_told_of_a_month_a_week_and_a_day_before_they_expire_and_when_they_have() -> None:
    key = PublicKey("F" * 40, "release", T0 + 40 * DAY)
    bench = Bench(watched=Watched(lambda: [("release", key), ("assignment", PublicKey("A" * 40, "x", None))]))
    said = []
    for day in (0, 11, 12, 34, 39, 41, 42):
        bench.now = T0 + day * DAY
        bench.restart()
        said.append([event.reason for event in bench.tick()])
    assert said == [[], ["30-days-left"], [], ["7-days-left"], ["1-day-left"], ["expired"], []]


def test_keys_that_cannot_be_looked_at_stop_nothing() -> None:
    def fail() -> Any:
        raise TerminalError("no gpg here")

    bench = Bench(watched=Watched(fail), waves=(wave("lab", WaveState.ROLLING),))
    assert kinds(bench.tick()) == ["wave-opened"]
    assert any("no gpg here" in line for line in bench.lines)


def test_an_assignment_that_expires_under_a_device_in_flight_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    rows = [
        AssignmentRow(name, 1, 1, b"", (), 0, b"", b"", T0 + timedelta(hours=hours))
        for name, hours in (("soon", 5), ("later", 7))
    ]
    bench.store.record(bench.epoch, Decision(T0, None, Facts(), assignments=tuple(rows)))
    monkeypatch.setattr(Live, "marked", lambda _self: iter(("soon", "later", "none")))
    events = bench.tick()
    assert [(event.kind, event.device) for event in events] == [(EventKind.ASSIGNMENT_EXPIRING, "soon")]
    assert bench.tick() == ()


def test_what_is_too_old_is_dropped() -> None:
    bench = Bench(watched=Watched(kept=DAY), waves=(wave("lab", WaveState.ROLLING),))
    bench.tick()
    bench.now = T0 + DAY + MINUTE
    bench.restart()
    bench.tick()
    assert bench.store.events() == []
    # What was told stays told.
    bench.restart()
    assert bench.tick() == ()


def test_a_damaged_memory_tells_nothing_twice() -> None:
    bench = Bench(waves=(wave("lab", WaveState.ROLLING),))
    (told,) = bench.tick()
    bench.store.add_events(bench.epoch, (), "{damaged")
    bench.restart()
    assert bench.tick() == () and bench.store.events() == [replace(told)]
    assert any("unreadable" in line for line in bench.lines)
