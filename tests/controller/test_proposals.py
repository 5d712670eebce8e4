"""A proposed revert as a pull request: one a failure, with what was seen; and a forge that is down stops nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.adapters.forge_github import GithubForge
from reconciler.adapters.github_api import GithubApi
from reconciler.model.plan import Action, ActionKind
from reconciler.model.scalars import format_instant
from reconciler.protocol.report import Check
from tests.controller.harness import Bench, waves
from tests.support.github import GithubServer

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

PROPOSE = Action(ActionKind.PROPOSE_REVERT, {"image": "v1.4.2"})


class Known(GithubServer):
    """A GitHub that sees the branches and commits of a repository beside it."""

    repo: Any = None

    def _answer(self, method: str, target: str, headers: Any, body: bytes) -> Any:
        listed = self.repo.git("for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads").split()
        self.branches = dict(zip(listed[::2], listed[1::2], strict=True))
        self.commits = set(self.repo.git("rev-list", "--all").split())
        return super()._answer(method, target, headers, body)


@pytest.fixture
def hub() -> Iterator[GithubServer]:
    with Known() as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path, hub: GithubServer) -> Iterator[Bench]:
    made = Bench(tmp_path)
    hub.repo = made.repo  # type: ignore[attr-defined]
    api = GithubApi(hub.repository, lambda: "ghp_secret", url=hub.url, patience_s=0, read_timeout_s=60)
    made.store.close()
    made.forge = GithubForge(hub.repository, lambda: "ghp_secret", api=api)
    made.start()
    yield made
    assert made.herald is not None
    made.herald.stop(60)
    made.forge.close()
    made.store.close()


def fail_the_lab(bench: Bench) -> str:
    """A promotion whose lab device turns critical for longer than is borne; returns the commit that raised it."""
    bench.run_fleet()
    raised = bench.repo.commit("Promote", {"waves.yaml": waves(lab={"image": "v1.4.2"}, canary={"image": "v1.4.2"})})
    bench.everybody()
    bench.poll()
    keep_failing(bench)
    return raised


def keep_failing(bench: Bench, times: int = 4) -> None:
    checks = (Check("video", "critical", "no frames | @everyone `x`"), Check("docker", "ok", "active"))
    before = (Check("video", "ok", "25 frames a second"), Check("docker", "ok", "active"))
    seen: dict[str, Any] = {
        "image": "v1.4.2", "previous": "v1.4.1", "health": "critical", "checks": checks, "checks_before": before,
    }  # fmt: skip
    for _ in range(times):
        bench.clock.step(300)
        bench.everybody(but="LAB-1")
        bench.report("LAB-1-1", **seen)
        bench.settle()


def test_one_pull_request_with_what_was_seen(bench: Bench, hub: GithubServer) -> None:
    raised = fail_the_lab(bench)
    keep_failing(bench)
    (pull,) = hub.pulls
    assert pull["head"]["ref"] == f"revert/v1.4.2-{raised[:12]}" and pull["base"]["ref"] == "main"
    assert pull["title"] == "Revert the promotion to v1.4.2: its gate failed in lab"
    body = pull["body"]
    assert raised in body and "| lab" in body and "Closing it" in body
    (row,) = [line for line in body.splitlines() if line.startswith("| LAB-1-1 ")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 9
    assert cells[:3] == ["LAB-1-1", "LAB-1", "`v1.4.2`"] and "critical" in cells
    since = cells[3]
    assert since.endswith("Z") and cells[6] == since and cells[7] == "`video`"
    (check,) = [line for line in body.splitlines() if line.startswith("| `video` ")]
    cells = [cell.strip() for cell in check.strip("|").split("|")]
    assert cells[:4] == ["`video`", "ok", "critical", "`no frames ¦ ＠everyone 'x'`"] and cells[4] == since
    (times,) = [line for line in body.splitlines() if line.startswith("**LAB-1-1**")]
    failed = format_instant(bench.store.snapshot().failures[0].at)
    assert times == (
        f"**LAB-1-1**: flashed {since}, critical since the report at {since}, gate of wave lab failed {failed}"
    )
    assert "@" not in body and "docker" not in body
    message = bench.repo.git("log", "-1", "--format=%B", pull["head"]["ref"])
    assert f'  - check video: ok before, critical since {since}: "no frames | ＠everyone `x`"' in message
    assert [row["outcome"] for row in bench.journal("propose-revert")] == ["done"]
    assert pull["html_url"] in str(bench.journal("propose-revert")[0])
    assert bench.repo.git("log", "-1", "--format=%s", pull["head"]["ref"]) == pull["title"]


def test_none_after_a_restart_nor_after_a_person_has_closed_it(bench: Bench, hub: GithubServer) -> None:
    fail_the_lab(bench)
    (pull,) = hub.pulls
    pull["state"] = "closed"
    bench.repo.git("branch", "-D", pull["head"]["ref"])
    assert bench.herald is not None
    bench.herald.stop(60)
    bench.store.close()
    bench.start()
    keep_failing(bench)
    # Nor where the controller was killed after opening it and before writing that down.
    world, plan = bench.loop.world, bench.loop.plan
    assert world is not None and plan is not None
    said = bench.executor._propose_revert(PROPOSE, world, plan)
    assert said.endswith("(closed)") and len(hub.pulls) == 1
    assert bench.repo.git("branch", "--list", "revert/*") == ""


def test_a_forge_that_is_down_holds_the_pull_request_back_and_nothing_else(bench: Bench, hub: GithubServer) -> None:
    hub.fail(503, times=10_000, body=b"")
    fail_the_lab(bench)
    keep_failing(bench, 1)
    # The branch is there for whoever has to revert now; the next try finds it and opens the pull request.
    assert bench.repo.git("branch", "--list", "revert/*").startswith("revert/v1.4.2-")
    assert hub.pulls == [] and bench.store.snapshot().proposals == ()
    assert bench.store.snapshot().failures[0].key == "v1.4.2"
    (intent,) = bench.store.open_intents()
    assert intent.action.key == PROPOSE.key and "503" in (intent.last_error or "")
    assert bench.herald is not None and bench.herald.flush(60)
    bench.settle()
    assert bench.condition("ForgeReady") == ("False", "NotAnswering")
    assert bench.condition("GitReady") == ("True", "UpToDate")
    hub._failures.clear()
    bench.clock.step(900)
    keep_failing(bench, 1)
    assert len(hub.pulls) == 1 and bench.store.snapshot().proposals[0].key == "v1.4.2"


def test_the_forge_shows_the_rollout_and_the_refused_head(bench: Bench, hub: GithubServer) -> None:
    bench.run_fleet()
    good = bench.repo.git("rev-parse", "main")
    bad = bench.repo.commit("Break", {"waves.yaml": waves(lab={"image": "v9"})})
    bench.poll()
    assert bench.herald is not None and bench.herald.flush(60)
    shown = {(each["sha"], each["state"]) for each in hub.statuses}
    assert (bad, "failure") in shown and any(sha == good for sha, _ in shown)
    (refused,) = [each["description"] for each in hub.statuses if each["sha"] == bad]
    assert refused.startswith("not acted on: ")
    assert {each["environment"] for each in hub.deployments} <= {"fleet/lab", "fleet/canary", "fleet/all"}
