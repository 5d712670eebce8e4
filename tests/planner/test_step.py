"""`step` equals `plan`: what is planned from the changes alone is, byte for byte, what is planned from everything."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.model.observed import DeviceObservation
from reconciler.planner import Columns, Roster, decide, plan, render
from reconciler.planner.windows import micros
from tests.planner.fleets import DEVICE, MINUTE, SOME_TAGS, STATES, Case, cases, observation, records
from tests.planner.test_properties import applied

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "60"))

TICK = st.fixed_dictionaries(
    {
        "later": st.sampled_from([timedelta(seconds=1), MINUTE, 7 * MINUTE, 15 * MINUTE, 60 * MINUTE, 720 * MINUTE]),
        "reports": st.lists(st.tuples(st.integers(0, 13), DEVICE), max_size=4),
        "alive": st.booleans(),
        "how": st.sampled_from(["quiet", "quiet", "apply", "stores"]),
    }
)


def changed(case: Case, tick: dict[str, Any], draw: Any) -> tuple[Case, list[DeviceObservation], bool]:
    """The case after a tick: what is observed now, the devices of which something was heard, and whether stores moved."""
    how, before = tick["how"], {device.name: device for device in case.snapshot.devices}
    if how == "apply":
        case = applied(case, plan(case.desired, case.snapshot, case.now))
    now = case.now + tick["later"]
    devices = {device.name: device for device in case.snapshot.devices}
    if tick["alive"]:
        for name, device in devices.items():
            if device.last_seen == case.now:
                devices[name] = device.model_copy(update={"last_seen": now})
    names = [(device, site) for site, spec in sorted(case.desired.sites.items()) for device in spec.devices]
    for number, drawn in tick["reports"]:
        device, site = names[number % len(names)]
        devices[device] = DeviceObservation.model_validate(observation(drawn, device, site, now))
    update: dict[str, Any] = {"devices": tuple(devices[name] for name in sorted(devices))}
    if how == "stores":
        fresh = draw(records(case.desired.waves, dict(case.desired.sites), now))
        fresh["artifacts"] = {f"v{n}": {"state": state} for n, state in enumerate(draw(STATES), 1)}
        tags = [case.desired.tag_of(number) for number in range(len(case.desired.waves.waves))]
        drawn_tags = draw(SOME_TAGS)
        if drawn_tags is not None:
            fresh["tags"] = {"video-ingest": dict(zip(tags, drawn_tags, strict=False))}
        parsed = type(case.snapshot).model_validate(fresh)
        update |= {name: getattr(parsed, name) for name in parsed.model_fields_set}
    snapshot = case.snapshot.model_copy(update=update)
    heard = [device for name, device in devices.items() if before.get(name) != device]
    return Case(case.desired, snapshot, now), heard, how != "quiet"


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(cases(), st.lists(TICK, min_size=1, max_size=4), st.data())
def test_a_step_equals_the_plan(case: Case, ticks: list[dict[str, Any]], data: st.DataObject) -> None:
    roster = Roster(case.desired)
    state = decide(roster, Columns.bind(roster, case.snapshot), micros(case.now))
    assert render(state).to_json() == plan(case.desired, case.snapshot, case.now).to_json()
    for tick in ticks:
        case, heard, moved = changed(case, tick, data.draw)
        state.step(micros(case.now), heard, case.snapshot if moved else None)
        assert render(state).to_json() == plan(case.desired, case.snapshot, case.now).to_json()
