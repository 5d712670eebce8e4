"""Waking on a local ref's change: what wakes, what does not, how often."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.adapters.ref_watch import RefWatch, refs_folder
from reconciler.ports import TerminalError
from tests.support.gitrepo import Repo

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow


class Bell:
    """Counts wakes."""

    def __init__(self) -> None:
        self.count = 0
        self._rung = threading.Event()

    def __call__(self) -> None:
        self.count += 1
        self._rung.set()

    def rings(self, within_s: float = 60.0) -> bool:
        """Whether it rings in time; quiet afterwards."""
        found = self._rung.wait(within_s)
        time.sleep(0.15)
        self._rung.clear()
        return found


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    made = Repo(tmp_path / "fleet")
    made.commit("First", {"a": "1"})
    return made


def bare(repo: Repo) -> Path:
    path = repo.path.parent / "bare.git"
    repo.git("clone", "-q", "--bare", ".", str(path))
    return path


def linked(repo: Repo) -> Path:
    path = repo.path.parent / "linked"
    repo.git("worktree", "add", "-q", "--detach", str(path))
    return path


@pytest.mark.parametrize("of", [lambda repo: repo.path, linked], ids=["work-tree", "linked-work-tree"])
def test_a_commit_wakes(repo: Repo, of: Callable[[Repo], Path]) -> None:
    bell = Bell()
    with RefWatch(of(repo), bell):
        repo.commit("Next", {"a": "2"})
        assert bell.rings()


def test_a_push_to_a_bare_repository_wakes(repo: Repo) -> None:
    bell, path = Bell(), bare(repo)
    with RefWatch(path, bell):
        repo.commit("Next", {"a": "2"})
        repo.git("push", "-q", str(path), "main")
        assert bell.rings()


def test_packing_and_new_folders_of_branches_do_not_end_the_watch(repo: Repo) -> None:
    bell = Bell()
    with RefWatch(repo.path, bell):
        repo.git("pack-refs", "--all", "--prune")
        assert bell.rings()
        repo.git("update-ref", "refs/heads/team/x/y", "HEAD")
        assert bell.rings()
        repo.git("update-ref", "-d", "refs/heads/team/x/y")
        assert bell.rings()
        repo.commit("After", {"a": "3"})
        assert bell.rings()


def test_what_moves_no_branch_does_not_wake(repo: Repo) -> None:
    bell = Bell()
    with RefWatch(repo.path, bell):
        repo.write({"b": "1"})
        repo.git("add", "b")
        repo.git("update-ref", "refs/tags/x", "HEAD")
        repo.git("config", "user.name", "x")
        assert not bell.rings(0.4)


def due() -> list[threading.Timer]:
    """The timers that run now."""
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_a_burst_wakes_once_and_a_stream_is_not_put_off(repo: Repo) -> None:
    bell, before = Bell(), due()
    watch = RefWatch(repo.path, bell, debounce_s=200)
    for expected in (1, 2, 3):
        watch.ring()
        (timer,) = (each for each in due() if each not in before)
        for _ in range(20):
            watch.ring()
        assert [each for each in due() if each not in before] == [timer], "it is neither doubled nor begun anew"
        assert bell.count == expected - 1
        # Its time is up.
        timer.cancel()
        timer.join()
        timer.function()
        assert bell.count == expected
    watch.stop()


def test_a_wake_comes_by_itself(repo: Repo) -> None:
    bell = Bell()
    watch = RefWatch(repo.path, bell, debounce_s=0.01)
    watch.ring()
    assert bell.rings()
    watch.stop()


def test_stop_cancels_a_wake_that_is_due(repo: Repo) -> None:
    bell, before = Bell(), due()
    watch = RefWatch(repo.path, bell, debounce_s=100)
    watch.start()
    watch.ring()
    (timer,) = (each for each in due() if each not in before)
    watch.stop()
    timer.join()
    assert bell.count == 0


def test_no_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="no git repository"):
        refs_folder(tmp_path)
