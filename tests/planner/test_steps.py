"""Steps through made-up days: reports, the stores, midnight and windows; each step equals the plan made from everything."""

from __future__ import annotations

from datetime import timedelta

import pytest

from reconciler.model.observed import DeviceObservation
from reconciler.planner import Columns, Roster, decide, plan, ration, render
from reconciler.planner.windows import micros
from tests.planner.recorded import World

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

LATER = (0, 0, 1, 3, 10, 16, 45, 121, 360, 1441)


WORLDS = range(0, 120, 10)


# The other half of the worlds is made up with the full tests.
@pytest.mark.parametrize(
    "block",
    [pytest.param(n, marks=[pytest.mark.vm, pytest.mark.full] if n % 20 else [], id=str(n)) for n in WORLDS],
)
def test_every_step_equals_the_plan(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pieces of three rows, so that what a budget cuts lies in several.
    monkeypatch.setattr(ration, "_PIECE", 3)
    looked_at_less = 0
    for seed in range(block, block + 10):
        world = World(seed)
        desired = world.desired()
        snapshot = world.snapshot(desired)
        devices = {device.name: device for device in snapshot.devices}
        snapshot = snapshot.model_copy(update={"devices": tuple(devices.values())})
        roster = Roster(desired)
        state = decide(roster, Columns.bind(roster, snapshot), micros(world.now))
        for _ in range(9):
            world.now += timedelta(minutes=world.random.choice(LATER))
            heard = []
            for name in world.random.sample(sorted(devices), k=min(len(devices), world.random.randint(0, 3))):
                found = DeviceObservation.model_validate(world.device(name, devices[name].site or ""))
                devices[name] = found
                heard.append(found)
            moved = world.maybe(0.25, world.snapshot(desired))
            shared = (moved or snapshot).model_copy(update={"devices": tuple(devices.values())})
            snapshot = shared
            looked = state.step(micros(world.now), heard, shared if moved else None)
            looked_at_less += looked is not None and len(looked) < roster.size
            assert render(state).to_json() == plan(desired, snapshot, world.now).to_json(), f"seed {seed}"
    assert looked_at_less > 20
