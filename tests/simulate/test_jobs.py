"""Long work in virtual time: durations, order, what a kill leaves, and how failures end."""

from __future__ import annotations

from datetime import timedelta

import pytest

from reconciler.model.plan import Action, ActionKind
from reconciler.ports import Intent, TerminalError, TransientError
from reconciler.simulate import timings
from reconciler.simulate.jobs import VirtualJobs
from reconciler.simulate.memory_ports import VirtualClock
from tests.adapters.test_images import NOW


def intent(number: int, kind: ActionKind) -> Intent:
    action = Action(kind, {"image": f"v{number}"})
    return Intent(number, action.key, action, "c0ffee", NOW)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def test_work_is_done_when_its_time_has_passed_one_at_a_time_and_oldest_first() -> None:
    clock, done = VirtualClock(NOW), []
    jobs = VirtualJobs(clock.now)
    for number, kind in enumerate((ActionKind.BUILD, ActionKind.RETAG, ActionKind.SIGN, ActionKind.PUBLISH), 1):
        jobs.submit(intent(number, kind), lambda number=number: done.append(number) or str(number))  # type: ignore[misc]
    jobs.submit(intent(1, ActionKind.BUILD), lambda: pytest.fail("taken twice"))
    assert jobs.busy and jobs.collect() == [] and jobs.next_at() == NOW + seconds(timings.BUILD_S)
    clock.at += seconds(timings.BUILD_S - 1)
    assert jobs.collect() == [] and done == []
    clock.at += seconds(1)
    # What takes no time waited for the build, and is done with it.
    assert [(end.intent.id, end.detail) for end in jobs.collect()] == [(1, "1"), (2, "2")]
    assert not jobs.holds(intent(2, ActionKind.RETAG)) and jobs.holds(intent(3, ActionKind.SIGN))
    assert jobs.next_at() == NOW + seconds(timings.BUILD_S + timings.SIGN_S)
    clock.at += seconds(timings.SIGN_S + timings.PUBLISH_S)
    assert [end.intent.id for end in jobs.collect()] == [3, 4]
    assert not jobs.busy and jobs.next_at() is None
    jobs.submit(intent(5, ActionKind.SIGN), lambda: "")
    assert jobs.next_at() == clock.at + seconds(timings.SIGN_S)


def test_an_error_is_an_outcome() -> None:
    clock = VirtualClock(NOW)
    jobs = VirtualJobs(clock.now)

    def fail(error: Exception) -> str:
        raise error

    for number, error in enumerate((TransientError("down"), TerminalError("never"), KeyError("defect")), 1):
        jobs.submit(intent(number, ActionKind.RETAG), lambda error=error: fail(error))  # type: ignore[misc]
    found = [end.error for end in jobs.collect()]
    assert [type(error) for error in found] == [TransientError, TerminalError, TerminalError]
    assert "unexpected KeyError" in str(found[2])
