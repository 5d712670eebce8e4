"""`reconciler simulate` as a command: revisions, folders, snapshots, faults, seeds, pictures, recordings, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.main import _report, cli
from reconciler.cli.simulate import again
from reconciler.simulate.course import Course, Merge
from reconciler.simulate.oracle import Oracle, Rule
from tests.review.repos import document, fleet_files, repo, waves
from tests.support.gitrepo import Repo

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

AT = "2026-01-15T09:00:00Z"
PROMOTED = ("--promote", "v1.4.2", "--at", AT)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    found = repo(tmp_path)
    monkeypatch.chdir(found.path)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The fleet as a folder that no git knows."""
    for path, content in fleet_files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(str(content))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "fleet"


def run(*arguments: str) -> Result:
    """Run it; an error that the program reports becomes its exit code, as in `main`."""
    result = CliRunner().invoke(cli, ["simulate", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        assert isinstance(result.exception, Exception)
        result.exit_code = _report(result.exception)
    return result


def told(*arguments: str) -> Any:
    """The JSON of a run that must be fine."""
    result = run(*arguments, "--output", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def proven(found: Any) -> dict[str, str | None]:
    return {entry["wave"]: entry["provenAt"] for entry in found["calendar"] if entry["release"] == "v1.4.2"}


def test_a_promotion_in_a_folder_is_a_whole_rollout(folder: Path) -> None:
    result = run(*PROMOTED)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "Promote v1.4.2 to all waves"
    assert "a settled fleet" in lines[1]
    assert "violations of the rules: none" in result.stdout
    assert "timeline (UTC, 2026)" in lines
    assert "video@2.7.0" not in result.stdout, "what had nothing to do is left out"
    assert folder.joinpath("waves.yaml").read_text() == waves("v1.4.1"), "edited in memory alone"
    found = told(*PROMOTED)
    assert (found["kind"], found["quiet"], found["sites"], found["devices"]) == ("Simulation", True, 5, 8)
    assert list(proven(found)) == ["lab", "canary", "all"]
    assert None not in proven(found).values()
    assert found["exposure"]["unproven"]["devices"] == 5
    assert {event["kind"] for event in found["events"]} >= {"merged", "told", "arrived", "proven", "state", "quiet"}
    assert [e["detail"] for e in found["events"] if e["kind"] == "merged"] == ["Promote v1.4.2 to all waves"]


def test_revisions_and_the_folder_give_the_same(made: Repo) -> None:
    found = told(*PROMOTED)
    made.commit("Promote", {"fleet/waves.yaml": waves("v1.4.2")})
    assert proven(told("HEAD~1", "HEAD", "--at", AT)) == proven(found)
    made.write({"fleet/waves.yaml": waves("v1.4.2", app="2.8.0")})
    assert {e["release"] for e in told("HEAD", "--at", AT)["calendar"] if e["firstToldAt"]} == {"video@2.8.0"}
    assert run("0" * 40, "HEAD", "--at", AT).exit_code == 1, "nothing in force"
    assert run("nowhere", "--at", AT).exit_code == 1


def test_a_rollback_is_played_too(made: Repo) -> None:
    made.commit("Promote", {"fleet/waves.yaml": waves("v1.4.2")})
    found = told("HEAD", "HEAD~1", "--at", AT)
    back = [event for event in found["events"] if event["kind"] == "told"]
    assert {event["detail"] for event in back} == {"rollback"}
    assert len(back) == 8


def test_waves_may_be_named_in_any_order(folder: Path) -> None:
    found = told(*PROMOTED, "--wave", "canary", "--wave", "lab")
    assert set(proven(found)) == {"lab", "canary"}
    assert run(*PROMOTED, "--wave", "canary").exit_code == 1, "the lab does not ask for it"


def test_the_same_seed_is_the_same_to_the_byte_and_another_is_not(folder: Path) -> None:
    chaos = (*PROMOTED, "--chaos", "--offline", "8%", "--faults-for", "36h", "--output", "json")
    found = run(*chaos).stdout
    assert run(*chaos).stdout == found
    assert run(*chaos, "--seed", "2").stdout != found
    faults = json.loads(found)["faults"]
    assert (faults["fail"], faults["offline"], faults["herd"], faults["until"]) == (
        0.02,
        0.08,
        True,
        "2026-01-16T21:00:00Z",
    )


def test_a_bad_release_is_stopped(folder: Path) -> None:
    found = told(*PROMOTED, "--bad-from", "30m", "--down", "2026-01-15T10:00:00Z/2h")
    assert found["faults"]["bad"] == ["v1.4.2"]
    assert found["faults"]["down"] == [{"from": "2026-01-15T10:00:00Z", "to": "2026-01-15T12:00:00Z"}]
    assert found["calendar"][0]["stoppedAt"] is not None
    assert found["exposure"]["bad"] == {"devices": 1, "at": found["exposure"]["bad"]["at"], "releases": ["v1.4.2"]}
    app = told("--promote", "video@2.8.0", "--at", AT, "--bad-from", "30m")
    assert (app["faults"]["bad"], app["calendar"][1]["stoppedAt"] is not None) == (["video@2.8.0"], True)


def test_down_for_the_night_is_when_a_later_wave_would_begin(folder: Path) -> None:
    found = told(*PROMOTED, "--down", "night")
    assert found["faults"]["down"] == [{"from": "2026-01-15T20:00:00Z", "to": "2026-01-16T08:00:00Z"}]
    first = next(e for e in found["calendar"] if e["wave"] == "canary")["firstToldAt"]
    assert first > "2026-01-16T08:00:00Z"


def test_a_length_is_played_to_its_end(folder: Path) -> None:
    found = told(*PROMOTED, "--for", "12h")
    assert (found["endedAt"], found["quiet"], found["violations"]) == ("2026-01-15T20:59:59Z", False, [])


def test_what_is_observed_is_where_it_begins(folder: Path, tmp_path: Path) -> None:
    device = {
        "name": "SITE-1-1",
        "site": "SITE-1",
        "image": "v1.4.1",
        "health": "ok",
        "lastSeen": "2026-01-15T08:59:30Z",
    }
    path = tmp_path / "observed.json"
    path.write_text(json.dumps({"at": "2026-01-15T08:59:40Z", "devices": [device]}))
    found = told(*PROMOTED, "--observed", str(path))
    assert found["begins"] == f"as observed in {path}, 0 min old at the merge"
    assert {held["reason"] for held in found["calendar"][0]["held"]} == {"offline"}, "the lab has never reported"
    assert proven(told(*PROMOTED, "--observed", str(path), "--silent", "return"))["lab"] is not None
    path.write_text("{")
    assert run(*PROMOTED, "--observed", str(path)).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("main", "--promote", "v1.4.2"), "BASE and --promote"),
        (("--wave", "lab"), "--promote RELEASE"),
        (("--bad", "v1.4.2"), "--bad-from"),
        (("--bad-from", "30h"), "--bad RELEASE"),
        (("--promote", "v1.4.2", "--bad-from", "30h", "--bad", "v1.4.3"), "no release 'v1.4.3'"),
        (("--promote", "v1.4.2", "--bad-from", "soon"), "not a duration"),
        (("--fail", "200%"), "a share"),
        (("--power", "-1"), "a number a day"),
        (("--down", "tomorrow"), "INSTANT/DURATION"),
        (("--down", "night"), "no wave starts"),
        (("--faults-for", "3d"), "none is asked for"),
        (("--for", "0s"), "five years"),
        (("--at", "noon"), "--at"),
        (("--distribution", "x.svg"), "--seeds"),
        (("--picture", "x.pdf"), ".svg nor .png"),
        (("--seeds", "2", "--picture", "x.svg"), "one run"),
        (("--replay", "x", "--promote", "v1.4.2"), "--replay"),
        (("--replay", "x", "--herd"), "no faults"),
        (("fleet",), "--fleet"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_wrong_usage(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, says in result.stderr) == (2, True), result.stderr


def test_an_invalid_fleet_is_named_with_its_place(folder: Path) -> None:
    folder.joinpath("waves.yaml").write_text(document("Waves", "waves", "order: x\nwaves: 7"))
    result = run(*PROMOTED)
    assert result.exit_code == 1
    assert run("--promote", "v9.9.9", "--fleet", "nowhere").exit_code == 1


def test_a_broken_rule_is_told_as_a_defect_and_how_to_see_it_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Oracle.began

    def began(self: Oracle, at: datetime, name: str, release: str, *, waived: bool) -> None:
        true(self, at, name, release, waived=waived)
        self._broken(at, Rule.BUDGET, name, "made up")

    monkeypatch.setattr(Oracle, "began", began)
    monkeypatch.setattr(sys, "argv", ["reconciler", "simulate", "--promote", "v1.4.2", "--seeds", "3"])
    result = run(*PROMOTED)
    assert result.exit_code == 1
    assert "a defect of reconciler, not of your fleet" in result.stderr
    assert f"reconciler simulate --promote v1.4.2 --at {AT} --seed 1\n" in result.stderr
    assert run(*PROMOTED, "--seeds", "2").exit_code == 1


def test_the_command_that_shows_it_again_is_of_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    at = datetime(2026, 1, 15, 9, tzinfo=UTC)
    course = Course({}, at, (Merge(at, {}),))
    words = ["reconciler", "simulate", "a b", "--seeds=4", "--distribution", "x.svg", "--fail", "2%"]
    monkeypatch.setattr(sys, "argv", words)
    assert again(course, 7) == f"reconciler simulate 'a b' --fail 2% --at {AT} --seed 7"


@pytest.mark.slow
def test_pictures_and_a_distribution_are_files(folder: Path, tmp_path: Path) -> None:
    assert run(*PROMOTED, "--picture", "one.svg").exit_code == 0
    assert run(*PROMOTED, "--seeds", "2", "--distribution", "many.png").exit_code == 0
    assert (tmp_path / "one.svg").read_text().startswith("<svg ")
    assert (tmp_path / "many.png").read_bytes().startswith(b"\x89PNG")
    found = told(*PROMOTED, "--seeds", "2")
    assert (found["kind"], len(found["runs"])) == ("SimulationDistribution", 2)


def test_a_recorded_run_is_replayed_under_another_policy(folder: Path) -> None:
    assert run(*PROMOTED, "--record", "run.jsonl").exit_code == 0
    folder.joinpath("waves.yaml").write_text(waves("v1.4.2"))
    same = told("--replay", "run.jsonl")
    assert (same["kind"], same["held"]) == ("Replay", [])
    for wave in same["waves"]:
        for what in ("firstToldAt", "provenAt", "stoppedAt"):
            assert wave["decided"][what] == wave["recorded"][what], wave
    folder.joinpath("waves.yaml").write_text(waves("v1.4.2").replace("soak: 24h", "soak: 30h"))
    result = run("--replay", "run.jsonl")
    assert "open-loop" in result.stdout
    assert "2 devices were started that this policy would not have started by then" in result.stdout
    assert run("--replay", "run.jsonl", "--output", "timeline").stdout.startswith("timeline of what would have been")
    assert run("--replay", "nowhere.jsonl").exit_code == 1


def test_no_picture_loads_no_matplotlib(folder: Path) -> None:
    code = (
        "import sys; sys.argv[1:] = ['simulate', '--promote', 'v1.4.2', '--for', '1h']\n"
        "from reconciler.cli.main import cli\n"
        "try: cli(standalone_mode=False)\n"
        "finally: print([n for n in ('matplotlib', 'sqlalchemy', 'fastapi', 'boto3', 'git', 'httpx') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
