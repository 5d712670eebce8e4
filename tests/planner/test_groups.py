"""Holds as groups say what a plan's holds say, and count the same devices."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings

from reconciler.model.plan import Hold
from reconciler.planner import Columns, Roster, decide
from reconciler.planner.groups import Codes, held, keys_of
from reconciler.planner.render import holds_in_order
from reconciler.planner.state import State
from reconciler.planner.windows import micros
from tests.planner.fleets import Case, cases
from tests.planner.test_step import EXAMPLES


def said_of(hold: Hold) -> str:
    return str((hold.reason, hold.wave, hold.image, hold.app, hold.until, hold.message))


def counted(state: State) -> dict[int, dict[int, int]]:
    out = {}
    for number in (*state.roster.tracks, -1):
        track = state.config if number < 0 else state.tracks[number]
        codes = Codes(track.reason, track.starts, track.target)
        keys = keys_of(state.roster, number, codes, state.places.wave_of, slice(None))
        found, sums = np.unique(keys, return_counts=True)
        out[number] = dict(zip(found.tolist(), sums.tolist(), strict=True))
    return out


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(cases())
def test_groups_say_what_a_plans_holds_say(case: Case) -> None:
    state = decide(Roster(case.desired), Columns.bind(Roster(case.desired), case.snapshot), micros(case.now))
    plain = holds_in_order(state)
    groups = held(state, counted(state))
    assert sorted(map(said_of, plain)) == sorted(said_of(one.hold) for one in groups)
    named = {said_of(hold): len(hold.devices) for hold in plain if hold.devices}
    # Two holds that say the same are of two tracks: then their devices are counted together.
    sums: dict[str, int] = {}
    for one in groups:
        sums[said_of(one.hold)] = sums.get(said_of(one.hold), 0) + one.count
    assert all(sums[said] >= count for said, count in named.items())
