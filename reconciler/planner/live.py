"""A plan that is kept up to date: the state of the last tick, and what changed since. Pure; called by the controller's loop.

`advance` costs what changed, not the fleet. The plan that it returns has its actions and facts made at once; holds, wave states
and flagged devices are made when somebody reads them, from the state as it is then: read them before the next `advance`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar, overload

import numpy as np

from reconciler.model.desired import Desired
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.model.plan import Plan, Reason
from reconciler.planner.columns import Columns
from reconciler.planner.fleetwide import facts, flagged
from reconciler.planner.render import actions, holds_in_order, wake_at, wave_status
from reconciler.planner.roster import I64, IMAGE_TRACK, Roster
from reconciler.planner.state import State
from reconciler.planner.want import CODE
from reconciler.planner.windows import NONE, instant, micros

T = TypeVar("T")

_WINDOWS = (CODE[Reason.OUTSIDE_WINDOW], CODE[Reason.NO_WINDOW])


class Later(Sequence[T]):
    """A sequence that is made when it is first read."""

    def __init__(self, make: Callable[[], Sequence[T]]) -> None:
        self._make, self._made = make, None

    def _items(self) -> Sequence[T]:
        if self._made is None:
            self._made = self._make()
        return self._made

    _made: Sequence[T] | None

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[T]:
        return iter(self._items())

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items()[index]


class Live:
    """The planner with a memory."""

    def __init__(self) -> None:
        self.state: State | None = None
        self.shared: Snapshot | None = None
        self.looked: I64 | None = None
        """Rows that the last `advance` looked at; None: all."""

    def advance(
        self, desired: Desired, changed: Iterable[DeviceObservation], shared: Snapshot | None, now: datetime
    ) -> Plan:
        """The plan at `now`. `changed` are the devices reported since the last call; `shared` is what the stores hold, None
        where that did not change. Another desired state is compiled anew, and its devices are carried over.
        """
        self.shared = shared or self.shared or Snapshot()
        if self.state is None or self.state.roster.desired is not desired:
            roster = Roster(desired)
            columns = Columns(roster) if self.state is None else self.state.obs.moved_to(roster)
            columns.put_shared(self.shared)
            columns.take(changed)
            self.state = State(roster, columns)
            self.state.plan_all(micros(now))
            self.looked = None
        else:
            self.looked = self.state.step(micros(now), changed, shared)
        return as_plan(self.state)

    # ------------------------------------------------ what the loop asks of the last plan

    @property
    def desired(self) -> Desired | None:
        """What the last plan was made for."""
        return None if self.state is None else self.state.roster.desired

    @property
    def in_flight(self) -> int:
        """Devices in flight."""
        return 0 if self.state is None else int(self.state.flying_in.sum())

    @property
    def held(self) -> int:
        """Devices that something is wanted of that does not start now."""
        if self.state is None:
            return 0
        return sum(track.off - len(track.ration.started) for track in (*self.state.tracks, self.state.config))

    def marked(self) -> Iterator[str]:
        """Devices that are marked as being updated, restarted or configured, timed out or not."""
        if self.state is not None:
            obs, names = self.state.obs, self.state.roster.device_names
            since = (obs.updating_since, obs.restarting_since, obs.configuring_since)
            rows = np.flatnonzero((since[0] != NONE) | (since[1] != NONE) | (since[2] != NONE))
            yield from (names[row] for row in rows)

    def waiting_for_window(self) -> Iterator[tuple[str, str]]:
        """(device, release) of the rows that the last `advance` looked at and that only their window keeps from flashing."""
        if self.state is None:
            return
        track, obs = self.state.tracks[IMAGE_TRACK], self.state.obs
        rows = np.arange(len(track.reason)) if self.looked is None else self.looked
        for row in rows[np.isin(track.reason[rows], _WINDOWS)]:
            yield self.state.roster.device_names[row], obs.release_names[track.target[row]]

    def wave_of(self, site: str) -> str | None:
        """Name of the wave that a site is in."""
        if self.state is None or site not in self.state.roster.site_code:
            return None
        wave = int(self.state.places.site_wave[self.state.roster.site_code[site]])
        return self.state.roster.waves[wave].spec.name if wave >= 0 else None


def as_plan(state: State) -> Plan:
    """The plan that a state holds: actions and facts now, the rest when it is read."""
    return Plan(
        at=instant(state.now),
        commit=state.roster.desired.commit,
        actions=actions(state),
        holds=Later(lambda: holds_in_order(state)),
        waves=Later(lambda: tuple(wave_status(state, index) for index in range(len(state.roster.waves)))),
        facts=facts(state),
        flagged=Later(lambda: flagged(state)),
        wake_at=wake_at(state),
    )
