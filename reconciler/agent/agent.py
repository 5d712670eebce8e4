"""One step at a time: report and receive, then go on with the work. Drives `machine` by the hands of `work`.

Python 3.10, standard library only: runs as root on a device. An `Agent` is one life between two boots; `device` makes
the next. It takes the present instant as an argument and never sleeps; what it waits for is the instant it returns.
Three ports: the hardware, the transport, and time. Source: design, section 5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from reconciler.agent import VERSION
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import Clock, Hardware, HardwareError, ImageVersion
from reconciler.agent.judge import Verify, judge
from reconciler.agent.machine import PHASES, State
from reconciler.agent.notes import Notes
from reconciler.agent.pace import GOOD, Pace
from reconciler.agent.state import MemoryStore, StateFile
from reconciler.agent.supply import DiskSupply, Supply
from reconciler.agent.timing import Timing
from reconciler.agent.transport import Transport, TransportError
from reconciler.agent.work import Work
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.bundle import Bundle
from reconciler.protocol.canonical import Malformed, clip
from reconciler.protocol.exchange import Answer
from reconciler.protocol.report import REASON_CHARS, Check, DeviceClock, Report, ReportError, Slot, overall
from reconciler.protocol.signature import Refused, verify_detached

FIRST_REPORT_EVERY_S = 60
LONGEST_SILENCE_S = 600
FAULT_WAIT_S = 30
_AT_EASE = frozenset((State.IDLE, State.FETCHING, State.PULLING, State.CHECKING, State.WRITING, State.WRITTEN))
"""States in which nothing of what runs changes."""
_JUST_JUDGED = frozenset((State.IDLE, State.REBOOTING))
"""States that follow at once from a run of the healthcheck: that of a trial, and that before the reboot into one."""
_NO_SLOTS: Mapping[str, Slot] = {}
_NO_APPS: Mapping[str, str] = {}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Identity:
    """Who this device is, as it was enrolled."""

    device: str
    site: str


class Agent:
    """A life of the agent. Call `step` at or after the instant the last call returned; stop when `leaving` is set."""

    def __init__(
        self,
        identity: Identity,
        hardware: Hardware,
        transport: Transport,
        *,
        timing: Timing | None = None,
        verify: Verify = verify_detached,
        disk: Disk | None = None,
        supply: Supply | None = None,
        memory: MemoryStore | None = None,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        """`supply` and `memory` are files below the hardware's folders, by way of `disk`, unless given. `pulse` is called between
        the parts of a step that may each take long.

        Raises HardwareError where the machine cannot be read. A memory that cannot be is told in every report, and holds
        everything up (`Notes.lost`).
        """
        self.identity = identity
        self._hardware, self._transport, self._verify = hardware, transport, verify
        self._timing, self._pulse = timing or Timing(), pulse
        disk = disk or Disk()
        hardware.begin()
        self.notes = Notes(memory or StateFile(hardware.state_folder() / "state.json", disk))
        supply = supply or DiskSupply(hardware, transport, disk, verify)
        self.work = Work(identity.device, hardware, transport, self.notes, supply, self._timing, pulse)
        self._boot_id = hardware.boot_id()
        self._disown(identity)
        self._pace = Pace()
        self._exchange_at: datetime | None = None
        self._told: Report | None = None
        self.work_wakes_at: datetime | None = None
        """When the work wants to go on, whatever becomes due of reports; None: with the next report."""
        self._report_every_s = FIRST_REPORT_EVERY_S
        self._failures = 0
        self.stuck_because: str | None = None
        """Why nothing is done: it cannot be found out how this life begins, or goes on. None: it is known."""
        self._had_fault = False
        self.exchanges = 0
        """How often it was tried to reach the server, in this life."""
        self.reached = False
        """Whether the last exchange succeeded, and if not, why."""
        self.unreached_because = "no report was sent yet"

    def _disown(self, identity: Identity) -> None:
        """An assignment for another device is none: this one was enrolled anew, or its disk was another's. The serial stays."""
        accepted = self.notes.memory.accepted
        if accepted is not None and accepted.assignment.device != identity.device:
            self.notes.memory = replace(self.notes.memory, accepted=None)
            reason = f"the assignment on record is for {accepted.assignment.device}, this is {identity.device}"
            self.notes.refuse("assignment", "wrong-device", reason, accepted.assignment.serial)

    @property
    def leaving(self) -> bool:
        """Whether a reboot was asked for: this life is over."""
        return self.work.leaving

    def call_in(self) -> None:
        """Somebody rang: exchange at the next step, whatever the interval says."""
        self._exchange_at = None

    def clock_moved(self, by: timedelta) -> None:
        """The clock was set by so much: what was reckoned by it moves along, so that no wait ends early or never."""
        if self._exchange_at is not None:
            self._exchange_at += by
        self.work.clock_moved(by)

    def step(self, now: datetime) -> datetime:
        """Report if that is due, go on with the work, and return when to call again. Never raises for what a device
        meets."""
        try:
            due = self._step(now)
        except (HardwareError, OSError) as error:
            self._had_fault = True
            self.notes.refuse("device", "device-fault", str(error))
            self.work_wakes_at = now + timedelta(seconds=FAULT_WAIT_S)
            return self.work_wakes_at
        if self._had_fault and self.stuck_because is None:
            self._had_fault = False
            self.notes.withdraw("device", "device-fault")
        return due

    def wake(self, now: datetime) -> bool:
        """Find out how this life begins: what is booted, and what was intended. False: it takes another call, and is due at
        `work_wakes_at`. Raises HardwareError or OSError: it cannot be found out."""
        if self.notes.lost is not None:
            if not self.notes.recover():
                raise HardwareError(self.notes.lost)
            self._disown(self.identity)
        # A record that was lost meanwhile: a device that does not know what it runs would take itself for a bare one.
        if self.work.state is State.IDLE and self.work.is_unknown():
            self.work_wakes_at = self.work.advance(now)
        while self.work.state in (State.BOOTING, State.RECOGNISING):
            self.work_wakes_at = self.work.advance(now)
            if self.work.state is State.RECOGNISING:
                return False
        return True

    def _step(self, now: datetime) -> datetime:
        # The boot is judged before the first report, so that no report speaks of a state that is not known yet.
        try:
            if not self.wake(now):
                return self.work_wakes_at or now
        except (HardwareError, OSError) as error:
            return self._tell_of_fault(error, now)
        if self.stuck_because is not None:
            self.stuck_because = None
            self.notes.settle("device")
        if self._is_due(now):
            self._exchange(now)
            self._pulse()
        before = self.work.state
        self.work_wakes_at = wake = self.work.advance(now)
        if not {before, self.work.state} <= _AT_EASE:
            self._pace.forget()
        # A new phase is told at once: the controller's timers (rebooting, in flight) depend on it.
        if PHASES[self.work.state] != PHASES[before] and not self.leaving:
            self._exchange_at = now
        due = self._exchange_at or now
        return due if wake is None else min(due, wake)

    def _tell_of_fault(self, error: Exception, now: datetime) -> datetime:
        """How this life begins cannot be found out, of boot flags that nobody can read for one. Nothing is done until it can,
        but the device is there, and says why."""
        self.stuck_because = str(error)
        self.notes.refuse("device", "device-fault", str(error))
        if self._is_due(now):
            self._exchange(now)
            self._pulse()
        self.work_wakes_at = now + timedelta(seconds=FAULT_WAIT_S)
        return min(self.work_wakes_at, self._exchange_at or self.work_wakes_at)

    def _is_due(self, now: datetime) -> bool:
        """Whether to report. An instant further ahead than any wait is one of a clock that has been set back since."""
        if self._exchange_at is None or now >= self._exchange_at:
            return True
        longest = timedelta(seconds=2 * max(LONGEST_SILENCE_S, self._report_every_s))
        return self._exchange_at - now > longest

    # ------------------------------------------------------------ time that nobody has to play

    @property
    def reports_at(self) -> datetime | None:
        """When the next report is due; None: at once."""
        return self._exchange_at

    @property
    def report_every_s(self) -> int:
        """The interval that the server asked for last."""
        return self._report_every_s

    def report_from(self, first_at: datetime, every_s: int) -> None:
        """Report first at `first_at`, as one that has reported every `every_s` seconds until then, and not at once."""
        self._exchange_at, self._report_every_s = first_at, every_s

    def pass_reports(self, until: datetime, *, answered: bool) -> None:
        """As if every report due before `until` had been sent and answered with nothing new, or had reached nobody.

        For who steps many agents in virtual time, and knows that it was so. Sequence numbers are not taken for them.
        """
        while self._exchange_at is not None and self._exchange_at < until:
            if not answered:
                self.reached, self.unreached_because = False, "nobody could be reached"
                self._back_off(self._exchange_at)
            elif self._timing.report_jitter:
                self._exchange_at = self._later(self._exchange_at, self._report_every_s)
            else:
                every = timedelta(seconds=self._report_every_s)
                self._exchange_at += -((self._exchange_at - until) // every) * every

    # ------------------------------------------------------------ the exchange

    def _exchange(self, now: datetime) -> None:
        """One report up, one answer down. What cannot be sent is sent later; what is refused changes nothing."""
        report = self.report(now)
        self.exchanges += 1
        self._pulse()
        try:
            data = self._transport.exchange(_to_bytes(report))
            answer = Answer.from_bytes(data)
        except (TransportError, Malformed) as error:
            # It is shown on a terminal, and another end chose some of its words.
            self.reached, self.unreached_because = False, clip(str(error), REASON_CHARS)
            self._back_off(now, error.retry_after_s if isinstance(error, TransportError) else None)
            return
        self._failures, self.reached, self._told = 0, True, report
        self._report_every_s = answer.report_every_s
        self._exchange_at = self._later(now, answer.report_every_s)
        if answer.sources:
            self.work.sources = answer.sources
        self.work.registry_token = answer.registry_token or self.work.registry_token
        if answer.bundle is not None:
            self._receive(answer.bundle, now)

    def _receive(self, bundle: Bundle, now: datetime) -> None:
        memory = self.notes.memory
        # The serial of the last accepted one is not known: this one may be older.
        if self.notes.lost is not None:
            return
        try:
            # The bytes in force prove nothing new; not even the keys are read for them.
            if memory.accepted is not None and bundle.document == memory.accepted.document:
                return
            accepted = judge(
                bundle,
                device=self.identity.device,
                accepted=memory.accepted,
                last=memory.last_serial,
                keyring=self._hardware.keyring("assignment"),
                now=now,
                verify=self._verify,
            )
        except Refused as error:
            self.notes.refuse("assignment", error.code, error.reason, _serial_of(bundle))
            return
        if accepted is not None:
            assignment = accepted.assignment
            self.notes.remember(replace(memory, accepted=accepted, last_serial=assignment.serial))
            self.notes.settle("assignment")
            self.notes.keep_only(self.work.subjects(assignment))

    def _back_off(self, now: datetime, at_least_s: float | None = None) -> None:
        """Nobody was reached: report later, each time later."""
        self._failures = min(self._failures + 1, 10)
        silence = max(self._report_every_s * 2 ** (self._failures - 1), at_least_s or 0)
        self._exchange_at = self._later(now, min(silence, LONGEST_SILENCE_S))

    def _later(self, now: datetime, seconds: float) -> datetime:
        """`now` and so many seconds, earlier or later by this device's own share of the jitter."""
        share = hashlib.sha256(f"{self.identity.device} {now.isoformat()}".encode()).digest()[0] / 127.5 - 1
        return now + timedelta(seconds=max(1.0, seconds * (1 + share * self._timing.report_jitter)))

    # ------------------------------------------------------------ the report

    def has_news(self) -> bool:
        """Whether a report would say anything now that the last one answered did not."""
        told = self._told
        return told is None or told.clock is None or self._report(told.sequence, told.clock.at) != told

    def report(self, now: datetime) -> Report:
        """What the device is now. Takes a sequence number."""
        return self._report(self.notes.next_sequence(), now)

    def _report(self, sequence: int, now: datetime) -> Report:
        hardware, memory, work = self._hardware, self.notes.memory, self.work
        booted, version = hardware.booted(), self._known(hardware.version, ImageVersion())
        slots = self._known(hardware.slots, _NO_SLOTS)
        image = slots[booted].release if slots else version.current
        config, apps = self._known(hardware.config_digest, None), self._known(hardware.apps, _NO_APPS)
        checks = self._checks((booted, slots, config, apps), now)
        phase = "trial" if self._is_unjudged(booted) else PHASES[work.state]
        return Report(
            device=self.identity.device,
            site=self.identity.site,
            boot_id=self._boot_id,
            sequence=sequence,
            serial=memory.last_serial,
            booted=booted,
            slots=slots or {"a": Slot(), "b": Slot()},
            image=image,
            previous=version.previous if version.current == image else version.current,
            phase=phase,
            target=work.target if phase != "idle" else None,
            health=overall(checks),
            checks=checks,
            checks_before=memory.checks_before,
            config=config,
            apps=apps,
            attempts=memory.attempts,
            refusals=self.notes.refusals(),
            agent=VERSION,
            clock=_clock(hardware.clock(), now),
        )

    def _known(self, ask: Callable[[], _T], otherwise: _T) -> _T:
        """What the machine says, or `otherwise` where it cannot: the report says why, and is sent."""
        try:
            return ask()
        except (HardwareError, OSError) as error:
            self._had_fault = True
            self.notes.refuse("device", "device-fault", str(error))
            return otherwise

    def _checks(self, what: object, now: datetime) -> tuple[Check, ...]:
        """The healthcheck's, as they are now. While something is open, or nobody knows, they are those of this very instant."""
        # The step before has just had them, to judge by: the report that tells of it, and no other, needs no run of its own.
        judged, self.work.judged = self.work.judged, None
        if judged is not None and self.work.state in _JUST_JUDGED and overall(judged) in GOOD:
            return judged
        if self.work.state not in _AT_EASE or self.notes.memory.intent is not None or self.stuck_because:
            self._pace.forget()
            return self._hardware.healthcheck()
        return self._pace.checks(self._hardware.healthcheck, what, now)

    def _is_unjudged(self, booted: str) -> bool:
        """Whether what is booted is a trial that could not be judged yet: no update that has succeeded."""
        if self.work.state is not State.BOOTING:
            return False
        if self.notes.lost is not None:
            return self._known(lambda: self._hardware.flags().default != booted, True)
        intent = self.notes.memory.intent
        return intent is not None and intent.slot == booted


def _to_bytes(report: Report) -> bytes:
    """The report's bytes. Of one that is longer than the server takes, what checks say in words is cut: how they are counts."""
    for limit in (None, 100, 0):
        with suppress(ReportError):
            return (report if limit is None else _terse(report, limit)).to_bytes()
    return report.to_bytes()


def _terse(report: Report, limit: int) -> Report:
    checks = tuple(replace(check, message=clip(check.message, limit)) for check in report.checks)
    return replace(
        report, checks=checks, checks_before=tuple(replace(check, message="") for check in report.checks_before)
    )


def _clock(clock: Clock, now: datetime) -> DeviceClock:
    ahead_ms = round(clock.skew_s * 1000) if clock.skew_s is not None else None
    return DeviceClock(now, clock.synchronised, ahead_ms)


def _serial_of(bundle: Bundle) -> tuple[int, int] | None:
    """The serial that a refused assignment claims, for the report alone."""
    try:
        return Assignment.from_bytes(bundle.document).serial
    except Malformed:
        return None
