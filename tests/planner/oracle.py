"""When a flash is allowed, written down naively and without the planner's code, one rule a function. For property tests.

Slow and plain on purpose: every rule loops over devices as the contract says it. It judges what a plan does, not what it
leaves out. Images only; nights without a change of the clocks.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from reconciler.model.desired import Pin, WaveSpec, Window
from reconciler.model.observed import DeviceObservation
from reconciler.model.plan import Action, ActionKind, Plan
from tests.planner.fleets import Case


def numbers(release: str) -> tuple[int, ...]:
    parts = [int(part) for part in release[1:].split(".")]
    return tuple(parts + [0] * (3 - len(parts)))


class Oracle:
    """The rules over one case. Timed-out updates are taken from the plan: their own tests are scenarios."""

    def __init__(self, case: Case, plan: Plan) -> None:
        self.case, self.plan, self.now = case, plan, case.now
        self.desired, self.fleet = case.desired, case.desired.fleet
        self.seen = {device.name: device for device in case.snapshot.devices}
        self.site_of = {device: name for name, site in self.desired.sites.items() for device in site.devices}
        self.timed_out = {(fact.device, fact.key) for fact in plan.facts.timeouts}
        self.waves = list(self.desired.waves.waves)
        self.wave_of = self.membership()

    # ------------------------------------------------------------ who is where

    def membership(self) -> dict[str, int]:
        """Design §4.2: lists first, then whom a percentage took for a release that is open, then the draw."""
        listed: dict[str, int] = {}
        for number, wave in enumerate(self.waves):
            listed |= dict.fromkeys(wave.sites or (), number)
        asked = {wave.image for wave in self.waves}
        names = [wave.name for wave in self.waves]
        out, taken_for = dict(listed), {}
        for release, taken in self.case.snapshot.members.items():
            for wave_name, sites in taken.items():
                number = names.index(wave_name)
                if release in asked and self.waves[number].percent is not None:
                    taken_for |= {(site, release): number for site in sites}
                    out |= {site: number for site in sites if site not in listed}
        counted = [name for name, site in self.desired.sites.items() if not site.lab]
        word = self.desired.waves.order
        order = sorted(counted, key=lambda site: hashlib.sha256(f"{word}/{site}".encode()).digest())
        for number, wave in enumerate(self.waves):
            if wave.percent is None:
                continue
            target = max(1, -(-wave.percent * len(counted) // 100))
            if wave.percent < 100:
                target = min(target, len(counted) - 1)
            for site in order:
                if sum(out.get(other, 99) <= number for other in counted) >= target:
                    break
                free = site not in listed and out.get(site, 99) > number
                if free and taken_for.get((site, str(wave.image)), number) == number:
                    out[site] = number
        return out

    def pin(self, device: str) -> Pin | None:
        site = self.desired.sites[self.site_of[device]]
        pinned = site.pin is not None and (site.pin.devices is None or device in site.pin.devices)
        return site.pin if pinned else None

    def members(self, number: int) -> list[str]:
        """Devices of a wave that are judged: neither suspended nor pinned."""
        return [
            device
            for device, site in self.site_of.items()
            if self.wave_of.get(site) == number and not self.desired.sites[site].suspended and self.pin(device) is None
        ]

    def unsuspended(self, number: int) -> list[str]:
        return [
            device
            for device, site in self.site_of.items()
            if self.wave_of.get(site) == number and not self.desired.sites[site].suspended
        ]

    # ------------------------------------------------------------ how a device is

    def fresh(self, device: str) -> bool:
        last = self.seen[device].last_seen if device in self.seen else None
        return last is not None and self.now - last <= timedelta(seconds=self.fleet.stale_after)

    def attempts(self, device: str, release: str) -> int:
        used = self.seen[device].failed_attempts.get(release, 0) if device in self.seen else 0
        return used + ((device, release) in self.timed_out)

    def critical_since(self, seen: DeviceObservation) -> datetime | None:
        """The start of the unbroken critical run on the present image, or None."""
        if seen.health != "critical" or seen.image is None:
            return None
        known = [at for at in (seen.health_since, seen.image_since) if at is not None]
        return max(known, default=None)

    def critical_before(self, seen: DeviceObservation) -> bool:
        return seen.health_before_update == "critical" and seen.health == "critical" and not seen.checks_worse

    def app_came_last(self, seen: DeviceObservation) -> bool:
        """Where image and app changed, the one that changed last is charged."""
        changed = [app.since for app in seen.apps.values() if app.since is not None]
        return bool(changed) and seen.image_since is not None and max(changed) > seen.image_since

    def good(self, device: str, release: str) -> bool:
        seen = self.seen.get(device)
        return (
            seen is not None
            and self.fresh(device)
            and seen.image == release
            and seen.health in ("ok", "warning")
            and not self.updating(device)
        )

    def surely_failed(self, device: str, release: str) -> bool:
        """Failed beyond doubt: leaves out the cases of which the text says nothing."""
        if self.attempts(device, release) >= self.fleet.attempts:
            return True
        seen = self.seen.get(device)
        if seen is None or seen.image != release or not self.fresh(device) or self.app_came_last(seen):
            return False
        since = self.critical_since(seen)
        if since is None or seen.health_before_update == "critical" or self.updating(device):
            return False
        return self.now - since >= timedelta(seconds=self.fleet.critical_for)

    def updating(self, device: str) -> bool:
        seen = self.seen.get(device)
        return seen is not None and seen.updating_to is not None and (device, seen.updating_to) not in self.timed_out

    def busy(self, device: str) -> bool:
        seen = self.seen.get(device)
        if seen is None:
            return False
        restarting = seen.restarting_since is not None and not any(name == device for name, _ in self.timed_out)
        return self.updating(device) or restarting

    # ------------------------------------------------------------ rules; each returns what is broken, or None

    def faults(self, action: Action) -> list[str]:
        """Every rule that a flash breaks."""
        device, to = str(action.fields["device"]), str(action.fields["to"])
        rules = (self.reachable, self.target, self.ready, self.window, self.gates, self.stopped)
        return [
            f"{device} to {to} ({action.fields['why']}): {told}" for rule in rules if (told := rule(action, device, to))
        ]

    def reachable(self, action: Action, device: str, to: str) -> str | None:
        seen = self.seen.get(device)
        if seen is None or not self.fresh(device):
            return "does not report"
        if seen.conflict:
            return "two devices claim the name"
        if self.desired.sites[self.site_of[device]].suspended:
            return "its site is suspended"
        if self.busy(device):
            return "is in progress"
        if seen.image is not None and seen.image not in self.desired.images:
            return "runs an image git does not know"
        return None

    def target(self, action: Action, device: str, to: str) -> str | None:
        seen, why = self.seen[device], action.fields["why"]
        number = self.wave_of.get(self.site_of[device])
        if number is None or action.fields["wave"] != self.waves[number].name:
            return "is in another wave"
        if seen.image == to:
            return "runs it already"
        if (seen.image is None) != (why == "provision") or action.fields["from"] != seen.image:
            return "is not provisioned, or is"
        if (seen.inactive_slot == to) != (action.fields["method"] == "switch"):
            return "method does not fit the slot"
        if why == "rescue":
            before = seen.previous_image or seen.inactive_slot
            return None if to == before else "is not its previous release"
        pin = self.pin(device)
        wanted = {pin.image if pin is not None else self.waves[number].image}
        if why == "provision" and pin is None:
            wanted = {self.newest()}
        return None if to in wanted else "nobody wants that"

    def newest(self) -> str | None:
        """What a new device gets: the highest release observed in the last wave, else the one that it asks for."""
        last = [device for device, site in self.site_of.items() if self.wave_of.get(site) == len(self.waves) - 1]
        running = {self.seen[device].image for device in last if device in self.seen}
        known = [name for name, spec in self.desired.images.items() if name in running and spec.withdrawn is None]
        return max(known, key=numbers, default=self.waves[-1].image)

    def ready(self, action: Action, device: str, to: str) -> str | None:
        if self.desired.images[to].withdrawn is not None:
            return "is withdrawn"
        artifact = self.case.snapshot.artifacts.get(to)
        if artifact is None or artifact.state != "published":
            return "is not published"
        if self.attempts(device, to) >= self.fleet.attempts:
            return "attempts are used up"
        return None

    def window(self, action: Action, device: str, to: str) -> str | None:
        why, seen = action.fields["why"], self.seen[device]
        if why == "provision":
            return None
        if why in ("rollback", "rescue"):
            policy = self.fleet.rollback.ignore_window
            if policy == "all" or (policy == "true" and seen.health == "critical"):
                return None
        site = self.desired.sites[self.site_of[device]]
        minute, start = timedelta(minutes=1), self.now
        while start < self.now + timedelta(seconds=self.fleet.flash_duration):
            if not inside(start.astimezone(ZoneInfo(site.timezone)), site.window or self.fleet.window):
                return f"at {start} the window is closed"
            start += minute
        return None

    def gates(self, action: Action, device: str, to: str) -> str | None:
        if action.fields["why"] in ("rollback", "rescue", "provision") or self.pin(device) is not None:
            return None
        number = self.wave_of[self.site_of[device]]
        proven = {proof.wave for proof in self.case.snapshot.proofs if proof.key == to and not proof.closed}
        for earlier in range(number):
            if self.waves[earlier].name not in proven and (told := self.not_passed(earlier, to)):
                return f"wave {self.waves[earlier].name}: {told}"
        return None

    def not_passed(self, number: int, release: str) -> str | None:
        wave, members = self.waves[number], self.members(number)
        if not any(at == number for at in self.wave_of.values()):
            return None
        good = [device for device in members if self.good(device, release)]
        failed = [device for device in members if self.surely_failed(device, release)]
        offline = [device for device in members if device not in failed and not self.fresh(device)]
        if not good:
            return "nothing to judge"
        if wave.max_failed.exceeded_by(len(failed), len(members)):
            return "too many failed"
        if wave.max_offline.exceeded_by(len(offline), len(members)):
            return "too many offline"
        for device in members:
            seen = self.seen.get(device)
            excused = device in failed or device in offline
            if device not in good and not excused and seen is not None and not self.critical_before(seen):
                if seen.image == release and self.critical_since(seen) is not None and self.app_came_last(seen):
                    continue  # the app is charged
                return f"{device} is not healthy on it"
        for device in good:
            starts = [at for at in (self.seen[device].health_since, self.seen[device].image_since) if at is not None]
            if starts and max(starts) + timedelta(seconds=wave.soak) > self.now:
                return f"{device} still soaks"
        for device in offline:
            seen = self.seen.get(device)
            if seen is not None and seen.last_seen and seen.last_seen + timedelta(seconds=wave.soak) > self.now:
                return f"{device} was seen within the soak"
        return None

    def stopped(self, action: Action, device: str, to: str) -> str | None:
        if action.fields["why"] in ("rollback", "rescue"):
            return None
        wave: WaveSpec = self.waves[self.wave_of[self.site_of[device]]]
        if self.fleet.paused or wave.paused:
            return "is paused"
        if any(freeze.from_ <= self.now < freeze.to for freeze in self.fleet.freezes):
            return "is frozen"
        asked = {other.image for other in self.waves}
        for failure in self.case.snapshot.failures:
            if failure.key == to and not failure.closed and to in asked:
                return f"failed in wave {failure.wave}"
        return None

    # ------------------------------------------------------------ rules over all actions

    def overspent(self) -> list[str]:
        """Budgets: per wave as many in flight as allowed, per site one device, per device one action."""
        told = []
        starting = [
            str(action.fields["device"])
            for action in self.plan.actions
            if action.kind in (ActionKind.FLASH, ActionKind.RESTART, ActionKind.CONFIGURE)
        ]
        if len(starting) != len(set(starting)):
            told.append("two actions on one device")
        moving = [a.fields["device"] for a in self.plan.actions if a.kind in (ActionKind.FLASH, ActionKind.RESTART)]
        for number, wave in enumerate(self.waves):
            mine = self.unsuspended(number)
            new = sum(device in moving for device in mine)
            if new and new + sum(self.busy(device) for device in mine) > wave.max_in_flight.slots(len(mine)):
                told.append(f"wave {wave.name} starts {new}")
        for name, site in self.desired.sites.items():
            new = sum(device in moving for device in site.devices)
            if new and new + sum(self.busy(device) for device in site.devices) > 1:
                told.append(f"site {name} starts {new}")
        return told

    def undecided(self) -> list[str]:
        """Devices of a wave that are off their target and have neither an action nor a hold."""
        acted = {action.fields.get("device") for action in self.plan.actions}
        held = {device for hold in self.plan.holds for device in hold.devices}
        whole = {hold.wave for hold in self.plan.holds if not hold.devices and hold.image is not None}
        told = []
        for device, site in self.site_of.items():
            number = self.wave_of.get(site)
            if number is None:
                continue
            pin = self.pin(device)
            wanted = pin.image if pin is not None else self.waves[number].image
            seen = self.seen.get(device)
            off = wanted is not None and (seen is None or seen.image != wanted)
            if off and device not in acted and device not in held and self.waves[number].name not in whole:
                told.append(f"{device} is off {wanted} and nothing is said of it")
        return told


def inside(local: datetime, window: Window) -> bool:
    """By the clock on the wall, in minutes since midnight."""
    minutes = local.hour * 60 + local.minute
    if window.start < window.end:
        return window.start <= minutes < window.end
    return minutes >= window.start or minutes < window.end
