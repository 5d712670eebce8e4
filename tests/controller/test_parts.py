"""The small parts of the loop: delays, polls, work beside the loop, and the commit that raised a release."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.adapters.git_source import GitMirror
from reconciler.controller.jobs import Jobs
from reconciler.controller.pace import Backoff, Poll
from reconciler.controller.promotion import commit_that_raised
from reconciler.model.plan import Action, ActionKind
from reconciler.ports import Intent, TerminalError, TransientError
from tests.controller.harness import waves
from tests.support.gitrepo import Repo

T0 = datetime(2026, 1, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    "failures, draw, asked, delay",
    [
        (1, 0, None, 5),
        (2, 0, None, 10),
        (8, 0, None, 640),
        (9, 0, None, 900),
        (1000, 0, None, 900),
        (1, 0.5, None, 6.25),
        (1, 0, 60, 60),
    ],
)
def test_delays_double_up_to_the_most(failures: int, draw: float, asked: float | None, delay: float) -> None:
    assert Backoff(5, 900).delay_s(failures, draw, asked) == delay


@given(st.integers(1, 200), st.floats(0, 0.999))
def test_a_delay_never_exceeds_one_and_a_half_of_the_most(failures: int, draw: float) -> None:
    assert 5 <= Backoff(5, 900).delay_s(failures, draw) <= 1350


def test_a_poll_is_due_at_first_then_by_its_interval_and_slower_where_nobody_answers() -> None:
    poll = Poll(60, Backoff(5, 900))
    assert poll.is_due(T0)
    poll.answered(T0, 0.5)
    assert not poll.is_due(T0 + timedelta(seconds=59)) and poll.is_due(T0 + timedelta(seconds=60))
    poll.failed(T0, 0)
    poll.failed(T0, 0)
    assert poll.due_at == T0 + timedelta(seconds=10)
    poll.answered(T0, 0)
    assert poll.failures == 0 and poll.due_at == T0 + timedelta(seconds=54)
    poll.now()
    assert poll.is_due(T0)


def intent(number: int) -> Intent:
    return Intent(number, f"build image=v{number}", Action(ActionKind.BUILD, {"image": f"v{number}"}), "a" * 40, T0)


class Held:
    """Counts who holds time still."""

    def __init__(self) -> None:
        self.now = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        self.now += 1
        yield
        self.now -= 1


def test_work_runs_beside_the_loop_and_time_stands_still_until_it_is_collected() -> None:
    held, woken, go = Held(), threading.Event(), threading.Event()
    jobs = Jobs(woken.set, held.working)

    def work() -> str:
        go.wait(250)
        return "built"

    jobs.submit(intent(1), work)
    jobs.submit(intent(1), work)
    assert jobs.busy and jobs.holds(intent(1)) and jobs.collect() == [] and held.now == 1
    go.set()
    assert woken.wait(60)
    assert held.now == 1, "finished is not yet written down"
    done = jobs.collect()
    assert [(each.intent.id, each.detail, each.error) for each in done] == [(1, "built", None)]
    assert not jobs.busy and held.now == 0
    jobs.stop(60)


@pytest.mark.parametrize("error", [TransientError("later"), TerminalError("never")])
def test_an_error_of_a_port_is_the_outcome(error: Exception) -> None:
    jobs = Jobs(lambda: None, Held().working, inline=True)

    def work() -> str:
        raise error

    jobs.submit(intent(1), work)
    assert jobs.collect()[0].error is error


def test_a_defect_is_a_terminal_outcome_that_repeats_nothing_of_its_text() -> None:
    jobs = Jobs(lambda: None, Held().working, inline=True)

    def work() -> str:
        raise KeyError("hunter2")

    jobs.submit(intent(1), work)
    outcome = jobs.collect()[0].error
    assert isinstance(outcome, TerminalError) and "KeyError" in str(outcome) and "hunter2" not in str(outcome)


def test_stop_leaves_what_waits_and_awaits_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, runs, go, ran = Jobs(lambda: None, Held().working), threading.Event(), threading.Event(), []

    def first() -> str:
        runs.set()
        go.wait(250)
        ran.append(1)
        return ""

    jobs.submit(intent(1), first)
    jobs.submit(intent(2), lambda: str(ran.append(2)))
    assert runs.wait(60), "what has not begun is not awaited"
    assert jobs._thread is not None
    join = jobs._thread.join

    def awaited(timeout_s: float) -> None:
        # It ends only now that it is awaited; what waited behind it has been dropped by then.
        go.set()
        join(timeout_s)

    monkeypatch.setattr(jobs._thread, "join", awaited)
    jobs.stop(60)
    assert ran == [1]


def test_stop_while_the_thread_takes_the_last_that_waits() -> None:
    jobs, runs = Jobs(lambda: None, Held().working), threading.Event()

    class Taken(queue.SimpleQueue[Any]):
        """As seen by who looks before it takes: what is there is gone when it is taken."""

        def empty(self) -> bool:
            return False

    jobs._waiting = Taken()

    def work() -> str:
        runs.set()
        return ""

    jobs.submit(intent(1), work)
    assert runs.wait(60)
    jobs.stop(60)
    assert jobs._thread is not None and not jobs._thread.is_alive()


# ---------------------------------------------------------------- which commit raised a release


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "fleet")


def found(repo: Repo, key: str) -> str:
    git = GitMirror(repo.path.parent / "mirror", str(repo.path), "main")
    try:
        git.refresh()
        return commit_that_raised(git, repo.head(), key)
    finally:
        git.close()


def test_the_commit_since_which_a_wave_asks_without_a_break(repo: Repo) -> None:
    repo.commit("One", {"waves.yaml": waves()})
    repo.commit("Raise", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    repo.commit("Revert", {"waves.yaml": waves()})
    again = repo.commit("Raise again", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    repo.commit("Raise more", {"waves.yaml": waves(lab={"image": "v1.4.2"}, canary={"image": "v1.4.2"})})
    repo.commit("Else", {"NOTES": "x"})
    assert found(repo, "v1.4.2") == again


def test_an_app_is_found_by_its_version(repo: Repo) -> None:
    repo.commit("One", {"waves.yaml": waves()})
    raised = repo.commit("App", {"waves.yaml": waves(lab={"apps": {"video-ingest": "2.8.0"}})})
    repo.commit("Image", {"waves.yaml": waves(lab={"image": "v1.4.2", "apps": {"video-ingest": "2.8.0"}})})
    assert found(repo, "video-ingest@2.8.0") == raised


def test_a_merge_counts_as_the_commit_of_the_branch_that_it_went_to(repo: Repo) -> None:
    repo.commit("One", {"waves.yaml": waves()})
    repo.git("checkout", "-q", "-b", "promote")
    repo.commit("Raise", {"waves.yaml": waves(lab={"image": "v1.4.2"})})
    repo.git("checkout", "-q", "main")
    repo.commit("Else", {"NOTES": "x"})
    repo.git("merge", "-q", "--no-ff", "-m", "Merge", "promote")
    assert found(repo, "v1.4.2") == repo.head()


def test_a_release_that_was_there_from_the_beginning_has_nothing_to_go_back_to(repo: Repo) -> None:
    repo.commit("One", {"waves.yaml": waves()})
    repo.commit("Else", {"NOTES": "x"})
    with pytest.raises(TerminalError, match="nothing to go back to"):
        found(repo, "v1.4.1")


def test_a_release_that_nobody_asks_for_is_said_so(repo: Repo) -> None:
    repo.commit("One", {"waves.yaml": waves()})
    with pytest.raises(TerminalError, match=r"no wave asks for v9\.9\.9"):
        found(repo, "v9.9.9")


def test_a_commit_whose_waves_cannot_be_read_ends_the_search(repo: Repo) -> None:
    repo.commit("Broken", {"waves.yaml": "a: ["})
    raised = repo.commit("One", {"waves.yaml": waves()})
    assert found(repo, "v1.4.1") == raised
