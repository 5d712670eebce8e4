"""The workflows are valid, may do little, pin what they run, and run commands that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from reconciler.cli.main import cli
from tests.house.tree import ROOT
from tests.support.schema import check_jsonschema
from tests.support.system import need

FOLDER = ROOT / ".github/workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
ACTION = ROOT / ".github/actions/fleet-pr/action.yml"
PINNED = re.compile(r"^[\w.-]+/[\w./-]+@[0-9a-f]{40}$")
# Job → what it may do; a job that is not here may read, as its workflow says.
MAY = {
    "check": {"contents": "read"},
    "post": {"contents": "read", "pull-requests": "write", "statuses": "write"},
    # Pushes a branch and opens its pull request; runs nothing but what is merged.
    "propose": {"contents": "write", "pull-requests": "write"},
    "plan": {"contents": "read"},
    # Runs a recipe's scripts: nothing here can write, ask for a role, or sign.
    "build": {"contents": "read"},
    "upload": {"contents": "read", "id-token": "write"},
}


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    """The jobs of a workflow."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["jobs"]
    return found


def steps(path: Path) -> list[dict[str, Any]]:
    """Every step of every job, or of the action."""
    if path == ACTION:
        return list(yaml.safe_load(path.read_text())["runs"]["steps"])
    return [step for job in jobs(path).values() for step in job["steps"]]


def test_all_are_there() -> None:
    assert [path.name for path in WORKFLOWS] == ["build-image.yml", "ci.yml", "fleet-pr.yml", "monthly-image.yml"]


@pytest.mark.parametrize(
    ("schema", "files"), [("github-workflows", WORKFLOWS), ("github-actions", [ACTION])], ids=["workflows", "action"]
)
def test_an_independent_validator_accepts_them(schema: str, files: list[Path]) -> None:
    done = check_jsonschema("--builtin-schema", f"vendor.{schema}", *map(str, files))
    assert done.exit_code == 0, done.output


def zizmor(*where: Path) -> subprocess.CompletedProcess[str]:
    """zizmor over files or folders, without the network."""
    command = [str(Path(sys.executable).parent / "zizmor"), "--offline", "--no-progress", "--quiet", *map(str, where)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_linter_finds_nothing_in_them_but_what_is_explained(tmp_path: Path) -> None:
    done = zizmor(ROOT / ".github")
    assert done.returncode == 0, done.stdout + done.stderr
    # What it lets through is named with a reason, file by file.
    config = (ROOT / ".github/zizmor.yml").read_text()
    for rule in yaml.safe_load(config)["rules"].values():
        assert set(rule) == {"ignore"}
        for name in rule["ignore"]:
            assert (FOLDER / name.partition(":")[0]).is_file()
            assert re.search(rf"# .+\n *- {re.escape(name)}$", config, re.MULTILINE), f"{name}: say why"
    # It would find something: an expression in a script, and an action by a name that may move.
    text = (FOLDER / "monthly-image.yml").read_text().replace('"$RELEASE" ]', '"${{ inputs.release }}" ]')
    (tmp_path / ".github/workflows").mkdir(parents=True)
    bad = tmp_path / ".github/workflows/bad.yml"
    bad.write_text(re.sub(r"checkout@\w+ # v5.0.0", "checkout@v5", text))
    found = zizmor(bad)
    assert found.returncode != 0 and "unpinned-uses" in found.stdout and "template-injection" in found.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_do_what_its_jobs_need_and_nothing_else(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    # YAML 1.1 reads the key `on` as true.
    triggers = document.get("on", document.get(True))
    assert set(triggers) <= {"push", "pull_request", "schedule", "workflow_dispatch"}
    assert document["permissions"] == ({"contents": "read"} if path.name == "ci.yml" else {})
    for name, job in document["jobs"].items():
        assert job.get("permissions") == MAY.get(name), name
        assert "timeout-minutes" in job, name


def test_what_may_write_runs_nothing_that_is_proposed_and_is_not_for_forks() -> None:
    post = jobs(FOLDER / "fleet-pr.yml")["post"]
    checkout, *rest = post["steps"]
    assert checkout["with"]["ref"] == "${{ github.event.pull_request.base.sha }}"
    assert [step["uses"] for step in rest] == ["./.github/actions/fleet-pr"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in post["if"]
    text = (FOLDER / "fleet-pr.yml").read_text()
    # The one secret goes to the job that may not write.
    assert re.findall(r"secrets\.(\w+)", text) == ["RECONCILER_READ_TOKEN"]
    assert text.index("secrets.") < text.index("  post:")
    for path in WORKFLOWS:
        assert path.name == "fleet-pr.yml" or "secrets." not in path.read_text()


def test_what_runs_a_recipe_has_nothing_to_take_and_what_may_write_the_store_runs_none() -> None:
    document = jobs(FOLDER / "build-image.yml")
    build, upload = document["build"], document["upload"]
    told = str(build)
    assert "github.token" not in told and "id-token" not in told and "ROLE" not in told and "environment" not in build
    assert {word for step in build["steps"] for word in re.findall(r"vars\.(\w+)", str(step))} == {"IMAGE_MIRRORS"}
    commands = [step["run"] for step in upload["steps"] if "run" in step]
    assert not [text for text in commands if "image build" in text or "sign" in text]
    assert upload["environment"] == "image-store"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_pipe_that_fails_fails_its_step(path: Path) -> None:
    """Without `shell: bash` GitHub runs scripts without pipefail."""
    document = yaml.safe_load(path.read_text())
    if document.get("defaults", {}).get("run", {}).get("shell") != "bash":
        assert not [step["run"] for step in steps(path) if re.search(r"(?<!\|)\|(?!\|)", step.get("run", ""))]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_commands_in_workflows_exist_with_their_options(path: Path) -> None:
    for step in steps(path):
        script = step.get("run", "").replace("\\\n", " ")
        for line in re.findall(r'bin/reconciler"? (.+)', script):
            command: click.Command = cli
            for word in re.match(r"(?:[a-z][a-z-]* )*", line)[0].split():  # type: ignore[index]
                assert isinstance(command, click.Group)
                below = command.get_command(click.Context(command), word)
                assert below is not None, f"{path.name}: no command {line}"
                command = below
            known = {name for parameter in command.params for name in parameter.opts}
            words = [line.partition("|")[0], *re.findall(r"words\+?=\((.*?)\)", script)]
            given = {option for text in words for option in re.findall(r"(?:^|\s)(--[a-z-]+)", text)}
            assert given and given <= known, f"{path.name}: {sorted(given - known)}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_keep_no_credential(path: Path) -> None:
    used = [step for step in steps(path) if not step.get("uses", "./").startswith("./")]
    assert used
    for step in used:
        assert PINNED.match(step["uses"]), f"{step['uses']}: pin it by its whole commit hash"
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    for line in path.read_text().splitlines():
        if re.match(r"\s*(- )?uses: (?!\./)", line):
            assert re.search(r"# v\d+\.\d+\.\d+$", line), f"{line.strip()}: say which release the hash is"


@pytest.mark.parametrize("path", [*WORKFLOWS, ACTION], ids=lambda path: path.name)
def test_no_expression_stands_in_a_script(path: Path) -> None:
    """A pull request's title or branch in a script would be run."""
    assert not [step["run"] for step in steps(path) if "${{" in step.get("run", "")]


def test_the_action_needs_no_other_action() -> None:
    assert not [step for step in steps(ACTION) if "uses" in step or step["shell"] != "bash"]


@pytest.mark.parametrize("path", [*WORKFLOWS, ACTION], ids=lambda path: path.name)
def test_scripts_are_sound(path: Path, tmp_path: Path) -> None:
    need("shellcheck")
    for number, step in enumerate(step for step in steps(path) if "run" in step):
        (tmp_path / f"{number}.sh").write_text("#!/usr/bin/env bash\nset -eo pipefail\n" + step["run"])
    scripts = sorted(map(str, tmp_path.glob("*.sh")))
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_workflow_that_others_are_told_to_write_is_as_safe_as_ours(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/review-in-github.md").read_text()
    block = re.search(r"   ```yaml\n(   name: fleet-pr\n.*?)   ```", page, re.DOTALL)
    assert block is not None
    path = tmp_path / "fleet-pr.yml"
    path.write_text(dedent(block[1]))
    done = check_jsonschema("--builtin-schema", "vendor.github-workflows", str(path))
    assert done.exit_code == 0, done.output
    told, ours = yaml.safe_load(path.read_text()), yaml.safe_load((FOLDER / "fleet-pr.yml").read_text())
    assert told["permissions"] == {} and told.get("on", told.get(True)) == "pull_request"
    assert told["jobs"]["check"]["permissions"] == MAY["check"]
    # Its tool is no checkout of the fleet repo, so it needs not even to read that.
    assert told["jobs"]["post"]["permissions"] == {key: may for key, may in MAY["post"].items() if key != "contents"}
    assert told["jobs"]["check"]["outputs"] == ours["jobs"]["check"]["outputs"]
    assert told["jobs"]["post"]["if"] == ours["jobs"]["post"]["if"]
    inputs = set(yaml.safe_load(ACTION.read_text())["inputs"])
    for step in steps(path):
        assert "${{" not in step.get("run", "")
        if "uses" in step:
            assert PINNED.match(step["uses"])
        if "fleet-pr@" in step.get("uses", ""):
            assert set(step["with"]) <= inputs


def test_the_fleet_of_this_project_passes_what_the_workflow_checks() -> None:
    for command in (["validate", "--format", "github"], ["test"]):
        result = CliRunner().invoke(cli, [*command, "--fleet", str(ROOT / "fleet")])
        assert result.exit_code == 0, result.output


def test_ci_installs_every_package_that_the_suite_asks_for() -> None:
    done = subprocess.run(["make", "--silent", "packages"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = set(done.stdout.split())
    needed = {"git", "gnupg", "gpgv", "zstd", "e2fsprogs", "docker-registry", "cloud-init", "shellcheck"}
    assert needed <= named
