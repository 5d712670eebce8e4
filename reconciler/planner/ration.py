"""Stage three, *ration*: which of the rows that may start do start now. Pure.

At most one device of a site at a time, `maxInFlight` per wave, those that go back first and critical ones before them
(design §4.6, §4.7; contract fine print 10). Rows are in draw order, devices of a site side by side, so that the same rows win
whatever the order of the input was.
"""

from __future__ import annotations

import numpy as np

from reconciler.planner.roster import I8, I32, I64, Bools, Roster
from reconciler.planner.want import MAY_START

TURNS = 3


def site_picks(roster: Roster, reason: I8, turn: I8, site_busy: Bools, sites: I64 | None = None) -> I64:
    """At most one row a site, of those that may start, at sites where nothing is in flight. Earliest turn, then first row.

    `sites` restricts the work to some sites (ascending); None means all.
    """
    if sites is None:
        rows = np.flatnonzero(reason == MAY_START)
    else:
        spans = [np.arange(roster.site_start[site], roster.site_start[site + 1]) for site in sites.tolist()]
        rows = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        rows = rows[reason[rows] == MAY_START]
    site = roster.site_of[rows]
    free = ~site_busy[site]
    rows, site = rows[free], site[free]
    if len(rows) == 0:
        return rows
    first = np.empty(len(rows), np.bool_)
    first[0] = True
    np.not_equal(site[1:], site[:-1], out=first[1:])
    if first.all():
        return rows
    # Turn and row in one key, so that the least of a site's neighbours is its pick.
    key = turn[rows].astype(np.int64) * roster.size + rows
    return np.minimum.reduceat(key, np.flatnonzero(first)) % roster.size


def cut(wave_of: I32, turn: I8, picks: I64, room: list[int]) -> Bools:
    """Which picks fit the room of their wave: earlier turns first, then row order. `room` is per wave; others are full."""
    keep = np.zeros(len(picks), np.bool_)
    waves = wave_of[picks]
    for wave, free in enumerate(room):
        inside = np.flatnonzero(waves == wave)
        if free <= 0 or len(inside) == 0:
            continue
        if free >= len(inside):
            keep[inside] = True
            continue
        turns = turn[picks[inside]]
        for number in range(TURNS):
            batch = inside[turns == number][:free]
            keep[batch] = True
            free -= len(batch)
    return keep
