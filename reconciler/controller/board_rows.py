"""The columns of a board: every site and device as the planner left them, their names in order, and the states people look for.

Nobody writes to a column: those that did not change are shared with the board before. Decides nothing: it names the codes that
the planner left. Made by `controller.boards`; read through `controller.board`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from reconciler.model.observed import Health
from reconciler.planner.groups import Codes
from reconciler.planner.judge import Seen
from reconciler.planner.roster import I8, I32, I64, Bools, Roster
from reconciler.planner.want import SETTLED
from reconciler.planner.windows import NONE


class DeviceState(StrEnum):
    """What a person should know first about a device, the worst that holds. A site has the state of its worst device."""

    FAILED = "failed"
    """Flagged: it failed on the release that its wave asks for."""
    CRITICAL = "critical"
    """Its healthcheck is critical, and it has not failed, or not yet."""
    SILENT = "silent"
    """It has been silent for longer than `staleAfter`."""
    NEVER = "never-seen"
    """Git names it, and it has never reported."""
    UPDATING = "updating"
    """Something is being done to it."""
    HELD = "held"
    """Something is wanted of it that does not start now."""
    WARNING = "warning"
    """Its healthcheck warns, which counts as good."""
    GOOD = "good"
    """It runs what it should, in good health."""


STATES: tuple[DeviceState, ...] = tuple(DeviceState)
HEALTHS = (Health.UNKNOWN, Health.OK, Health.WARNING, Health.CRITICAL)
"""Health by the codes that the columns have."""


class Index:
    """Names in order: what paging and searching go by."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def of(self, roster: Roster) -> Index:
        """The index of another roster: this one, where it has the same names in the same rows, as after most commits."""
        old = self._roster
        return (
            self if old.device_names == roster.device_names and old.site_names == roster.site_names else Index(roster)
        )

    def make(self) -> None:
        """Make all of it now, so that nobody waits for it who looks."""
        _ = (self.devices, self.sites, self.lower, self.lower_sites)

    @cached_property
    def devices(self) -> I64:
        """Rows by device name."""
        return np.array(sorted(range(self._roster.size), key=self._roster.device_names.__getitem__), np.int64)

    @cached_property
    def sites(self) -> I64:
        """Sites by name."""
        names = self._roster.site_names
        return np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)

    @cached_property
    def lower(self) -> list[str]:
        """Device names in small letters, for searching."""
        return [name.lower() for name in self._roster.device_names]

    @cached_property
    def lower_sites(self) -> list[str]:
        """Site names in small letters."""
        return [name.lower() for name in self._roster.site_names]


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns over the roster's rows, copied from the planner's; nobody writes to them. Times are microseconds, -1 is no code."""

    roster: Roster
    index: Index
    releases: Sequence[str]
    """Names of release codes. It may grow behind this board, which has no code that is not in it."""
    digests: tuple[tuple[str, ...], ...]
    """Per app, the digests of its codes."""
    wave_of: I32
    site_wave: I32
    image: I32
    previous: I32
    inactive: I32
    updating_to: I32
    health: I8
    worse: Bools
    conflict: Bools
    busy: Bools
    silent: Bools
    health_since: I64
    image_since: I64
    last_seen: I64
    app_digest: tuple[I32, ...]
    tracks: tuple[Codes, ...]
    """Image first, then the apps."""
    seen: tuple[I8, ...]
    config: Codes

    def states(self) -> I8:
        """Per row, the position of its state in `STATES`."""
        out = np.full(len(self.image), STATES.index(DeviceState.GOOD), np.int8)
        held = np.zeros(len(out), np.bool_)
        failed = np.zeros(len(out), np.bool_)
        for codes in (*self.tracks, self.config):
            held |= (codes.reason != SETTLED) & ~codes.starts
        for seen in self.seen:
            failed |= seen == Seen.FAILED
        ladder = (
            (DeviceState.WARNING, self.health == HEALTHS.index(Health.WARNING)),
            (DeviceState.HELD, held),
            (DeviceState.UPDATING, self.busy),
            (DeviceState.NEVER, self.last_seen == NONE),
            (DeviceState.SILENT, self.silent & (self.last_seen != NONE)),
            (DeviceState.CRITICAL, self.health == HEALTHS.index(Health.CRITICAL)),
            (DeviceState.FAILED, failed),
        )
        for state, rows in ladder:
            out[rows] = STATES.index(state)
        return out
