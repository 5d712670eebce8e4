"""Tells targets what happened, beside the loop: a thread for each, which reads the events on record and never holds up a tick.

At least once, in order, and nothing twice that was acknowledged: a message is on record before it is sent, each attempt before it
is made, and its end when the target has answered. A kill between sending and recording sends the same message, under the same
id, once more. What fails is tried again with growing delays, the target's own wish honoured; what is refused again and again is
given up and named by the condition `NotificationsReady`. Times are of the system's clock, also where the loop's is stepped: targets
are real systems. Called by the loop; made by `bootstrap`.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from reconciler.controller.conditions import Finding, Type
from reconciler.controller.notices import WITHIN, Asked, fold, worded
from reconciler.controller.pace import Backoff
from reconciler.model.events import Event, EventKind
from reconciler.model.notices import Answer, Delivery, Message, Outcome
from reconciler.model.scalars import format_instant
from reconciler.ports import PortError, TransientError

_LOOK_S = 10.0
"""How often events are looked for that nobody rang for: what a person did in another process."""
_APART_S = 1.0
"""Between two messages to one target: what chats ask for."""
_AT_ONCE = 500
"""Events taken in at a time."""
_MOST_WAITING = 50
"""Deliveries that may wait for a target. While there are more, events stay events, and are folded when it answers again."""
_MOST_ASKED = timedelta(days=1)
"""A target that asks for more than this is called after it."""
_KEPT = timedelta(days=30)
_LONG = timedelta(minutes=1)
"""An answer that takes longer is told of: each byte of it may come in time, and it may never end."""
REFUSALS = 5
"""Refusals after which a message is given up."""
_REFUSED = Backoff(30.0, 900.0)


class Notices(Protocol):
    """What the store keeps of notifications. Errors are those of `ports.Store`."""

    def open(self, epoch: int, targets: Sequence[str]) -> None:
        """These are the targets from now on; a new one begins with the next event."""

    def told(self, target: str) -> int:
        """The number of the last event that the target was told of, or does not ask for."""

    def plan(self, epoch: int, target: str, told: int, deliver: Sequence[Delivery]) -> None:
        """Record deliveries, new ones and ones that grew, with the last event that is in them."""

    def waiting(self, target: str, limit: int) -> Sequence[Delivery]:
        """What the target has not taken, in the order in which it is told."""

    def counts(self, target: str, since: datetime) -> Mapping[EventKind, int]:
        """How many events of each kind were put into deliveries after an instant."""

    def attempt(self, epoch: int, number: int) -> None:
        """Record that a delivery is about to be sent."""

    def failed(self, epoch: int, number: int, error: str, *, refused: bool, not_before: datetime | None) -> None:
        """Record that it was not taken."""

    def finish(self, epoch: int, number: int, outcome: Outcome, error: str, at: datetime) -> None:
        """Record that it was taken, or given up."""

    def prune(self, epoch: int, before: datetime) -> int:
        """Drop deliveries that ended before an instant."""


class Events(Protocol):
    """What of `ports.Store` is read here."""

    def events(self, *, after: int = 0, limit: int = 100) -> Sequence[Event]:
        """Events with a number above `after`, oldest first."""

    def transaction(self) -> AbstractContextManager[None]:
        """Group calls into one transaction."""


class Sender(Protocol):
    """One target."""

    def send(self, message_id: str, message: Message) -> Answer:
        """Post a message. TransientError: no answer, or one that says later. TerminalError: its address or key is not usable."""


@dataclass(frozen=True, slots=True)
class Target:
    """Who is told what, and how."""

    asked: Asked
    sender: Sender

    @property
    def name(self) -> str:
        """Its name in the settings."""
        return self.asked.target


@dataclass(frozen=True, slots=True)
class Office:
    """What the threads share. `epoch` is the loop's present one; `base` the dashboard's address. `changed` lets the loop record a
    condition. `now` and `draw` are replaced in tests."""

    store: Events
    notices: Notices
    epoch: Callable[[], int]
    base: str | None
    backoff: Backoff
    log: Callable[..., object]
    changed: Callable[[], object] = lambda: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    draw: Callable[[], float] = random.random
    refused: Backoff = _REFUSED


class Notifier:
    """All targets. `open` before the first tick, then `start`; `ring` and `finding` are the loop's, and return at once."""

    def __init__(self, targets: Sequence[Target], office: Office) -> None:
        self._office = office
        self._couriers = [Courier(target, office) for target in targets]

    def open(self) -> None:
        """Take the targets into the store: what happens from now on is told. Errors are the store's."""
        self._office.notices.open(self._office.epoch(), [courier.name for courier in self._couriers])

    def start(self) -> None:
        """Begin to send, with what was not acknowledged before a restart."""
        for courier in self._couriers:
            courier.start()

    def ring(self, _events: Sequence[Event] = ()) -> None:
        """Something happened: look now."""
        for courier in self._couriers:
            courier.ring()

    def finding(self) -> Finding:
        """The condition `NotificationsReady`."""
        if not self._couriers:
            return not_configured()
        troubles = [(courier.name, *trouble) for courier in self._couriers if (trouble := courier.trouble) is not None]
        if not troubles:
            return Finding(Type.NOTIFICATIONS_READY, True, "UpToDate", "every target takes what it is sent")
        reasons = {reason for _, reason, _ in troubles}
        text = "; ".join(f"{name}: {said}" for name, _, said in troubles)
        return replace(next(found for found in _WORST if found.reason in reasons), message=text)

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Attempts since the process began, by target and what came of them (`Sent`)."""
        return {(courier.name, sent.value): courier.counts[sent] for courier in self._couriers for sent in Sent}

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything told so far is sent, or has failed once; whether that was so in time. For a single pass."""
        until = time.monotonic() + timeout_s
        self.ring()
        return all(courier.settled(until - time.monotonic()) for courier in self._couriers)

    def stop(self, timeout_s: float) -> None:
        """Send nothing more; the rest is on record."""
        for courier in self._couriers:
            courier.stop()
        for courier in self._couriers:
            courier.join(timeout_s)


_WORST = (
    Finding(Type.NOTIFICATIONS_READY, False, "Refused"),
    Finding(Type.NOTIFICATIONS_READY, False, "CannotSend"),
    Finding(Type.NOTIFICATIONS_READY, False, "NotAnswering"),
)
"""Of several targets' troubles the first of these is the reason: what passes by itself comes last."""


def not_configured() -> Finding:
    """The condition where nobody is told: nothing is missing."""
    return Finding(Type.NOTIFICATIONS_READY, True, "NotConfigured", "the settings name no target of notifications")


class Sent(StrEnum):
    """What came of an attempt to tell a target something."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """It is tried again."""
    GIVEN_UP = "given-up"
    """It was refused once too often."""


class Courier:
    """One target's thread."""

    def __init__(self, target: Target, office: Office) -> None:
        self.name = target.name
        self._target, self._office = target, office
        self._bell = threading.Condition()
        self._rung, self._heard, self._settled = 1, 0, 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._pause_until: datetime | None = None
        self._failures = 0
        self._gone = False
        self._pruned: datetime | None = None
        self._trouble: tuple[str, str] | None = None
        self._sending_since: datetime | None = None
        self.counts = dict.fromkeys(Sent, 0)
        """Attempts, by what came of them. Its thread alone writes."""

    @property
    def trouble(self) -> tuple[str, str] | None:
        """A reason and a sentence, where the target does not take what it is sent."""
        since = self._sending_since
        if since is not None and self._office.now() - since > _LONG:
            return (
                "NotAnswering",
                f"it has been answering since {format_instant(since.replace(microsecond=0))}, without an end",
            )
        return self._trouble

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._work, name=f"notify-{self.name}", daemon=True)
        self._thread.start()

    def ring(self) -> None:
        """Look for events now."""
        with self._bell:
            self._rung += 1
            self._bell.notify_all()

    def settled(self, timeout_s: float) -> bool:
        """Wait until a look that began after this call found nothing to send now."""
        with self._bell:
            wanted = self._rung
            return self._bell.wait_for(lambda: self._settled >= wanted, max(0.0, timeout_s))

    def stop(self) -> None:
        """End after what is being sent."""
        with self._bell:
            self._stopping = True
            self._bell.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the end."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    # ------------------------------------------------ the thread

    def _work(self) -> None:
        while not self._stopping:
            with self._bell:
                self._heard = self._rung
            wait_s, idle = self._round()
            self._rest(wait_s, idle)

    def _rest(self, wait_s: float, idle: bool) -> None:
        """Wait. Whoever rings lets an idle courier look at once; a pause after a failure lasts all the same."""
        with self._bell:
            if idle:
                self._settled = self._heard
                self._bell.notify_all()
            self._bell.wait_for(lambda: self._stopping or (idle and self._rung > self._heard), wait_s)

    def _round(self) -> tuple[float, bool]:
        """Take in what happened and send one message. Returns how long to wait, and whether nothing is to be sent before that."""
        now = self._office.now()
        try:
            self._prune(now)
            return self.turn(now)
        except PortError as error:
            # The store's: nothing is sent that cannot be written down.
            self._office.log("notifications wait for the store", target=self.name, error=str(error))
            return _LOOK_S, True
        except Exception as error:  # noqa: BLE001 - a defect here must end neither the thread nor the loop, nor be silent
            self._office.log("notifications failed", target=self.name, error=f"unexpected {type(error).__name__}")
            self._set("CannotSend", f"unexpected {type(error).__name__}; this is a defect, see the log")
            return _LOOK_S, True

    def turn(self, now: datetime) -> tuple[float, bool]:
        """One round, without its safety net. Errors are the store's."""
        while self._take_in(now):
            pass
        waiting = self._office.notices.waiting(self.name, _MOST_WAITING)
        if not waiting or self._gone:
            return _LOOK_S, True
        first = waiting[0]
        start_at = max(filter(None, (first.ready_at, first.not_before, self._pause_until)))
        if start_at > now:
            return min(_LOOK_S, (start_at - now).total_seconds()), True
        self._send(first, now)
        if self._pause_until is not None:
            return max(0.0, (self._pause_until - self._office.now()).total_seconds()), True
        return _APART_S, False

    def _take_in(self, now: datetime) -> bool:
        """Put events that are new into deliveries; whether there may be more of them."""
        notices = self._office.notices
        told = notices.told(self.name)
        events = self._office.store.events(after=told, limit=_AT_ONCE)
        if not events:
            return False
        waiting = notices.waiting(self.name, _MOST_WAITING)
        growing = {item.batch.kind: item for item in waiting if item.ready_at > now and item.attempts == 0}
        if len(waiting) >= _MOST_WAITING:
            return False
        deliver = fold(
            self._target.asked,
            events,
            growing,
            notices.counts(self.name, now - WITHIN),
            now,
            lambda: f"msg_{uuid.uuid4().hex}",
        )
        notices.plan(self._office.epoch(), self.name, events[-1].id or told, deliver)
        return len(events) == _AT_ONCE

    def _send(self, item: Delivery, now: datetime) -> None:
        assert item.id is not None
        office = self._office
        message = worded(item.batch, office.base)
        office.notices.attempt(office.epoch(), item.id)
        self._sending_since = now
        try:
            answer = self._target.sender.send(item.message_id, message)
        except TransientError as error:
            self._failed(item, "NotAnswering", error)
        except PortError as error:
            self._failed(item, "CannotSend", error)
        else:
            self._answered(item, message, answer)
        finally:
            self._sending_since = None

    def _answered(self, item: Delivery, message: Message, answer: Answer) -> None:
        assert item.id is not None
        office, now, epoch = self._office, self._office.now(), self._office.epoch()
        if answer.accepted:
            office.notices.finish(epoch, item.id, Outcome.DELIVERED, "", now)
            self.counts[Sent.DELIVERED] += 1
            office.log("notified", target=self.name, kind=message.kind, count=message.count)
            self._failures, self._pause_until = 0, None
            self._set(None, "")
            return
        if answer.gone:
            # Asked once a start: the settings may name another address by then.
            office.notices.failed(epoch, item.id, answer.said, refused=True, not_before=None)
            self._gone = True
            self.counts[Sent.FAILED] += 1
            self._set("Refused", f"{answer.said}; nothing is sent there any more until the controller is started again")
            return
        refusals = item.refusals + 1
        if refusals >= REFUSALS:
            office.notices.finish(epoch, item.id, Outcome.GIVEN_UP, answer.said, now)
            self.counts[Sent.GIVEN_UP] += 1
            office.log(
                "notification given up", target=self.name, kind=message.kind, title=message.title, error=answer.said
            )
            self._failures, self._pause_until = 0, None
            self._set("Refused", f"{answer.said}; given up after {refusals} attempts: {message.title}")
            return
        office.notices.failed(epoch, item.id, answer.said, refused=True, not_before=None)
        self.counts[Sent.FAILED] += 1
        self._pause_until = now + timedelta(seconds=office.refused.delay_s(refusals, office.draw()))
        self._set("Refused", answer.said)

    def _failed(self, item: Delivery, reason: str, error: PortError) -> None:
        """It is tried again, however long it takes: nothing says that it would never be taken."""
        assert item.id is not None
        office, now = self._office, self._office.now()
        self.counts[Sent.FAILED] += 1
        asked_s = error.retry_after_s if isinstance(error, TransientError) else None
        asked = None if asked_s is None else min(timedelta(seconds=asked_s), _MOST_ASKED)
        self._failures += 1
        delay = timedelta(seconds=office.backoff.delay_s(self._failures, office.draw()))
        self._pause_until = now + max(delay, asked or timedelta())
        office.notices.failed(
            office.epoch(), item.id, str(error), refused=False, not_before=now + asked if asked is not None else None
        )
        self._set(reason, str(error))

    # ------------------------------------------------ what is said of it

    def _set(self, reason: str | None, text: str) -> None:
        before, self._trouble = self._trouble, None if reason is None else (reason, text)
        if (before[0] if before else None) != reason or (before != self._trouble and reason is not None):
            self._office.log("notifications", target=self.name, **({"error": text} if reason else {"answers": True}))
            self._office.changed()

    def _prune(self, now: datetime) -> None:
        if self._pruned is None or now - self._pruned > timedelta(days=1):
            self._pruned = now
            self._office.notices.prune(self._office.epoch(), now - _KEPT)
