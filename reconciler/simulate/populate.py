"""Makes the machines of a run: each device as `start` says that it stands, parked where it has been reporting all along.

Decides nothing. Called by `run` once. Source: the timing model of `timings`, 2 and 7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from reconciler.agent.agent import Identity
from reconciler.agent.judge import Accepted, Keyring
from reconciler.model.observed import DeviceObservation, Health
from reconciler.ports import AssignmentRow
from reconciler.protocol.assignment import Assignment, ImageTarget
from reconciler.simulate.device import SimDevice
from reconciler.simulate.hardware import Condition
from reconciler.simulate.network import Far
from reconciler.simulate.start import DeviceStart, Doing, Ill, Start, leaves_out
from reconciler.simulate.supply import Depot
from reconciler.simulate.watch import Watch

ILL = "as it was"
"""The check that shows what was wrong with a device before the run."""


class Populate:
    """Makes devices. `image` gives a published release as an assignment names it."""

    def __init__(
        self,
        start: Start,
        far: Far,
        depot: Depot,
        key: Keyring,
        watch: Watch,
        image: Callable[[str], ImageTarget | None],
        standing: Mapping[str, AssignmentRow],
        report_every_s: int,
    ) -> None:
        self._start, self._far, self._depot, self._key, self._watch = start, far, depot, key, watch
        self._image, self._standing, self._every = image, standing, report_every_s
        self._records = {device.name: device for device in start.observed.devices}
        self.digests: dict[str, str] = {}
        """Release → digest of its raw image, of every release that a slot holds."""

    def make(self, name: str) -> SimDevice:
        """One device. Nothing is told of it yet: call `release` when everybody listens."""
        start = self._start.devices[name]
        device = SimDevice(Identity(name, start.site or ""), self._far, self._depot, self._key, watch=self._watch)
        record = self._records.get(name)
        self._install(device, start, record)
        device.hardware.conditions = self._illness(device, start)
        row = self._standing.get(name)
        if row is not None:
            self._give_word(device, start, row)
        device.link.is_up = not start.silent
        return device

    def release(self, device: SimDevice) -> None:
        """Let it live: parked where it has been reporting, booting into its work where it was in the middle of something."""
        start = self._start.devices[device.name]
        record = self._records.get(device.name)
        if record is None or record.last_seen is None or start.booted is None:
            if start.returns_at is not None:
                device.link.is_up = True
                device.begin(start.returns_at)
        elif start.doing is not Doing.NOTHING and not start.silent:
            device.begin(self._start.at)
        else:
            last_at = record.last_seen
            # What silent devices reported last may lie at any instant; those that report keep to their second.
            device.settle(last_at if start.silent else min(last_at, self._start.at), self._every)
            if not start.silent and leaves_out(record) and start.returns_at is not None:
                device.ring(start.returns_at)

    # ------------------------------------------------ how it stands

    def _install(self, device: SimDevice, start: DeviceStart, record: DeviceObservation | None) -> None:
        hardware = device.hardware
        held = {slot: (r, self._digest(r)) for slot, r in (("a", start.booted), ("b", start.other)) if r is not None}
        if held:
            hardware.install(held, "a", start.previous, record.image_since if record is not None else None)
        for app, digest in start.apps.items():
            running = record.apps.get(app) if record is not None else None
            hardware.install_app(app, digest, running.since if running is not None else None)
        if start.config is not None:
            hardware.install_config(start.config)
        if record is not None and record.boot is not None:
            hardware.install_boot(record.boot.id, record.boot.sequence)

    def _digest(self, release: str) -> str:
        if release not in self.digests:
            target = self._image(release)
            made = "sha256:" + hashlib.sha256(f"unpublished {release}".encode()).hexdigest()
            self.digests[release] = target.digest if target is not None else made
        return self.digests[release]

    def _illness(self, device: SimDevice, start: DeviceStart) -> tuple[Condition, ...]:
        """What its healthcheck shows, for as long as what it goes with stays."""
        if start.health is Health.OK:
            return ()
        image = self._digest(start.booted) if start.ill is Ill.IMAGE and start.booted is not None else None
        app = start.apps.get(start.ill_app or "") if start.ill is Ill.APP else None
        return (Condition(ILL, start.health.value, "as observed", image=image, app=app),)

    def _give_word(self, device: SimDevice, start: DeviceStart, row: AssignmentRow) -> None:
        """The assignment that it is following, and what it has fetched for it."""
        assignment = Assignment.from_bytes(row.document)
        hardware = device.hardware
        accepted = Accepted(row.document, assignment)
        hardware.memory = replace(hardware.memory, accepted=accepted, last_serial=assignment.serial)
        if assignment.image is not None and start.doing is Doing.UPDATING:
            device.supply.install(assignment.image)
