"""`reconciler validate`: what it prints where, and how it exits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from reconciler.cli.main import cli

ROOT = Path(__file__).parents[2]
BASE = ROOT / "tests/repo/corpus/base"


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(BASE, tmp_path / "fleet")
    monkeypatch.chdir(tmp_path)
    return Path("fleet")


def run(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, ["validate", *args])
    return done.exit_code, done.stdout, done.stderr


def test_a_good_fleet_exits_0_and_says_what_it_holds() -> None:
    code, out, err = run("--fleet", str(ROOT / "tests/contract/fleet"))
    assert (code, out) == (0, "")
    assert err.endswith("valid, 0 warnings, 5 sites, 5 waves, 2 images, 1 app, 0 scenarios\n")


def test_each_problem_is_a_line_on_stderr(fleet: Path) -> None:
    (fleet / "fleet.yaml").write_text(
        "apiVersion: fleet/v1\nkind: Fleet\nmetadata: {name: x}\nspec: {staleAfter: 15}\n"
    )
    code, out, err = run("fleet")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "fleet/fleet.yaml:4:20: spec.staleAfter: '15' is not a duration; "
        "write a number with its unit, as 90s, 15m, 48h, 7d or 1h30m",
        "fleet: 1 error, 0 warnings",
    ]


def test_warnings_alone_exit_0(fleet: Path) -> None:
    with (fleet / "sites/SITE-0002.yaml").open("a") as file:
        file.write("  cameras: [192.0.2.1, 192.0.2.1]\n")
    code, _, err = run("fleet")
    assert code == 0
    assert "fleet/sites/SITE-0002.yaml:7:24: warning: camera '192.0.2.1' is listed twice; keep one" in err
    assert "valid, 1 warning, 3 sites" in err


def test_github_gets_annotations_that_nothing_in_the_input_can_break(fleet: Path) -> None:
    odd = fleet / "sites/a,b:c%.yaml"
    odd.write_text(
        'apiVersion: fleet/v1\nkind: Site\nmetadata: {name: a}\nspec: {timezone: "x\\n::error::100%", devices: [D]}\n'
    )
    code, out, _ = run("fleet", "--format", "github")
    assert code == 1
    lines = out.splitlines()
    assert all(line.startswith(("::error file=", "::warning file=")) for line in lines)
    assert any(
        line.startswith("::error file=fleet/sites/a%2Cb%3Ac%25.yaml,line=4,col=18,title=unknown-timezone::")
        for line in lines
    )
    assert any("100%25" in line for line in lines)


def test_json_lists_the_problems(fleet: Path) -> None:
    (fleet / "waves.yaml").unlink()
    code, out, _ = run("fleet", "--format", "json")
    assert code == 1
    assert json.loads(out)["problems"][0] == {
        "path": "fleet/waves.yaml",
        "line": 1,
        "column": 1,
        "severity": "error",
        "code": "missing-document",
        "message": "there is no waves.yaml, the document of the rollout (kind: Waves); write it at the top of the fleet repo",
    }


def test_a_path_narrows_what_is_shown(fleet: Path) -> None:
    (fleet / "sites/SITE-0002.yaml").write_text("[")
    (fleet / "images/v1.yaml").write_text("[")
    for path in ("sites/SITE-0002.yaml", "fleet/sites"):
        code, _, err = run("--fleet", "fleet", path)
        assert code == 1
        assert "SITE-0002" in err
        assert "v1.yaml" not in err
    assert run("--fleet", "fleet", "apps")[0] == 0
    for path in ("fleet/sites", "fleet/sites/SITE-0002.yaml"):
        code, _, err = run(path)
        assert code == 1
        assert err.count("\n") == 2, err
        assert err.startswith("fleet/sites/SITE-0002.yaml:1:1: ")
    assert run("--fleet", "fleet", "/etc/passwd")[0] == 2


def test_documents_inside_scenarios_are_checked(fleet: Path) -> None:
    (fleet / "tests").mkdir()
    (fleet / "tests/a.yaml").write_text(
        "apiVersion: fleet/v1\nkind: Scenario\nmetadata: {name: a}\nspec:\n  now: 2026-01-15T01:30:00Z\n"
        "  documents:\n    - {kind: Wave, metadata: {name: w}, spec: {}}\n  expect: {actions: []}\n"
    )
    code, _, err = run("fleet")
    assert code == 1
    assert "fleet/tests/a.yaml:7:14: " in err
    (fleet / "tests/a.yaml").write_text(
        "apiVersion: fleet/v1\nkind: Scenario\nmetadata: {name: a}\nspec:\n  now: 2026-01-15T01:30:00Z\n"
        "  expect: {actions: []}\n"
    )
    assert run("fleet")[0] == 0
    (fleet / "fleet.yaml").unlink()
    code, _, err = run("fleet")
    assert code == 1
    assert err.count("\n") == 2


def test_no_fleet_is_told() -> None:
    code, _, err = run("/nonexistent")
    assert code == 1
    assert "/nonexistent:1:1: the fleet repo's folder does not exist" in err
