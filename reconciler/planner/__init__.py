"""The planner: what to do now, from what is desired and what is observed. Pure: no clock, no files, no network, no log.

Three stages over columns, each a short file: `judge` (what do the waves prove?), `want` (the ladder: which rung stops each
device?), `ration` (who starts, within the budgets). The line that decides to flash a device is the ladder in `want.RUNGS`.
Design §4 and §6.
"""

from __future__ import annotations

from datetime import datetime

from reconciler.model.desired import Desired
from reconciler.model.observed import Snapshot
from reconciler.model.plan import Plan
from reconciler.planner.columns import Columns
from reconciler.planner.render import render
from reconciler.planner.roster import Roster, membership
from reconciler.planner.state import State, decide
from reconciler.planner.windows import micros

__all__ = ["Columns", "Roster", "State", "decide", "plan", "render", "waves_of_sites"]


def plan(desired: Desired, observed: Snapshot, now: datetime) -> Plan:
    """The definition: the plan for a desired state, a snapshot and an instant (aware, UTC). Same input, same bytes."""
    roster = Roster(desired)
    return render(decide(roster, Columns.bind(roster, observed), micros(now)))


def waves_of_sites(desired: Desired, observed: Snapshot, now: datetime) -> dict[str, str]:
    """Site → the wave that it is in (design §4.2); sites in no wave are left out. The instant does not matter."""
    del now
    roster = Roster(desired)
    site_wave = membership(roster, Columns.bind(roster, observed).members)
    return {
        name: roster.waves[wave].spec.name
        for name, wave in zip(roster.site_names, site_wave.tolist(), strict=True)
        if wave >= 0
    }
