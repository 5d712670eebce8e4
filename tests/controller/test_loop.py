"""The loop on real git, SQLite and folders: what a tick does, what it refuses, and what a kill leaves."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from reconciler.model.observed import ArtifactState
from reconciler.ports import TerminalError, TransientError
from tests.controller.harness import SITES, T0, Bench, digest_of, waves

# Real git and SQLite at every tick: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.loop.check()
    made.store.close()


def test_a_commit_comes_into_force_and_its_release_is_built_signed_and_published(bench: Bench) -> None:
    bench.settle()
    assert bench.store.last_good_commit() == bench.repo.head()
    assert bench.images.artifacts()["v1.4.1"].state is ArtifactState.PUBLISHED
    assert "v1.4.2" not in bench.images.artifacts(), "only what a wave asks for is built"
    kinds = [row["kind"] for row in bench.journal()]
    assert sorted(str(kind) for kind in kinds) == ["build", "publish", "retag", "sign"]
    assert [kind for kind in kinds if kind != "retag"] == ["build", "sign", "publish"]
    assert all(row["outcome"] == "done" for row in bench.journal())
    assert bench.condition("FleetValid") == ("True", "InForce")
    assert bench.condition("StoresReady") == ("True", "AllAnswer")


def test_tags_are_moved_by_digest_and_remembered_as_set(bench: Bench) -> None:
    bench.settle()
    assert bench.registry.tags("video-ingest") == {"lab": bench.app["2.7.0"]}, "the later waves wait for the lab"
    assert bench.store.snapshot().tags_set == {"video-ingest": {"lab": bench.app["2.7.0"]}}


def test_a_promotion_flashes_the_lab_and_marks_it_with_the_intent(bench: Bench) -> None:
    bench.run_fleet()
    bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    bench.everybody()
    bench.poll()
    told = bench.told("LAB-1-1")
    assert told is not None and told.image is not None and told.image.release == "v1.4.2"
    assert told.image.digest == digest_of("v1.4.2") and told.image.folder == "edge-golden-v1.4.2-20260115"
    assert not told.window_waived and told.window[0][0] <= bench.clock.now() < told.window[0][1]
    assert bench.bells.rung == ["LAB-1-1"]
    found = bench.store.observation("LAB-1-1")
    assert found is not None and found[0].updating_to == "v1.4.2"
    assert len(bench.journal("flash")) == 1
    bench.poll()
    assert len(bench.journal("flash")) == 1, "in flight, so not again"


def test_a_second_tick_with_nothing_new_writes_nothing(bench: Bench) -> None:
    bench.run_fleet()
    before = bench.journal()
    for _ in range(3):
        assert bench.loop.tick() is False
    assert bench.journal() == before


def test_an_invalid_head_leaves_the_last_good_commit_in_force(bench: Bench) -> None:
    bench.settle()
    good = bench.repo.head()
    bench.repo.commit("Break it", {"waves.yaml": waves(lab={"image": "v9.9.9"})})
    bench.poll()
    assert bench.store.last_good_commit() == good
    assert bench.condition("FleetValid") == ("False", "Invalid")
    row = next(row for row in bench.parts.conditions.rows() if row.type == "FleetValid")
    assert "waves.yaml:" in row.message and "stays in force" in row.message
    bench.repo.commit("Mend it", {"waves.yaml": waves()})
    bench.poll()
    assert bench.condition("FleetValid") == ("True", "InForce")
    assert bench.store.last_good_commit() == bench.repo.head()


def test_a_rewritten_branch_is_never_acted_on(bench: Bench) -> None:
    bench.settle()
    second = bench.repo.commit("Second", {"NOTES": "x"})
    bench.poll()
    assert bench.store.last_good_commit() == second
    bench.repo.git("reset", "-q", "--hard", "HEAD~1")
    bench.repo.commit("Another second", {"NOTES": "y"})
    bench.poll()
    assert bench.store.last_good_commit() == second
    assert bench.condition("FleetValid") == ("False", "Rewritten")


@pytest.mark.parametrize(
    "change, word",
    [
        ('"images": "s3://elsewhere/"', "s3://elsewhere/"),
        ('"registry": "evil.example"', "evil.example"),
        ('"releaseKeys": ["' + "C" * 40 + '"]', "C" * 40),
    ],
)
def test_a_fleet_may_narrow_the_settings_and_never_widen_them(bench: Bench, change: str, word: str) -> None:
    bench.settle()
    good = bench.store.last_good_commit()
    key = change.partition(":")[0]
    old = {'"images"': '"images": "file:///images/"', '"registry"': '"registry": "registry.example"'}.get(key)
    text = str(bench.files()["fleet.yaml"])
    text = text.replace(old, change) if old else text.replace('"spec": {', '"spec": {' + change + ", ")
    bench.repo.commit("Widen", {"fleet.yaml": text})
    bench.poll()
    assert bench.store.last_good_commit() == good
    assert bench.condition("FleetValid") == ("False", "NotAllowed")
    assert word in next(row.message for row in bench.parts.conditions.rows() if row.type == "FleetValid")


def test_a_remote_that_is_away_is_asked_again_and_nothing_is_lost(bench: Bench) -> None:
    bench.run_fleet()
    (bench.root / "fleet").rename(bench.root / "away")
    bench.poll()
    assert bench.condition("GitReady")[0] == "False"
    assert bench.condition("FleetValid") == ("True", "InForce")
    (bench.root / "away").rename(bench.root / "fleet")
    bench.clock.step(1000)
    bench.settle()
    assert bench.condition("GitReady") == ("True", "UpToDate")


def test_a_transient_failure_is_tried_again_with_a_growing_delay(bench: Bench) -> None:
    bench.builder.fail = TransientError("the disk is full", needed_for="building")
    bench.settle()
    assert bench.builder.calls == 1
    intent = bench.store.open_intents()[0]
    assert intent.attempts == 1 and intent.last_error and intent.not_before is not None
    assert timedelta(seconds=5) <= intent.not_before - T0 <= timedelta(seconds=7.5)
    bench.clock.step(4)
    bench.settle()
    assert bench.builder.calls == 1, "not before its time"
    bench.clock.step(10)
    bench.settle()
    assert bench.builder.calls == 2
    bench.builder.fail = None
    bench.clock.step(60)
    bench.settle()
    assert bench.images.artifacts()["v1.4.1"].state is ArtifactState.PUBLISHED
    assert len(bench.journal("build")) == 1, "one intent, however often it was tried"


def test_a_terminal_failure_stalls_until_the_commit_changes(bench: Bench) -> None:
    bench.builder.fail = TerminalError("stage 'setup' failed", needed_for="building", remedy="see the log")
    bench.settle()
    bench.poll()
    assert bench.builder.calls == 1
    assert bench.condition("Stalled") == ("True", "NeedsAttention")
    assert "setup" in next(row.message for row in bench.parts.conditions.rows() if row.type == "Stalled")
    bench.builder.fail = None
    bench.repo.commit("Mend the recipe", {"images/edge-golden/setup.sh": "#!/bin/sh\ntrue\n"})
    bench.poll()
    assert bench.builder.calls == 2
    assert bench.condition("Stalled") == ("False", "NothingStalled")
    assert bench.images.artifacts()["v1.4.1"].state is ArtifactState.PUBLISHED


def test_a_defect_in_a_handler_stalls_that_action_and_no_other(bench: Bench) -> None:
    bench.builder.fail = ZeroDivisionError("a secret value")
    bench.settle()
    assert bench.condition("Stalled")[0] == "True"
    assert "a secret value" not in str(bench.lines)
    assert bench.registry.tags("video-ingest")["lab"] == bench.app["2.7.0"]


def test_without_a_signature_no_device_is_told_or_marked(bench: Bench) -> None:
    bench.run_fleet()
    bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    bench.poll()
    bench.everybody()
    bench.signer.fail = TransientError("the agent of the key does not answer")
    before = len(bench.journal("flash"))
    bench.clock.step(1)
    bench.everybody(apps={"video-ingest": bench.app["2.8.0"]})
    bench.settle()
    assert len(bench.journal("flash")) == before
    bench.signer.fail = None


def test_git_that_wants_an_unknown_image_store_plans_nothing(tmp_path: Path) -> None:
    made = Bench(tmp_path)
    made.images.artifacts = _away  # type: ignore[method-assign]
    made.loop.tick()
    assert made.loop.plan is None and made.journal() == []
    assert made.condition("StoresReady") == ("False", "NotAnswering")
    assert made.condition("Progressing") == ("False", "NothingKnown")
    made.store.close()


def _away() -> None:
    raise TransientError("no route to the store")


def test_an_artifact_that_vanished_from_the_last_reading_is_not_built_again(bench: Bench) -> None:
    bench.run_fleet()
    calls = bench.builder.calls
    bench.images.artifacts = _away  # type: ignore[method-assign]
    bench.poll()
    assert bench.builder.calls == calls
    assert bench.condition("StoresReady") == ("False", "NotAnswering")


def test_a_device_that_timed_out_is_told_to_stand_still(bench: Bench) -> None:
    bench.run_fleet()
    bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    bench.everybody()
    bench.poll()
    assert bench.told("LAB-1-1").image is not None  # type: ignore[union-attr]
    attempts = 0
    for _ in range(60):
        bench.clock.step(600)
        bench.everybody()
        bench.settle()
        attempts = max(attempts, bench.store.observation("LAB-1-1")[0].failed_attempts.get("v1.4.2", 0))  # type: ignore[index]
    assert attempts == 3
    told = bench.told("LAB-1-1")
    assert told is not None and told.image is None and told.window == ()
    assert len(bench.journal("flash")) == 3


def test_a_failed_canary_proposes_a_revert_of_the_commit_that_raised_it_once(bench: Bench) -> None:
    bench.run_fleet()
    raised = bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"}, canary={"image": "v1.4.2"})})
    bench.everybody()
    bench.poll()
    bench.repo.commit("Something else", {"NOTES": "x"})
    checks = {"image": "v1.4.2", "previous": "v1.4.1", "health": "critical"}
    bench.report("LAB-1-1", **checks)
    for _ in range(5):
        bench.clock.step(300)
        bench.everybody(but="LAB-1")
        bench.report("LAB-1-1", **checks)
        bench.settle()
    assert [row["outcome"] for row in bench.journal("propose-revert")] == ["done"]
    branches = bench.repo.git("branch", "--list", "revert/*").split()
    assert branches == [f"revert/v1.4.2-{raised[:12]}"]
    body = bench.repo.git("log", "-1", "--format=%B", branches[0])
    assert "LAB-1-1" in body and raised in body and "wave lab" in body
    assert bench.repo.git("diff", "--name-only", "main", branches[0]) == "waves.yaml"
    assert bench.store.snapshot().proposals[0].key == "v1.4.2"


def test_two_controllers_the_older_one_is_fenced(bench: Bench) -> None:
    bench.settle()
    old, old_store = bench.loop, bench.store
    bench.start()
    bench.settle()
    bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    bench.clock.step(120)
    with pytest.raises(TerminalError, match="fenced"):
        old.tick()
    old_store.close()
    bench.settle()
    assert bench.store.last_good_commit() == bench.repo.head()


def test_a_restored_backup_rises_above_what_devices_know(bench: Bench) -> None:
    bench.run_fleet()
    bench.report("SITE-1-1", serial=(40, 9))
    bench.settle()
    assert bench.parts.recorder.epoch == 41
    bench.report("SITE-2-1", serial=(2**40, 1))
    bench.settle()
    assert bench.parts.recorder.epoch == 41, "a claim so far ahead is a lie"
    bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    bench.everybody()
    bench.poll()
    assert bench.told("LAB-1-1").serial[0] == 41  # type: ignore[union-attr]


def test_stop_ends_the_run_after_the_tick(bench: Bench) -> None:
    bench.loop.stop()
    bench.loop.run()
    assert bench.events("stopped")


def test_run_waits_for_the_next_instant_that_matters(bench: Bench) -> None:
    seen = []

    def wait(until: object) -> bool:
        seen.append(until)
        bench.loop.stop()
        return True

    bench.clock.wait = wait  # type: ignore[assignment,method-assign]
    bench.loop.run()
    assert seen and T0 < seen[0] <= T0 + timedelta(seconds=30)  # type: ignore[operator]
    assert all(bench.store.observation(f"{site}-1") is None for site in SITES)


def promoted(bench: Bench) -> None:
    """The lab was told to run v1.4.2, and has not begun."""
    bench.run_fleet()
    bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    bench.everybody()
    bench.poll()
    assert bench.told("LAB-1-1").image is not None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "files",
    [
        {"waves.yaml": waves()},
        {"waves.yaml": waves(lab={"image": "v1.4.2", "paused": True})},
        {"fleet.yaml": "paused"},
        {"fleet.yaml": "freezes"},
    ],
    ids=["reverted", "wave paused", "fleet paused", "frozen"],
)
def test_an_update_that_has_not_begun_is_called_off_where_it_may_not_begin(bench: Bench, files: dict[str, str]) -> None:
    promoted(bench)
    spec = {
        "paused": '"paused": true, ',
        "freezes": '"freezes": [{"from": "2026-01-15T00:00:00Z", "to": "2026-01-16T00:00:00Z"}], ',
    }
    if "fleet.yaml" in files:
        text = str(bench.files()["fleet.yaml"])
        files = {"fleet.yaml": text.replace('"spec": {', '"spec": {' + spec[files["fleet.yaml"]])}
    bench.repo.commit("Stop", files)  # type: ignore[arg-type]
    bench.poll()
    told, lab = bench.told("LAB-1-1"), bench.store.observation("LAB-1-1")
    assert told is not None and told.image is None and told.window == ()
    assert lab is not None and lab[0].updating_to is None and not lab[0].failed_attempts


def test_an_update_that_has_begun_is_not_cut_off(bench: Bench) -> None:
    promoted(bench)
    bench.report("LAB-1-1", phase="writing", target="v1.4.2")
    bench.repo.commit("Stop", {"waves.yaml": waves(lab={"image": "v1.4.2", "paused": True})})
    bench.poll()
    assert bench.told("LAB-1-1").image is not None  # type: ignore[union-attr]
    assert bench.store.observation("LAB-1-1")[0].updating_to == "v1.4.2"  # type: ignore[index]


def test_a_device_that_waits_for_its_window_fetches_and_is_not_told_twice(tmp_path: Path) -> None:
    made = Bench(tmp_path)
    site = made.files()["sites/LAB-1.yaml"]
    assert isinstance(site, str)
    later = site.replace('"start": "00:00", "end": "24:00"', '"start": "22:00", "end": "23:00"')
    made.repo.commit("A narrow window", {"sites/LAB-1.yaml": later})
    made.run_fleet()
    made.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    made.everybody()
    made.poll()
    told = made.told("LAB-1-1")
    assert told is not None and told.image is not None and told.window == () and not told.window_waived
    assert made.bells.rung == [] and made.store.observation("LAB-1-1")[0].updating_to is None  # type: ignore[index]
    made.everybody()
    made.poll()
    assert made.told("LAB-1-1") == told, "the same word is not signed again"
    made.clock.at = T0.replace(hour=22, minute=5)
    made.everybody()
    made.settle()
    acting = made.told("LAB-1-1")
    assert acting is not None and acting.serial > told.serial and acting.window[0][0] == T0.replace(hour=22, minute=0)
    made.store.close()


def test_the_journal_forgets_what_was_finished_long_ago(bench: Bench) -> None:
    bench.settle()
    before = len(bench.store.journal())
    assert before > 3
    bench.clock.step(89 * 86400)
    bench.settle()
    assert len(bench.store.journal()) >= before
    bench.clock.step(2 * 86400)
    bench.settle()
    assert bench.events("journal pruned") == [{"intents": before}]


def test_an_open_intent_of_an_unknown_kind_stops_the_loop_by_name(bench: Bench) -> None:
    bench.settle()
    store = sqlite3.connect(bench.root / "store.db")
    with store:
        store.execute(
            "insert into intents (key, action, commit_sha, epoch, created_at, attempts)"
            " select 'teleport x', '{\"kind\": \"teleport\"}', commit_sha, epoch, created_at, 0 from intents limit 1"
        )
    with pytest.raises(TerminalError, match=r"teleport x.* none that this version knows.*start the version"):
        bench.loop.tick()
    with store:
        store.execute("delete from intents where key = 'teleport x'")
    store.close()


def test_an_intent_that_nobody_asks_for_any_more_is_closed_and_not_taken(bench: Bench) -> None:
    bench.run_fleet()
    bench.builder.fail = TransientError("the disk is full")
    bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    bench.poll()
    calls = bench.builder.calls
    assert [intent.key for intent in bench.store.open_intents()] == ["build image=v1.4.2"]
    bench.repo.commit("Revert", {"waves.yaml": waves()})
    bench.poll()
    assert bench.store.open_intents() == ()
    bench.builder.fail = None
    bench.clock.step(2000)
    bench.settle()
    assert bench.builder.calls == calls and "v1.4.2" not in bench.images.artifacts()
    assert "superseded" in str(bench.journal("build")[-1]["error"])


def test_a_mirror_that_was_damaged_is_mended_at_the_start(bench: Bench) -> None:
    bench.settle()
    assert bench.loop.world is not None
    in_force = bench.loop.world.commit
    bench.store.close()
    (mirror,) = (path.parent for path in (bench.root / "git").rglob("HEAD"))
    shutil.rmtree(mirror / "objects")
    bench.start()
    bench.settle()
    assert bench.loop.world is not None and bench.loop.world.commit == in_force
