"""Both clocks: waiting and waking alike; and the stepped one against a director, alive, dying and absent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reconciler.adapters.clock_stepped import SteppedClock, from_micros, to_micros
from reconciler.adapters.clock_system import SystemClock
from reconciler.demo.director import Time
from reconciler.ports import Clock, TerminalError

T0 = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)


@pytest.fixture
def director(tmp_path: Path) -> Iterator[Time]:
    made = Time(tmp_path / "s", T0)
    yield made
    made.close()


WAITING: list[threading.Thread] = []
"""Threads that a test lets wait."""


@pytest.fixture
def stepped(director: Time, tmp_path: Path) -> Iterator[SteppedClock]:
    clock = SteppedClock(tmp_path / "s")
    assert director.accept(60)
    yield clock
    # Whoever still waits has been woken: he reads the time once more, and must not find it closed.
    clock.wake()
    for thread in WAITING:
        thread.join(60)
    WAITING.clear()
    clock.close()


@pytest.fixture(params=["system", "stepped"])
def clock(request: pytest.FixtureRequest) -> Clock:
    return SystemClock() if request.param == "system" else request.getfixturevalue("stepped")


def test_a_wake_ends_a_wait_and_is_told_once(clock: Clock) -> None:
    threading.Timer(0.05, clock.wake).start()
    assert clock.wait(clock.now() + timedelta(hours=1)) is True
    assert clock.wait(clock.now()) is False


def test_a_wake_before_the_wait_ends_it_at_once(clock: Clock) -> None:
    clock.wake()
    clock.wake()
    assert clock.wait(None) is True
    assert clock.wait(clock.now() - timedelta(seconds=1)) is False


def test_now_is_aware_and_utc(clock: Clock) -> None:
    assert clock.now().utcoffset() == timedelta(0)


def test_the_systems_clock_waits_for_the_instant() -> None:
    clock = SystemClock()
    started, until = time.monotonic(), clock.now() + timedelta(seconds=0.1)
    assert clock.wait(until) is False and clock.now() >= until
    assert time.monotonic() - started < 25, "less than one of its pieces"


def soon(what: Callable[[], object]) -> None:
    """Wait until it is true."""
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def waiting(clock: SteppedClock, until: datetime | None) -> tuple[threading.Thread, list[bool]]:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(clock.wait(until)), daemon=True)
    thread.start()
    WAITING.append(thread)
    return thread, results


def test_time_jumps_when_the_controller_is_idle_and_no_sooner(director: Time, stepped: SteppedClock) -> None:
    assert stepped.now() == T0
    thread, results = waiting(stepped, T0 + timedelta(hours=3))
    answer = director.ask("idle")
    assert answer is not None and from_micros(answer["until"]) == T0 + timedelta(hours=3)
    director.set(T0 + timedelta(hours=2))
    assert director.ask("time") == {} and stepped.now() == T0 + timedelta(hours=2) and not results
    director.set(T0 + timedelta(hours=3))
    director.ask("time")
    thread.join(60)
    assert results == [False]


def test_whoever_was_woken_is_not_idle(director: Time, stepped: SteppedClock) -> None:
    stepped.wake()
    answers: list[object] = []
    asker = threading.Thread(target=lambda: answers.append(director.ask("idle")), daemon=True)
    asker.start()
    asker.join(0.1)
    assert not answers, "a wake is still to be heard"
    assert stepped.wait(None) is True
    waiting(stepped, None)
    asker.join(60)
    assert answers == [{"until": None}]
    stepped.wake()


def test_work_beside_the_loop_holds_time_still(director: Time, stepped: SteppedClock) -> None:
    answers: list[object] = []
    with stepped.working():
        waiting(stepped, None)
        asker = threading.Thread(target=lambda: answers.append(director.ask("idle")), daemon=True)
        asker.start()
        asker.join(0.1)
        assert not answers
    asker.join(60)
    assert answers == [{"until": None}]
    stepped.wake()


def test_a_controller_that_died_is_noticed_and_another_one_taken(
    director: Time, stepped: SteppedClock, tmp_path: Path
) -> None:
    stepped.close()
    assert director.ask("idle") is None
    again = SteppedClock(tmp_path / "s")
    assert director.accept(60)
    waiter, _ = waiting(again, None)
    assert director.ask("idle") == {"until": None}
    again.wake()
    waiter.join(60)
    again.close()


def test_a_controller_that_ends_while_it_is_asked_leaves_the_director_without_an_answer(
    director: Time, stepped: SteppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was at work, and will not be idle any more: nobody waits for that."""
    asked, plain, answers = threading.Event(), stepped._idle, list[object]()

    def idle() -> dict[str, object]:
        asked.set()
        return plain()

    monkeypatch.setattr(stepped, "_idle", idle)
    with stepped.working():
        asker = threading.Thread(target=lambda: answers.append(director.ask("idle")), daemon=True)
        asker.start()
        assert asked.wait(60)
        stepped.close()
        assert not stepped._server.is_alive()
        asker.join(60)
    assert answers == [None]


def test_without_a_director_time_has_ended(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="no director"):
        SteppedClock(tmp_path / "nobody")
    director = Time(tmp_path / "s", T0)
    clock = SteppedClock(tmp_path / "s")
    director.accept(60)
    director.close()
    with pytest.raises(TerminalError, match="director has gone"):
        clock.wait(None)
    clock.close()


def test_instants_survive_the_file_to_the_microsecond() -> None:
    at = T0 + timedelta(microseconds=123457)
    assert from_micros(to_micros(at)) == at


def test_with_steps_a_wait_ends_on_a_multiple_alone(director: Time, tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path / "s", every_s=10)
    assert director.accept(60)
    director.set(T0 + timedelta(seconds=3))
    clock.wake()
    thread, results = waiting(clock, T0 + timedelta(seconds=14))
    assert director.ask("idle") == {"until": to_micros(T0 + timedelta(seconds=10))}
    director.set(T0 + timedelta(seconds=10))
    director.ask("time")
    thread.join(60)
    assert results == [True], "what woke it at :03 is heard at :10"
    thread, results = waiting(clock, T0 + timedelta(seconds=14))
    assert director.ask("idle") == {"until": to_micros(T0 + timedelta(seconds=20))}
    director.set(T0 + timedelta(seconds=20))
    director.ask("time")
    thread.join(60)
    assert results == [False]
    clock.close()


def test_work_that_takes_time_lets_it_pass_and_holds_it_again(director: Time, stepped: SteppedClock) -> None:
    order: list[datetime] = []
    ended = threading.Event()

    def work() -> None:
        stepped.spend(1800)
        order.append(stepped.now())
        ended.wait(60)

    # One that works and one that waits behind it: neither keeps time from passing.
    with stepped.working(), stepped.working():
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        waiter, _ = waiting(stepped, T0 + timedelta(hours=3))
        soon(lambda: stepped._sleeping)
        assert director.ask("idle") == {"until": to_micros(T0 + timedelta(minutes=30))}
        director.set(T0 + timedelta(minutes=30))
        director.ask("time")
        soon(lambda: order)
        answers: list[object] = []
        asker = threading.Thread(target=lambda: answers.append(director.ask("idle")), daemon=True)
        asker.start()
        asker.join(0.2)
        assert not answers and order == [T0 + timedelta(minutes=30)], "its work holds time still"
        ended.set()
        thread.join(60)
        stepped.wake()
        waiter.join(60)
        waiting(stepped, None)
    asker.join(60)
    assert answers == [{"until": None}]
    stepped.wake()
