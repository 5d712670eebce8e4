"""The loop killed before and after every write and every effect, and started again: nothing is doubled, nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reconciler.model.observed import ArtifactState
from tests.controller.harness import Bench, waves

WRITES = ("record", "finish", "retry", "accept_commit", "save_plan", "next_serial", "add_events")
_ONCE = ("commit-accepted", "wave-opened")
SHARES = 6
"""The boundaries are dealt out to this many tests, so that two cores share them evenly."""
EFFECTS = {"images": ("stage", "attach_signature", "publish"), "registry": ("retag",)}


class Killed(BaseException):
    """The process is gone."""


class Scythe:
    """Counts the boundaries, and kills at one of them."""

    def __init__(self, at: int | None) -> None:
        self.at, self.passed = at, 0

    def guard(self, of: Any, names: tuple[str, ...]) -> None:
        """A boundary before and after each call of these methods."""
        for name in names:
            setattr(of, name, self._guarded(getattr(of, name)))

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._step()
            result = call(*args, **kwargs)
            self._step()
            return result

        return guarded

    def _step(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            raise Killed


def live(bench: Bench) -> None:
    """From an empty store to a lab that was told to run the next release."""
    bench.settle()
    bench.everybody()
    bench.poll()
    bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    bench.everybody()
    bench.poll()


def end(bench: Bench) -> dict[str, Any]:
    seen = bench.store.snapshot()
    lab = bench.store.observation("LAB-1-1")
    assert lab is not None
    return {
        "journal": Counter((row["key"], row["outcome"]) for row in bench.journal()),
        "artifacts": {release: artifact.state for release, artifact in bench.images.artifacts().items()},
        "tags": bench.registry.tags("video-ingest"),
        "tags_set": dict(seen.tags_set),
        "members": {key: dict(value) for key, value in seen.members.items()},
        # A soak may begin again after a kill, since devices report at other instants; what opened and came into force may not.
        "told": Counter((e.kind, e.wave, e.release) for e in bench.store.events(limit=1000) if e.kind in _ONCE),
        "lab": (lab[0].updating_to, dict(lab[0].failed_attempts)),
    }


def guarded(bench: Bench, scythe: Scythe) -> None:
    scythe.guard(bench.store, WRITES)
    for name, methods in EFFECTS.items():
        scythe.guard(getattr(bench, name), methods)


def played(root: Path, at: int | None) -> tuple[dict[str, Any], int]:
    """One run, killed at a boundary (None: at none); its end, and how many boundaries there were."""
    root.mkdir()
    bench = Bench(root)
    bench.store.close()
    scythe = Scythe(at)
    bench.start()
    guarded(bench, scythe)
    try:
        live(bench)
    except Killed:
        bench.store.close()
        registry = type(bench.registry)(root / "registry")
        bench.registry = registry
        bench.start()
        # Whatever was going on, it goes on from what is on disk.
        bench.settle()
        live_again(bench)
    found = end(bench)
    bench.loop.check()
    bench.store.close()
    return found, scythe.passed


def live_again(bench: Bench) -> None:
    """The same life, from wherever the kill has left it."""
    bench.everybody()
    bench.poll()
    if "Promote" not in bench.repo.git("log", "--format=%s").split("\n"):
        bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    bench.everybody()
    bench.poll()


@pytest.mark.slow
def test_a_run_without_a_kill_ends_as_it_should(tmp_path: Path) -> None:
    found, boundaries = played(tmp_path / "run", None)
    assert found["artifacts"] == {"v1.4.1": ArtifactState.PUBLISHED, "v1.4.2": ArtifactState.PUBLISHED}
    assert found["lab"][0] == "v1.4.2" and boundaries > 40
    assert set(found["journal"].values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("share", range(SHARES))
def test_a_kill_at_every_boundary_ends_in_the_same_state(tmp_path: Path, share: int) -> None:
    wanted, boundaries = played(tmp_path / "calm", None)
    for at in range(1 + share, boundaries + 1, SHARES):
        found, _ = played(tmp_path / f"kill-{at}", at)
        assert found == wanted, f"killed at boundary {at} of {boundaries}"
