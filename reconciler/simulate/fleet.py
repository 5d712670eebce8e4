"""All simulated devices of a run, stepped in the order of what is due: by instant, then by name.

Decides nothing; a device that has nothing to do costs nothing. Called by whoever drives a run, which moves time between the
instants named here and its own. Source: the timing model of `timings`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from datetime import datetime

from reconciler.simulate.device import SimDevice
from reconciler.simulate.hardware import Condition
from reconciler.simulate.network import Far


class Machines:
    """The devices by name. Whatever is done to them is done at an instant that `play` has reached; `far.clock` stands there."""

    def __init__(self, devices: Iterable[SimDevice], far: Far) -> None:
        self.devices = {device.name: device for device in devices}
        self._far = far
        self._queue: list[tuple[datetime, str]] = []
        self._queued: dict[str, datetime] = {}
        for device in self.devices.values():
            self._schedule(device)

    def next_at(self) -> datetime | None:
        """The next instant at which a device does something by itself."""
        queue = self._queue
        while queue:
            at, name = queue[0]
            if self._queued.get(name) == at:
                return at
            heapq.heappop(queue)
        return None

    def play(self, until: datetime) -> None:
        """Everything that is due up to and including `until`, where the clock stands afterwards."""
        clock = self._far.clock
        while (at := self.next_at()) is not None and at <= until:
            _, name = heapq.heappop(self._queue)
            del self._queued[name]
            clock.at = max(at, clock.at)
            device = self.devices[name]
            device.step(clock.at)
            self._schedule(device)
        clock.at = max(until, clock.at)

    # ------------------------------------------------------------ what is done to devices

    def ring(self, names: Iterable[str], at: datetime) -> None:
        """Let devices call in at `at` (a word that acts). Names of no device are passed over."""
        for device in self._of(names):
            device.ring(at)
            self._schedule(device)

    def hear(self, names: Iterable[str], after: datetime) -> None:
        """Let devices hear, with their next report after `after`, what waits for them (a word that does not act)."""
        for device in self._of(names):
            device.hear(after)
            self._schedule(device)

    def cut(self, names: Iterable[str], at: datetime) -> None:
        """Lines go down."""
        self._now(at)
        for device in self._of(names):
            device.cut_line(at)
            self._schedule(device)

    def restore(self, names: Iterable[str], at: datetime) -> None:
        """Lines come back."""
        self._now(at)
        for device in self._of(names):
            device.restore_line(at)
            self._schedule(device)

    def leave(self, at: datetime) -> None:
        """The controller is away: nobody answers any device."""
        self._reach(at, is_up=False)

    def come_back(self, at: datetime) -> None:
        """The controller answers again. Devices find out one by one, as their next tries are due."""
        self._reach(at, is_up=True)

    def _reach(self, at: datetime, *, is_up: bool) -> None:
        self._now(at)
        before = {name: device.link.is_reaching for name, device in self.devices.items()}
        self._far.is_up = is_up
        for name, device in self.devices.items():
            device.reach_changed(at, was_reaching=before[name])
            self._schedule(device)

    def cut_power(self, name: str, at: datetime, off_s: int = 0) -> None:
        """A device loses its power for so long."""
        self._now(at)
        self.devices[name].power_cut(at, off_s)
        self._schedule(self.devices[name])

    def impose(self, names: Iterable[str], conditions: tuple[Condition, ...], at: datetime) -> None:
        """What shows in devices' healthchecks from now on."""
        self._now(at)
        for device in self._of(names):
            device.impose(conditions, at)
            self._schedule(device)

    # ------------------------------------------------------------ the queue

    def _now(self, at: datetime) -> None:
        self._far.clock.at = max(at, self._far.clock.at)

    def _of(self, names: Iterable[str]) -> list[SimDevice]:
        return [self.devices[name] for name in names if name in self.devices]

    def _schedule(self, device: SimDevice) -> None:
        at = device.wakes_at
        if at is None:
            self._queued.pop(device.name, None)
        elif self._queued.get(device.name) != at:
            self._queued[device.name] = at
            heapq.heappush(self._queue, (at, device.name))
