"""Kills the process at every boundary of the journal, starts it again, and looks: no action doubled, none lost.

A child does what a tick does: decide what the world still lacks, write the intents, take each open action, write its
outcome. Boundaries are before and after every SQL statement and commit, and around and inside the effect. At the n-th one
the child is killed (SIGKILL: nothing is flushed, no handler runs); then a fresh child, which is not killed, finishes.
"""

from __future__ import annotations

import os
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from reconciler.adapters.sql import open_store
from reconciler.model.observed import DeviceObservation
from reconciler.model.plan import Action, ActionKind, Facts, VerdictFact
from reconciler.ports import Decision
from tests.adapters.store_contract import NOW, assignment, flash, seen

GOALS = (
    flash("A-1", "v2", why="promote", wave="canary"),
    Action(ActionKind.RETAG, {"app": "video-ingest", "tag": "canary", "to": "sha256:" + "1" * 64}),
    Action(ActionKind.PROPOSE_REVERT, {"image": "v1"}),
)

Boundary = Callable[[], None]


class Death:
    """Counts boundaries, and dies at one of them."""

    def __init__(self, at: int | None) -> None:
        self.count, self.at = 0, at

    def __call__(self, *_: object, **__: object) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, engine: Engine) -> None:
        for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(engine, name, self)


class World:
    """Where effects land: an append-only file, each effect under its key, so that repeating one changes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def effects(self) -> list[str]:
        text = self.path.read_text() if self.path.exists() else ""
        return [line for line in text.split("\n")[:-1] if line]

    def take(self, key: str, boundary: Boundary) -> None:
        boundary()
        if key in self.effects():
            return
        boundary()
        with self.path.open("a") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        boundary()


def tick(folder: Path, boundary: Death) -> None:
    """Gather, decide, record, execute, record: on the real store."""
    world = World(folder / "effects")
    store = open_store(folder / "store.db")
    boundary.watch(store.engine)
    boundary()
    epoch = store.begin_epoch()
    store.observe([seen("A-1", image="v1")], sequences={"A-1": ("boot", 1)})
    (folder / "acknowledged").touch()
    boundary()
    lacking = tuple(goal for goal in GOALS if goal.key not in world.effects())
    first = store.next_serial(epoch, 1)
    decision = Decision(
        at=NOW,
        commit="c0ffee",
        facts=Facts(proofs=(VerdictFact("lab", "v2", NOW),), members={"v2": {"canary": ("A",)}}),
        actions=lacking,
        assignments=(assignment("A-1", epoch, first),),
        observations=(DeviceObservation(name="A-1", updating_to="v2", updating_since=NOW),) if lacking else (),
    )
    store.record(epoch, decision)
    boundary()
    for intent in store.open_intents():
        world.take(intent.key, boundary)
        store.finish(epoch, intent, "done", "", NOW)
        boundary()
    store.close()


def run_and_die(folder: Path, at: int | None) -> tuple[bool, int]:
    """A child does one tick; returns whether it was killed, and how many boundaries it passed otherwise."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            death = Death(at)
            tick(folder, death)
            os.write(writing, str(death.count).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    passed = os.read(reading, 20)
    os.close(reading)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True, 0
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, "the child failed by itself; see its output"
    return False, int(passed)


def check_after_death(folder: Path) -> None:
    """What must hold at once, before anything is repaired."""
    store = open_store(folder / "store.db")
    journal = store.journal()
    # Intent before effect: nothing happened that is not written down.
    written = {row["key"] for row in journal}
    effects = World(folder / "effects").effects()
    assert set(effects) <= written
    # Outcome after effect: nothing is called done that did not happen.
    assert {row["key"] for row in journal if row["outcome"]} <= set(effects)
    # A decision is whole or absent: its facts, marks and assignment came with its intents.
    snapshot = store.snapshot()
    if written or snapshot.proofs or snapshot.members or store.assignment("A-1"):
        assert written == {goal.key for goal in GOALS}
        assert len(snapshot.proofs) == 1 and store.assignment("A-1") is not None
        assert snapshot.devices[0].updating_to == "v2"
    # A report that was acknowledged is on record.
    if (folder / "acknowledged").exists():
        assert store.observation("A-1") is not None
    store.close()


def check_end(folder: Path) -> None:
    """What must hold once a restart has finished the work."""
    store = open_store(folder / "store.db")
    assert Counter(World(folder / "effects").effects()) == Counter(goal.key for goal in GOALS)
    assert store.open_intents() == ()
    assert Counter((row["key"], row["outcome"]) for row in store.journal()) == Counter(
        (goal.key, "done") for goal in GOALS
    )
    assert [proposal.key for proposal in store.snapshot().proposals] == ["v1"]
    assert len(store.snapshot().proofs) == 1
    store.close()


@pytest.mark.slow
def test_killed_at_every_boundary_no_action_is_doubled_or_lost(tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    open_store(empty).close()
    at = 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        shutil.copyfile(empty, folder / "store.db")
        killed, passed = run_and_die(folder, at)
        check_after_death(folder)
        if not killed:
            break
        run_and_die(folder, None)
        check_end(folder)
    # One more tick finds nothing to do.
    run_and_die(folder, None)
    check_end(folder)
    # Every boundary was tried: the last run passed one fewer than the number it would have died at.
    assert passed == at - 1
    print(f"{at - 1} boundaries")
    assert at > 60, "boundaries are not being counted"


@pytest.mark.slow
@pytest.mark.parametrize("every", [5, 17])
def test_killed_again_and_again_the_work_still_gets_done_once(tmp_path: Path, every: int) -> None:
    for attempt in range(200):
        killed, _ = run_and_die(tmp_path, every + attempt)
        if (tmp_path / "store.db").exists():
            check_after_death(tmp_path)
        if not killed:
            break
    else:
        pytest.fail("the work never got done")
    check_end(tmp_path)
