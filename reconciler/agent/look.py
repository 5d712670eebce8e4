"""Finds the next thing that may be done: image, then configuration, then apps; and says of the rest why it may not be.

Python 3.10, standard library only: runs as root on a device. Changes nothing on the device: it reads the assignment in
force, the hardware and the supply, and leaves refusals in the notes. What follows from what it finds stands in
`machine`; `work` calls it while the device is idle, and before a reboot. Source: design, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from reconciler.agent import window
from reconciler.agent.hardware import Hardware
from reconciler.agent.judge import CLOCK_TOLERANCE
from reconciler.agent.machine import Event
from reconciler.agent.notes import Notes
from reconciler.agent.supply import Supply
from reconciler.agent.timing import Timing
from reconciler.protocol.assignment import Assignment, ImageTarget
from reconciler.protocol.canonical import format_instant

CLOCK_RETRY_S = 30
"""How soon the time service is asked again where a window is open and the clock is not synchronised."""


@dataclass(frozen=True)
class Next:
    """What was found. `target` names it in reports; `image` or `app` says which. `wake` is when to look again where nothing
    may be done now (None: with the next report)."""

    event: Event = Event.NOTHING
    wake: datetime | None = None
    target: str | None = None
    image: ImageTarget | None = None
    app: str | None = None


class Look:
    """Looks at one device."""

    def __init__(self, device: str, hardware: Hardware, notes: Notes, supply: Supply, timing: Timing) -> None:
        self._device, self._hardware, self._notes = device, hardware, notes
        self._supply, self._timing = supply, timing
        self.is_lost = False
        """Whether what runs could not be found out: then having no record is not having nothing."""

    def next(self, now: datetime) -> Next:
        """The next thing that may be done. What was tried under this serial is not repeated."""
        assignment = self._notes.assignment
        if assignment is None or not self._is_in_time(assignment, now):
            return Next()
        wakes: list[datetime] = []
        for look in (self._image, self._config, self._apps):
            found = look(assignment, now)
            if found.event is not Event.NOTHING:
                return found
            if found.wake is not None:
                wakes.append(found.wake)
        return Next(wake=min([*wakes, assignment.expires_at]) if wakes else None)

    def back(self) -> Next | str:
        """What a person at the console may ask for: the other slot, if it was good. Else why not, in a sentence.

        Window, expiry and assignment do not bind it: it brings nothing that was not here, proven and good.
        """
        slot = "b" if self._hardware.booted() == "a" else "a"
        other = self._hardware.slots()[slot]
        if not other.good or other.digest is None:
            return f"slot {slot} holds nothing that was good, so there is nothing to go back to"
        release = other.release or other.digest
        return Next(Event.BACK, target=release, image=ImageTarget(release, other.digest, release))

    def opens(self, assignment: Assignment, image: ImageTarget, now: datetime) -> datetime | None:
        """`now` if writing or rebooting may begin, else when to look again, or None. Says what stands in its way."""
        slots, booted, notes = self._hardware.slots(), self._hardware.booted(), self._notes
        if window.waives(assignment, image, slots, booted, is_bare=slots[booted].digest is None and not self.is_lost):
            return now
        if assignment.window_waived:
            reason = f"no slot of this device was good with {image.release}, so it waits for a window all the same"
            notes.refuse("waiver", "waiver-refused", reason, assignment.serial)
        timing = self._timing
        opens = window.opens(
            assignment, self._device, now, spread_s=timing.spread_s, least_window_s=timing.least_window_s
        )
        if opens != now:
            return opens
        if not self._hardware.clock().synchronised:
            reason = f"a window is open by this clock, but it is not synchronised; {image.release} waits until it is"
            notes.refuse("clock", "clock-unsynchronised", reason, assignment.serial)
            return now + timedelta(seconds=CLOCK_RETRY_S)
        notes.settle("clock")
        return now

    # ------------------------------------------------------------ what stands in the way of all

    def _is_in_time(self, assignment: Assignment, now: datetime) -> bool:
        """Whether something new may start under it, by this clock. A clock that is wrong says neither yes nor no for certain,
        and no is what harms nothing."""
        if assignment.issued_at > now + CLOCK_TOLERANCE:
            code, wrong = "assignment-from-the-future", f"was issued at {format_instant(assignment.issued_at)}"
        elif assignment.expires_at <= now:
            code, wrong = "assignment-expired", f"expired at {format_instant(assignment.expires_at)}"
        else:
            self._notes.settle("expiry")
            return True
        here = f"; it is {format_instant(now)} by a clock that is not synchronised"
        here = "" if self._hardware.clock().synchronised else here
        self._notes.refuse("expiry", code, f"the assignment {wrong}; nothing new starts{here}", assignment.serial)
        return False

    def is_held(self, assignment: Assignment) -> bool:
        """Whether a person has gone back since this assignment came: only a newer one brings another image again."""
        held = self._notes.memory.held_under
        if held is None or assignment.serial > held:
            self._notes.settle("console")
            return False
        reason = f"slot {self._hardware.booted()} was chosen at the console; another image takes a newer assignment"
        self._notes.refuse_once("console", "rolled-back", reason, held)
        return True

    def _may_try(self, key: str, now: datetime) -> tuple[bool, datetime | None]:
        """Whether a piece of work may be tried: not failed under this serial, and not put off."""
        failed = self._notes.memory.failed_under.get(key)
        if failed is not None and self._notes.serial <= failed:
            reason = f"{key} failed under this assignment; a newer one is needed to try again"
            self._notes.refuse_once(key, "attempt-failed", reason, failed)
            return False, None
        self._notes.withdraw(key, "attempt-failed")
        until = self._notes.waiting(key, now)
        return until is None, until

    # ------------------------------------------------------------ image, configuration, apps

    def _image(self, assignment: Assignment, now: datetime) -> Next:
        image, slots, booted = assignment.image, self._hardware.slots(), self._hardware.booted()
        if self.is_held(assignment):
            return Next()
        if image is None or slots[booted].digest == image.digest:
            self._notes.settle("waiver")
            self._notes.settle("clock")
            return Next()
        may, wake = self._may_try(image.release, now)
        if not may:
            return Next(wake=wake)
        held = slots["b" if booted == "a" else "a"].digest == image.digest
        if not held and not self._supply.has_image(image):
            return Next(Event.FETCH, target=image.release, image=image)
        opens = self.opens(assignment, image, now)
        if opens is None or opens > now:
            return Next(wake=opens)
        return Next(Event.SWITCH if held else Event.WRITE, target=image.release, image=image)

    def _config(self, assignment: Assignment, now: datetime) -> Next:
        digest = assignment.config
        if digest is None or digest == self._hardware.config_digest():
            return Next()
        may, wake = self._may_try(config_key(digest), now)
        return Next(Event.CONFIGURE, target=config_key(digest)) if may else Next(wake=wake)

    def _apps(self, assignment: Assignment, now: datetime) -> Next:
        running, wakes = self._hardware.apps(), []
        for name, app in sorted(assignment.apps.items()):
            if running.get(name) == app.digest:
                continue
            key = f"{name}@{app.version}"
            may, wake = self._may_try(key, now)
            if may:
                event = Event.RESTART if self._supply.has_app(name, app) else Event.PULL
                return Next(event, target=key, app=name)
            if wake is not None:
                wakes.append(wake)
        return Next(wake=min(wakes, default=None))


def config_key(digest: str) -> str:
    """The name of a configuration in reports."""
    return f"config {digest.replace('sha256:', '')[:12]}"
