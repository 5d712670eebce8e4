"""`reconciler test`: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.main import cli

CONTRACT = Path(__file__).resolve().parents[1] / "contract"

PASSES = """\
apiVersion: fleet/v1
kind: Scenario
metadata: {name: devices move in their window}
spec:
  sites: {count: 2, timezone: UTC}
  documents:
    - kind: Waves
      metadata: {name: waves}
      spec: {waves: [{name: all, percent: 100, image: v2, soak: 24h}]}
  now: 2026-01-15T02:30:00Z
  observed:
    artifacts: {v1: published, v2: published}
    defaults: {image: v1, health: ok, healthSince: 2026-01-01T00:00:00Z, lastSeen: now}
  expect:
    actions:
      - {kind: flash, to: v2, count: 2}
"""
FAILS = (
    PASSES.replace("devices move", "a <device> moves")
    .replace("count: 2}\n", "count: 1}\n")
    .replace("count: 1, t", "count: 2, t")
)
BROKEN = PASSES.replace("percent: 100", "percent: 101")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["test", *(str(argument) for argument in arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tests" / "deep").mkdir(parents=True)
    (tmp_path / "tests" / "deep" / "good.yaml").write_text(PASSES)
    return tmp_path


def test_the_contracts_scenarios_pass() -> None:
    result = run(CONTRACT / "scenarios")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "ok   a canary that has soaked exactly 48 hours opens the next wave"
    assert lines[-1] == "6 passed, 0 failed"


def test_without_a_path_the_fleets_tests_are_run(folder: Path) -> None:
    result = run("--fleet", folder)
    assert (result.exit_code, result.stdout) == (0, "ok   devices move in their window\n1 passed, 0 failed\n")


def test_a_failing_scenario_says_what_differs(folder: Path) -> None:
    (folder / "tests" / "bad.yaml").write_text(FAILS)
    result = run("--fleet", folder)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:2] == [
        "FAIL a <device> moves in their window",
        "       unexpected action {kind: flash, device: SITE-0002-1, site: SITE-0002, wave: all, from: v1, to: v2, "
        "why: promote, method: write}; {kind: flash, to: v2} fits it, but has its count already",
    ]
    assert result.stdout.splitlines()[-1] == "1 passed, 1 failed"


def test_an_invalid_file_is_a_problem_and_the_others_still_run(folder: Path) -> None:
    path = folder / "tests" / "a.yaml"
    path.write_text(BROKEN)
    result = run(path, folder / "tests" / "deep")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{path}:9:43: ")
    assert "'101' is not a percentage" in result.stderr
    assert result.stdout.splitlines()[-1] == "1 passed, 1 failed"


def test_json(folder: Path) -> None:
    (folder / "tests" / "bad.yaml").write_text(FAILS)
    (folder / "tests" / "broken.yaml").write_text(BROKEN)
    result = run("--fleet", folder, "--output", "json")
    found = json.loads(result.stdout)
    assert (found["apiVersion"], found["kind"]) == ("fleet/v1", "TestResults")
    assert [item["passed"] for item in found["scenarios"]] == [False, False, True]
    assert [len(item["failures"]) for item in found["scenarios"]] == [1, 0, 0]
    assert [len(item["problems"]) for item in found["scenarios"]] == [0, 1, 0]


def test_junit_is_well_formed(folder: Path) -> None:
    (folder / "tests" / "bad.yaml").write_text(FAILS)
    (folder / "tests" / "broken.yaml").write_text(BROKEN)
    suite = ElementTree.fromstring(run("--fleet", folder, "--output", "junit").stdout.encode())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert suite[0].get("name") == "a <device> moves in their window"
    assert [[child.tag for child in case] for case in suite] == [["failure"], ["error"], []]


def test_a_path_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "no file or folder" in result.stderr
    assert run("--fleet", tmp_path).exit_code == 2


def test_the_repos_own_documents_are_planned_where_there_are_none(tmp_path: Path) -> None:
    text = """\
apiVersion: fleet/v1
kind: Scenario
metadata: {name: the lab goes first}
spec:
  now: 2026-01-15T12:00:00Z
  observed:
    artifacts: {v1.4.1: published, v1.4.2: published}
    defaults: {image: v1.4.1, health: ok, healthSince: 2026-01-01T00:00:00Z, lastSeen: now}
  expect:
    actions:
      - {kind: flash, device: LAB-0001-1, wave: lab, to: v1.4.2}
      - {kind: retag, app: video-ingest, tag: lab}
    holds:
      - {device: SITE-2847-2, reason: wave-waits}
"""
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    result = run(path, "--fleet", CONTRACT / "fleet")
    assert (result.exit_code, result.stderr) == (0, ""), result.stdout
    alone = run(path, "--fleet", tmp_path / "none")
    assert alone.exit_code == 1
    assert (
        alone.stderr
        == f"{path}:5:3: no documents, and there is no fleet repo to take them from; name it with --fleet\n"
    )
