"""What the forge is told of a rollout, and how: the words follow from the plan, and sending them holds nothing up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from reconciler.adapters.forge_github import GithubForge
from reconciler.adapters.github_api import GithubApi
from reconciler.controller.herald import Herald
from reconciler.controller.news import CONTEXT, Notice, news_of
from reconciler.controller.pace import Backoff
from reconciler.model.plan import AppStatus, Facts, Plan, WaveState, WaveStatus
from reconciler.ports import TerminalError, TransientError
from tests.support.github import MAX_DESCRIPTION, GithubServer

AT = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
SHA, NEXT, HEAD = "a" * 40, "b" * 40, "c" * 40


def wave(name: str, state: WaveState, on: int = 0, *, app: WaveState | None = None, **more: Any) -> WaveStatus:
    apps = {} if app is None else {"video": AppStatus("2.8.0", app, on, on, 0)}
    values: dict[str, Any] = {
        "image": "v1.4.2", "sites": 10, "devices": 10, "on_release": on, "healthy": on, "failed": 0, "offline": 0,
        "in_flight": 0, "soak_ends_at": None,
    }  # fmt: skip
    return WaveStatus(name=name, state=state, apps=apps, **(values | more))


def plan(*waves: WaveStatus, commit: str | None = SHA) -> Plan:
    return Plan(AT, commit, (), (), waves, Facts())


# ---------------------------------------------------------------- the words


LAB, WAITS, SOAKS = (
    wave("lab", WaveState.COMPLETE),
    wave("all", WaveState.WAITING),
    wave("canary", WaveState.SOAKING, 10),
)


@pytest.mark.parametrize(
    ("waves", "state", "says"),
    [
        ([LAB, wave("all", WaveState.IDLE)], "success", "all 2 waves are complete"),
        (
            [LAB, replace(SOAKS, soak_ends_at=AT), WAITS],
            "pending",
            "1 of 3 waves complete; canary: v1.4.2 soaks until 2026-01-15T01:30:00Z",
        ),
        (
            [wave("all", WaveState.ROLLING, 3)],
            "pending",
            "0 of 1 waves complete; all: v1.4.2 rolls out, 30 % of the devices run it",
        ),
        (
            [wave("all", WaveState.ROLLING_BACK, 9)],
            "pending",
            "0 of 1 waves complete; all: v1.4.2 goes back, 90 % of the devices run it",
        ),
        ([wave("lab", WaveState.PAUSED), wave("all", WaveState.FAILED)], "failure", "all: the gate failed for v1.4.2"),
        (
            [wave("lab", WaveState.COMPLETE, 10, app=WaveState.FAILED), WAITS],
            "failure",
            "lab: the gate failed for video 2.8.0",
        ),
        (
            [wave("all", WaveState.COMPLETE, 10, app=WaveState.ROLLING)],
            "pending",
            "0 of 1 waves complete; all: video 2.8.0 rolls out, 100 % of the devices run it",
        ),
        (
            [wave("all", WaveState.UNRESOLVED)],
            "pending",
            "0 of 1 waves complete; all: the gate for v1.4.2 cannot be judged: too many devices are silent",
        ),
        ([wave("all", WaveState.PAUSED)], "pending", "0 of 1 waves complete; all: v1.4.2 is paused"),
        ([], "success", "all 0 waves are complete"),
    ],
)
def test_the_status_of_a_commit(waves: list[WaveStatus], state: str, says: str) -> None:
    (status,) = news_of(plan(*waves), None, None)
    assert status == Notice(SHA, CONTEXT, None, state, says)
    assert len(says) <= MAX_DESCRIPTION


def test_every_state_of_a_wave_but_idle_is_a_deployment() -> None:
    shown = {}
    for state in WaveState:
        _, *deployments = news_of(plan(wave("w", state)), None, "fleet")
        shown[state.value] = [(each.environment, each.state) for each in deployments]
    assert shown.pop("idle") == []
    assert {name: found[0][1] for name, found in shown.items()} == {
        "waiting": "queued", "paused": "queued", "rolling": "in_progress", "soaking": "in_progress",
        "unresolved": "in_progress", "rolling-back": "in_progress", "failed": "failure", "complete": "success",
    }  # fmt: skip
    assert all(found[0][0] == "fleet/w" for found in shown.values())


def test_a_head_that_is_not_acted_on_has_failed_beside_the_commit_in_force() -> None:
    refused = (HEAD, "waves.yaml:3:1: unknown release")
    news = news_of(plan(wave("all", WaveState.COMPLETE)), refused, None)
    assert [(each.sha, each.state) for each in news] == [(HEAD, "failure"), (SHA, "success")]
    assert [each.sha for each in news_of(plan(commit=None), refused, "fleet")] == [HEAD]
    assert [each.sha for each in news_of(None, refused, "fleet")] == [HEAD]
    assert news_of(None, None, "fleet") == ()


def test_progress_is_told_in_tenths() -> None:
    told = {news_of(plan(wave("all", WaveState.ROLLING, on, devices=1000)), None, None) for on in range(1001)}
    assert len(told) == 11


# ---------------------------------------------------------------- sending them


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def hub() -> Iterator[GithubServer]:
    with GithubServer() as server:
        server.commits |= {SHA, NEXT, HEAD}
        yield server


class Told:
    """A herald on a real adapter, its clock in the hand."""

    def __init__(self, hub: GithubServer) -> None:
        self.hub, self.clock, self.lines = hub, Clock(), list[dict[str, Any]]()
        api = GithubApi(hub.repository, lambda: "ghp_secret", url=hub.url, patience_s=0, read_timeout_s=60)
        self.forge = GithubForge(hub.repository, lambda: "ghp_secret", api=api)
        self.woken = 0
        self.start()

    def start(self) -> None:
        """As a new process: nothing in memory."""
        self.herald = Herald(
            self.forge, lambda _event, **fields: self.lines.append(fields), environments="fleet",
            backoff=Backoff(5, 900), wake=self.wake, now=self.clock, draw=lambda: 0.0,
        )  # fmt: skip

    def wake(self) -> None:
        self.woken += 1

    def tell(self, *waves: WaveStatus, commit: str = SHA, refused: tuple[str, str] | None = None) -> None:
        self.herald.tell(plan(*waves, commit=commit), refused)
        self.settle()

    def settle(self) -> None:
        """Let the thread look again at the clock, until it has nothing to do now."""
        with self.herald._changed:
            self.herald._changed.notify_all()
        until = time.monotonic() + 60
        while not self.herald.flush(1e9):
            assert time.monotonic() < until

    def after(self, seconds: float) -> None:
        self.clock.at += seconds
        self.settle()

    def statuses(self, sha: str = SHA) -> list[tuple[str, str]]:
        return [(each["state"], each["description"]) for each in self.hub.statuses if each["sha"] == sha]

    def deployed(self, sha: str = SHA) -> list[tuple[str, str]]:
        place = {each["id"]: each["environment"] for each in self.hub.deployments if each["sha"] == sha}
        return [(place[e["deployment"]], e["state"]) for e in self.hub.deployment_statuses if e["deployment"] in place]

    @property
    def condition(self) -> tuple[bool | None, str]:
        finding = self.herald.finding()
        return finding.status, finding.reason


@pytest.fixture
def told(hub: GithubServer) -> Iterator[Told]:
    made = Told(hub)
    yield made
    made.herald.stop(60)
    made.forge.close()


def test_the_forge_follows_the_rollout(told: Told) -> None:
    for lab, rest in (
        ("ROLLING", "WAITING"),
        ("SOAKING", "WAITING"),
        ("COMPLETE", "ROLLING"),
        ("COMPLETE", "COMPLETE"),
    ):
        told.tell(wave("lab", WaveState[lab]), wave("rest", WaveState[rest]))
        told.after(7200)
    assert [state for state, _ in told.statuses()] == ["pending", "pending", "pending", "success"]
    assert told.deployed() == [
        ("fleet/lab", "in_progress"), ("fleet/rest", "queued"), ("fleet/lab", "in_progress"),
        ("fleet/lab", "success"), ("fleet/rest", "in_progress"), ("fleet/rest", "success"),
    ]  # fmt: skip
    assert len(told.hub.deployments) == 2
    assert told.condition == (True, "UpToDate")


def test_nothing_is_sent_twice_also_by_another_process(told: Told) -> None:
    told.tell(wave("lab", WaveState.ROLLING))
    writes, asked = len(told.hub.writes()), len(told.hub.seen)
    for _ in range(3):
        told.after(100_000)
        told.tell(wave("lab", WaveState.ROLLING))
    assert len(told.hub.seen) == asked
    told.herald.stop(60)
    told.start()
    told.tell(wave("lab", WaveState.ROLLING))
    assert len(told.hub.writes()) == writes == 3


def test_words_wait_and_a_state_waits_a_minute(told: Told) -> None:
    told.tell(wave("lab", WaveState.ROLLING, 1))
    for on in (2, 3, 4):
        told.tell(wave("lab", WaveState.ROLLING, on))
        told.after(600)
    assert len(told.statuses()) == 1
    told.after(7200)
    assert [text.split(" %")[0][-2:] for _, text in told.statuses()] == ["10", "40"]
    told.tell(wave("lab", WaveState.FAILED))
    assert len(told.statuses()) == 2
    told.after(60)
    assert told.statuses()[-1][0] == "failure"


def test_a_forge_that_is_down_is_told_of_and_tried_again(told: Told) -> None:
    told.hub.fail(503, times=2, body=b"")
    told.tell(wave("lab", WaveState.ROLLING))
    assert told.condition == (False, "NotAnswering") and told.woken == 1
    assert "503" in told.herald.finding().message
    told.after(4)
    assert len(told.hub.seen) == 1
    told.after(1)
    assert told.condition == (False, "NotAnswering") and told.hub.statuses == []
    told.tell(wave("lab", WaveState.SOAKING))
    told.after(10)
    # Of what happened meanwhile the latest word alone gets out.
    assert [text[-13:] for _, text in told.statuses()] == ["v1.4.2 soaks"] or told.statuses()[0][1].endswith(
        "v1.4.2 soaks"
    )
    assert told.condition == (True, "UpToDate") and told.woken == 2
    assert [line for line in told.lines if "answers" in line]


def test_a_rate_limit_is_waited_out_as_the_forge_wishes(told: Told) -> None:
    told.hub.fail(429, headers={"Retry-After": "1800"}, body={"message": "slow down"})
    told.tell(wave("lab", WaveState.ROLLING))
    told.after(1799)
    assert told.hub.statuses == [] and len(told.hub.seen) == 1
    told.after(1)
    assert len(told.hub.statuses) == 1


def test_a_refusal_stops_only_what_is_refused_and_is_tried_now_and_then(told: Told) -> None:
    told.hub.fail(403, method="POST", path="/deployments", body={"message": "Resource not accessible"})
    told.tell(wave("lab", WaveState.ROLLING))
    assert len(told.statuses()) == 1 and told.deployed() == []
    assert told.condition == (False, "Refused")
    told.after(899)
    assert told.deployed() == []
    told.after(1)
    assert told.deployed() == [("fleet/lab", "in_progress")] and told.condition == (True, "UpToDate")


def test_another_commit_has_the_last_word_on_the_one_before(told: Told) -> None:
    told.tell(wave("lab", WaveState.COMPLETE), wave("rest", WaveState.ROLLING))
    told.tell(wave("lab", WaveState.ROLLING), wave("rest", WaveState.WAITING), commit=NEXT)
    told.after(7200)
    assert told.statuses()[-1] == ("pending", f"superseded by {NEXT[:12]}, which is followed instead")
    assert told.deployed() == [("fleet/lab", "success"), ("fleet/rest", "in_progress"), ("fleet/rest", "inactive")]
    assert told.deployed(NEXT) == [("fleet/lab", "in_progress"), ("fleet/rest", "queued")]
    # A rollout that is over keeps its word.
    told.tell(wave("lab", WaveState.COMPLETE), wave("rest", WaveState.COMPLETE), commit=NEXT)
    told.after(60)
    told.tell(wave("lab", WaveState.ROLLING), commit=HEAD)
    told.after(7200)
    assert told.statuses(NEXT)[-1][0] == "success" and "inactive" not in [state for _, state in told.deployed(NEXT)]


def test_a_refused_head_is_marked_until_it_is_in_force(told: Told) -> None:
    told.tell(wave("lab", WaveState.COMPLETE), refused=(HEAD, "3 errors"))
    assert told.statuses(HEAD) == [("failure", "not acted on: 3 errors")]
    told.tell(wave("lab", WaveState.ROLLING), commit=HEAD)
    told.after(60)
    assert [state for state, _ in told.statuses(HEAD)] == ["failure", "pending"]


class Stuck:
    """A forge that never answers, or fails in a way that nobody thought of."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self.answer, self.called = answer, threading.Event()

    def set_status(self, *_: object) -> None:
        self.called.set()
        self.answer()


def test_the_loop_never_waits_for_the_forge() -> None:
    over, ended = threading.Event(), list[bool]()
    stuck = Stuck(lambda: ended.append(over.wait(250)))
    herald = Herald(stuck, lambda *_, **__: None, environments=None, backoff=Backoff(5, 900))  # type: ignore[arg-type]
    herald.tell(plan(wave("lab", WaveState.ROLLING)), None)
    assert stuck.called.wait(60)
    for _ in range(100):
        herald.tell(plan(wave("lab", WaveState.SOAKING)), None)
        herald.finding()
    assert ended == [], "all that was told while it was being called"
    assert not herald.flush(0.05)
    over.set()
    herald.stop(60)


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), TransientError("x"), TerminalError("x")])
def test_no_error_ends_the_thread(error: Exception) -> None:
    def answer() -> None:
        raise error

    clock = Clock()
    herald = Herald(Stuck(answer), lambda *_, **__: None, environments=None, backoff=Backoff(5, 900), now=clock)  # type: ignore[arg-type]
    herald.tell(plan(wave("lab", WaveState.ROLLING)), None)
    assert herald.flush(1e9)
    assert herald.finding().status is False
    assert herald._thread is not None and herald._thread.is_alive()
    herald.stop(60)
    assert not herald._thread.is_alive()
