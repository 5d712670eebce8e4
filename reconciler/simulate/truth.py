"""What is true in a simulated fleet, as the oracle keeps it: devices, waves, what was proven and stopped. Judges nothing.

Filled from what machines and the trace tell. The questions here (who counts in a wave, who has failed, since when a release is
shown in health) are answered from that and from `rules`, never from the planner or the controller's record. The base of
`oracle.Oracle`. Source: design §4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from reconciler.model.desired import Desired, WaveSpec
from reconciler.model.observed import DeviceObservation, Health, Snapshot
from reconciler.model.scalars import format_instant
from reconciler.protocol.report import Check
from reconciler.simulate import rules
from reconciler.simulate.timings import TICK_S


class Rule(StrEnum):
    """What must hold after every event."""

    RELEASED = "released"
    """A slot that boots, and an app that runs, hold bytes that were published under a release git names."""
    SLOT = "slot"
    """Power may go now: the device boots a slot that was good, or tries one that is whole and comes back by itself. Good is what
    was booted and showed no check worse than before."""
    SERIAL = "serial"
    """Serials of accepted assignments rise."""
    WINDOW = "window"
    """Nothing is written and nothing reboots outside of the site's window, and no app restarts where its window is the site's; but
    for provisions and waived returns."""
    BUDGET = "budget"
    """`maxInFlight` of a wave, and one device of a site."""
    ASKED = "asked"
    """A device starts only what its wave or its pin asks for, or what it goes back to and had; and nothing forward where git says
    paused, frozen, suspended or withdrawn."""
    ORDER = "order"
    """A wave starts a release only after every earlier wave has proven it, and a proof stands on devices that truly soaked."""
    STOPPED = "stopped"
    """Nothing starts forward on a release whose gate has failed or must have, nor on a device that failed it too often."""
    REFUSED = "refused"
    """Nothing starts for a commit that was not taken, or must not be."""
    CONVERGES = "converges"
    """Faults over, every device that can be reached gets where git wants it, unless a person is needed; and what nothing stands
    against succeeds."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken: when, by which device or wave, and how."""

    at: datetime
    rule: Rule
    who: str
    text: str

    def __str__(self) -> str:
        return f"{format_instant(self.at)} {self.rule.value}: {self.who}: {self.text}"


class Machine(Protocol):
    """What the oracle reads of a simulated machine: the truth, not a report."""

    def booted_digest(self) -> str | None:
        """Digest of the bytes that the booted slot holds; None: nothing bootable."""

    def next_boots(self) -> Iterable[tuple[str, bool]]:
        """(digest of the bytes, marked good) of the slots that the boot loader would try after a power cut, in order."""

    def running(self) -> Mapping[str, str]:
        """App → digest of what runs."""

    def healthcheck(self) -> tuple[Check, ...]:
        """The checks as they are now."""


@dataclass(slots=True)
class Truth:
    """A device as it is, and what the controller can have learned of it."""

    name: str
    site: str
    machine: Machine
    image: str | None = None
    image_since: datetime | None = None
    critical_since: datetime | None = None
    critical_before: bool = False
    well_since: datetime | None = None
    """Since when it is critical no more; None: it never was."""
    run_since: datetime | None = None
    """Since when its reports show the present image in unbroken good health."""
    heard_at: datetime | None = None
    parked: bool = False
    """It goes on reporting the same, which nobody tells."""
    serial: tuple[int, int] | None = None
    doing: str | None = None
    armed: frozenset[str] | None = None
    """Checks that were critical when it armed its other slot; None: nothing is armed."""
    excused: bool = True
    """It may give up what it is doing: the new slot has not booted, its health got worse, or the power went."""
    timed_out: bool = False
    goes_on: bool = False
    """It was in the middle of an update when the run began: that was begun lawfully, and no window binds its end."""
    troubled: bool = False
    """Since it was told what to do, something kept it from that: its line, its power, a failure, a controller that is away."""
    failures: dict[str, int] = field(default_factory=dict)
    """Release → attempts that truly failed."""
    failed_at: dict[str, datetime] = field(default_factory=dict)
    timeouts: dict[str, int] = field(default_factory=dict)
    app_since: dict[str, datetime] = field(default_factory=dict)
    past: set[str] = field(default_factory=set)
    """Images that it ran or holds."""

    def critical_checks(self) -> frozenset[str]:
        """Names of the checks that are critical now."""
        return frozenset(check.name for check in self.machine.healthcheck() if check.status == "critical")


class Knowledge:
    """What is known at an instant, and who counts where."""

    def __init__(
        self, desired: Desired, devices: Iterable[Truth], published: Mapping[str, str], apps: Mapping[str, str]
    ) -> None:
        self.desired = desired
        self.devices = {device.name: device for device in devices}
        self._digests = dict(published)
        self._app_digests = dict(apps)
        self._proven: set[tuple[str, str]] = set()
        self._ever_proven: set[tuple[str, str]] = set()
        self._taken: set[tuple[str, str]] = set()
        """(site, release): a wave took the site for it."""
        self._stopped: dict[str, datetime] = {}
        self._rescued: set[tuple[str, str]] = set()
        self._wave_of = rules.waves_of(desired)
        self._exact = True
        """Who is in which wave follows from git alone."""
        self._in_wave: dict[str, list[str]] = {}
        self._judged_in: dict[str, list[Truth]] = {}
        self._ill: set[str] = set()
        """Devices that are critical now: few, where a wave has thousands."""
        self._spent: set[str] = set()
        """Devices of which an attempt failed."""
        self._seat()

    def _seat(self) -> None:
        self._in_wave = {wave.name: [] for wave in self.desired.waves.waves}
        self._judged_in = {wave.name: [] for wave in self.desired.waves.waves}
        for name, device in self.devices.items():
            wave = self._wave_of.get(device.site)
            if wave in self._in_wave and device.site in self.desired.sites:
                self._in_wave[wave].append(name)
                if self._is_able(name):
                    self._judged_in[wave].append(device)

    # ------------------------------------------------ the beginning, and commits

    def remember(self, observed: Snapshot) -> None:
        """What the record of the beginning says of devices and releases: evidence that was there before the run."""
        for seen in observed.devices:
            if seen.name in self.devices:
                self._remember(self.devices[seen.name], seen)
        for verdict in observed.proofs:
            self._ever_proven.add((verdict.wave, verdict.key))
            if not verdict.closed:
                self._proven.add((verdict.wave, verdict.key))
        self._stopped |= {verdict.key: verdict.at for verdict in observed.failures if not verdict.closed}
        for key, waves in observed.members.items():
            self._taken |= {(site, key) for sites in waves.values() for site in sites}

    def _remember(self, device: Truth, seen: DeviceObservation) -> None:
        device.image_since = seen.image_since
        device.heard_at, device.serial = seen.last_seen, seen.serial
        device.failures = dict(seen.failed_attempts)
        device.app_since = {app: running.since for app, running in seen.apps.items() if running.since is not None}
        device.past |= {release for release in (seen.previous_image, seen.inactive_slot) if release is not None}
        if seen.failed_attempts:
            self._spent.add(seen.name)
        if seen.health is Health.CRITICAL:
            device.critical_since = seen.health_since
            if seen.health_since is not None:
                self._ill.add(seen.name)
            earlier = (
                seen.image_since is not None and seen.health_since is not None and seen.health_since < seen.image_since
            )
            device.critical_before = seen.health_before_update is Health.CRITICAL or earlier
        elif seen.health_since is not None and seen.image_since is not None:
            device.run_since = max(seen.health_since, seen.image_since)
        self._rescued |= {(seen.name, release) for release in seen.rescued_from}

    def merged(self, desired: Desired) -> None:
        """A commit came into force. What was proven or stopped of releases that nobody asks for any more is closed."""
        # Where the draw changes, who is in which wave depends on the record of who was taken: then the record is believed.
        self._exact = self._exact and rules.same_draw(self.desired, desired)
        self.desired = desired
        self._wave_of = rules.waves_of(desired)
        self._seat()
        asked = {key_of(subject, r) for w in desired.waves.waves for subject, r in rules.asks(desired, w.name).items()}
        self._proven = {place for place in self._proven if place[1] in asked}
        self._stopped = {key: at for key, at in self._stopped.items() if key in asked}
        self._taken = {(site, key) for site, key in self._taken if key in asked}
        self._rescued = {(name, release) for name, release in self._rescued if release in asked}
        for device in self.devices.values():
            for counts in (device.failures, device.timeouts):
                for key in [key for key in counts if key not in asked]:
                    del counts[key]

    def published(self, release: str, digest: str) -> None:
        """An image release got into the store."""
        self._digests[release] = digest

    # ------------------------------------------------ who counts, and what it shows

    def _spec(self, wave: str | None) -> WaveSpec | None:
        return next((spec for spec in self.desired.waves.waves if spec.name == wave), None)

    def _counted(self, wave: str) -> list[Truth]:
        """Devices that a wave is judged by, whatever they run."""
        return self._judged_in.get(wave, [])

    def _is_able(self, name: str) -> bool:
        device = self.devices[name]
        site = self.desired.sites.get(device.site)
        return site is not None and not site.suspended and rules.pinned(self.desired, device.site, name) is None

    def _is_silent(self, at: datetime, device: Truth) -> bool:
        stale = timedelta(seconds=self.desired.fleet.stale_after)
        return not device.parked and (device.heard_at is None or at - device.heard_at > stale)

    def _shown_since(self, device: Truth, app: str | None, key: str) -> datetime | None:
        """Since when its reports show a release in good health; None: they do not."""
        if device.run_since is None:
            return None
        if app is None:
            return device.run_since if device.image == key else None
        if device.machine.running().get(app) != self._app_digests.get(key):
            return None
        return max(device.run_since, device.app_since.get(app, device.run_since))

    # ------------------------------------------------ who has failed

    def _has_failed(self, at: datetime, device: Truth, key: str) -> bool:
        if (device.image != key and self._is_exhausted(device, key)) or (device.name, key) in self._rescued:
            return True
        long = timedelta(seconds=self.desired.fleet.critical_for)
        since = device.critical_since
        return since is not None and at - since >= long and self._is_charged(device, key)

    def _is_charged(self, device: Truth, key: str) -> bool:
        """Whether what is critical is charged to a release: it runs, changed last, and was well before."""
        app, at_sign, _ = key.partition("@")
        if not at_sign:
            return device.image == key and not device.critical_before and not _app_changed_last(device)
        runs = device.machine.running().get(app) == self._app_digests.get(key)
        came_at, since = device.app_since.get(app), device.critical_since
        later = came_at is not None and (device.image_since is None or came_at > device.image_since)
        return bool(runs and later and came_at and since and since >= came_at)

    def _is_exhausted(self, device: Truth, key: str) -> bool:
        """Whether the attempts on a release are used up, those that only timed out among them."""
        return device.failures.get(key, 0) + device.timeouts.get(key, 0) >= self.desired.fleet.attempts

    def _must_be_exhausted(self, at: datetime, device: Truth, key: str) -> bool:
        """Whether the controller must know that a device failed a release as often as allowed: it has reported long since."""
        if device.failures.get(key, 0) < self.desired.fleet.attempts:
            return False
        failed_at = device.failed_at.get(key)
        slack = timedelta(seconds=self.desired.fleet.stale_after)
        heard = at if device.parked else device.heard_at
        return failed_at is None or (heard is not None and failed_at + slack < heard)

    def _must_have_failed(self, at: datetime, key: str) -> str | None:
        """A wave whose gate the controller must have seen fail by now: long critical or spent in truth, and heard of since."""
        fleet = self.desired.fleet
        slack = timedelta(seconds=fleet.critical_for + 2 * fleet.report_every + 2 * TICK_S)
        last = self.desired.waves.waves[-1].name
        bad = self._ill | self._spent
        if (last, key) in self._proven or "@" in key or not bad:
            return None
        for spec in self.desired.waves.waves:
            if spec.image != key:
                continue
            counted = self._counted(spec.name)
            here = (self.devices[name] for name in bad if self._wave_of.get(self.devices[name].site) == spec.name)
            failed = [
                d
                for d in here
                if self._is_able(d.name)
                and (
                    (self._is_charged(d, key) and _is_long_critical(at, d, slack))
                    or (d.image != key and self._must_be_exhausted(at, d, key))
                )
            ]
            if not rules.allows(spec.max_failed, len(failed), len(counted)):
                return spec.name
        return None

    def _may_have_failed(self, at: datetime, device: Truth, key: str) -> bool:
        """Whether anything happened to a device that may be charged to a release: a gate fails for nothing else."""
        if "@" in key:
            return True
        # A time-out that is the last straw is told after the failure that follows from it.
        attempts = device.failures.get(key, 0) + device.timeouts.get(key, 0) + 1
        if (device.name, key) in self._rescued or attempts >= self.desired.fleet.attempts:
            return True
        # The controller may not have heard yet that it is well again.
        lately = at - timedelta(seconds=self.desired.fleet.stale_after)
        heard = lately if device.parked or device.heard_at is None else min(lately, device.heard_at)
        was = device.critical_since is not None or (device.well_since is not None and device.well_since >= heard)
        return device.image == key and was


def _is_long_critical(at: datetime, device: Truth, slack: timedelta) -> bool:
    """Whether a device has been critical, and has reported since, for longer than the controller can have overlooked."""
    since, heard = device.critical_since, at if device.parked else device.heard_at
    return since is not None and heard is not None and since + slack <= min(at, heard)


def _app_changed_last(device: Truth) -> bool:
    since = device.image_since
    return since is not None and any(app > since for app in device.app_since.values())


def key_of(subject: str, release: str) -> str:
    """How a release is named: `v1.4.2`, or `video-ingest@2.8.0`."""
    return release if subject == "image" else f"{subject}@{release}"
