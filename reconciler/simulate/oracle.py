"""Watches a simulated fleet and says where a rule of the design was broken. It sees the devices as they truly are.

Judges; changes nothing, and asks neither the planner nor the records of the controller what is right: what devices hold, run and
report is told to it by the machines (`truth`), what was decided by the trace, and the rules are written once more in `rules`.
Called after every simulated event by `run`. Source: design §4 and §5; the invariants are those of the simulator's contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from reconciler.model.desired import Desired
from reconciler.model.plan import Reason
from reconciler.model.scalars import format_instant, release_key, version_key
from reconciler.simulate import rules
from reconciler.simulate.timings import download_s
from reconciler.simulate.trace import Event, Kind
from reconciler.simulate.truth import Knowledge, Machine, Rule, Truth, Violation

__all__ = ["Machine", "Oracle", "Rule", "Truth", "Violation"]


class Oracle(Knowledge):
    """One run's witness. `violations` grows as rules are broken; nothing is raised, so that a run is seen to its end."""

    def __init__(
        self, desired: Desired, devices: Iterable[Truth], published: Mapping[str, str], apps: Mapping[str, str]
    ) -> None:
        """`desired` is what was in force before the run; `published` release → digest and `apps` key → digest, of the beginning."""
        super().__init__(desired, devices, published, apps)
        self.violations: list[Violation] = []
        self._refused: list[Desired] = []
        self._overruled = False
        """A commit is in force that must not be."""
        self.is_supply_sound = True
        """Whether what was published can be fetched."""
        self._doing: dict[str, set[str]] = {}
        self._doing_at: dict[str, set[str]] = {}

    # ------------------------------------------------ commits and decisions

    def merged(self, desired: Desired) -> None:
        """A commit came into force, as it may."""
        super().merged(desired)
        self._overruled = False

    def refused(self, desired: Desired) -> None:
        """A head was not taken; `desired` is what it asked for."""
        self._refused.append(desired)

    def overruled(self, desired: Desired | None) -> None:
        """A head was taken that must not be: what was in force before stays what is right. None: it does not even load."""
        self._overruled = True
        if desired is not None:
            self._refused.append(desired)

    def decided(self, event: Event) -> None:
        """Something that the controller decided or learned."""
        if event.kind is Kind.TOLD and event.device is not None:
            self._told(event)
        elif event.kind is Kind.PROVEN and event.wave is not None and event.key is not None:
            self._proof(event.at, event.wave, event.key)
        elif event.kind is Kind.STOPPED and event.wave is not None and event.key is not None:
            self._check_failure(event.at, event.wave, event.key)
            self._stopped.setdefault(event.key, event.at)
        elif event.kind is Kind.TIMED_OUT and event.device in self.devices:
            self._timed_out(event.at, self.devices[event.device], event.key)
        elif event.kind is Kind.ATTEMPT_FAILED and event.device in self.devices and "@" in (event.key or ""):
            self._rests(self.devices[event.device])
        elif event.kind is Kind.TAKEN and event.site is not None and event.wave is not None:
            self._taken.add((event.site, event.key or ""))
            if not self._exact:
                self._wave_of[event.site] = event.wave
                self._seat()

    def _timed_out(self, at: datetime, device: Truth, key: str | None) -> None:
        device.timed_out = True
        if key is not None:
            device.timeouts[key] = device.timeouts.get(key, 0) + 1
            kept = device.troubled or self._is_silent(at, device) or device.image is None or not self.is_supply_sound
            if not kept and "@" not in key and not self._is_far_off(device):
                self._broken(
                    at, Rule.CONVERGES, device.name, f"was told {key}, and nothing kept it from that in all its time"
                )
        for flying in self._doing.values():
            flying.discard(device.name)

    def _is_far_off(self, device: Truth) -> bool:
        """Whether a download may take longer than an update."""
        fleet = self.desired.fleet
        return device.site not in self.desired.sites or (
            4 * download_s(self.desired, device.site, None) > fleet.update_timeout
        )

    def _starts(self, at: datetime, device: Truth) -> None:
        """Something is done to a device from now on that takes it out of service for a while."""
        wave = self._wave_of.get(device.site)
        if self._is_able(device.name) and not device.timed_out:
            self._doing.setdefault(wave or "", set()).add(device.name)
        self._doing_at.setdefault(device.site, set()).add(device.name)
        self._check_budget(at, device, wave)

    def _rests(self, device: Truth) -> None:
        """Nothing is done to it any more."""
        for flying in self._doing.values():
            flying.discard(device.name)
        self._doing_at.get(device.site, set()).discard(device.name)

    # ------------------------------------------------ what machines tell

    def began(self, at: datetime, name: str, release: str, *, waived: bool) -> None:
        """A device starts to write its other slot. `waived`: its assignment says that no window binds it."""
        device = self.devices[name]
        device.doing, device.armed, device.excused = release, None, True
        self._check_window(at, device, release, waived=waived)
        if self._must_be_exhausted(at, device, release) and not (device.image and _lower(release, device.image)):
            self._broken(at, Rule.STOPPED, name, f"begins {release}, which it failed as often as allowed")
        self._starts(at, device)
        self.look(at, name)

    def reboots(self, at: datetime, name: str, release: str, *, waived: bool) -> None:
        """A device has armed its other slot and will now boot it."""
        device = self.devices[name]
        device.armed, device.excused = device.critical_checks(), True
        tries = next(iter(device.machine.next_boots()), None)
        if tries is None or tries[0] != self._digests.get(release):
            self._broken(at, Rule.SLOT, name, f"arms a slot that does not hold {release}")
        self._check_window(at, device, release, waived=waived)
        self.look(at, name)

    def power_went(self, name: str) -> None:
        """A device's power is cut: what it tries may fail for that."""
        self.devices[name].excused = True
        self.disturbed(name)

    def disturbed(self, name: str) -> None:
        """A device cannot hear or be heard: what it was told may take longer than it should."""
        self.devices[name].troubled = True

    def booted(self, at: datetime, name: str) -> None:
        """A device boots."""
        device = self.devices[name]
        # A slot that does not boot, or whose checks are worse, is given up with right; one that is on trial in health is not.
        if device.doing is not None and device.armed is not None:
            on_trial = device.machine.booted_digest() == self._digests.get(device.doing)
            device.excused = not on_trial or bool(device.critical_checks() - device.armed)
        self.look(at, name)

    def ended(self, at: datetime, name: str, release: str | None, *, good: bool, counts: bool, fell_back: bool) -> None:
        """What a device began is over: its new slot with `release` is good, or the old one runs as before. `counts`: that was
        an attempt. `fell_back`: it was booted on trial and given up."""
        device = self.devices[name]
        if good:
            self._check_good(at, device, release)
            if device.image is not None:
                device.past.add(device.image)
            # As it was when it left the release before: what was ill with that one is well now.
            device.critical_before = bool(device.armed) or device.critical_since is not None
            device.image, device.image_since, device.run_since = release, at, None
        elif device.doing is not None and counts:
            if fell_back and not device.excused:
                self._broken(at, Rule.CONVERGES, name, f"gives {device.doing} up, and nothing was wrong with it")
            device.failures[device.doing] = device.failures.get(device.doing, 0) + 1
            device.failed_at[device.doing] = at
            self._spent.add(name)
        device.troubled |= not good
        device.doing, device.armed, device.timed_out, device.goes_on = None, None, False, False
        self._rests(device)
        self.look(at, name)

    def app_runs(self, at: datetime, name: str, app: str) -> None:
        """Another release of an app runs on a device."""
        self.devices[name].app_since[app] = at
        if self.devices[name].doing is None:
            self._rests(self.devices[name])
        self.look(at, name)

    def health(self, at: datetime, name: str, *, critical: bool) -> None:
        """A device's health changed in truth."""
        device = self.devices[name]
        if not critical and device.critical_since is not None:
            device.well_since = at
        device.critical_since = (device.critical_since or at) if critical else None
        (self._ill.add if critical else self._ill.discard)(name)
        if critical:
            device.run_since = None
            device.excused |= device.armed is not None

    def heard(self, at: datetime, name: str) -> None:
        """The controller took a report of a device, which spoke of it as it is now."""
        device = self.devices[name]
        if device.heard_at is not None and self._is_silent(at, device):
            device.run_since = None
        device.heard_at = at
        # The report says what the healthcheck says now; that its health changed may be told a moment later.
        if device.run_since is None and device.doing is None and not device.critical_checks():
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
        device, known = self.devices[name], set(self._digests.values())
        digest = device.machine.booted_digest()
        if digest is not None and digest not in known:
            self._broken(at, Rule.RELEASED, name, f"runs {digest}, which nobody published")
        for app, running in device.machine.running().items():
            if running not in self._app_digests.values():
                self._broken(at, Rule.RELEASED, name, f"runs {app} {running}, which is no release")
        boots = list(device.machine.next_boots())
        if device.image is not None and (digest is None or not any(good for _, good in boots)):
            self._broken(at, Rule.SLOT, name, "no slot that was good would boot after a power cut")
        for slot, _ in boots:
            if slot not in known:
                self._broken(
                    at, Rule.SLOT, name, f"after a power cut it would boot {slot}, which is no published release"
                )

    def _check_good(self, at: datetime, device: Truth, release: str | None) -> None:
        """What is marked good runs, and shows nothing that is worse than before."""
        if release is None or device.machine.booted_digest() != self._digests.get(release):
            self._broken(at, Rule.SLOT, device.name, f"marks {release} good, which it has not booted")
        worse = device.critical_checks() - (device.armed or frozenset())
        if device.armed is not None and worse:
            self._broken(
                at, Rule.SLOT, device.name, f"marks {release} good, and {', '.join(sorted(worse))} is worse than before"
            )

    # ------------------------------------------------ what may start

    def _told(self, event: Event) -> None:
        device, key = self.devices.get(event.device or ""), event.key
        if device is None or key is None:
            return
        app, at_sign, release = key.partition("@")
        subject = app if at_sign else "image"
        release = release if at_sign else key
        device.timed_out = device.troubled = False
        wave = self._wave_of.get(device.site)
        pin = None if at_sign else rules.pinned(self.desired, device.site, device.name)
        wanted = pin or rules.asks(self.desired, wave).get(subject)
        app_back = bool(at_sign) and self._is_app_going_back(device, app, key)
        back = event.detail in ("rollback", "rescue") or app_back
        if event.detail == "rescue":
            self._check_rescue(event, device)
        if release != wanted and event.detail not in ("rescue", "provision"):
            heads = (rules.asks(head, wave).get(subject) for head in self._refused)
            if self._overruled or release in heads:
                self._broken(event.at, Rule.REFUSED, device.name, f"starts {key}, which a refused commit asks for")
            elif self._exact:
                self._broken(event.at, Rule.ASKED, device.name, f"starts {key}; wave {wave} asks for {wanted}")
        if at_sign:
            self._check_restart(event, device, app, back=back)
        self._check_banned(event, device, key)
        if back:
            self._check_back(event, device, wave, key)
            return
        self._check_halted(event, device, wave, key)
        if pin is None and event.detail != "provision":
            self._check_forward(event, wave, key)

    def _check_banned(self, event: Event, device: Truth, key: str) -> None:
        """What holds for going back too: nothing at suspended sites, nothing to a withdrawn release."""
        site, image = self.desired.sites.get(device.site), self.desired.images.get(key)
        if site is not None and site.suspended:
            self._broken(event.at, Rule.ASKED, device.name, f"starts {key} at a suspended site")
        if image is not None and image.withdrawn is not None:
            self._broken(event.at, Rule.ASKED, device.name, f"starts {key}, which is withdrawn")

    def _check_restart(self, event: Event, device: Truth, app: str, *, back: bool) -> None:
        """An app that restarts: its window, where the site's binds it, and the budgets."""
        spec = self.desired.apps.get(app)
        if spec is not None and spec.window == "site" and device.site in self.desired.sites:
            is_open = rules.is_open(self.desired, device.site, event.at)
            if not is_open and not (back and self._is_waived(device)):
                self._broken(event.at, Rule.WINDOW, device.name, f"restarts {event.key} outside of its window")
        self._starts(event.at, device)

    def _is_app_going_back(self, device: Truth, app: str, key: str) -> bool:
        """A restart does not say that it goes back: it does where a lower release than the running one follows."""
        running = device.machine.running().get(app)
        of = (known.partition("@") for known, digest in self._app_digests.items() if digest == running and "@" in known)
        versions = [version for name, _, version in of if name == app]
        return any(version_key(key.partition("@")[2]) < version_key(version) for version in versions)

    def _check_back(self, event: Event, device: Truth, wave: str | None, key: str) -> None:
        """What is called going back is a lower release that the device, or its wave, has had."""
        if device.image is None or "@" in key:
            return
        if not _lower(key, device.image):
            self._broken(event.at, Rule.ASKED, device.name, f"{event.detail} from {device.image} to {key} is none")
        had = key in device.past or (wave, key) in self._ever_proven or (device.site, key) in self._taken
        if not had:
            self._broken(
                event.at, Rule.ASKED, device.name, f"{event.detail} to {key}, which neither it nor its wave has had"
            )

    def _check_rescue(self, event: Event, device: Truth) -> None:
        if self.desired.fleet.on_failure != "rollback":
            self._broken(event.at, Rule.ASKED, device.name, "is rescued, and the fleet says to hold")
        if device.image is not None:
            self._rescued.add((device.name, device.image))
            self._spent.add(device.name)

    def _check_halted(self, event: Event, device: Truth, wave: str | None, key: str) -> None:
        """Git says that nothing moves forward."""
        spec = self._spec(wave)
        paused = self.desired.fleet.paused or (spec is not None and spec.paused)
        if paused or rules.is_frozen(self.desired, event.at):
            self._broken(event.at, Rule.ASKED, device.name, f"starts {key} in a freeze or a pause")

    def _check_forward(self, event: Event, wave: str | None, key: str) -> None:
        device = self.devices[event.device or ""]
        stopped = self._stopped.get(key)
        if stopped is not None and stopped < event.at:
            self._broken(event.at, Rule.STOPPED, device.name, f"starts {key}, stopped since {format_instant(stopped)}")
        elif (failed := self._must_have_failed(event.at, key)) is not None:
            self._broken(event.at, Rule.STOPPED, device.name, f"starts {key}, which must have failed in wave {failed}")
        if self._must_be_exhausted(event.at, device, key):
            self._broken(event.at, Rule.STOPPED, device.name, f"starts {key}, which it failed as often as allowed")
        for spec in self.desired.waves.waves:
            if spec.name == wave:
                break
            if (spec.name, key) not in self._proven and self._counted(spec.name):
                self._broken(event.at, Rule.ORDER, device.name, f"starts {key} before wave {spec.name} has proven it")

    def _is_waived(self, device: Truth) -> bool:
        """Whether going back needs no window."""
        policy = self.desired.fleet.rollback.ignore_window
        return policy == "all" or (policy == "true" and device.critical_since is not None)

    def _check_window(self, at: datetime, device: Truth, release: str, *, waived: bool) -> None:
        if (
            device.image is None
            or device.goes_on
            or device.site not in self.desired.sites
            or rules.is_open(self.desired, device.site, at)
        ):
            return
        if not (waived and _lower(release, device.image) and self._is_waived(device)):
            self._broken(at, Rule.WINDOW, device.name, f"begins {release} outside of its window")

    def _check_budget(self, at: datetime, device: Truth, wave: str | None) -> None:
        beside = {n for n in self._doing_at[device.site] if not self.devices[n].timed_out} - {device.name}
        if beside and not device.timed_out:
            self._broken(at, Rule.BUDGET, device.name, f"begins while {', '.join(sorted(beside))} is at it")
        spec = self._spec(wave)
        if spec is None:
            return
        able, flying = len(self._counted(spec.name)), len(self._doing.get(spec.name, ()))
        if flying > rules.slots(spec, able):
            self._broken(
                at, Rule.BUDGET, device.name, f"{flying} of wave {wave} at once, {rules.slots(spec, able)} allowed"
            )

    # ------------------------------------------------ proofs and failures

    def _proof(self, at: datetime, wave: str, key: str) -> None:
        self._proven.add((wave, key))
        self._ever_proven.add((wave, key))
        spec, counted = self._spec(wave), self._counted(wave)
        if spec is None or not counted or not self._exact:
            return
        app, at_sign, _ = key.partition("@")
        soak = timedelta(seconds=(spec.app_soak if spec.app_soak is not None else spec.soak) if at_sign else spec.soak)
        failed = silent = soaked = 0
        for device in counted:
            since = self._shown_since(device, app if at_sign else None, key)
            if self._has_failed(at, device, key):
                failed += 1
            elif self._is_silent(at, device):
                silent += 1
                if device.heard_at is not None and device.heard_at + soak > at:
                    self._broken(
                        at, Rule.ORDER, device.name, f"wave {wave} proves {key} {soak} too early after its silence"
                    )
            elif since is not None and since + soak <= at:
                soaked += 1
            elif device.critical_before and not at_sign:
                pass  # Critical before the release came: neither charged nor credited, whatever it shows now.
            elif device.critical_since is None or self._is_charged(device, key):
                text = f"wave {wave} proves {key}, and it shows it in health only since {since}"
                self._broken(at, Rule.ORDER, device.name, text)
        if not soaked or not rules.allows(spec.max_failed, failed, len(counted)):
            self._broken(
                at, Rule.ORDER, wave, f"proves {key} with {soaked} soaked and {failed} failed of {len(counted)}"
            )
        if not rules.allows(spec.max_offline, silent, len(counted)):
            self._broken(at, Rule.ORDER, wave, f"proves {key} with {silent} silent of {len(counted)}")

    def _check_failure(self, at: datetime, wave: str, key: str) -> None:
        """A gate fails by devices to which something truly happened: else a release is stopped for nothing."""
        spec, counted = self._spec(wave), self._counted(wave)
        if spec is None or not self._exact:
            return
        failed = [device for device in counted if self._may_have_failed(at, device, key)]
        if rules.allows(spec.max_failed, len(failed), len(counted)):
            self._broken(at, Rule.CONVERGES, wave, f"stops {key}, and {len(failed)} of {len(counted)} can have failed")

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
                held = ((n, found[n]) for w in earlier for n in self._in_wave[w])
                if not any(self._needs_a_person(at, self.devices[n], *of) for n, of in held):
                    self._broken(at, Rule.CONVERGES, name, "waits for waves that nothing keeps")
            elif reason is not None and not self._needs_a_person(at, device, wanted, reason):
                self._broken(at, Rule.CONVERGES, name, f"still held ({reason.value}) long after the last fault")
            elif reason is None and wanted is not None and device.machine.booted_digest() != self._digests.get(wanted):
                self._broken(at, Rule.CONVERGES, name, f"is said to run {wanted}, and does not")

    def _needs_a_person(self, at: datetime, device: Truth, wanted: str | None, reason: Reason | None) -> bool:
        """Whether a hold stands in truth, and only git, or somebody at the device, can change it."""
        site, spec = self.desired.sites.get(device.site), self._spec(self._wave_of.get(device.site))
        stopped = wanted in self._stopped
        facts: Mapping[Reason, bool] = {
            Reason.SUSPENDED: site is not None and site.suspended,
            Reason.OFFLINE: self._is_silent(at, device),
            Reason.GATE_FAILED: stopped,
            Reason.ATTEMPTS_EXHAUSTED: self._is_exhausted(device, wanted or "")
            or (device.name, wanted or "") in self._rescued,
            Reason.PAUSED: self.desired.fleet.paused or (spec is not None and spec.paused),
            Reason.FROZEN: rules.is_frozen(self.desired, at),
        }
        return facts.get(reason, True) if reason in _FOR_A_PERSON else False

    def _broken(self, at: datetime, rule: Rule, who: str, text: str) -> None:
        self.violations.append(Violation(at, rule, who, text))


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
