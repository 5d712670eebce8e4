"""What the simulator's machine adds to what every machine promises (tests/agent/test_hardware_contract.py)."""

from __future__ import annotations

from datetime import timedelta

from reconciler.simulate.hardware import Condition, MemoryHardware
from tests.simulate.machines import START, Instant, digest


def machine() -> MemoryHardware:
    made = MemoryHardware("SITE-1-1", Instant())
    made.install({"a": ("v0", digest("v0")), "b": ("v1", digest("v1"))}, "b", "v0", START)
    return made


def test_the_truth_of_a_slot_is_what_it_holds_and_not_what_is_recorded() -> None:
    made = machine()
    assert made.booted_digest() == digest("v1")
    assert list(made.next_boots()) == [(digest("v1"), True)]
    made.forget_slot("a")
    made.begin_image("a", "v2")
    assert made.slots_held["a"].image is None
    made.end_image("a", digest("other"))
    made.record_slot("a", "v2", digest("v2"), 1)
    made.arm("a")
    assert list(made.next_boots()) == [(digest("other"), False), (digest("v1"), True)]
    assert made.is_default_sound()
    made.spoil("b")
    assert made.booted_digest() is None
    assert not made.is_default_sound()


def test_a_half_written_slot_does_not_boot() -> None:
    made = machine()
    made.forget_slot("a")
    made.begin_image("a", "v2")
    made.arm("a")
    assert made.boot() == "b"


def test_conditions_hold_where_and_when_they_say() -> None:
    made, hour = machine(), timedelta(hours=1)
    made.install_app("video-ingest", digest("1.0"), START + hour)
    time = made.time

    def shows(condition: Condition, at: timedelta) -> bool:
        time.at, made.conditions = START + at, (condition,)
        return any(check.name == "x" for check in made.healthcheck())

    assert shows(Condition("x"), hour)
    assert shows(Condition("x", image=digest("v1")), hour)
    assert not shows(Condition("x", image=digest("v0")), hour)
    assert not shows(Condition("x", app=digest("2.0")), hour)
    since = Condition("x", since=START + hour, until=START + 3 * hour)
    assert [shows(since, hours * hour) for hours in range(5)] == [False, True, True, False, False]
    ripe = Condition("x", app=digest("1.0"), after_s=7200)
    assert [shows(ripe, hours * hour) for hours in range(1, 5)] == [False, False, True, True]
    time.at, made.conditions = START, (since, ripe)
    assert made.health_changes_at() == START + hour
    time.at = START + hour
    assert made.health_changes_at() == START + 3 * hour
    time.at = START + 3 * hour
    assert made.health_changes_at() is None


def test_the_worst_of_two_conditions_on_one_check_shows() -> None:
    made = machine()
    for order in ((0, 1), (1, 0)):
        both = (Condition("x", "warning"), Condition("x", "critical", "worse"))
        made.conditions = tuple(both[number] for number in order)
        assert [check.status for check in made.healthcheck() if check.name == "x"] == ["critical"]
