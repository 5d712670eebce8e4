"""Watches a simulated fleet and says where a rule of the design was broken. It sees the devices as they truly are.

Judges; changes nothing, and asks neither the planner nor the records of the controller what is right: what devices hold, run and
report is told to it by the machines (`Truth`), what was decided by the trace, and the rules are written once more in `rules`.
Called after every simulated event by `run`. Source: design §4 and §5; the invariants are those of the simulator's contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from reconciler.model.desired import Desired
from reconciler.model.observed import Health, Snapshot
from reconciler.model.plan import Reason
from reconciler.model.scalars import format_instant, release_key, version_key
from reconciler.simulate import rules
from reconciler.simulate.timings import TICK_S
from reconciler.simulate.trace import Event, Kind


class Rule(StrEnum):
    """What must hold after every event."""

    RELEASED = "released"
    """A slot that boots, and an app that runs, hold bytes that were published under a release git names."""
    SLOT = "slot"
    """Power may go now: the device boots a slot that was good, or tries one that is whole and comes back by itself."""
    SERIAL = "serial"
    """Serials of accepted assignments rise."""
    WINDOW = "window"
    """Nothing is written to a slot in use, and nothing reboots, outside of the site's window; but provisions and waived returns."""
    BUDGET = "budget"
    """`maxInFlight` of a wave, and one device of a site."""
    ASKED = "asked"
    """A device starts only what its wave or its pin asks for, or what it goes back to."""
    ORDER = "order"
    """A wave starts a release only after every earlier wave has proven it, and a proof stands on devices that truly soaked."""
    STOPPED = "stopped"
    """Nothing starts forward on a release whose gate has failed, or must have."""
    REFUSED = "refused"
    """Nothing starts for a commit that was not taken."""
    CONVERGES = "converges"
    """Faults over, every device that can be reached gets where git wants it, unless a person is needed."""


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


@dataclass(slots=True)
class Truth:
    """A device as it is, and what the controller can have learned of it."""

    name: str
    site: str
    machine: Machine
    image: str | None = None
    critical_since: datetime | None = None
    critical_before: bool = False
    run_since: datetime | None = None
    """Since when its reports show the present image in unbroken good health."""
    heard_at: datetime | None = None
    parked: bool = False
    """It goes on reporting the same, which nobody tells."""
    serial: tuple[int, int] | None = None
    doing: str | None = None
    doing_since: datetime | None = None
    timed_out: bool = False
    failures: dict[str, int] = field(default_factory=dict)
    app_since: dict[str, datetime] = field(default_factory=dict)
    past: set[str] = field(default_factory=set)


class Oracle:
    """One run's witness. `violations` grows as rules are broken; nothing is raised, so that a run is seen to its end."""

    def __init__(
        self, desired: Desired, devices: Iterable[Truth], published: Mapping[str, str], apps: Mapping[str, str]
    ) -> None:
        """`desired` is what was in force before the run; `published` release → digest and `apps` key → digest, of the beginning."""
        self.violations: list[Violation] = []
        self.desired = desired
        self.devices = {device.name: device for device in devices}
        self._digests = dict(published)
        self._app_digests = dict(apps)
        self._refused: list[Desired] = []
        self._proven: set[tuple[str, str]] = set()
        self._stopped: dict[str, datetime] = {}
        self._rescued: set[tuple[str, str]] = set()
        self._wave_of = rules.waves_of(desired)
        self._exact = True
        self._doing: dict[str, set[str]] = {}
        self._doing_at: dict[str, set[str]] = {}
        self._in_wave: dict[str, list[str]] = {}
        self._judged_in: dict[str, list[Truth]] = {}
        self._ill: set[str] = set()
        """Devices that are critical now: few, where a wave has thousands."""
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

    # ------------------------------------------------ what is told to it

    def remember(self, observed: Snapshot) -> None:
        """What the record of the beginning says of devices and releases: evidence that was there before the run."""
        for seen in observed.devices:
            device = self.devices.get(seen.name)
            if device is None:
                continue
            device.heard_at, device.serial = seen.last_seen, seen.serial
            device.failures = dict(seen.failed_attempts)
            device.app_since = {app: running.since for app, running in seen.apps.items() if running.since is not None}
            if seen.health is Health.CRITICAL:
                device.critical_since = seen.health_since
                if seen.health_since is not None:
                    self._ill.add(seen.name)
                earlier = (
                    seen.image_since is not None
                    and seen.health_since is not None
                    and seen.health_since < seen.image_since
                )
                device.critical_before = seen.health_before_update is Health.CRITICAL or earlier
            elif seen.health_since is not None and seen.image_since is not None:
                device.run_since = max(seen.health_since, seen.image_since)
            self._rescued |= {(seen.name, release) for release in seen.rescued_from}
        open_proofs = [verdict for verdict in observed.proofs if not verdict.closed]
        self._proven |= {(verdict.wave, verdict.key) for verdict in open_proofs}
        self._stopped |= {verdict.key: verdict.at for verdict in observed.failures if not verdict.closed}

    def merged(self, desired: Desired) -> None:
        """A commit came into force. What was proven or stopped of releases that nobody asks for any more is closed."""
        # Where the draw changes, who is in which wave depends on the record of who was taken: then the record is believed.
        self._exact = self._exact and rules.same_draw(self.desired, desired)
        self.desired = desired
        self._wave_of = rules.waves_of(desired)
        self._seat()
        asked = {
            self._key(subject, r) for w in desired.waves.waves for subject, r in rules.asks(desired, w.name).items()
        }
        self._proven = {place for place in self._proven if place[1] in asked}
        self._stopped = {key: at for key, at in self._stopped.items() if key in asked}

    def refused(self, desired: Desired) -> None:
        """A head was not taken; `desired` is what it asked for."""
        self._refused.append(desired)

    def published(self, release: str, digest: str) -> None:
        """An image release got into the store."""
        self._digests[release] = digest

    def decided(self, event: Event) -> None:
        """Something that the controller decided or learned."""
        if event.kind is Kind.TOLD and event.device is not None:
            self._told(event)
        elif event.kind is Kind.PROVEN and event.wave is not None and event.key is not None:
            self._proof(event.at, event.wave, event.key)
        elif event.kind is Kind.STOPPED and event.key is not None:
            self._stopped.setdefault(event.key, event.at)
        elif event.kind is Kind.TIMED_OUT and event.device in self.devices:
            self.devices[event.device].timed_out = True
            for flying in self._doing.values():
                flying.discard(event.device)
        elif event.kind is Kind.TAKEN and event.site is not None and event.wave is not None and not self._exact:
            self._wave_of[event.site] = event.wave
            self._seat()

    def began(self, at: datetime, name: str, release: str, *, waived: bool) -> None:
        """A device starts to write its other slot, or arms it. `waived`: its assignment says that no window binds it."""
        device = self.devices[name]
        wave = self._wave_of.get(device.site)
        device.doing, device.doing_since = release, at
        flying = self._doing.setdefault(wave or "", set())
        if self._is_able(name):
            flying.add(name)
        self._doing_at.setdefault(device.site, set()).add(name)
        self._check_window(at, device, release, waived=waived)
        self._check_budget(at, device, wave)

    def reboots(self, at: datetime, name: str, release: str, *, waived: bool) -> None:
        """What a device has written it will now boot."""
        self._check_window(at, self.devices[name], release, waived=waived)

    def ended(self, at: datetime, name: str, release: str | None, *, good: bool, counts: bool) -> None:
        """What a device began is over: its new slot with `release` is good, or the old one runs as before. `counts`: that was
        an attempt."""
        device = self.devices[name]
        if good:
            if device.image is not None:
                device.past.add(device.image)
            device.critical_before = device.critical_since is not None
            device.image, device.run_since = release, None
        elif device.doing is not None and counts:
            device.failures[device.doing] = device.failures.get(device.doing, 0) + 1
        device.doing, device.doing_since, device.timed_out = None, None, False
        for flying in self._doing.values():
            flying.discard(name)
        self._doing_at.get(device.site, set()).discard(name)
        self.look(at, name)

    def app_runs(self, at: datetime, name: str, app: str) -> None:
        """Another release of an app runs on a device."""
        self.devices[name].app_since[app] = at
        self.look(at, name)

    def health(self, at: datetime, name: str, *, critical: bool) -> None:
        """A device's health changed in truth."""
        device = self.devices[name]
        device.critical_since = (device.critical_since or at) if critical else None
        (self._ill.add if critical else self._ill.discard)(name)
        if critical:
            device.run_since = None

    def heard(self, at: datetime, name: str) -> None:
        """The controller took a report of a device, which spoke of it as it is now."""
        device, stale = self.devices[name], timedelta(seconds=self.desired.fleet.stale_after)
        if device.heard_at is not None and not device.parked and at - device.heard_at > stale:
            device.run_since = None
        device.heard_at = at
        if device.run_since is None and device.critical_since is None and device.doing is None:
            device.run_since = at

    def parks(self, name: str, *, parked: bool) -> None:
        """From now on its reports go on saying the same, or are heard one by one again."""
        self.devices[name].parked = parked

    def accepted(self, at: datetime, name: str, serial: tuple[int, int]) -> None:
        """A device put an assignment in force."""
        device = self.devices[name]
        if device.serial is not None and serial <= device.serial:
            self._broken(at, Rule.SERIAL, name, f"accepted {serial} after {device.serial}")
        device.serial = serial

    # ------------------------------------------------ the device as it stands

    def look(self, at: datetime, name: str) -> None:
        """Bytes and slots of one device, as they are."""
        machine, known = self.devices[name].machine, set(self._digests.values())
        digest = machine.booted_digest()
        if digest is not None and digest not in known:
            self._broken(at, Rule.RELEASED, name, f"runs {digest}, which nobody published")
        for app, running in machine.running().items():
            if running not in self._app_digests.values():
                self._broken(at, Rule.RELEASED, name, f"runs {app} {running}, which is no release")
        boots = list(machine.next_boots())
        if digest is not None and not any(good for _, good in boots):
            self._broken(at, Rule.SLOT, name, "no slot that was good would boot after a power cut")
        for slot, _ in boots:
            if slot not in known:
                self._broken(
                    at, Rule.SLOT, name, f"after a power cut it would boot {slot}, which is no published release"
                )

    # ------------------------------------------------ what may start

    def _told(self, event: Event) -> None:
        device, key = self.devices.get(event.device or ""), event.key
        if device is None or key is None:
            return
        app, at_sign, release = key.partition("@")
        subject = app if at_sign else "image"
        release = release if at_sign else key
        wave = self._wave_of.get(device.site)
        pin = None if at_sign else rules.pinned(self.desired, device.site, device.name)
        wanted = pin or rules.asks(self.desired, wave).get(subject)
        back = event.detail in ("rollback", "rescue") or (bool(at_sign) and self._is_app_going_back(device, app, key))
        if event.detail == "rescue":
            self._rescued.add((device.name, device.image or ""))
        if release != wanted and event.detail not in ("rescue", "provision"):
            if any(rules.asks(head, wave).get(subject) == release for head in self._refused):
                self._broken(event.at, Rule.REFUSED, device.name, f"starts {key}, which a refused commit asks for")
            elif self._exact:
                self._broken(event.at, Rule.ASKED, device.name, f"starts {key}; wave {wave} asks for {wanted}")
        if back:
            self._check_back(event, device, key)
            return
        if pin is None and event.detail != "provision":
            self._check_forward(event, wave, key)

    def _is_app_going_back(self, device: Truth, app: str, key: str) -> bool:
        """A restart does not say that it goes back: it does where a lower release than the running one follows."""
        running = device.machine.running().get(app)
        of = (known.partition("@") for known, digest in self._app_digests.items() if digest == running and "@" in known)
        versions = [version for name, _, version in of if name == app]
        return any(version_key(key.partition("@")[2]) < version_key(version) for version in versions)

    def _check_back(self, event: Event, device: Truth, key: str) -> None:
        """What is called going back is a lower release that the fleet has had."""
        if device.image is not None and "@" not in key and not _lower(key, device.image):
            self._broken(event.at, Rule.ASKED, device.name, f"{event.detail} from {device.image} to {key} is none")

    def _check_forward(self, event: Event, wave: str | None, key: str) -> None:
        name = event.device or ""
        stopped = self._stopped.get(key)
        if stopped is not None and stopped < event.at:
            self._broken(event.at, Rule.STOPPED, name, f"starts {key}, stopped since {format_instant(stopped)}")
        elif (failed := self._must_have_failed(event.at, key)) is not None:
            self._broken(event.at, Rule.STOPPED, name, f"starts {key}, which must have failed in wave {failed}")
        if rules.is_frozen(self.desired, event.at) or self.desired.fleet.paused:
            self._broken(event.at, Rule.ASKED, name, f"starts {key} in a freeze or a pause")
        for spec in self.desired.waves.waves:
            if spec.name == wave:
                break
            if (spec.name, key) not in self._proven and self._counted(spec.name):
                self._broken(event.at, Rule.ORDER, name, f"starts {key} before wave {spec.name} has proven it")

    def _check_window(self, at: datetime, device: Truth, release: str, *, waived: bool) -> None:
        if (
            device.image is None
            or device.site not in self.desired.sites
            or rules.is_open(self.desired, device.site, at)
        ):
            return
        policy = self.desired.fleet.rollback.ignore_window
        back = _lower(release, device.image)
        if not (waived and back and (policy == "all" or (policy == "true" and device.critical_since is not None))):
            self._broken(at, Rule.WINDOW, device.name, f"begins {release} outside of its window")

    def _check_budget(self, at: datetime, device: Truth, wave: str | None) -> None:
        beside = {n for n in self._doing_at[device.site] if not self.devices[n].timed_out}
        if len(beside) > 1:
            self._broken(
                at, Rule.BUDGET, device.name, f"begins while {', '.join(sorted(beside - {device.name}))} is at it"
            )
        spec = next((spec for spec in self.desired.waves.waves if spec.name == wave), None)
        if spec is None:
            return
        able = len(self._counted(spec.name))
        flying = len(self._doing[spec.name])
        if flying > rules.slots(spec, able):
            self._broken(
                at, Rule.BUDGET, device.name, f"{flying} of wave {wave} at once, {rules.slots(spec, able)} allowed"
            )

    # ------------------------------------------------ what was proven, and what must have failed

    def _proof(self, at: datetime, wave: str, key: str) -> None:
        self._proven.add((wave, key))
        spec = next((spec for spec in self.desired.waves.waves if spec.name == wave), None)
        counted = self._counted(wave)
        if spec is None or not counted or not self._exact:
            return
        app, at_sign, _ = key.partition("@")
        soak = timedelta(seconds=(spec.app_soak if spec.app_soak is not None else spec.soak) if at_sign else spec.soak)
        stale = timedelta(seconds=self.desired.fleet.stale_after)
        failed = silent = soaked = 0
        for device in counted:
            since = self._shown_since(device, app if at_sign else None, key)
            if self._has_failed(at, device, key):
                failed += 1
            elif not device.parked and (device.heard_at is None or at - device.heard_at > stale):
                silent += 1
                if device.heard_at is not None and device.heard_at + soak > at:
                    self._broken(
                        at, Rule.ORDER, device.name, f"wave {wave} proves {key} {soak} too early after its silence"
                    )
            elif since is not None and since + soak <= at:
                soaked += 1
            elif not device.critical_before:
                text = f"wave {wave} proves {key}, and it shows it in health only since {since}"
                self._broken(at, Rule.ORDER, device.name, text)
        if not soaked or not rules.allows(spec.max_failed, failed, len(counted)):
            self._broken(
                at, Rule.ORDER, wave, f"proves {key} with {soaked} soaked and {failed} failed of {len(counted)}"
            )
        if not rules.allows(spec.max_offline, silent, len(counted)):
            self._broken(at, Rule.ORDER, wave, f"proves {key} with {silent} silent of {len(counted)}")

    def _shown_since(self, device: Truth, app: str | None, key: str) -> datetime | None:
        if device.run_since is None:
            return None
        if app is None:
            return device.run_since if device.image == key else None
        if device.machine.running().get(app) != self._app_digests.get(key):
            return None
        return max(device.run_since, device.app_since.get(app, device.run_since))

    def _has_failed(self, at: datetime, device: Truth, key: str) -> bool:
        if device.failures.get(key, 0) >= self.desired.fleet.attempts or (device.name, key) in self._rescued:
            return True
        long = timedelta(seconds=self.desired.fleet.critical_for)
        charged = device.critical_since is not None and not device.critical_before
        return bool(charged and device.image == key and device.critical_since and at - device.critical_since >= long)

    def _must_have_failed(self, at: datetime, key: str) -> str | None:
        """A wave whose gate the controller must have seen fail by now: long critical in truth, and heard of since."""
        fleet = self.desired.fleet
        slack = timedelta(seconds=fleet.critical_for + 2 * fleet.report_every + 2 * TICK_S)
        last = self.desired.waves.waves[-1].name
        if (last, key) in self._proven or "@" in key or not self._ill:
            return None
        for spec in self.desired.waves.waves:
            counted = self._counted(spec.name)
            ill = (self.devices[name] for name in self._ill if self._wave_of.get(self.devices[name].site) == spec.name)
            failed = [
                d for d in ill if d.image == key and self._is_able(d.name) and self._is_long_critical(at, d, slack)
            ]
            if not rules.allows(spec.max_failed, len(failed), len(counted)):
                return spec.name
        return None

    @staticmethod
    def _is_long_critical(at: datetime, device: Truth, slack: timedelta) -> bool:
        since, heard = device.critical_since, device.heard_at
        newer = (
            any(device.run_since is not None and app > since for app in device.app_since.values()) if since else True
        )
        return (
            since is not None
            and not device.critical_before
            and not newer
            and heard is not None
            and since + slack <= min(at, heard)
        )

    def _counted(self, wave: str) -> list[Truth]:
        """Devices that a wave is judged by, whatever they run."""
        return self._judged_in.get(wave, [])

    def _is_able(self, name: str) -> bool:
        device = self.devices[name]
        site = self.desired.sites.get(device.site)
        return site is not None and not site.suspended and rules.pinned(self.desired, device.site, name) is None

    # ------------------------------------------------ the end

    def judge_end(self, at: datetime, decision: Callable[[str], tuple[str | None, Reason | None]]) -> None:
        """Faults have been over for long. `decision` gives a device's wanted release and what the planner holds it for."""
        found = {name: decision(name) for name in sorted(self.devices)}
        names = [wave.name for wave in self.desired.waves.waves]
        for name, (wanted, reason) in found.items():
            device = self.devices[name]
            wave = self._wave_of.get(device.site)
            if reason is Reason.WAVE_WAITS:
                # Waiting is no end by itself: in an earlier wave somebody must be needed.
                earlier = names[: names.index(wave)] if wave in names else []
                held = (found[n][1] for w in earlier for n in self._in_wave[w])
                if not any(of in _FOR_A_PERSON for of in held):
                    self._broken(at, Rule.CONVERGES, name, "waits for waves that nothing keeps")
            elif reason is not None and reason not in _FOR_A_PERSON:
                self._broken(at, Rule.CONVERGES, name, f"still held ({reason.value}) long after the last fault")
            elif reason is None and wanted is not None and device.machine.booted_digest() != self._digests.get(wanted):
                self._broken(at, Rule.CONVERGES, name, f"is said to run {wanted}, and does not")

    def _broken(self, at: datetime, rule: Rule, who: str, text: str) -> None:
        self.violations.append(Violation(at, rule, who, text))

    @staticmethod
    def _key(subject: str, release: str) -> str:
        return release if subject == "image" else f"{subject}@{release}"


_FOR_A_PERSON = frozenset(
    {
        Reason.IDENTITY_CONFLICT,
        Reason.SUSPENDED,
        Reason.UNKNOWN_IMAGE,
        Reason.AHEAD,
        Reason.WITHDRAWN,
        Reason.GATE_FAILED,
        Reason.PAUSED,
        Reason.FROZEN,
        Reason.GATE_UNRESOLVED,
        Reason.ATTEMPTS_EXHAUSTED,
        Reason.NO_ROLLBACK_IMAGE,
        Reason.NO_WINDOW,
        Reason.OFFLINE,
    }
)
"""What only git, or somebody at the device, can change."""


def _lower(release: str, than: str) -> bool:
    try:
        return release_key(release) < release_key(than)
    except ValueError:
        return False
