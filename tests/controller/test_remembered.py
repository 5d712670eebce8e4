"""The board of a controller that has not planned since it started: what the plan on record says, and nothing that it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from reconciler.controller.boards import Boards
from reconciler.controller.remembered import remembered
from reconciler.planner import plan as plan_of
from reconciler.planner.live import Live
from tests.controller.staging import SHARED, Stage, observed

HOUR = timedelta(hours=1)


def document(stage: Stage) -> str:
    devices = stage.everybody(S0_1="v1.4.2")
    devices[0] = observed(
        "S0-1",
        "v1.4.2",
        health="critical",
        health_since=stage.now - HOUR,
        checks_worse=["camera"],
        previous_image="v1.4.1",
    )
    seen = SHARED.model_copy(update={"devices": tuple(devices), "at": stage.now})
    return plan_of(stage.desired, seen, stage.now).to_json()


def test_waves_holds_and_flags_come_back_as_the_plan_had_them() -> None:
    stage = Stage()
    text = document(stage)
    board = remembered(text, stage.now + HOUR)
    assert board is not None
    plan = json.loads(text)
    assert [wave.to_dict() for wave in board.waves] == plan["waves"]
    assert [one.hold.to_dict() for one in board.holds] == plan["holds"] and plan["holds"]
    assert [fact.to_dict() for fact in board.flagged] == plan["flagged"] and plan["flagged"]
    assert (board.as_of, board.at, board.commit, board.rows) == (stage.now, stage.now + HOUR, "c1", None)
    plan["holds"][0]["devices"] = ["S0-1", "S0-2"]
    board = remembered(json.dumps(plan), stage.now)
    assert board is not None and board.holds[0].count == 2
    assert board.of_hold(board.holds[0], 1) == ("S0-1",)


NO_INSTANT = '{"commit": "c", "at": "x", "waves": [], "holds": [], "flagged": []}'


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"at": 3}', NO_INSTANT])
def test_what_is_no_plan_is_nothing(text: str | None) -> None:
    assert remembered(text, Stage().now) is None


def test_a_controller_that_cannot_plan_yet_shows_it_until_it_has_planned() -> None:
    stage = Stage()
    stage.store.save_plan(stage.store.begin_epoch(), document(stage))
    boards = Boards(stage.store)
    first = boards.publish(None, None, Live(), (), None, stage.now + HOUR)
    assert first.as_of == stage.now and first.waves and boards.generation == 1
    later = boards.publish(None, None, Live(), (), None, stage.now + 2 * HOUR)
    assert (later.as_of, later.at, boards.generation) == (stage.now, stage.now + 2 * HOUR, 1)
    stage.boards = boards
    planned = stage.tick(*stage.everybody())
    assert planned.as_of is None and planned.rows is not None and boards.generation == 2
    assert replace(planned, as_of=None) == planned
