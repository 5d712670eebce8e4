"""When a forecast is made anew, who waits for it, and what is said where there is none."""

from __future__ import annotations

import threading
from dataclasses import replace

from reconciler.controller.board import Board
from reconciler.ports import TransientError
from reconciler.server.foreseen import WAITING, Course, Forecasts, Foreseen
from tests.controller.staging import Stage
from tests.support.processes import wait_until

COURSE = Course(Stage().now, False, ())


class Maker:
    """Makes forecasts that are empty, and counts them."""

    def __init__(self) -> None:
        self.made: list[Board] = []
        self.may_end = threading.Event()
        self.may_end.set()
        self.error: Exception | None = None
        self.at = 1000.0

    def __call__(self, board: Board) -> Foreseen:
        self.may_end.wait(250)
        self.made.append(board)
        if self.error is not None:
            raise self.error
        return Foreseen(board.at, board.commit, 0, 0, COURSE, COURSE)


def board() -> Board:
    stage = Stage()
    return stage.tick(*stage.everybody())


def forecasts(maker: Maker) -> Forecasts:
    return Forecasts(maker, fresh_s=(100, 100), clock=lambda: maker.at)


def test_one_is_made_and_kept_for_a_while() -> None:
    maker, now = Maker(), board()
    kept = forecasts(maker)
    assert kept.outlook(now, 60).foreseen is not None
    moved = replace(now, generation=now.generation + 1)
    for later, made in ((50.0, 1), (101.0, 2)):
        maker.at = 1000.0 + later
        assert kept.outlook(moved, 0).foreseen is not None
        kept.outlook(moved, 60)
        settle(kept, moved)
        assert len(maker.made) == made
    # A board that says the same is looked ahead from again too, only less often: time has passed.
    maker.at += 500
    settle(kept, moved)
    assert len(maker.made) == 2
    maker.at += 501
    settle(kept, moved)
    assert len(maker.made) == 3


def settle(kept: Forecasts, now: Board) -> None:
    """Let what was begun end."""
    kept.outlook(now)
    for thread in threading.enumerate():
        if thread.name == "forecast":
            thread.join(60)


def test_another_commit_is_not_told_by_the_forecast_of_the_one_before() -> None:
    maker, now = Maker(), board()
    kept = forecasts(maker)
    kept.outlook(now, 60)
    maker.may_end.clear()
    other = replace(now, commit="c2")
    said = kept.outlook(other)
    assert (said.foreseen, said.making, said.trouble) == (None, True, None)
    maker.may_end.set()
    again = kept.outlook(other, 60)
    assert again.foreseen is not None and again.foreseen.commit == "c2"


def test_nobody_waits_longer_than_asked_and_one_is_made_at_a_time() -> None:
    maker, now = Maker(), board()
    kept = forecasts(maker)
    maker.may_end.clear()
    assert [kept.outlook(now, 0.01).making for _ in range(3)] == [True, True, True]
    maker.may_end.set()
    assert kept.outlook(now, 60).foreseen is not None and len(maker.made) == 1


def test_where_several_wait_the_others_go_on() -> None:
    """Whoever waits keeps a thread that devices' reports need."""
    maker, now = Maker(), board()
    kept = forecasts(maker)
    maker.may_end.clear()
    waiting = [threading.Thread(target=kept.outlook, args=(now, 250)) for _ in range(WAITING)]
    for thread in waiting:
        thread.start()
    beyond = threading.Thread(target=kept.outlook, args=(now, 250))
    wait_until(lambda: kept._waiting == WAITING)
    beyond.start()
    beyond.join(60)
    assert kept.outlook(now).making, "it did not wait for what the others wait for"
    maker.may_end.set()
    for thread in waiting:
        thread.join(60)
    assert kept.outlook(now, 60).foreseen is not None and kept._waiting == 0


def test_why_there_is_none_is_said_and_it_is_tried_again() -> None:
    maker, now = Maker(), board()
    kept = forecasts(maker)
    maker.error = TransientError("the store does not answer")
    assert kept.outlook(now, 60).trouble == "the store does not answer"
    maker.error = RuntimeError("secret")
    maker.at += 2000
    assert kept.outlook(now, 60).trouble == "it failed (RuntimeError)"
    maker.error = None
    assert kept.outlook(now, 60).trouble is not None, "not at once"
    maker.at += 2000
    assert kept.outlook(now, 60).foreseen is not None
    # A later failure takes nothing away: what is known stays, and its own instant says how old it is.
    maker.error, maker.at = RuntimeError("x"), maker.at + 2000
    settle(kept, now)
    assert kept.outlook(now).foreseen is not None


def test_without_a_maker_or_a_plan_there_is_none() -> None:
    assert Forecasts(None).outlook(board(), 5).foreseen is None
    maker = Maker()
    assert forecasts(maker).outlook(replace(board(), rows=None), 5).making is False and maker.made == []


def test_one_that_took_long_is_kept_longer() -> None:
    for took, fresh in ((0.1, 10), (3.0, 60), (60.0, 180)):
        maker, now = Maker(), board()

        def slowly(of: Board, maker: Maker = maker, took: float = took) -> Foreseen:
            maker.at += took
            return maker(of)

        kept = Forecasts(slowly, clock=lambda maker=maker: maker.at)  # type: ignore[misc]
        kept.outlook(now, 60)
        moved = replace(now, generation=now.generation + 1)
        for wait, made in ((fresh - 1, 1), (2, 2)):
            maker.at += wait
            settle(kept, moved)
            assert len(maker.made) == made


def test_whoever_asked_is_told_when_an_attempt_has_ended() -> None:
    maker, now = Maker(), board()
    kept = forecasts(maker)
    told: list[int] = []
    end = kept.subscribe(lambda: told.append(kept.number))
    assert kept.number == 0
    settle(kept, now)
    maker.error, maker.at = RuntimeError("x"), maker.at + 2000
    settle(kept, now)
    assert told == [1, 2], "one that failed is told too: the page says so"
    end()
    maker.at += 2000
    settle(kept, now)
    assert told == [1, 2] and kept.number == 3
