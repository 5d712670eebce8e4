"""Deadlines in blocks, and what the loop asks of a live plan."""

from __future__ import annotations

import random
from datetime import timedelta

import numpy as np
import pytest

from reconciler.model.plan import Reason
from reconciler.planner import plan
from reconciler.planner.due import BLOCK, Due
from reconciler.planner.live import Live
from reconciler.planner.windows import NEVER
from tests.planner.recorded import World


def test_rows_that_are_due_are_found_in_every_block() -> None:
    draw = random.Random(1)
    due = Due(3 * BLOCK + 7)
    due.at[:] = NEVER
    due.renew_all()
    assert due.earliest == NEVER and due.passed(10**15).tolist() == []
    for _ in range(200):
        rows = np.array(sorted(draw.sample(range(len(due.at)), draw.randint(0, 5))), np.int64)
        due.at[rows] = [draw.choice((NEVER, draw.randint(0, 1000))) for _ in rows]
        due.renew(rows)
        now = draw.randint(0, 1000)
        assert due.passed(now).tolist() == np.flatnonzero(due.at <= now).tolist()
        assert due.earliest == due.at.min()


def test_no_rows_are_never_due() -> None:
    due = Due(0)
    due.renew_all()
    due.renew(np.zeros(0, np.int64))
    assert due.passed(10).tolist() == [] and due.earliest == NEVER


def test_a_live_plan_tells_the_loop_what_it_asks() -> None:
    seen = {"marked": 0, "window": 0, "flying": 0}
    for seed in range(60):
        world = World(seed)
        desired = world.desired()
        snapshot = world.snapshot(desired)
        devices = {device.name: device for device in snapshot.devices}
        shared = snapshot.model_copy(update={"devices": ()})
        live = Live()
        assert (live.in_flight, live.held, live.wave_of("S0"), live.desired) == (0, 0, None, None)
        assert not list(live.marked()) and not list(live.waiting_for_window())
        made = live.advance(desired, devices.values(), shared, world.now)
        assert live.desired is desired
        marks = ("updating_since", "restarting_since", "configuring_since")
        marked = {name for name, device in devices.items() if any(getattr(device, mark) for mark in marks)}
        assert set(live.marked()) == marked
        waiting = {
            (device, hold.image)
            for hold in made.holds
            if hold.reason in (Reason.OUTSIDE_WINDOW, Reason.NO_WINDOW) and hold.image
            for device in hold.devices
        }
        assert set(live.waiting_for_window()) == waiting
        assert live.in_flight == sum(wave.in_flight for wave in made.waves) + int(live.state.flying_in[-1])
        assert live.state is not None
        tracks = (*live.state.tracks, live.state.config)
        assert live.held == sum(int((track.reason != 0).sum() - track.starts.sum()) for track in tracks) >= 0
        wave_of = {name: live.wave_of(name) for name in desired.sites}
        for action in made.actions:
            if action.kind == "flash":
                assert wave_of[action.fields["site"] or ""] == action.fields["wave"]
        # A step with nothing new asks about nobody again.
        live.advance(desired, (), None, world.now + timedelta(microseconds=0))
        assert not list(live.waiting_for_window()) or live.looked is None
        seen["marked"] += len(marked)
        seen["window"] += len(waiting)
        seen["flying"] += live.in_flight
    assert min(seen.values()) > 5, seen


@pytest.mark.slow
def test_a_restart_that_waits_for_the_window_says_until_when_it_opens() -> None:
    found = 0
    for seed in range(120):
        world = World(seed)
        desired = world.desired()
        made = plan(desired, world.snapshot(desired), world.now)
        for hold in made.holds:
            if hold.app and hold.reason in (Reason.OUTSIDE_WINDOW, Reason.NO_WINDOW):
                found += 1
                assert hold.until is not None and world.now < hold.until < world.now + timedelta(days=3)
    assert found > 3
