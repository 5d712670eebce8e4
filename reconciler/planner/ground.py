"""What all rows share in one plan: places in waves, gates, calendars, artifacts; joined to device rows on demand. Pure.

Built by `state` for one instant; read by the ladder's tracks (`want_image`, `want_app`, `want_config`). Arrays over waves have one
entry more than there are waves: index -1 stands for "in no wave".
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from reconciler.model.observed import ArtifactState
from reconciler.model.plan import Reason
from reconciler.planner.columns import Columns
from reconciler.planner.gates import TrackGates
from reconciler.planner.judge import Rows
from reconciler.planner.roster import I8, I32, Bools, Roster
from reconciler.planner.want import CODE
from reconciler.planner.windows import NEVER, Verdict

_MOMENT = 1
"""A restart has no duration of its own: it fits where the window is open at all."""


@dataclass(slots=True)
class Places:
    """Where devices stand: the wave of each row, who counts there, who is ahead. Changes with membership alone."""

    site_wave: I32
    wave_of: I32
    sites_in: list[int]
    """Per wave, its sites."""


@dataclass(slots=True)
class Nights:
    """Per calendar: whether a flash or a restart may start now, and if not, when, and whether the coming night has none."""

    can_flash: Bools
    flash_missing: Bools
    flash_until: list[int]
    can_restart: Bools
    restart_missing: Bools
    restart_until: list[int]
    edge: int
    """The next instant at which any of this may change."""

    @classmethod
    def at(cls, roster: Roster, now: int) -> Nights:
        """Judge every calendar of the roster."""
        flash, flash_until = _judge_all(roster, now, roster.flash_length)
        restart, restart_until = _judge_all(roster, now, _MOMENT)
        return cls(
            np.array([verdict.can_start for verdict in flash], np.bool_),
            np.array([verdict.missing and not verdict.can_start for verdict in flash], np.bool_),
            [NEVER if verdict.until is None else verdict.until for verdict in flash],
            np.array([verdict.can_start for verdict in restart], np.bool_),
            np.array([verdict.missing and not verdict.can_start for verdict in restart], np.bool_),
            [NEVER if verdict.until is None else verdict.until for verdict in restart],
            min(flash_until, restart_until),
        )


def _judge_all(roster: Roster, now: int, length: int) -> tuple[list[Verdict], int]:
    """Every calendar's verdict, and the instant until which all of them stand."""
    pairs = [calendar.judge_until(now, length) for calendar in roster.calendars]
    return [verdict for verdict, _ in pairs], min((until for _, until in pairs), default=NEVER)


@dataclass(slots=True)
class Ground:
    """Everything that the ladder joins to a device row."""

    roster: Roster
    obs: Columns
    now: int
    places: Places
    nights: Nights
    gates: list[TrackGates]
    seen: list[I8]
    """Per track, the class of every row."""
    updating: Bools
    busy: Bools
    update_timed_out: Bools
    restart_timed_out: Bools
    silent: Bools
    ahead: Bools
    provision: int
    """Release that a new device gets: the highest that the last wave was seen on, else what it asks for; -1 for none."""
    frozen_until: int = NEVER
    frozen: bool = False
    paused: Bools = field(default_factory=lambda: np.zeros(1, np.bool_))
    published: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    rank: I32 = field(default_factory=lambda: np.zeros(0, np.int32))
    """Per release code its place in order; equal numbers share a place. Releases unknown to git have -1."""

    def settle(self) -> None:
        """Fill in what follows from the roster and the stores."""
        roster, obs = self.roster, self.obs
        # Freezes that touch or overlap are one: nothing can move where the first of them ends.
        until = self.now
        for opens, closes, _ in roster.freezes:
            if opens <= until < closes:
                until = closes
        if until > self.now:
            self.frozen, self.frozen_until = True, until
        fleet_paused = roster.desired.fleet.paused
        self.paused = np.array([fleet_paused or wave.spec.paused for wave in roster.waves] + [fleet_paused], np.bool_)
        names = obs.release_names
        ready = [obs.artifacts.get(name) is ArtifactState.PUBLISHED for name in names]
        self.published = np.array([*ready, False], np.bool_)
        self.published[len(roster.releases) :] = False
        self.rank = release_ranks(roster, len(names))

    def asks(self, track: int) -> I32:
        """Per wave what it asks for; -1 at the end, for rows in no wave."""
        return np.array([wave.ask(track) for wave in self.roster.waves] + [-1], np.int32)

    def entries(self, track: int) -> tuple[I8, Bools]:
        """Per wave, the code of the reason for which it may not begin, and whether its own devices hold as well."""
        gates = self.gates[track]
        codes = [0 if entry.reason is None else CODE[entry.reason] for entry in gates.entry]
        held = [judged.own_held for judged in gates.judged]
        return np.array([*codes, 0], np.int8), np.array([*held, False], np.bool_)

    def stopped(self, track: int, size: int) -> Bools:
        """Per release code of a track, whether a failure stops it; False at the end."""
        out = np.zeros(size + 1, np.bool_)
        out[sorted(self.gates[track].failed)] = True
        return out

    def entry_open(self, wave: int, track: int) -> bool:
        """Whether a wave may move forward to what it asks for on a track: gates, pause and freeze."""
        gates = self.gates[track]
        entry = gates.entry[wave].reason
        code = self.roster.waves[wave].ask(track)
        return entry is None and code >= 0 and code not in gates.failed

    def halted(self, wave: int) -> Reason | None:
        """Whether git stops what moves forward in a wave: paused or frozen."""
        if self.paused[wave]:
            return Reason.PAUSED
        return Reason.FROZEN if self.frozen else None


def release_ranks(roster: Roster, names: int) -> I32:
    """Code → place in the order of releases; `v2` and `v2.0` share one."""
    out = np.full(names + 1, -1, np.int32)
    place = -1
    for code, key in enumerate(roster.release_keys):
        place += 1 if code == 0 or key != roster.release_keys[code - 1] else 0
        out[code] = place
    return out


def ahead_rows(roster: Roster, obs: Columns, rows: Rows, places: Places) -> Bools:
    """Rows on a higher release than their wave asks for, taken for it by a wave that still wants it (design §4.2)."""
    image = obs.image[rows]
    out = np.zeros(len(image), np.bool_)
    wave_of = places.wave_of[rows]
    ask = np.array([wave.image for wave in roster.waves] + [-1], np.int32)
    rank = release_ranks(roster, len(obs.release_names))
    for key, taken in obs.members.items():
        code = roster.release_code.get(key, -1)
        if code < 0 or key not in roster.asked:
            continue
        wants = np.array([wave.image == code for wave in roster.waves] + [False], np.bool_)
        here = np.flatnonzero((image == code) & (rank[ask[wave_of]] < rank[code]))
        if len(here):
            site = roster.site_of[rows][here]
            out[here] = wants[taken[site]] & (taken[site] != wave_of[here]) & (ask[wave_of[here]] >= 0)
    return out


def place_rows(roster: Roster, site_wave: I32) -> Places:
    """Membership of sites → of device rows."""
    wave_of = site_wave[roster.site_of] if roster.size else np.zeros(0, np.int32)
    counts = np.bincount(site_wave[site_wave >= 0], minlength=len(roster.waves))
    return Places(site_wave, wave_of, [int(number) for number in counts])


def counted_rows(roster: Roster, rows: Rows, places: Places, ahead: Bools) -> Bools:
    """Rows that a wave is judged by: not suspended, not pinned, not ahead."""
    return (places.wave_of[rows] >= 0) & ~roster.suspended_of[rows] & (roster.pin_of[rows] < 0) & ~ahead
