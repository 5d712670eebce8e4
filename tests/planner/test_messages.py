"""What a hold's sentence names: a person must be able to act on it, whatever a device said."""

from __future__ import annotations

import json
from typing import Any

from reconciler.planner import Columns, Roster, decide, plan
from reconciler.planner.explain import explain
from reconciler.planner.windows import micros
from reconciler.repo.scenario_read import read_scenario
from reconciler.repo.scenario_run import Scenario
from tests.planner.recorded import World

OLD = "2026-01-01T00:00:00Z"


def scenario(devices: dict[str, Any]) -> Scenario:
    spec = {
        "sites": {"count": 6, "timezone": "UTC"},
        "documents": [
            {
                "kind": "Waves",
                "metadata": {"name": "waves"},
                "spec": {"waves": [{"name": "all", "percent": 100, "image": "v1", "soak": "1h", "maxOffline": 1}]},
            }
        ],
        "now": "2026-01-15T02:30:00Z",
        "observed": {
            "artifacts": {"v1": "published"},
            "defaults": {"image": "v1", "health": "ok", "healthSince": OLD, "imageSince": OLD, "lastSeen": "now"},
            "devices": devices,
        },
        "expect": {"actions": []},
    }
    document = {"kind": "Scenario", "apiVersion": "fleet/v1", "metadata": {"name": "x"}, "spec": spec}
    return read_scenario("x.json", json.dumps(document).encode())[0]


def test_a_hold_for_unknown_images_names_them() -> None:
    given = scenario({"SITE-0001-1": {"image": "night build"}, "SITE-0002-1": {"image": "v9"}})
    (hold,) = plan(given.desired, given.snapshot, given.now).holds
    assert hold.message == "2 devices on 'night build', 'v9', which git does not name; a person must look"


def test_of_many_unknown_images_some_are_named() -> None:
    given = scenario({f"SITE-000{number}-1": {"image": f"v{number}0"} for number in range(1, 7)})
    (hold,) = plan(given.desired, given.snapshot, given.now).holds
    assert "'v10', 'v20', 'v30' and 3 more" in hold.message


def test_what_a_device_says_moves_no_cursor() -> None:
    """A device's report is not trusted: what it says it runs is shown on one line, as text."""
    given = scenario({"SITE-0001-1": {"image": "v2\u001b[2J\nok"}})
    roster = Roster(given.desired)
    state = decide(roster, Columns.bind(roster, given.snapshot), micros(given.now))
    lines = explain(state, "SITE-0001-1").lines()
    assert all(line.isprintable() for line in lines)
    assert any(r"v2\x1b[2J\nok" in line for line in lines)


def test_nothing_is_held_twice_in_the_same_words() -> None:
    """A wave whose tag and whose devices wait for the same reason has one hold."""
    for seed in range(132, 140):
        world = World(seed)
        desired = world.desired()
        holds = plan(desired, world.snapshot(desired), world.now).holds
        assert len(set(holds)) == len(holds)
