"""What is kept of a device's clock and of its refusals: nothing while all is well, and no more changes than there are."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.adapters.sql_observations import to_document
from reconciler.controller.told import RIGHT_WITHIN_S
from reconciler.model.observed import MOST_REFUSALS, ClockSeen
from reconciler.protocol.report import DeviceClock, Refusal, Report
from tests.controller.test_observe import T0, at, report, told


def _by(seconds: float, ahead: float, *, synchronised: bool = True) -> tuple[float, Report]:
    """A report at so many seconds, of a device whose clock is ahead by so many."""
    clock = DeviceClock(at(seconds + ahead), synchronised, 0)
    return seconds, report(int(seconds) + 1, clock=clock)


def test_a_clock_that_is_right_or_not_told_of_costs_nothing() -> None:
    assert told((0, report(1))).clock is None
    seen = told(_by(0, 0.4), _by(60, -float(RIGHT_WITHIN_S)))
    assert seen.clock is None
    assert "clock" not in to_document(seen)
    assert "refusals" not in to_document(seen)


@pytest.mark.parametrize("ahead", [11, -11, 86400 * 365])
def test_a_clock_that_is_off_is_told_of_until_it_is_right(ahead: int) -> None:
    assert told(_by(0, ahead)).clock == ClockSeen(synchronised=True, ahead_s=ahead)
    assert told(_by(0, ahead), _by(60, 1)).clock is None


def test_one_that_is_not_synchronised_is_told_of_however_near_it_is() -> None:
    assert told(_by(0, 0, synchronised=False)).clock == ClockSeen(synchronised=False, ahead_s=0)


def test_an_agent_that_tells_nothing_any_more_leaves_nothing() -> None:
    assert told(_by(0, 600), (60, report(61))).clock is None


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_what_trembles_on_its_way_does_not_change_the_record(offsets: list[float]) -> None:
    first = told(_by(0, 600))
    seen = told(_by(0, 600), *(_by(60 * (n + 1), 600 + off) for n, off in enumerate(offsets)))
    assert seen.clock == first.clock


def test_refusals_say_since_when_and_the_newest_are_kept() -> None:
    def refusing(second: float, *codes: str) -> tuple[float, Report]:
        items = tuple(Refusal(code, f"because of {code}" * 40, (1, 7)) for code in codes)
        return second, dataclasses.replace(report(int(second) + 1), refusals=items)

    seen = told(refusing(0, "clock-unsynchronised"), refusing(60, "clock-unsynchronised", "not-fetched"))
    assert [(item.code, item.since, item.serial) for item in seen.refusals] == [
        ("clock-unsynchronised", T0, (1, 7)),
        ("not-fetched", T0 + timedelta(seconds=60), (1, 7)),
    ]
    assert len(seen.refusals[0].reason) == 200
    many = told(refusing(0, *(f"code-{number}" for number in range(9))))
    assert [item.code for item in many.refusals] == [f"code-{number}" for number in range(9 - MOST_REFUSALS, 9)]
    assert told(refusing(0, "not-fetched"), (60, report(61))).refusals == ()
