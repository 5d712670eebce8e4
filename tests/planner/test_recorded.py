"""Plans on record: 220 made-up fleets whose plans stay as they are until somebody changes a rule on purpose."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reconciler.planner import plan, ration
from tests.planner.recorded import CASES, RECORD, World, brief, line

ON_RECORD = RECORD.read_text().splitlines()


@pytest.mark.parametrize("block", range(0, CASES, 10))
def test_the_plan_is_as_recorded(block: int) -> None:
    for seed in range(block, block + 10):
        world = World(seed)
        desired = world.desired()
        made = brief(plan(desired, world.snapshot(desired), world.now).to_dict())
        if line(made) != ON_RECORD[seed]:
            pytest.fail(f"seed {seed}: {_difference(json.loads(ON_RECORD[seed]), json.loads(line(made)))}")


def test_what_a_budget_cuts_does_not_depend_on_the_pieces_it_is_looked_for_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ration, "_PIECE", 3)
    for seed in range(0, CASES, 2):
        world = World(seed)
        desired = world.desired()
        assert line(brief(plan(desired, world.snapshot(desired), world.now).to_dict())) == ON_RECORD[seed], (
            f"seed {seed}"
        )


def test_the_record_is_whole_and_shows_every_kind_of_decision() -> None:
    assert len(ON_RECORD) == CASES
    plans = [json.loads(text) for text in ON_RECORD]
    reasons = {hold["reason"] for made in plans for hold in made["holds"]}
    kinds = {action["kind"] for made in plans for action in made["actions"]}
    whys = {action["why"] for made in plans for action in made["actions"] if action["kind"] == "flash"}
    states = {wave["state"] for made in plans for wave in made["waves"]}
    assert len(reasons) >= 19 and len(kinds) == 8 and len(whys) == 5 and len(states) == 9, (
        reasons,
        kinds,
        whys,
        states,
    )


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    keys = [key for key in new if old.get(key) != new[key]]
    return "; ".join(f"{key} was {old.get(key)} and is {new[key]}" for key in keys)[:4000]
