"""Stage three, *ration*: which of the rows that may start do start now. Pure.

At most one device of a site at a time, `maxInFlight` per wave, those that go back first and critical ones before them
(design §4.6, §4.7; contract fine print 10). Rows are in draw order, devices of a site side by side, so that the same rows win
whatever the order of the input was. A `Ration` remembers its picks, so that after a few sites changed only those are looked
at again; what was cut by a budget is found by scanning in row order, in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reconciler.planner.roster import I8, I32, I64, Bools, Roster
from reconciler.planner.sets import difference, distinct, union
from reconciler.planner.want import MAY_START

TURNS = 3
NO_PICK = -1
_PIECE = 1 << 16


@dataclass(slots=True)
class Blocked:
    """Sites where nothing may start: something is in flight there, or an earlier track starts something in this plan."""

    busy_in: I64
    """Per site, devices in flight."""
    started: list[Bools]
    """Per earlier track, the sites where it starts something."""

    def at(self, sites: I32) -> Bools:
        """Whether each of some sites is blocked."""
        out: Bools = self.busy_in[sites] > 0
        for starts in self.started:
            out |= starts[sites]
        return out


def site_picks(roster: Roster, reason: I8, turn: I8, blocked: Blocked, sites: I64 | None) -> I64:
    """At most one row a site, of those that may start, at sites that are not blocked: the earliest turn, then the first row.

    `sites` restricts the work to some sites (ascending, without repeats); None means all.
    """
    rows = np.flatnonzero(reason == MAY_START) if sites is None else rows_of_sites(roster, sites)
    if sites is not None:
        rows = rows[reason[rows] == MAY_START]
    site = roster.site_of[rows]
    free = ~blocked.at(site)
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
    picks: I64 = np.minimum.reduceat(key, np.flatnonzero(first)) % roster.size
    return picks


def rows_of_sites(roster: Roster, sites: I64) -> I64:
    """All rows of some sites, ascending."""
    begin, end = roster.site_start[sites], roster.site_start[sites + 1]
    sizes = end - begin
    if len(sites) == 0:
        return np.zeros(0, np.int64)
    offsets = np.arange(int(sizes.sum()), dtype=np.int64) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows: I64 = np.repeat(begin, sizes) + offsets
    return rows


class Ration:
    """One track's picks and starts, kept from plan to plan."""

    def __init__(self, roster: Roster, *, budgeted: bool) -> None:
        waves = len(roster.waves)
        self.roster, self.budgeted = roster, budgeted
        self.pick: I8 = np.full(roster.size, NO_PICK, np.int8)
        self.starts: Bools = np.zeros(roster.size, np.bool_)
        self._started: I64 | None = None
        self.counts: I64 = np.zeros((waves + 1, TURNS), np.int64)
        self.cut: list[I64 | None] = [None] * waves
        """Per wave, the rows that start where the budget binds; None where every pick starts."""
        self.site_starts: Bools = np.zeros(len(roster.site_names), np.bool_)

    def renew(self, wave_of: I32, reason: I8, turn: I8, blocked: Blocked, sites: I64 | None, room: list[int]) -> I64:
        """Pick and cut again, for some sites or (None) for all; returns the rows whose start may have changed.

        `room` is per wave and is lowered by what starts. A pick in no wave starts only where no budget is kept.
        """
        toggled = self._pick(wave_of, reason, turn, blocked, sites)
        old = self.starts[toggled].copy()
        self.starts[toggled] = (self.pick[toggled] != NO_PICK) & self._unbound(wave_of[toggled])
        changed = [toggled[self.starts[toggled] != old]]
        if self.budgeted:
            for wave, free in enumerate(room):
                changed.append(self._fit(wave_of, wave, max(free, 0)))
                kept = self.cut[wave]
                room[wave] = free - (int(self.counts[wave].sum()) if kept is None else len(kept))
        rows = union(*changed)
        if len(rows):
            self._started = None
        sites = distinct(self.roster.site_of[rows])
        every = rows_of_sites(self.roster, sites)
        self.site_starts[sites] = False
        self.site_starts[self.roster.site_of[every[self.starts[every]]]] = True
        return rows

    @property
    def started(self) -> I64:
        """Rows that start, ascending."""
        if self._started is None:
            self._started = np.flatnonzero(self.starts)
        return self._started

    def _unbound(self, waves: I32) -> Bools:
        """Whether every pick of a wave starts. Picks in no wave never start under a budget."""
        free = np.array([kept is None for kept in self.cut] + [not self.budgeted], np.bool_)
        out: Bools = free[waves]
        return out

    def _pick(self, wave_of: I32, reason: I8, turn: I8, blocked: Blocked, sites: I64 | None) -> I64:
        """Renew the picks; returns the rows that were or are one."""
        if sites is None:
            # Rows may have changed their wave since: what was counted under the old ones is void.
            before = np.flatnonzero((self.pick != NO_PICK) | self.starts)
            self.counts[:] = 0
            self.cut = [None] * len(self.cut)
        else:
            before = rows_of_sites(self.roster, sites)
            before = before[self.pick[before] != NO_PICK]
            np.subtract.at(self.counts, (wave_of[before], self.pick[before]), 1)
        self.pick[before] = NO_PICK
        picks = site_picks(self.roster, reason, turn, blocked, sites)
        self.pick[picks] = turn[picks]
        np.add.at(self.counts, (wave_of[picks], turn[picks]), 1)
        return union(before, picks)

    def _fit(self, wave_of: I32, wave: int, free: int) -> I64:
        """Fit a wave's picks into its room; returns the rows whose start changed."""
        before = self.cut[wave]
        if int(self.counts[wave].sum()) <= free:
            self.cut[wave] = None
            if before is None:
                return np.zeros(0, np.int64)
            inside = np.flatnonzero((self.pick != NO_PICK) & (wave_of == wave))
            changed: I64 = inside[~self.starts[inside]]
            gone = before[self.starts[before] & (self.pick[before] == NO_PICK)]
            self.starts[inside], self.starts[gone] = True, False
            return np.concatenate([changed, gone])
        after = self._first(wave_of, wave, free)
        if before is None:
            before = np.flatnonzero(self.starts & (wave_of == wave))
        self.starts[before] = False
        self.starts[after] = True
        self.cut[wave] = after
        return difference(before, after)

    def _first(self, wave_of: I32, wave: int, free: int) -> I64:
        """The first `free` picks of a wave: earlier turns first, then row order."""
        out: list[I64] = []
        for turn in range(TURNS):
            wanted = min(free, int(self.counts[wave, turn]))
            free -= wanted
            for begin in range(0, self.roster.size, _PIECE):
                if wanted == 0:
                    break
                piece = slice(begin, begin + _PIECE)
                found = np.flatnonzero((self.pick[piece] == turn) & (wave_of[piece] == wave))[:wanted] + begin
                out.append(found)
                wanted -= len(found)
        return np.sort(np.concatenate(out)) if out else np.zeros(0, np.int64)
