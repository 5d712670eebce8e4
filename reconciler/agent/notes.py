"""What an agent knows apart from its hardware: its memory (durable), refusals and waits (for this life only).

Python 3.10, standard library only: runs as root on a device. Decides nothing. Refusals live until what they speak of
works or is no longer wanted; they are told in every report meanwhile.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timedelta

from reconciler.agent.state import SEQUENCE_BLOCK, Intent, Memory, MemoryStore, StateError
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.canonical import clip
from reconciler.protocol.report import MAX_REFUSALS, REASON_CHARS, Check, Refusal, Serial

MEMORY = "memory"
ALWAYS = frozenset(("assignment", "device", "clock", "console", MEMORY))
"""Subjects that do not come from an assignment's work, and outlive it."""
FIRST_WAIT_S = 30
LONGEST_WAIT_S = 900
UNREMEMBERED = 1 << 40
"""Where sequence numbers go on while the memory cannot be read: above all that may have been sent in this boot."""
UNREMEMBERED_STEP = 1000
"""So many of them a second since the boot, so that a process that is started again goes on above the one before."""
FASTEST_REPORT_S = 5
"""On average reports come less often than this."""


class Notes:
    """Memory with its store, refusals by subject, and waits by subject.

    A memory that cannot be read is `lost`: the one here is then empty, is never written, and nothing may be concluded from it.
    """

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.memory, self._sequence = Memory(), 0
        self.lost: str | None = None
        """Why the memory cannot be read, and what to do; None: it was read."""
        if not self.recover():
            self._sequence = UNREMEMBERED + int(time.monotonic() * UNREMEMBERED_STEP)
        self._refusals: dict[str, Refusal] = {}
        self._waits: dict[str, tuple[int, datetime]] = {}

    @property
    def assignment(self) -> Assignment | None:
        """The assignment in force."""
        return self.memory.accepted.assignment if self.memory.accepted else None

    @property
    def serial(self) -> Serial:
        """Serial of the assignment in force, (0, 0) without one."""
        return self.memory.last_serial or (0, 0)

    def recover(self) -> bool:
        """Read the memory, as a life begins or after somebody has mended it. False: it cannot be read."""
        try:
            self.memory = self._store.load()
        except StateError as error:
            self.lost = str(error)
            return False
        # What this life has sent meanwhile is behind it too.
        self._sequence = max(self._sequence, self.memory.sequence_reserved)
        self.lost = None
        return True

    def remember(self, memory: Memory) -> None:
        """Make `memory` durable, then current. OSError: it is neither. StateError: the one on record cannot be read, and is
        not written over."""
        if self.lost is not None:
            raise StateError(self.lost)
        self._store.save(memory)
        self.memory = memory

    def record_intent(self, intent: Intent, checks_before: tuple[Check, ...] | None = None) -> None:
        """Write down what is about to be done. `checks_before` replaces those that reports compare with."""
        before = self.memory.checks_before if checks_before is None else checks_before
        self.remember(replace(self.memory, intent=intent, checks_before=before))

    def clear_intent(self, held_under: Serial | None = None) -> None:
        """Write down that nothing is open; with `held_under`, that no image is brought under this serial any more."""
        if self.memory.intent is not None:
            held = self.memory.held_under if held_under is None else held_under
            self.remember(replace(self.memory, intent=None, held_under=held))

    def next_sequence(self) -> int:
        """A number higher than every one before, over power cuts too.

        Where nothing can be written, on a disk that is full or has gone read-only, it is higher than every one of this boot:
        reports go on, and say so.
        """
        if self._sequence >= self.memory.sequence_reserved and self.lost is None:
            try:
                self.remember(replace(self.memory, sequence_reserved=self._sequence + SEQUENCE_BLOCK))
                self.settle(MEMORY)
            except OSError as error:
                # An agent that is started again in the same boot goes on above the numbers of the one before.
                since_boot = self.memory.sequence_reserved + int(time.monotonic() / FASTEST_REPORT_S)
                self._sequence = max(self._sequence, since_boot)
                reason = f"the agent's memory cannot be written ({error.strerror}), so nothing new is begun; see `df`, `dmesg`"
                self.refuse(MEMORY, "device-fault", reason)
        self._sequence += 1
        return self._sequence

    # ------------------------------------------------------------ refusals and waits, by subject

    def refuse(self, subject: str, code: str, reason: str, serial: Serial | None = None) -> None:
        """Keep a refusal for the next reports; a later one on the same subject replaces it."""
        self._refusals.pop(subject, None)
        self._refusals[subject] = Refusal(code, clip(reason, REASON_CHARS) or code, serial)

    def refuse_once(self, subject: str, code: str, reason: str, serial: Serial | None = None) -> None:
        """As `refuse`, unless something is kept on the subject already, which then says more."""
        if subject not in self._refusals:
            self.refuse(subject, code, reason, serial)

    def withdraw(self, subject: str, code: str) -> None:
        """What was refused by this code is no longer; what else is kept on the subject stays."""
        if subject in self._refusals and self._refusals[subject].code == code:
            del self._refusals[subject]

    def settle(self, subject: str) -> None:
        """It works now, or is no longer wanted."""
        self._refusals.pop(subject, None)
        self._waits.pop(subject, None)

    def refusals(self) -> tuple[Refusal, ...]:
        """The newest, at most as many as a report takes."""
        return tuple(self._refusals.values())[-MAX_REFUSALS:]

    def wait(self, subject: str, now: datetime, at_least_s: float | None = None) -> datetime:
        """Put off a subject, each time for twice as long; returns until when."""
        count = self._waits.get(subject, (0, now))[0]
        seconds = min(FIRST_WAIT_S * 2**count, LONGEST_WAIT_S)
        until = now + timedelta(seconds=max(seconds, min(at_least_s or 0, LONGEST_WAIT_S)))
        self._waits[subject] = (min(count + 1, 10), until)
        return until

    def waiting(self, subject: str, now: datetime) -> datetime | None:
        """Until when a subject is put off, or None."""
        until = self._waits.get(subject, (0, now))[1]
        # Longer than any wait: the clock has been set back since.
        return until if now < until <= now + timedelta(seconds=LONGEST_WAIT_S) else None

    def keep_only(self, subjects: frozenset[str]) -> None:
        """Forget refusals and waits of work that the assignment no longer names (those of `ALWAYS` stay)."""
        for table in (self._refusals, self._waits):
            for subject in [name for name in table if name not in subjects | ALWAYS]:
                del table[subject]

    def clock_moved(self, by: timedelta) -> None:
        """The clock was set by so much: waits go on for as long as they would have."""
        self._waits = {subject: (count, until + by) for subject, (count, until) in self._waits.items()}
