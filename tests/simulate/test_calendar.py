"""The calendar that a forecast gives for a merge is what the simulator then does: the real loop and the real agents, to the minute.

Fleets and commits are drawn; both engines begin with the same record. Where nobody is silent or ill they agree to the second, in
every word to start, arrival, proof and time-out.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from reconciler.simulate.course import Course, Run
from reconciler.simulate.course import Merge as Push
from reconciler.simulate.forecast import forecast
from reconciler.simulate.run import simulate
from reconciler.simulate.start import Silent
from reconciler.simulate.trace import Entry, Kind, Trace, calendar_of
from tests.simulate.documents import changes, files_of
from tests.simulate.fleets import Merge, merges

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "8"))
MANY = int(os.environ.get("PROPERTY_EXAMPLES", "40"))
LIMIT = timedelta(days=30)
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
TOLD = (Kind.TOLD, Kind.ARRIVED, Kind.LEFT, Kind.PROVEN, Kind.STOPPED, Kind.TIMED_OUT)


def simulated(merge: Merge, silent: Silent = "stay") -> Run:
    """The merge as the simulator plays it: pushed at its instant onto a branch whose head is in force."""
    push = Push(merge.at, changes(merge.before, merge.after))
    course = Course(files_of(merge.before), merge.at, (push,), merge.observed, silent=silent, limit=LIMIT)
    return simulate(course)


def forecasted(merge: Merge, silent: Silent = "stay") -> Trace:
    return forecast(merge.after, merge.observed, merge.at, before=merge.before, silent=silent, limit=LIMIT)


def _minute(at: datetime | None) -> str | None:
    return None if at is None else f"{at:%Y-%m-%d %H:%M}"


def to_the_minute(entry: Entry) -> dict[str, Any]:
    """An entry of the calendar as it is shown, with the reasons that hold it."""
    return {
        "wave": entry.wave,
        "release": entry.key,
        "devices": entry.devices,
        "arrived": entry.arrived,
        "told": _minute(entry.first_told_at),
        "there": _minute(entry.last_arrived_at),
        "proven": _minute(entry.proven_at),
        "stopped": _minute(entry.stopped_at),
        "held": sorted({held.reason for held in entry.held}),
    }


def to_the_second(trace: Trace) -> list[tuple[str, ...]]:
    """What was told, arrived, proven, stopped and timed out, and when."""
    return sorted(
        (event.at.isoformat(), event.kind.value, event.wave or "", event.device or "", event.key or "")
        for event in trace.events
        if event.kind in TOLD
    )


def check(merge: Merge, silent: Silent = "stay") -> tuple[Trace, Trace]:
    ahead, run = forecasted(merge, silent), simulated(merge, silent)
    assert [to_the_minute(entry) for entry in calendar_of(ahead)] == [to_the_minute(entry) for entry in run.calendar]
    return ahead, run.trace


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=QUIET)
@given(merges(healthy=True))
def test_of_a_healthy_fleet_the_forecast_is_what_the_simulator_does_to_the_second(merge: Merge) -> None:
    ahead, played = check(merge)
    assert to_the_second(ahead) == to_the_second(played)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=QUIET)
@given(merges())
def test_of_a_spoiled_fleet_the_calendar_is_what_the_simulator_does_to_the_minute(merge: Merge) -> None:
    check(merge)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=QUIET)
@given(merges())
def test_of_a_fleet_whose_silent_devices_answer_the_calendar_is_what_the_simulator_does(merge: Merge) -> None:
    check(merge, "return")


@pytest.mark.vm
@pytest.mark.full
@settings(max_examples=MANY, deadline=None, suppress_health_check=QUIET)
@given(merges())
def test_of_many_fleets_the_calendar_is_what_the_simulator_does_to_the_minute(merge: Merge) -> None:
    check(merge)
    check(merge, "return")
