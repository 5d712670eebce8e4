"""When the passing of time alone can change what a plan starts or establishes. Pure; called by `forecast`.

`Plan.wake_at` names every instant at which anything in a plan may read differently, the edge of every night among them. The
forecast asks for less: instants that lead to an action, a fact, or a word to fetch. What it leaves out changes texts of holds.
"""

from __future__ import annotations

import numpy as np

from reconciler.model.plan import Reason
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.planner.state import State, Track
from reconciler.planner.want import CODE, MAY_START
from reconciler.planner.windows import NEVER

_WINDOWS = (CODE[Reason.OUTSIDE_WINDOW], CODE[Reason.NO_WINDOW])


def next_wake(state: State) -> int:
    """The earliest such instant after the plan's own, in microseconds; NEVER where only news can change anything."""
    now, nights = state.now, state.ground.nights
    edges = [state.deadlines.earliest]
    for number in state.roster.tracks:
        gates = state.ground.gates[number]
        for wave in state.roster.waves:
            # A proof is recorded once; that the soak of one that stands is over changes nothing.
            if wave.ask(number) >= 0 and not gates.proven[wave.index]:
                edges.append(gates.judged[wave.index].soak_ends)
    for opens, closes, _ in state.roster.freezes:
        edges += [opens, closes]
    for number, track in enumerate(state.tracks):
        edges.append(_opens(state, track, nights.flash_until if number == IMAGE_TRACK else nights.restart_until))
    image = state.tracks[IMAGE_TRACK]
    if bool(((image.reason == MAY_START) & ~image.starts).any()):
        # Whoever has found no room when the night ends is told to fetch for the next one.
        edges.append(nights.edge)
    return min((edge for edge in edges if edge > now), default=NEVER)


def _opens(state: State, track: Track, until: list[int]) -> int:
    """When the first window opens for which some row waits."""
    rows = np.flatnonzero((track.reason == _WINDOWS[0]) | (track.reason == _WINDOWS[1]))
    if len(rows) == 0:
        return NEVER
    calendars = np.flatnonzero(np.bincount(state.roster.calendar_of[rows], minlength=len(until)))
    return min(until[calendar] for calendar in calendars)
