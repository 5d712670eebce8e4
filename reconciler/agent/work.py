"""The thin hands: one activity for each state of `machine`, one function for each effect.

Python 3.10, standard library only: runs as root on a device. What follows from what stands in `machine`; here is only
what an activity looks at and what an effect does. Every effect may be cut off at any point and is repeated or
completed by the next life. Called by `agent`, one step at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from reconciler.agent.hardware import Hardware, HardwareError, ImageVersion, Spoiled
from reconciler.agent.look import Look, Next, config_key
from reconciler.agent.machine import Effect, Event, State, follow
from reconciler.agent.notes import Notes
from reconciler.agent.seed import NotInForce
from reconciler.agent.state import Intent
from reconciler.agent.supply import Job, Supply
from reconciler.agent.timing import Timing
from reconciler.agent.transport import Transport, TransportError
from reconciler.protocol.assignment import Assignment, ImageTarget
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.report import Check, worse_checks
from reconciler.protocol.signature import Refused

REBOOT_PATIENCE_S = 300
"""A machine that has not gone down so long after it was asked to is asked again."""

Found = tuple[Event, "datetime | None"]
"""What an activity found, and when to look again (None: at once, or with the next report)."""


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
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        """`pulse` is called between the parts of a step that may each take long."""
        self.state = State.BOOTING
        self.leaving = False
        self.sources: Mapping[str, tuple[str, ...]] = {}
        self.registry_token: str | None = None
        self.target: str | None = None
        self._hardware, self._transport, self._notes = hardware, transport, notes
        self._supply, self._timing, self._pulse = supply, timing, pulse
        self._looking = Look(device, hardware, notes, supply, timing)
        self._job: Job | None = None
        self._image: ImageTarget | None = None
        self._app: str | None = None
        self._back: Next | None = None
        self._by_hand = False
        self._settling_since: datetime | None = None
        self._asked_reboot_at: datetime | None = None
        self.judged: tuple[Check, ...] | None = None
        """What the healthcheck said in the last `advance`, if it judged a trial by it or recorded it before a reboot."""
        self._retry_after_s: float | None = None
        # Of a configuration, or an app: begun by this life; found bad, so that the one before is wanted again.
        self._activated, self._given_up = False, False
        self._activities: Mapping[State, Callable[[datetime], Found]] = {
            State.BOOTING: self._resume,
            State.RECOGNISING: self._recognise,
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
            Effect.CLEAR_INTENT: self._clear_intent,
            Effect.COUNT_FAILURE: self._count_failure,
            Effect.DROP_CACHE: lambda _: supply.drop_image(),
            Effect.BACK_OFF: self._back_off,
        }

    def advance(self, now: datetime) -> datetime | None:
        """One activity and the transition that follows. Returns when there is more to do: `now` for at once, None for
        nothing but the next report. HardwareError or OSError: nothing followed, and the same is tried again."""
        self.judged = None
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
        names |= {config_key(assignment.config)} if assignment.config else set()
        return frozenset(names | ({self.target} if self.target else set()))

    def is_unknown(self) -> bool:
        """Whether what runs is on record no more, and can be found out. HardwareError: nobody can tell."""
        return not self._looking.is_lost and self._hardware.recognise() is not None

    def go_back(self) -> str | None:
        """A person at the console asks for the other slot. None: the next step begins it; else why it cannot be begun."""
        if self.state not in (State.IDLE, State.FETCHING, State.PULLING):
            return f"the agent is at work ({self.state.name.lower()}: {self.state.value}); ask again when it is done"
        found = self._looking.back()
        if isinstance(found, str):
            return found
        self._back = found
        return None

    def clock_moved(self, by: timedelta) -> None:
        """The clock was set by so much: what was reckoned by it moves along, so that no wait ends early or never."""
        if self._settling_since is not None:
            self._settling_since += by
        if self._asked_reboot_at is not None:
            self._asked_reboot_at += by
        self._notes.clock_moved(by)

    def end(self) -> None:
        """Let go of a job in work: its files and connections are closed now, not when memory is next tidied."""
        self._leave()

    def _leave(self) -> None:
        self._job, self._settling_since, self._retry_after_s = None, None, None
        self._activated, self._given_up = False, False

    # ------------------------------------------------------------ booting and rebooting

    def _resume(self, _now: datetime) -> Found:
        """Compare what runs with what was intended. The flags tell a try that failed from one that never was."""
        hardware, intent = self._hardware, self._notes.memory.intent
        if self._notes.assignment is not None:
            # So that the first report of this life tells of it.
            self._looking.is_held(self._notes.assignment)
        if self.is_unknown():
            return Event.UNKNOWN, None
        booted, flags = hardware.booted(), hardware.flags()
        is_last_resort = hardware.passed_over()
        if is_last_resort and (intent is None or intent.slot != booted):
            reason = f"slot {flags.default} boots by default and could not be loaded; slot {booted} runs instead"
            self._notes.refuse("device", "device-fault", reason)
            if hardware.slots()[booted].good:
                return Event.PASSED_OVER, None
        if intent is not None and intent.kind == "image":
            self.target = intent.key
            if booted == intent.slot:
                return (Event.FINISHED if flags.default == booted else Event.ON_TRIAL), None
            if flags.trial == intent.slot and flags.tries == 0:
                reason = f"slot {intent.slot} with {intent.key} was tried, and slot {booted} is booted"
                self._notes.refuse(intent.key, "fell-back", reason, intent.serial)
                return Event.FELL_BACK, None
            return Event.NOT_TRIED, None
        # A trial without an intent was judged and found worse; the reboot that should have followed did not. One that has
        # followed, and led here again, is not repeated for ever.
        if booted != flags.default and not is_last_resort:
            return Event.STRAY, None
        if intent is None:
            return Event.CLEAN, None
        self.target, self._app = intent.key, intent.app
        return (Event.APP_OPEN if intent.kind == "app" else Event.CONFIG_OPEN), None

    def _recognise(self, now: datetime) -> Found:
        """What cannot be recognised is told, and taken for unknown for the rest of this life."""
        job = self._job or self._hardware.recognise()
        try:
            again_at = self._go_on(job, now) if job is not None else None
        except (HardwareError, OSError) as error:
            self._looking.is_lost = True
            self._notes.refuse("device", "device-fault", str(error))
            return Event.FAILED, None
        return (Event.DONE, None) if again_at is None else (Event.MORE, again_at)

    def _reboot(self, now: datetime) -> Found:
        asked_at = self._asked_reboot_at
        if asked_at is None or now >= asked_at + timedelta(seconds=REBOOT_PATIENCE_S):
            try:
                self._hardware.reboot()
            except HardwareError as error:
                self._notes.refuse("device", "reboot-failed", str(error))
                self.leaving, self._asked_reboot_at = False, None
                return Event.FAILED, now + timedelta(seconds=self._timing.recheck_s)
            self.leaving, self._asked_reboot_at = True, now
        return Event.MORE, now + timedelta(seconds=self._timing.recheck_s)

    def _set_version(self, _now: datetime) -> None:
        """The version file follows the slot that was marked good; a power cut between the two is mended at the next
        boot."""
        hardware = self._hardware
        release, version = hardware.slots()[hardware.booted()].release, hardware.version()
        if release is not None and version.current != release:
            hardware.set_version(ImageVersion(release, version.current))

    # ------------------------------------------------------------ idle

    def _look(self, now: datetime) -> Found:
        """What a person asked for, or else the next thing that may be done."""
        if self.is_unknown():
            return Event.UNKNOWN, None
        found, self._back = self._back or self._looking.next(now), None
        self.target, self._image, self._app = found.target, found.image, found.app
        self._by_hand = found.event is Event.BACK
        return found.event, found.wake

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
        except Spoiled as error:
            self._notes.refuse(subject, "slot-spoiled", str(error), self._notes.serial)
            return Event.SPOILED, None
        except (HardwareError, OSError) as error:
            self._notes.refuse(subject, "device-fault", str(error), self._notes.serial)
            return Event.FAILED, None
        self._notes.settle(subject)
        return Event.DONE, None

    def _fetch(self, now: datetime) -> Found:
        image = self._image
        if image is None or self._dropped(now) or self._back is not None:
            return Event.OBSOLETE, None
        job = self._job or self._supply.fetch_image(image, self.sources.get("image", ()), now)
        return self._run(job, now, image.release)

    def _check(self, now: datetime) -> Found:
        image = self._image
        if image is None or (self._dropped(now) and not self._by_hand):
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
        assignment, image = self._notes.assignment, self._image
        if self._by_hand:
            return Event.DONE, None
        if assignment is None or image is None or self._dropped(now):
            return Event.OBSOLETE, None
        opens = self._looking.opens(assignment, image, now)
        return (Event.DONE, None) if opens == now else (Event.MORE, opens)

    def _record_image_intent(self, _now: datetime) -> None:
        image = self._image
        assert image is not None
        checks = self.judged = self._hardware.healthcheck()
        intent = Intent(
            "image",
            image.release,
            image.digest,
            self._notes.serial,
            slot=self._inactive(),
            checks=checks,
            by_hand=self._by_hand,
        )
        self._notes.record_intent(intent, checks)

    def _clear_intent(self, _now: datetime) -> None:
        """Nothing is open. Where a person's rollback has succeeded, what the assignment wanted is held with the same write."""
        intent = self._notes.memory.intent
        succeeded = intent is not None and intent.by_hand and self._hardware.booted() == intent.slot
        self._notes.clear_intent(held_under=intent.serial if intent is not None and succeeded else None)

    # ------------------------------------------------------------ judging by the healthcheck

    def _settle(self, now: datetime, wrong: str = "") -> Found:
        """DONE once no check is worse than before, nor anything else `wrong`; WORSE when it still is after the time to settle."""
        intent, checks = self._notes.memory.intent, self._hardware.healthcheck()
        if self.state is State.TRIAL:
            self.judged = checks
        worse = [
            *worse_checks(intent.checks if intent else (), checks),
            *([wrong] if wrong else []),
        ]
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
        """Fetch, store, have it put in force, judge. What was in force before is put in force again where that goes wrong."""
        intent = self._notes.memory.intent
        try:
            if intent is None:
                self._activated = True
                return Event.MORE, self._go_on(self._supply.apply_config(self._fetch_config()), now) or now
            if self._job is not None:
                return Event.MORE, self._go_on(self._job, now) or now
            if not self._activated:
                # Another life began it. How far it came nobody knows, and to begin again is free.
                self._activated = True
                return Event.MORE, self._go_on(self._hardware.activate_config(), now) or now
        except NotInForce as error:
            self._notes.refuse(self.target or "config", "config-not-in-force", str(error), self._notes.serial)
            return (Event.WORSE, None) if self._given_up else self._put_back(now)
        except HardwareError as error:
            return self._not_stored(error, now)
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
        # Put back; or cut off before it was stored: nothing to judge, and it is looked for again.
        if self._hardware.config_digest() != intent.digest:
            return (Event.WORSE if self._given_up else Event.DONE), None
        event, wake = self._settle(now)
        return self._put_back(now) if event is Event.WORSE else (event, wake)

    def _put_back(self, now: datetime) -> Found:
        """Begin to put the configuration before in force."""
        intent = self._notes.memory.intent
        self._given_up = True
        try:
            self._hardware.restore_config(intent.before if intent is not None else None)
        except HardwareError as error:
            # The one that failed stays, for want of another, and is known to have failed: what git sends next may come.
            self._notes.refuse(self.target or "config", "device-fault", str(error), self._notes.serial)
            return Event.WORSE, None
        self._job = self._hardware.activate_config()
        return Event.MORE, now

    def _not_stored(self, error: HardwareError, now: datetime) -> Found:
        """It could not be stored. How far that came nobody knows: what is stored now is put in force, and what is wanted is
        tried again, each time later."""
        self._notes.refuse(self.target or "config", "device-fault", str(error), self._notes.serial)
        if self._notes.memory.intent is None:
            return Event.FAILED, None
        self._activated = False
        return Event.MORE, self._notes.wait(self.target or "config", now)

    def _fetch_config(self) -> SiteConfig:
        """The assigned configuration; that it is about to be put in force is written down."""
        assignment, before = self._notes.assignment, self._hardware.config_digest()
        config = SiteConfig.from_bytes(self._transport.config())
        self._pulse()
        if assignment is None or config.digest != assignment.config:
            wanted = assignment.config if assignment else None
            raise Refused("config-mismatch", f"the server sent configuration {config.digest}, assigned is {wanted}")
        checks = self._hardware.healthcheck()
        intent = Intent(
            "config", config_key(config.digest), config.digest, self._notes.serial, before=before, checks=checks
        )
        self._notes.record_intent(intent)
        return config

    # ------------------------------------------------------------ apps

    def _pull(self, now: datetime) -> Found:
        name, assignment = self._app, self._notes.assignment
        app = assignment.apps.get(name) if assignment and name else None
        if name is None or app is None or assignment is None or assignment.expires_at <= now:
            return Event.OBSOLETE, None
        if f"{name}@{app.version}" != self.target or self._back is not None:
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
        elif intent.app is None:
            return Event.OBSOLETE, None
        elif self._activated:
            # An app that ended since it was started is judged like a check that became worse.
            runs = running.get(intent.app) == intent.digest
            event, wake = self._settle(now, "" if runs else f"{intent.app} does not run any more")
            return self._run_before(intent, event, now) if event is Event.WORSE else (event, wake)
        # Where another life began it, how far it came nobody knows, and to begin again is free.
        self._activated = True
        return self._start(self._supply.start_app(intent.app or "", intent.digest), intent, now)

    def _start(self, job: Job, intent: Intent, now: datetime) -> Found:
        """Go on with the start of an app; what ran before runs again where it fails."""
        try:
            return Event.MORE, self._go_on(job, now) or now
        except HardwareError as error:
            self._notes.refuse(self.target or "app", "restart-failed", str(error), self._notes.serial)
            return self._run_before(intent, Event.FAILED, now)

    def _run_before(self, intent: Intent, event: Event, now: datetime) -> Found:
        """Have what ran before run again. Where that fails too it is tried once more after the time to settle, and then left
        to git: a runtime that is broken must not keep the device from the image that mends it."""
        try:
            self._hardware.run_app(intent.app or "", intent.before)
        except HardwareError as error:
            reason = f"what ran before cannot be run either: {error}"
            self._notes.refuse(self.target or "app", "restart-failed", reason, self._notes.serial)
            if not self._given_up:
                self._given_up, self._settling_since = True, None
                return Event.MORE, now + timedelta(seconds=self._timing.recheck_s)
        return event, None

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
