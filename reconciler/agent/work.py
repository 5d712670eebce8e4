"""The thin hands: one activity for each state of `machine`, one function for each effect.

Python 3.10, standard library only: runs as root on a device. What follows from what stands in `machine`; here is only
what an activity looks at and what an effect does. Every effect may be cut off at any point and is repeated or
completed by the next life. Called by `agent`, one step at a time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from reconciler.agent import writer
from reconciler.agent.hardware import Hardware, HardwareError, ImageVersion
from reconciler.agent.machine import Effect, Event, State, follow
from reconciler.agent.notes import Notes
from reconciler.agent.state import Intent
from reconciler.agent.supply import Job, Supply
from reconciler.agent.transport import Transport, TransportError
from reconciler.protocol.assignment import Assignment, ImageTarget
from reconciler.protocol.canonical import Malformed, format_instant
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.report import worse_checks
from reconciler.protocol.signature import Refused

Found = tuple[Event, "datetime | None"]
"""What an activity found, and when to look again (None: at once, or with the next report)."""


@dataclass(frozen=True)
class Timing:
    """Times of the agent, in seconds. Defaults are for a real device."""

    settle_s: float = 120
    """How long checks may be worse after a boot or restart before that counts: services start one after another."""
    recheck_s: float = 10
    """How often the healthcheck runs while it settles."""
    spread_s: float = 300
    """Devices begin spread over this much of a window, or a tenth of it if that is less."""
    least_window_s: float = 60
    """With less than this left of a window nothing begins in it."""
    slice_s: float = 5
    """How long a download or a write goes on before the agent looks whether a report is due."""
    report_jitter: float = 0.1
    """Reports come earlier or later by up to this part, so that a fleet does not report in step."""


class Work:
    """Where the device is (`state`) and what it does there. `leaving` is set once a reboot was asked for."""

    def __init__(
        self,
        device: str,
        hardware: Hardware,
        transport: Transport,
        notes: Notes,
        supply: Supply,
        timing: Timing,
    ) -> None:
        self.state = State.BOOTING
        self.leaving = False
        self.sources: Mapping[str, tuple[str, ...]] = {}
        self.registry_token: str | None = None
        self.target: str | None = None
        self._device, self._hardware, self._transport, self._notes = device, hardware, transport, notes
        self._supply, self._timing = supply, timing
        self._job: Job | None = None
        self._image: ImageTarget | None = None
        self._app: str | None = None
        self._settling_since: datetime | None = None
        self._retry_after_s: float | None = None
        self._activities: Mapping[State, Callable[[datetime], Found]] = {
            State.BOOTING: self._resume,
            State.IDLE: self._look,
            State.FETCHING: self._fetch,
            State.CHECKING: self._check,
            State.WRITING: self._write,
            State.WRITTEN: self._await_reboot,
            State.REBOOTING: self._reboot,
            State.TRIAL: self._settle,
            State.RETURNING: self._reboot,
            State.CONFIGURING: self._configure,
            State.PULLING: self._pull,
            State.RESTARTING: self._restart,
        }
        self._effects: Mapping[Effect, Callable[[datetime], None]] = {
            Effect.FORGET_SLOT: lambda _: hardware.forget_slot(self._inactive()),
            Effect.RECORD_INTENT: self._record_image_intent,
            Effect.ARM: lambda _: hardware.arm(self._inactive()),
            Effect.DISARM: lambda _: hardware.disarm(),
            Effect.MARK_GOOD: lambda _: hardware.mark_good(hardware.booted()),
            Effect.SET_VERSION: self._set_version,
            Effect.CLEAR_INTENT: lambda _: notes.clear_intent(),
            Effect.COUNT_FAILURE: self._count_failure,
            Effect.DROP_CACHE: lambda _: supply.drop_image(),
            Effect.BACK_OFF: self._back_off,
        }

    def advance(self, now: datetime) -> datetime | None:
        """One activity and the transition that follows. Returns when there is more to do: `now` for at once, None for
        nothing but the next report. HardwareError or OSError: nothing followed, and the same is tried again."""
        event, wake = self._activities[self.state](now)
        transition = follow(self.state, event)
        for effect in transition.effects:
            self._effects[effect](now)
        if transition.state is not self.state:
            self._leave()
            self.state = transition.state
            return now
        return wake

    def subjects(self, assignment: Assignment) -> frozenset[str]:
        """Names under which refusals and waits of this assignment's work are kept."""
        names = {f"{name}@{app.version}" for name, app in assignment.apps.items()}
        names |= {assignment.image.release} if assignment.image else set()
        names |= {_config_key(assignment.config)} if assignment.config else set()
        return frozenset(names | ({self.target} if self.target else set()))

    def end(self) -> None:
        """Let go of a job in work: its files and connections are closed now, not when memory is next tidied."""
        self._leave()

    def _leave(self) -> None:
        self._job, self._settling_since, self._retry_after_s = None, None, None

    # ------------------------------------------------------------ booting and rebooting

    def _resume(self, _now: datetime) -> Found:
        """Compare what runs with what was intended. The flags tell a try that failed from one that never was."""
        hardware, intent = self._hardware, self._notes.memory.intent
        booted, flags = hardware.booted(), hardware.flags()
        if intent is not None and intent.kind == "image":
            self.target = intent.key
            if booted == intent.slot:
                return (Event.FINISHED if flags.default == booted else Event.ON_TRIAL), None
            if flags.trial == intent.slot and flags.tries == 0:
                reason = f"slot {intent.slot} with {intent.key} was tried, and slot {booted} is booted"
                self._notes.refuse(intent.key, "fell-back", reason, intent.serial)
                return Event.FELL_BACK, None
            return Event.NOT_TRIED, None
        # A trial without an intent was judged and found worse; the reboot that should have followed did not.
        if booted != flags.default:
            return Event.STRAY, None
        if intent is None:
            return Event.CLEAN, None
        self.target, self._app = intent.key, intent.app
        return (Event.APP_OPEN if intent.kind == "app" else Event.CONFIG_OPEN), None

    def _reboot(self, now: datetime) -> Found:
        if not self.leaving:
            try:
                self._hardware.reboot()
            except HardwareError as error:
                self._notes.refuse("device", "reboot-failed", str(error))
                return Event.FAILED, now + timedelta(seconds=self._timing.recheck_s)
            self.leaving = True
        return Event.MORE, now + timedelta(seconds=self._timing.recheck_s)

    def _set_version(self, _now: datetime) -> None:
        """The version file follows the slot that was marked good; a power cut between the two is mended at the next
        boot."""
        hardware = self._hardware
        release, version = hardware.slots()[hardware.booted()].release, hardware.version()
        if release is not None and version.current != release:
            hardware.set_version(ImageVersion(release, version.current))

    # ------------------------------------------------------------ looking for work

    def _look(self, now: datetime) -> Found:
        """The next thing that may be done: image, configuration, apps. What was tried under this serial is not
        repeated."""
        self.target, self._image, self._app = None, None, None
        assignment = self._notes.assignment
        if assignment is None:
            return Event.NOTHING, None
        if assignment.expires_at <= now:
            reason = f"the assignment expired at {format_instant(assignment.expires_at)}; nothing new starts"
            self._notes.refuse("assignment", "assignment-expired", reason, assignment.serial)
            return Event.NOTHING, None
        wakes: list[datetime] = []
        for event in (self._look_for_image, self._look_for_config, self._look_for_apps):
            found, wake = event(assignment, now)
            if found is not Event.NOTHING:
                return found, None
            if wake is not None:
                wakes.append(wake)
        return Event.NOTHING, min([*wakes, assignment.expires_at]) if wakes else None

    def _may_try(self, key: str, now: datetime) -> tuple[bool, datetime | None]:
        """Whether a piece of work may be tried: not failed under this serial, and not put off."""
        failed = self._notes.memory.failed_under.get(key)
        if failed is not None and self._notes.serial <= failed:
            self._notes.refuse_once(
                key, "attempt-failed", f"{key} failed under this assignment; a newer one is needed to try again", failed
            )
            return False, None
        until = self._notes.waiting(key, now)
        return until is None, until

    def _look_for_image(self, assignment: Assignment, now: datetime) -> Found:
        image, slots = assignment.image, self._hardware.slots()
        if image is None or slots[self._hardware.booted()].digest == image.digest:
            return Event.NOTHING, None
        may, wake = self._may_try(image.release, now)
        if not may:
            return Event.NOTHING, wake
        held = slots[self._inactive()].digest == image.digest
        if not held and not self._supply.has_image(image):
            event: Event = Event.FETCH
        else:
            opens = self._opens(assignment, now)
            if opens is None or opens > now:
                return Event.NOTHING, opens
            event = Event.SWITCH if held else Event.WRITE
        self.target, self._image = image.release, image
        return event, None

    def _look_for_config(self, assignment: Assignment, now: datetime) -> Found:
        digest = assignment.config
        if digest is None or digest == self._hardware.config_digest():
            return Event.NOTHING, None
        may, wake = self._may_try(_config_key(digest), now)
        if not may:
            return Event.NOTHING, wake
        self.target = _config_key(digest)
        return Event.CONFIGURE, None

    def _look_for_apps(self, assignment: Assignment, now: datetime) -> Found:
        running, wakes = self._hardware.apps(), []
        for name, app in sorted(assignment.apps.items()):
            if running.get(name) == app.digest:
                continue
            key = f"{name}@{app.version}"
            may, wake = self._may_try(key, now)
            if may:
                self.target, self._app = key, name
                return (Event.RESTART if self._supply.has_app(name, app) else Event.PULL), None
            if wake is not None:
                wakes.append(wake)
        return Event.NOTHING, min(wakes, default=None)

    def _opens(self, assignment: Assignment, now: datetime) -> datetime | None:
        """`now` if writing and rebooting may begin, else when that will be, or None. Devices spread over a window's
        start."""
        if assignment.window_waived:
            return now
        share = int.from_bytes(hashlib.sha256(self._device.encode()).digest()[:4], "big") / 2**32
        least = timedelta(seconds=self._timing.least_window_s)
        for start, end in assignment.window:
            spread = min(timedelta(seconds=self._timing.spread_s), (end - start) / 10)
            begin = start + timedelta(seconds=round(spread.total_seconds() * share))
            if now + least <= end and now < end:
                return max(begin, now)
        return None

    # ------------------------------------------------------------ the image

    def _inactive(self) -> str:
        return "b" if self._hardware.booted() == "a" else "a"

    def _dropped(self, now: datetime) -> bool:
        """Whether the image in work is no longer wanted, or may no longer be begun."""
        assignment = self._notes.assignment
        return assignment is None or assignment.image != self._image or assignment.expires_at <= now

    def _go_on(self, job: Job, now: datetime) -> datetime | None:
        """Go on with a job for a slice of real time. When to go on with it again, or None: it is done. What it raises
        passes through."""
        ends = time.monotonic() + self._timing.slice_s
        self._job = None
        for wait_s in job:
            if wait_s > 0 or time.monotonic() >= ends:
                self._job = job
                return now + timedelta(seconds=wait_s)
        return None

    def _run(self, job: Job, now: datetime, subject: str) -> Found:
        """As `_go_on`, as an activity. What went wrong is noted under `subject`."""
        try:
            again_at = self._go_on(job, now)
            if again_at is not None:
                return Event.MORE, again_at
        except Refused as error:
            self._notes.refuse(subject, error.code, error.reason, self._notes.serial)
            return Event.REFUSED, None
        except TransportError as error:
            self._notes.refuse(subject, "not-fetched", str(error), self._notes.serial)
            self._retry_after_s = error.retry_after_s
            return Event.FAILED, None
        except writer.Spoiled as error:
            self._notes.refuse(subject, "slot-spoiled", str(error), self._notes.serial)
            return Event.SPOILED, None
        except (HardwareError, OSError) as error:
            self._notes.refuse(subject, "device-fault", str(error), self._notes.serial)
            return Event.FAILED, None
        self._notes.settle(subject)
        return Event.DONE, None

    def _fetch(self, now: datetime) -> Found:
        image = self._image
        if image is None or self._dropped(now):
            return Event.OBSOLETE, None
        job = self._job or self._supply.fetch_image(image, self.sources.get("image", ()), now)
        return self._run(job, now, image.release)

    def _check(self, now: datetime) -> Found:
        image = self._image
        if image is None or self._dropped(now):
            return Event.OBSOLETE, None
        return self._run(self._job or self._supply.check_slot(self._inactive(), image), now, image.release)

    def _write(self, now: datetime) -> Found:
        image = self._image
        # What began to be written is finished even when the assignment expires meanwhile; another image ends it.
        assignment = self._notes.assignment
        if image is None or assignment is None or assignment.image != image:
            return Event.OBSOLETE, None
        if self._job is None and not self._supply.has_image(image):
            return Event.OBSOLETE, None
        return self._run(self._job or self._supply.write_image(image, self._inactive()), now, image.release)

    def _await_reboot(self, now: datetime) -> Found:
        assignment = self._notes.assignment
        if assignment is None or self._dropped(now):
            return Event.OBSOLETE, None
        opens = self._opens(assignment, now)
        return (Event.DONE, None) if opens == now else (Event.MORE, opens)

    def _record_image_intent(self, _now: datetime) -> None:
        image = self._image
        assert image is not None
        checks = self._hardware.healthcheck()
        intent = Intent("image", image.release, image.digest, self._notes.serial, slot=self._inactive(), checks=checks)
        self._notes.record_intent(intent, checks)

    # ------------------------------------------------------------ judging by the healthcheck

    def _settle(self, now: datetime) -> Found:
        """DONE once no check is worse than before, WORSE when one still is after the time to settle."""
        intent = self._notes.memory.intent
        worse = worse_checks(intent.checks if intent else (), self._hardware.healthcheck())
        if not worse:
            if self.target is not None:
                self._notes.settle(self.target)
            return Event.DONE, None
        if self._settling_since is None or self._settling_since > now:
            self._settling_since = now
        if now < self._settling_since + timedelta(seconds=self._timing.settle_s):
            return Event.MORE, now + timedelta(seconds=self._timing.recheck_s)
        self._notes.refuse(
            self.target or "device", "health-worse", f"worse than before: {', '.join(worse)}", self._notes.serial
        )
        return Event.WORSE, None

    # ------------------------------------------------------------ configuration

    def _configure(self, now: datetime) -> Found:
        intent = self._notes.memory.intent
        try:
            if intent is None:
                return Event.MORE, self._go_on(self._supply.apply_config(self._fetch_config()), now) or now
            if self._job is not None:
                return Event.MORE, self._go_on(self._job, now) or now
            # Cut off before it was in force: nothing to judge or to put back; it is looked for again.
            if self._hardware.config_digest() != intent.digest:
                return Event.DONE, None
        except TransportError as error:
            self._notes.refuse(self.target or "config", "not-fetched", str(error), self._notes.serial)
            self._retry_after_s = error.retry_after_s
            return Event.FAILED, None
        except Malformed as error:
            self._notes.refuse(self.target or "config", "config-malformed", error.reason, self._notes.serial)
            return Event.REFUSED, None
        except Refused as error:
            self._notes.refuse(self.target or "config", error.code, error.reason, self._notes.serial)
            return Event.REFUSED, None
        event, wake = self._settle(now)
        if event is Event.WORSE:
            self._hardware.restore_config(intent.before)
        return event, wake

    def _fetch_config(self) -> SiteConfig:
        """The assigned configuration; that it is about to be put in force is written down."""
        assignment, before = self._notes.assignment, self._hardware.config_digest()
        config = SiteConfig.from_bytes(self._transport.config())
        if assignment is None or config.digest != assignment.config:
            wanted = assignment.config if assignment else None
            raise Refused("config-mismatch", f"the server sent configuration {config.digest}, assigned is {wanted}")
        checks = self._hardware.healthcheck()
        intent = Intent(
            "config", _config_key(config.digest), config.digest, self._notes.serial, before=before, checks=checks
        )
        self._notes.record_intent(intent)
        return config

    # ------------------------------------------------------------ apps

    def _pull(self, now: datetime) -> Found:
        name, assignment = self._app, self._notes.assignment
        app = assignment.apps.get(name) if assignment and name else None
        if name is None or app is None or assignment is None or assignment.expires_at <= now:
            return Event.OBSOLETE, None
        if f"{name}@{app.version}" != self.target:
            return Event.OBSOLETE, None
        sources, token = self.sources.get("registry", ()), self.registry_token
        return self._run(self._job or self._supply.pull_app(name, app, sources, token), now, self.target)

    def _restart(self, now: datetime) -> Found:
        intent, running = self._notes.memory.intent, self._hardware.apps()
        if self._job is not None and intent is not None:
            return self._start(self._job, intent, now)
        if intent is None:
            name, assignment = self._app, self._notes.assignment
            app = assignment.apps.get(name) if assignment and name else None
            if name is None or app is None or f"{name}@{app.version}" != self.target:
                return Event.OBSOLETE, None
            checks, before = self._hardware.healthcheck(), running.get(name)
            intent = Intent("app", self.target, app.digest, self._notes.serial, app=name, before=before, checks=checks)
            self._notes.record_intent(intent)
            return self._start(self._supply.start_app(name, app.digest), intent, now)
        if intent.app is None or running.get(intent.app) != intent.digest:
            return Event.OBSOLETE, None
        event, wake = self._settle(now)
        if event is Event.WORSE:
            self._hardware.run_app(intent.app, intent.before)
        return event, wake

    def _start(self, job: Job, intent: Intent, now: datetime) -> Found:
        """Go on with the start of an app; what ran before runs again where it fails."""
        try:
            return Event.MORE, self._go_on(job, now) or now
        except HardwareError as error:
            app = intent.app or ""
            self._notes.refuse(self.target or app, "restart-failed", str(error), self._notes.serial)
            self._hardware.run_app(app, intent.before)
            return Event.FAILED, None

    # ------------------------------------------------------------ counting and waiting

    def _count_failure(self, _now: datetime) -> None:
        intent = self._notes.memory.intent
        if intent is None and self._image is not None:
            intent = Intent("image", self._image.release, self._image.digest, self._notes.serial)
        if intent is not None:
            self._notes.remember(self._notes.memory.after_failure(intent))

    def _back_off(self, now: datetime) -> None:
        if self.target is not None:
            self._notes.wait(self.target, now, self._retry_after_s)


def _config_key(digest: str) -> str:
    return f"config {digest.replace('sha256:', '')[:12]}"
