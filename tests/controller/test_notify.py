"""Targets are told at least once, in order, and nothing twice that they acknowledged, whatever is killed or fails."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.adapters.webhook import WebhookSender
from reconciler.controller import notify as module
from reconciler.controller.conditions import Finding, Type
from reconciler.controller.notices import FOLD_ABOVE, Asked
from reconciler.controller.notify import REFUSALS, Courier, Notifier, Office, Target, not_configured
from reconciler.controller.pace import Backoff
from reconciler.model.events import Event, EventKind
from reconciler.model.notices import Answer, Message
from reconciler.ports import TerminalError, TransientError
from tests.support.processes import wait_until
from tests.support.webhooks import Receiver, Says, verify

T0 = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
SECOND = timedelta(seconds=1)
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Target_:
    """A target in this process: `says` are its answers in their order, after which it takes everything."""

    says: list[Answer | Exception] = field(default_factory=list)
    got: list[tuple[str, Message]] = field(default_factory=list)

    def send(self, message_id: str, message: Message) -> Answer:
        self.got.append((message_id, message))
        said = self.says.pop(0) if self.says else Answer(True, 200)
        if isinstance(said, Exception):
            raise said
        return said

    @property
    def titles(self) -> list[str]:
        return [message.title for _, message in self.got]


class Bench:
    """A store, a target and a clock by hand; `restart` is a new process over the same store."""

    def __init__(self, folder: Path, *, waves: tuple[str, ...] = (), kinds: tuple[EventKind, ...] = tuple(EventKind)):
        self.folder, self.now, self.sender = folder, T0, Target_()
        self.asked = Asked("ops", kinds, waves)
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.changes = 0
        self.store: SqlStore = open_store(folder / "store.db")
        self.epoch = self.store.begin_epoch()
        self.number = 0
        self.courier = self.restart()

    def restart(self, asked: Asked | None = None) -> Courier:
        self.asked = asked or self.asked
        self.notifier = Notifier([Target(self.asked, self.sender)], self.office())
        self.notifier.open()
        self.courier = self.notifier._couriers[0]
        return self.courier

    def office(self, notices: Any = None, **more: Any) -> Office:
        def changed() -> None:
            self.changes += 1

        return Office(
            self.store,
            notices or self.store.notices,
            lambda: self.epoch,
            "https://fleet.example",
            Backoff(5, 900),
            lambda event, **fields: self.logged.append((event, fields)),
            changed,
            now=lambda: self.now,
            draw=lambda: 0.0,
            **more,
        )

    def tell(self, *kinds: EventKind, **of: str) -> None:
        """Record events as the chronicle does."""
        events = []
        for kind in kinds:
            self.number += 1
            values = {"wave": "all", "device": f"SITE-{self.number}", "release": "v1.4.2"} | of
            events.append(Event(None, T0, kind, str(self.number), "c0ffee", message=f"event {self.number}", **values))
        self.store.add_events(self.epoch, events)

    def run(self, for_s: float = 0) -> None:
        """Let the courier work until nothing is due before an instant."""
        until = self.now + timedelta(seconds=for_s)
        while True:
            wait_s, _idle = self.courier.turn(self.now)
            left = not self.store.notices.waiting("ops", 1)
            if self.now + timedelta(seconds=wait_s) > until or (left and _idle):
                self.now = until
                return
            self.now += max(timedelta(milliseconds=1), timedelta(seconds=wait_s))

    @property
    def condition(self) -> tuple[bool | None, str]:
        found = self.notifier.finding()
        return found.status, found.reason


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


FLAG, OPENED, FAILED = EventKind.DEVICE_FLAGGED, EventKind.WAVE_OPENED, EventKind.GATE_FAILED


def test_what_happens_is_told_in_its_order_and_once(bench: Bench) -> None:
    bench.tell(OPENED)
    bench.tell(FLAG, FAILED)
    bench.run(10)
    assert bench.sender.titles == [
        "Wave all opened for v1.4.2",
        "Device SITE-2 is flagged on v1.4.2",
        "The gate of wave all failed for v1.4.2",
    ]
    message = bench.sender.got[1][1]
    assert (message.text, message.link) == ("event 2", "https://fleet.example/devices/SITE-2")
    bench.restart()
    bench.run(60)
    assert len(bench.sender.got) == 3


def test_history_is_not_told_to_a_target_that_is_new(bench: Bench) -> None:
    bench.tell(*[FLAG] * 3)
    bench.restart(Asked("other", tuple(EventKind)))
    bench.tell(OPENED)
    bench.courier.turn(bench.now)
    assert bench.sender.titles == ["Wave all opened for v1.4.2"]
    # A target that was taken out begins anew: what it missed is history too.
    bench.restart(Asked("ops", tuple(EventKind)))
    bench.run(5)
    assert len(bench.sender.got) == 1


def test_a_target_is_told_what_it_asks_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, waves=("canary",), kinds=(FLAG, EventKind.COMMIT_REFUSED))
    bench.tell(FLAG)
    bench.tell(FLAG, OPENED, wave="canary")
    bench.store.add_events(
        bench.epoch, [Event(None, T0, EventKind.COMMIT_REFUSED, "x", "bad", message="line 3 is wrong")]
    )
    bench.run(10)
    assert bench.sender.titles == ["Device SITE-2 is flagged on v1.4.2", "The branch's head is not acted on"]
    assert bench.sender.got[1][1].text == "bad: line 3 is wrong"
    bench.store.close()


def test_whether_notifications_get_through_is_told_by_none(bench: Bench) -> None:
    rows = [f"{kind} False Refused 2026-01-15T01:30:00Z" for kind in ("NotificationsReady", "GitReady")]
    told = [Event(None, T0, EventKind.CONDITION_CHANGED, key, message=key) for key in rows]
    bench.store.add_events(bench.epoch, told)
    bench.run(5)
    assert [message.text for _, message in bench.sender.got] == [rows[1]]


# ---------------------------------------------------------------- storms


def test_a_storm_is_one_message_with_its_count(bench: Bench) -> None:
    bench.tell(*[FLAG] * 37)
    bench.run(1)
    ((_, message),) = bench.sender.got
    assert (message.title, message.count) == ("37 devices flagged in wave all on v1.4.2", 37)
    assert message.text.splitlines()[0] == "- event 1" and message.text.endswith("… and 27 more")
    assert message.link == "https://fleet.example/flagged" and len(message.events) == 20


def test_what_follows_within_the_minute_is_gathered_and_holds_up_nothing_else(bench: Bench) -> None:
    bench.tell(*[FLAG] * FOLD_ABOVE)
    bench.run(10)
    assert len(bench.sender.got) == FOLD_ABOVE
    bench.tell(FLAG, FLAG)
    bench.run(1)
    bench.tell(FLAG, FAILED, wave="half")
    bench.run(20)
    assert bench.sender.titles[FOLD_ABOVE:] == ["The gate of wave half failed for v1.4.2"]
    bench.restart()
    bench.run(60)
    assert bench.sender.titles[FOLD_ABOVE + 1 :] == ["3 devices flagged in waves all, half on v1.4.2"]
    # Another minute, another count.
    bench.run(60)
    bench.tell(FLAG)
    bench.run(5)
    assert bench.sender.titles[-1].startswith("Device ")


@pytest.mark.slow
def test_a_target_that_was_away_is_not_flooded_when_it_is_back(bench: Bench) -> None:
    bench.sender.says = [TransientError("away")] * 99
    kinds = [kind for kind in EventKind if kind is not EventKind.CONDITION_CHANGED][:10]
    bench.tell(*kinds * FOLD_ABOVE)
    bench.run(1)
    for _ in range(20):
        bench.tell(*kinds)
        bench.run(61)
    assert len(bench.store.notices.waiting("ops", 1000)) == 50
    bench.sender.says, bench.sender.got = [], []
    bench.run(1200)
    counts = [message.count for _, message in bench.sender.got]
    assert sum(counts) == 250 and len(counts) <= 60


# ---------------------------------------------------------------- failures


@pytest.mark.slow
def test_what_fails_is_tried_again_ever_more_slowly_and_keeps_its_place(bench: Bench) -> None:
    bench.sender.says = [TransientError("it answered 503")] * 4
    bench.tell(OPENED, FLAG)
    tries = []
    for _ in range(400):
        before = len(bench.sender.got)
        bench.run(0)
        tries += [(bench.now - T0).total_seconds()] * (len(bench.sender.got) - before)
        bench.now += SECOND
    assert tries == [0, 5, 15, 35, 75, 76]
    # The same message under the same id, until it was taken; then the next.
    assert len({message_id for message_id, _ in bench.sender.got[:5]}) == 1
    assert bench.sender.titles[5].startswith("Device")
    assert bench.condition == (True, "UpToDate") and bench.changes == 2


def test_a_wish_to_be_called_later_is_honoured_over_a_restart(bench: Bench) -> None:
    bench.sender.says = [TransientError("busy", retry_after_s=120.0)]
    bench.tell(OPENED)
    bench.run(60)
    assert len(bench.sender.got) == 1 and bench.condition == (False, "NotAnswering")
    bench.restart()
    bench.run(59)
    assert len(bench.sender.got) == 1
    bench.run(5)
    assert len(bench.sender.got) == 2


def test_what_is_refused_again_and_again_is_given_up_and_named(bench: Bench) -> None:
    bench.sender.says = [Answer(False, 404, "it answered 404 (no_service)")] * REFUSALS
    bench.tell(OPENED, FLAG)
    bench.run(20)
    assert bench.condition == (False, "Refused")
    bench.run(300)
    assert bench.notifier.counts() == {("ops", "delivered"): 0, ("ops", "failed"): REFUSALS - 1, ("ops", "given-up"): 0}
    # A restart does not begin to count anew.
    bench.restart()
    bench.run(600)
    assert bench.sender.titles == ["Wave all opened for v1.4.2"] * REFUSALS + ["Device SITE-2 is flagged on v1.4.2"]
    (given_up,) = [fields for event, fields in bench.logged if event == "notification given up"]
    assert given_up["title"] == "Wave all opened for v1.4.2" and "no_service" in given_up["error"]
    assert (bench.notifier.counts()["ops", "given-up"], bench.notifier.counts()["ops", "delivered"]) == (1, 1)
    # What is taken at last says that the target is well.
    assert bench.condition == (True, "UpToDate")


def test_the_condition_names_the_target_and_why(bench: Bench) -> None:
    bench.sender.says = [Answer(False, 403, "it answered 403")]
    bench.tell(OPENED)
    bench.run(1)
    assert bench.notifier.finding() == Finding(Type.NOTIFICATIONS_READY, False, "Refused", "ops: it answered 403")
    assert Notifier([], bench.office()).finding() == not_configured()


def test_a_target_that_is_gone_is_asked_once_a_start(bench: Bench) -> None:
    bench.sender.says = [Answer(False, 410, "it answered 410", gone=True)] * 2
    bench.tell(OPENED, FLAG)
    bench.run(100)
    assert len(bench.sender.got) == 1 and bench.condition == (False, "Refused")
    bench.restart()
    bench.run(100)
    assert len(bench.sender.got) == 2
    # Its new address takes what was told meanwhile.
    bench.restart()
    bench.run(60)
    assert bench.sender.titles[2:] == ["Wave all opened for v1.4.2", "Device SITE-2 is flagged on v1.4.2"]


def test_a_key_that_cannot_be_read_loses_nothing(bench: Bench) -> None:
    bench.sender.says = [TerminalError("there is no secret edge/hook")] * 20
    bench.tell(OPENED)
    bench.run(3600)
    assert bench.condition == (False, "CannotSend")
    bench.sender.says = []
    bench.run(1800)
    assert bench.condition == (True, "UpToDate")
    assert not bench.store.notices.waiting("ops", 1)


def test_a_controller_out_of_office_sends_nothing(bench: Bench) -> None:
    bench.tell(OPENED)
    bench.store.begin_epoch()
    with pytest.raises(TerminalError, match="fenced"):
        bench.courier.turn(bench.now)
    assert bench.courier._round() == (10.0, True)
    assert bench.sender.got == []


# ---------------------------------------------------------------- kills


class Mortal:
    """The store's notices, and a sender, that end the process before or after the n-th call."""

    def __init__(self, inner: Any, die_at: int, calls: list[int]) -> None:
        self._inner, self._die_at, self._calls = inner, die_at, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in ("plan", "attempt", "failed", "finish", "send"):
            return found

        def call(*args: Any, **more: Any) -> Any:
            self._count()
            answer = found(*args, **more)
            self._count()
            return answer

        return call

    def _count(self) -> None:
        self._calls[0] += 1
        if self._calls[0] == self._die_at:
            raise Killed


# The inner loop dies at every fourth call alone.
@pytest.mark.slow
@pytest.mark.parametrize("die_at", [pytest.param(n, marks=[pytest.mark.slow] * (n % 4 != 1)) for n in range(1, 20)])
def test_a_kill_anywhere_repeats_at_most_what_was_not_acknowledged_and_loses_nothing(
    tmp_path: Path, die_at: int
) -> None:
    bench, calls = Bench(tmp_path), [0]
    with Receiver([Says(503), Says()]) as receiver:
        sender = WebhookSender("ops", "webhook", lambda: receiver.url, lambda: SECRET, now=T0.timestamp)

        def mortal(at: int) -> Courier:
            target = Target(bench.asked, Mortal(sender, at, calls))
            return Courier(target, bench.office(Mortal(bench.store.notices, at, calls)))

        bench.courier = mortal(die_at)
        bench.tell(OPENED, FLAG)
        with pytest.raises(Killed):
            bench.run(30)
        before = [request.headers["webhook-id"] for request in receiver.received]
        acknowledged = set(before) - {item.message_id for item in bench.store.notices.waiting("ops", 9)}
        bench.courier = mortal(0)
        bench.run(60)
        assert bench.store.notices.waiting("ops", 1) == []
        told = [verify(SECRET, request, T0.timestamp()) for request in receiver.received[1:]]
        ids = [request.headers["webhook-id"] for request in receiver.received]
        assert len(set(ids)) == 2
        assert list(dict.fromkeys(each["type"] for each in told)) == ["wave-opened", "device-flagged"]
        assert not acknowledged & set(ids[len(before) :])
    bench.store.close()


# ---------------------------------------------------------------- the threads


def test_a_target_that_hangs_holds_up_neither_the_loop_nor_another_target(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    release, asked, ended = threading.Event(), threading.Event(), list[bool]()

    class Hanging:
        def send(self, message_id: str, message: Message) -> Answer:
            asked.set()
            ended.append(release.wait(250))
            raise TransientError("too slow")

    well = Target_()
    targets = [Target(Asked("slow", tuple(EventKind)), Hanging()), Target(Asked("well", tuple(EventKind)), well)]
    notifier = Notifier(targets, bench.office())
    notifier.open()
    notifier.start()
    bench.tell(OPENED)
    notifier.ring()
    assert notifier.finding().status is True
    wait_until(lambda: bool(well.got))
    assert asked.wait(60)
    notifier.ring()
    assert notifier.finding().status is True and ended == [], "nobody waits for what hangs"
    assert not notifier.flush(0.1)
    # One that never comes to an end is told of, though it never fails.
    bench.now += timedelta(seconds=61)
    assert notifier.finding() == Finding(
        Type.NOTIFICATIONS_READY,
        False,
        "NotAnswering",
        "slow: it has been answering since 2026-01-15T01:30:00Z, without an end",
    )
    release.set()
    wait_until(lambda: notifier.finding().message == "slow: too slow")
    notifier.stop(60)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("notify-")]
    bench.store.close()


def test_a_single_pass_waits_until_everything_is_sent(bench: Bench) -> None:
    bench.tell(OPENED)
    bench.notifier.start()
    assert bench.notifier.flush(60)
    assert len(bench.sender.got) == 1
    bench.notifier.stop(60)


def test_a_clock_that_is_set_meanwhile_ends_no_single_pass_early(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaping(datetime):
        """An hour further on at each look."""

        looks = 0

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            cls.looks += 1
            return cls.fromtimestamp(1_800_000_000 + 3600 * cls.looks, tz)

    monkeypatch.setattr(module, "datetime", Leaping)
    bench.tell(OPENED)
    bench.notifier.start()
    assert bench.notifier.flush(60)
    assert len(bench.sender.got) == 1
    bench.notifier.stop(60)


def test_a_defect_of_a_sender_ends_no_thread(bench: Bench) -> None:
    bench.sender.says = [RuntimeError("https://hooks.example/hush")]
    bench.tell(OPENED)
    assert bench.courier._round() == (10.0, True)
    assert bench.condition == (False, "CannotSend") and "hush" not in str(bench.logged)
    assert bench.courier._round()[1] is False
    assert bench.condition == (True, "UpToDate")
