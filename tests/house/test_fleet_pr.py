"""The pull request's workflow, run step by step in bash: on a branch of ours, on a fork, on a fleet that is not valid."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house.tree import ROOT
from tests.review.repos import fleet_files, waves
from tests.support.actions import Runner
from tests.support.github import GithubServer, Token
from tests.support.gitrepo import Repo

pytestmark = pytest.mark.slow

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/fleet-pr.yml").read_text())
TOKEN = "ghs_job"
# A fleet of devices that have never reported takes no action, so this one does not hold.
SCENARIO = {
    "apiVersion": "fleet/v1",
    "kind": "Scenario",
    "metadata": {"name": "a fleet that nobody has seen is flashed at once"},
    "spec": {"now": "2026-01-15T01:30:00Z", "observed": {}, "expect": {"actions": [{"kind": "flash"}]}},
}


@dataclass
class Change:
    """A pull request: a repository whose HEAD is the merge of a branch into main."""

    repo: Repo
    number: int
    base: str
    sha: str


@pytest.fixture
def hub() -> Iterator[GithubServer]:
    with GithubServer(tokens={TOKEN: Token("github-actions", app=True)}) as server:
        yield server


def propose(tmp_path: Path, hub: GithubServer, files: dict[str, str], fork: str | None = None) -> Change:
    """A fleet repo with a branch that changes files, merged as `pull_request` checks it out."""
    repo = Repo(tmp_path / "checkout")
    base = repo.commit("Begin", fleet_files())
    repo.git("checkout", "-q", "-b", "promote")
    change = Change(repo, hub.add_pull("promote", fork=fork)["number"], base, "")
    push(change, hub, files)
    return change


def push(change: Change, hub: GithubServer, files: dict[str, str]) -> None:
    """A commit on the branch, and the merge that GitHub makes of it."""
    change.repo.git("checkout", "-q", "promote")
    change.sha = change.repo.commit("Promote", dict(files))
    hub.push("promote", change.sha)
    change.repo.git("checkout", "-q", "--detach", change.base)
    change.repo.git("merge", "-q", "--no-ff", "-m", "Merge", "promote")


def run(
    tmp_path: Path, hub: GithubServer, change: Change, *, fork: bool = False, **more: Any
) -> tuple[Runner, Any, Any]:
    """Both jobs; what `check` gave and what `post` gave (None: not run)."""
    temp = tmp_path / f"runner-{len(list(tmp_path.iterdir()))}"
    (temp / "reconciler/bin").mkdir(parents=True)
    (temp / "reconciler/bin/reconciler").symlink_to(ROOT / ".venv/bin/reconciler")
    head = {"sha": change.sha, "repo": {"full_name": "stranger/fleet" if fork else hub.repository}}
    pull = {"number": change.number, "head": head, "base": {"sha": change.base}}
    context: dict[str, Any] = {
        "github": {
            "event": {"pull_request": pull},
            "repository": hub.repository,
            "server_url": "https://github.example",
            "run_id": "7",
            "actor": "ada",
            "token": TOKEN,
        },
        "vars": {},
        "secrets": {},
    } | more
    # What a runner has, and nothing of the machine that tests: no token of a person, no settings of git.
    variables = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    variables |= {"GITHUB_REPOSITORY": hub.repository, "GITHUB_API_URL": hub.url, "GITHUB_ACTION_PATH": "unused"}
    runner = Runner(change.repo.path, temp, context, variables, ROOT, frozenset({"Make the command"}))
    checked = runner.job(WORKFLOW["jobs"]["check"])
    assert checked is not None
    posted = runner.job(WORKFLOW["jobs"]["post"], {"check": checked[1]})
    return runner, checked, posted


def promotion(wave: str = "v1.4.2") -> dict[str, str]:
    return {"fleet/waves.yaml": waves(wave)}


def test_a_branch_of_ours_gets_one_comment_and_a_status_and_the_comment_is_kept_up(
    tmp_path: Path, hub: GithubServer
) -> None:
    change = propose(tmp_path, hub, promotion())
    runner, checked, posted = run(tmp_path, hub, change)
    assert checked[0] and posted == (True, {}), [step for step in runner.steps if step.code]
    (comment,) = hub.comments
    assert comment["body"].startswith("<!-- reconciler/review -->\n") and "v1" in comment["body"]
    assert "settled fleet" in comment["body"]
    (status,) = hub.statuses
    assert (status["sha"], status["context"], status["state"]) == (change.sha, "reconciler/review", "success")
    assert status["target_url"] == f"https://github.example/{hub.repository}/actions/runs/7"
    assert runner.summary.strip() in comment["body"]
    first = comment["body"]

    push(change, hub, {"fleet/waves.yaml": waves("v1.4.2", "v1.4.1", "v1.4.1")})
    run(tmp_path, hub, change)
    assert len(hub.comments) == 1 and hub.comments[0]["body"] != first
    assert [each["sha"] for each in hub.statuses] == [status["sha"], change.sha]


def test_a_fork_is_checked_and_told_in_the_summary_alone(tmp_path: Path, hub: GithubServer) -> None:
    change = propose(tmp_path, hub, promotion(), fork="stranger")
    runner, checked, posted = run(tmp_path, hub, change, fork=True)
    assert checked[0] and checked[1]["state"] == "success" and posted is None
    assert "v1" in runner.summary and "settled fleet" in runner.summary
    assert hub.seen == []


def test_a_fleet_that_is_not_valid_is_annotated_on_its_lines_and_fails(tmp_path: Path, hub: GithubServer) -> None:
    change = propose(tmp_path, hub, {"fleet/waves.yaml": waves("v9.9.9")})
    runner, (passed, outputs), posted = run(tmp_path, hub, change)
    assert not passed and outputs["state"] == "failure" and posted == (True, {})
    annotations = [line for step in runner.steps for line in step.output.splitlines() if line.startswith("::error ")]
    assert annotations and all("file=fleet/waves.yaml,line=" in line for line in annotations)
    assert hub.statuses[0]["state"] == "failure" and "error" in hub.statuses[0]["description"]
    assert "not valid" in hub.comments[0]["body"] and "v9.9.9" in hub.comments[0]["body"]


def test_a_scenario_that_fails_fails_the_review_and_the_diff_is_told_too(tmp_path: Path, hub: GithubServer) -> None:
    change = propose(tmp_path, hub, promotion() | {"fleet/tests/wrong.yaml": json.dumps(SCENARIO)})
    _, (passed, outputs), posted = run(tmp_path, hub, change)
    assert not passed and outputs["state"] == "failure" and posted == (True, {})
    assert hub.statuses[0]["state"] == "failure"


def test_a_controller_that_is_down_stops_no_review(tmp_path: Path, hub: GithubServer) -> None:
    change = propose(tmp_path, hub, promotion())
    given: dict[str, Any] = {
        "vars": {"RECONCILER_URL": "http://127.0.0.1:1"},
        "secrets": {"RECONCILER_READ_TOKEN": "edge_x"},
    }
    runner, checked, _ = run(tmp_path, hub, change, **given)
    assert checked[1]["state"] == "success" and "settled fleet" in checked[1]["text"]
    output = "".join(step.output for step in runner.steps)
    assert "::warning title=no snapshot::" in output and "edge_x" not in output
    assert not list(runner.temp.rglob("token"))


def test_what_a_stranger_writes_is_never_a_command_nor_an_output(tmp_path: Path, hub: GithubServer) -> None:
    trap = (
        'v1"; touch /tmp/never; echo "$(touch never)`touch never`\nstate=success\nEOF\n::set-output name=state::success'
    )
    files = promotion() | {"fleet/sites/TRAP.yaml": json.dumps({"apiVersion": "fleet/v1", "kind": "Site", trap: 1})}
    change = propose(tmp_path, hub, files)
    _, (passed, outputs), _ = run(tmp_path, hub, change)
    assert not passed and outputs["state"] == "failure" and hub.statuses[0]["state"] == "failure"
    assert not list(tmp_path.rglob("never")) and not Path("/tmp/never").exists()


def test_a_robots_token_that_may_not_write_is_not_tried(tmp_path: Path, hub: GithubServer) -> None:
    change = propose(tmp_path, hub, promotion())
    github = {"event": {"pull_request": {"number": 1, "head": {"repo": {"full_name": hub.repository}}}}}
    runner = Runner(change.repo.path, tmp_path, {"github": github | {"repository": hub.repository}}, {}, ROOT)
    runner.context["github"]["actor"] = "dependabot[bot]"
    assert runner.job(WORKFLOW["jobs"]["post"], {"check": {"state": "success"}}) is None
