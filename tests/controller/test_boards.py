"""The board: what a tick left, as rows and counts; a value that stays as it is while the loop goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from reconciler.controller.board import Asked, DeviceState
from reconciler.controller.board_rows import Rows
from reconciler.controller.boards import Boards
from reconciler.controller.gather import World
from reconciler.model.observed import Health
from reconciler.model.plan import Reason
from reconciler.planner import plan as full_plan
from reconciler.planner.explain import UnknownName
from reconciler.ports import ConditionRow, TransientError
from reconciler.simulate.memory_store import MemoryStore
from tests.controller.harness import T0, Bench, waves
from tests.controller.staging import SHARED, Stage, desired, observed

NIGHT = T0.replace(hour=1, minute=0)


def test_before_the_first_tick_there_is_no_board() -> None:
    boards = Boards(MemoryStore())
    assert boards.latest() is None and boards.generation == 0
    with pytest.raises(TransientError, match="nothing was planned yet"):
        boards.explain("S0-1")


def test_without_a_plan_the_conditions_are_on_the_board_and_the_last_rows_stay() -> None:
    stage = Stage()
    row = ConditionRow("GitReady", "False", "Unreachable", "no route", T0)
    empty = stage.boards.publish(None, None, stage.live, (row,), ("f" * 40, "bad"), T0)
    assert (empty.commit, empty.rows, empty.conditions, empty.devices()) == (None, None, (row,), [])
    assert empty.refused == ("f" * 40, "bad") and empty.counts[DeviceState.GOOD] == 0 and empty.sites() == []
    stage.tick(*stage.everybody())
    later = stage.boards.publish(None, None, stage.live, (row,), None, T0 + timedelta(minutes=1))
    assert later.commit == "c1" and later.devices_in_all == 8 and later.at == T0 + timedelta(minutes=1)


def test_a_device_has_the_worst_state_that_holds() -> None:
    stage = Stage()
    sick = T0 - timedelta(hours=1)
    devices = {device.name: device for device in stage.everybody(S0_1="v1.4.2", S0_2="v1.4.2")}
    devices["S0-2"] = observed("S0-2", "v1.4.2", health="critical", health_since=sick, health_before_update="ok")
    devices["S1-1"] = observed("S1-1", updating_to="v1.4.2", updating_since=T0)
    devices["S2-1"] = observed("S2-1", health="critical", health_since=T0)
    devices["S2-2"] = observed("S2-2", last_seen=T0 - timedelta(days=1), health="ok")
    devices["S3-1"] = observed("S3-1", health="warning")
    del devices["S3-2"]
    board = stage.tick(*devices.values())
    assert {row.name: row.state.value for row in board.devices()} == {
        "S0-1": "good",
        "S0-2": "failed",
        "S1-1": "updating",
        "S1-2": "held",
        "S2-1": "critical",
        "S2-2": "silent",
        "S3-1": "warning",
        "S3-2": "never-seen",
    }
    assert {row.name: row.state.value for row in board.sites()} == {
        "S0": "failed",
        "S1": "updating",
        "S2": "critical",
        "S3": "never-seen",
    }
    site = board.site("S2")
    assert site is not None and (site.devices, site.wave) == (2, "all")
    assert site.counts == {DeviceState.CRITICAL: 1, DeviceState.SILENT: 1}
    assert board.counts[DeviceState.FAILED] == 1 and [fact.device for fact in board.flagged] == ["S0-2"]
    held = board.device("S1-2")
    assert held is not None and held.target == "v1.4.2" and held.holds["image"] is Reason.GATE_FAILED
    assert held.apps["video"].running == "1.0.0" and board.device("S9") is None and board.site("S9") is None


@pytest.mark.parametrize(
    "asked, names",
    [
        (Asked(), "S0-1 S0-2 S1-1 S1-2 S2-1 S2-2 S3-1 S3-2"),
        (Asked(wave="canary"), "S1-1 S1-2"),
        (Asked(wave="none such"), ""),
        (Asked(site="S3"), "S3-1 S3-2"),
        (Asked(site="none such"), ""),
        (Asked(health=Health.WARNING), "S3-1"),
        (Asked(state=DeviceState.WARNING, wave="all"), "S3-1"),
        (Asked(release="v1.4.2"), "S0-1 S1-1"),
        (Asked(release="v9.9.9"), ""),
        (Asked(release="video@1.0.0", site="S0"), "S0-1 S0-2"),
        (Asked(release="video@1.1.0"), ""),
        (Asked(release="other@1.1.0"), ""),
        (Asked(flagged=True), ""),
        (Asked(flagged=False, q="s2"), "S2-1 S2-2"),
        (Asked(q="-2"), "S0-2 S1-2 S2-2 S3-2"),
    ],
)
def test_devices_are_found_by_what_is_asked(asked: Asked, names: str) -> None:
    stage = Stage()
    devices = {device.name: device for device in stage.everybody(S0_1="v1.4.2")}
    devices["S1-1"] = observed("S1-1", updating_to="v1.4.2", updating_since=T0)
    devices["S3-1"] = observed("S3-1", health="warning")
    board = stage.tick(*devices.values())
    assert " ".join(row.name for row in board.devices(asked)) == names
    assert board.count(asked) == len(names.split())
    pages, after = [], None
    while page := board.devices(asked, after=after, limit=3):
        pages += [row.name for row in page]
        after = page[-1].name
    assert " ".join(pages) == names


def test_sites_are_found_and_paged() -> None:
    stage = Stage(desired(12))
    board = stage.tick(*stage.everybody())
    assert [row.name for row in board.sites(wave="all", limit=3)] == ["S10", "S11", "S2"]
    assert [row.name for row in board.sites(wave="all", after="S2", limit=2)] == ["S3", "S4"]
    assert [row.name for row in board.sites(q="s1")] == ["S1", "S10", "S11"]
    assert [row.name for row in board.sites(state=DeviceState.FAILED)] == []
    assert board.running("v1.4.1") == 24 and board.images() == {"v1.4.1": 24}


def test_holds_name_their_devices() -> None:
    stage = Stage()
    board = stage.tick(*stage.everybody())
    made = full_plan(stage.desired, SHARED.model_copy(update={"devices": tuple(stage.everybody())}), T0)
    for hold in made.holds:
        (group,) = (one for one in board.holds if one.hold.sort_key[:6] == hold.sort_key[:6])
        assert group.hold.message == hold.message
        if hold.devices:
            assert (tuple(board.of_hold(group)), group.count) == (hold.devices, len(hold.devices))


def test_the_counts_of_holds_follow_what_changes() -> None:
    """Counts are kept from board to board; a board made anew must say the same."""
    stage, rng = Stage(desired(8)), np.random.default_rng(7)
    stage.tick(*stage.everybody())
    names = [name for spec in stage.desired.sites.values() for name in spec.devices]
    for _ in range(25):
        stage.now += timedelta(minutes=7)
        some = []
        for name in rng.choice(names, 3, replace=False).tolist():
            health, image = rng.choice(["ok", "critical"]), rng.choice(["v1.4.1", "v1.4.2"])
            some.append(
                observed(name, image, health=health, health_since=stage.now, last_seen=stage.now, image_since=stage.now)
            )
        board = stage.tick(*some)
        fresh = Boards(stage.store)
        with fresh.planning(stage.live):
            pass
        world = World(stage.now, stage.desired, SHARED, (), False, stage.store)
        from reconciler.planner.live import as_plan

        assert stage.live.state is not None
        anew = fresh.publish(world, as_plan(stage.live.state), stage.live, (), None, stage.now)
        assert anew.holds == board.holds
        assert board.rows is not None and anew.rows is not None
        for one in fields(Rows):
            if one.name not in ("index", "roster", "releases", "digests", "tracks", "config", "app_digest", "seen"):
                assert np.array_equal(getattr(board.rows, one.name), getattr(anew.rows, one.name)), one.name


def test_the_generation_rises_with_what_a_person_can_see() -> None:
    stage = Stage()
    first = stage.tick(*stage.everybody())
    assert stage.boards.wait(0, 0) and not stage.boards.wait(first.generation, 0)
    stage.now += timedelta(seconds=30)
    again = stage.tick(*(device.model_copy(update={"last_seen": stage.now}) for device in stage.everybody()))
    assert again.generation == first.generation, "a report that says the same"
    assert again.device("S1-1").last_seen == stage.now and first.device("S1-1").last_seen == T0  # type: ignore[union-attr]
    called: list[int] = []
    end = stage.boards.subscribe(lambda: called.append(stage.boards.generation))
    ill = stage.tick(observed("S3-1", health="warning", last_seen=stage.now))
    assert ill.generation == first.generation + 1 and called == [ill.generation]
    assert ill.rows is not None and first.rows is not None and ill.rows.image is first.rows.image
    end()
    stage.conditions = (ConditionRow("GitReady", "False", "Unreachable", "no route", T0),)
    assert stage.tick().generation == ill.generation + 1 and len(called) == 1


def test_nobody_can_write_to_a_board() -> None:
    board = Stage().tick()
    assert board.rows is not None
    with pytest.raises(ValueError, match="read-only"):
        board.rows.health[0] = 1


def test_another_commit_is_another_roster() -> None:
    stage = Stage()
    before = stage.tick(*stage.everybody())
    stage.desired = desired(5)
    after = stage.tick()
    assert (before.devices_in_all, after.devices_in_all) == (8, 10)
    assert after.generation == before.generation + 1
    assert before.device("S4-1") is None and after.device("S4-1").state is DeviceState.NEVER  # type: ignore[union-attr]


def test_an_explanation_says_what_checks_say() -> None:
    stage = Stage()
    ill = observed(
        "S0-1",
        "v1.4.2",
        health="critical",
        health_since=T0 - timedelta(hours=1),
        checks_worse=["camera"],
        checks=[{"name": "camera", "before": "ok", "now": "critical", "message": "no frames", "since": T0}],
    )
    stage.store.observe([ill], sequences={})
    stage.tick(*stage.everybody()[1:], ill)
    assert "no frames" in "\n".join(stage.boards.explain("S0-1").lines())
    assert "no frames" in "\n".join(stage.boards.explain("canary", "wave").lines())
    with pytest.raises(UnknownName):
        stage.boards.explain("S0-9")


@pytest.mark.slow
def test_boards_are_whole_while_the_loop_ticks() -> None:
    """Readers look on while ticks run. Every board agrees with itself: all devices of a reading turned together."""
    stage = Stage(desired(40))
    stage.tick(*stage.everybody())
    stop, faults, looks = threading.Event(), [], [0]
    interval = sys.getswitchinterval()

    def look() -> None:
        try:
            while not stop.is_set():
                board = stage.boards.latest()
                assert board is not None
                healths = {row.health for row in board.devices(limit=1000)}
                assert len(healths) == 1, healths
                assert sum(board.counts.values()) == board.devices_in_all == 80
                assert sum(site.devices for site in board.sites()) == 80
                assert stage.boards.explain("S1-1").to_dict({})["commit"] == "c1"
                looks[0] += 1
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        turn = 0
        while (looks[0] < 30 or turn < 20) and not faults:
            turn += 1
            stage.now += timedelta(seconds=1)
            health = "warning" if turn % 2 else "ok"
            stage.tick(*(device.model_copy(update={"health": Health(health)}) for device in stage.everybody()))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not faults, faults[0]


# ---------------------------------------------------------------- with the loop


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


@pytest.mark.slow
def test_the_loop_puts_up_what_it_did_and_tells_it(bench: Bench) -> None:
    bench.run_fleet()
    bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    bench.everybody()
    bench.poll()
    assert bench.parts.boards is not None
    board = bench.parts.boards.latest()
    assert board is not None and board.commit == bench.repo.head()
    lab = board.device("LAB-1-1")
    assert lab is not None and (lab.state, lab.updating_to, lab.wave) == (DeviceState.UPDATING, "v1.4.2", "lab")
    told = [(event.kind.value, event.wave, event.release) for event in bench.store.events(limit=1000)]
    assert ("wave-opened", "lab", "v1.4.2") in told
    assert [event.commit for event in bench.store.events() if event.kind == "commit-accepted"][-1] == board.commit
    bench.repo.commit("Break it", {"waves.yaml": waves(lab={"image": "v9.9.9"})})
    bench.poll()
    (refused,) = [event for event in bench.store.events(limit=1000) if event.kind == "commit-refused"]
    assert refused.commit == bench.repo.head() and "v9.9.9" in refused.message
    after = bench.parts.boards.latest()
    assert after is not None and after.refused is not None and after.refused[0] == bench.repo.head()
