"""A live plan equals the plan, across reports, the stores' changes, and commits that ask for another fleet."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.planner import plan
from reconciler.planner.live import Later, Live
from tests.planner.fleets import Case, cases
from tests.planner.test_step import EXAMPLES, TICK, changed


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(cases(), cases(), st.lists(TICK, min_size=1, max_size=2), st.data())
def test_a_live_plan_equals_the_plan(case: Case, other: Case, ticks: list[dict[str, Any]], data: st.DataObject) -> None:
    live = Live()
    shared = case.snapshot.model_copy(update={"devices": ()})
    first = live.advance(case.desired, case.snapshot.devices, shared, case.now)
    assert first.to_json() == plan(case.desired, case.snapshot, case.now).to_json()
    for tick in ticks:
        case, heard, moved = changed(case, tick, data.draw)
        made = live.advance(case.desired, heard, case.snapshot if moved else None, case.now)
        assert made.to_json() == plan(case.desired, case.snapshot, case.now).to_json()
    # Another commit: other sites, waves and releases. What is known of devices that stay is carried over.
    names = {name for spec in other.desired.sites.values() for name in spec.devices}
    kept = tuple(device for device in case.snapshot.devices if device.name in names)
    later = case.now + timedelta(minutes=5)
    snapshot = case.snapshot.model_copy(update={"devices": kept})
    made = live.advance(other.desired, (), None, later)
    assert made.to_json() == plan(other.desired, snapshot, later).to_json()


def test_what_is_read_later_is_made_once() -> None:
    made: list[int] = []

    def make() -> tuple[int, ...]:
        made.append(1)
        return (1, 2)

    later = Later(make)
    assert not made
    assert list(later) == [1, 2] and later[0] == 1 and later[0:1] == (1,) and len(later) == 2
    assert made == [1]
