"""The workflows are valid, may do little, pin what they run, and run commands that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from reconciler.cli.main import cli
from tests.house.tree import ROOT

FOLDER = ROOT / ".github/workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
PINNED = re.compile(r"^[\w.-]+/[\w./-]+@[0-9a-f]{40}$")


def steps(path: Path) -> list[dict[str, Any]]:
    """Every step of every job."""
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_both_are_there() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "validate-fleet.yml"]


def test_an_independent_validator_accepts_them() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        *map(str, WORKFLOWS),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_and_nothing_else(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    assert document["permissions"] == {"contents": "read"}
    # YAML 1.1 reads the key `on` as true.
    triggers = document.get("on", document.get(True))
    assert set(triggers) <= {"push", "pull_request"}
    assert all("permissions" not in job and "timeout-minutes" in job for job in document["jobs"].values())
    assert "secrets." not in path.read_text()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_keep_no_credential(path: Path) -> None:
    used = [step for step in steps(path) if "uses" in step]
    assert used
    for step in used:
        assert PINNED.match(step["uses"]), f"{step['uses']}: pin it by its whole commit hash"
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    for line in path.read_text().splitlines():
        if "uses:" in line:
            assert re.search(r"# v\d+\.\d+\.\d+$", line), f"{line.strip()}: say which release the hash is"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_expression_stands_in_a_script(path: Path) -> None:
    """A pull request's title or branch in a script would be run."""
    assert not [step["run"] for step in steps(path) if "${{" in step.get("run", "")]


def test_the_fleet_workflow_runs_what_it_says() -> None:
    lines = [line for step in steps(FOLDER / "validate-fleet.yml") for line in step.get("run", "").splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/reconciler ")]
    assert [command[0] for command in commands] == ["validate", "test"]
    for command in commands:
        arguments = [str(ROOT / word) if word == "fleet" else word for word in command]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output


def test_ci_installs_every_package_that_the_suite_asks_for() -> None:
    done = subprocess.run(["make", "--silent", "packages"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = set(done.stdout.split())
    needed = {"git", "gnupg", "gpgv", "zstd", "e2fsprogs", "docker-registry", "cloud-init", "shellcheck"}
    assert needed <= named
