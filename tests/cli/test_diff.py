"""`reconciler diff` as a command: revisions, folders, the work tree, snapshots, keyrings, branches, and its exit codes."""

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
from tests.house.test_imports import HEAVY
from tests.review.repos import document, fleet_files, repo, site, waves
from tests.support.gitrepo import Repo
from tests.support.gpg import Home, make_home

AT = ("--at", "2026-01-15T09:00:00Z")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    found = repo(tmp_path)
    monkeypatch.chdir(found.path)
    return found


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with make_home() as found:
        yield found


def run(*arguments: str) -> Result:
    """Run it; an error that the program reports becomes its exit code, as in `main`."""
    result = CliRunner().invoke(cli, ["diff", *AT, *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        assert isinstance(result.exception, Exception)
        result.exit_code = _report(result.exception)
    return result


def told(*arguments: str) -> Any:
    """The JSON of a run that must be fine."""
    result = run(*arguments, "--output", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_work_tree_against_a_branch(made: Repo) -> None:
    made.write({"fleet/waves.yaml": waves("v1.4.2")})
    result = run("main")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"main ({made.head()[:10]}) → the work tree: a promotion\n")
    assert "fleet/waves.yaml:10" in result.stdout
    assert told("main")["head"] == {"name": "the work tree", "commit": None, "author": None}


def test_two_commits(made: Repo) -> None:
    made.commit("Promote", {"fleet/waves.yaml": waves("v1.4.2")})
    found = told("HEAD~1", "HEAD")
    assert (found["change"], found["relation"], found["head"]["commit"]) == ("promotion", "follows", made.head())
    assert told("HEAD", "HEAD~1")["change"] == "rollback"
    assert told("HEAD", "HEAD")["change"] == "nothing"


def test_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):
        for path, content in fleet_files().items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(str(content))
    (tmp_path / "new/fleet/waves.yaml").write_text(waves("v1.4.2"))
    found = told("old/fleet", "new/fleet/")
    assert (found["relation"], found["change"], found["changes"][0]["file"]) == (
        "folders",
        "promotion",
        "new/fleet/waves.yaml",
    )
    assert found["overlaps"]["unread"] == "two folders have no branches"
    assert run("old/fleet", "new/fleet", "--fleet", "new/fleet").exit_code == 2


def test_a_snapshot_that_was_given(made: Repo, tmp_path: Path) -> None:
    made.write({"fleet/waves.yaml": waves("v1.4.2")})
    path = tmp_path / "seen.json"
    devices = [
        {"name": "SITE-1-1", "image": "v1.4.1", "health": "ok", "lastSeen": "2026-01-15T06:59:30Z"},
        {"name": "SITE-1-2", "image": "v1.4.0", "health": "ok", "lastSeen": "2026-01-14T06:59:30Z"},
    ]
    path.write_text(
        json.dumps({"at": "2026-01-15T07:00:00Z", "devices": devices, "artifacts": {"v1.4.1": "published"}})
    )
    found = told("HEAD", "--observed", str(path))
    assert found["observed"] == {
        "source": "seen.json", "assumed": False, "at": "2026-01-15T07:00:00Z", "ageSeconds": 7200, "silentDevices": 7,
    }  # fmt: skip
    assert {(move["from"], tuple(move["devices"])) for move in found["moves"] if move["wave"] == "canary"} == {
        ("v1.4.0", ("SITE-1-2",)),
        ("v1.4.1", ("SITE-1-1",)),
    }
    path.write_text('{"devices": [{"nam": 1}]}')
    result = run("HEAD", "--observed", str(path))
    assert result.exit_code == 1


def test_keys_of_the_recipe_and_of_the_command_line(made: Repo, home: Home, tmp_path: Path) -> None:
    soon = home.generate("Soon <s@example>", expires="7d", at=datetime(2026, 1, 10, tzinfo=UTC))
    never = home.generate("Never <n@example>")
    made.write({"fleet/images/golden/rootfs/etc/edge/keys/release.gpg": home.export([soon])})
    fleet = document(
        "Fleet", "f", f"registry: registry.example\nimages: s3://edge/\nreleaseKeys: [{never}, {'B' * 40}]"
    )
    made.commit("Keys", {"fleet/fleet.yaml": fleet})
    made.write({"fleet/waves.yaml": waves("v1.4.2")})
    ring = tmp_path / "more.gpg"
    ring.write_bytes(home.export([never]))
    keys = told("HEAD", "--keyring", str(ring))["keys"]
    states = {key["fingerprint"]: (key["keyring"], key["state"]) for key in keys["keys"]}
    assert states[never] == (str(ring), "fine")
    assert states[soon] == ("fleet/images/golden/rootfs/etc/edge/keys/release.gpg", "expires")
    assert keys["missing"] == ["B" * 40]
    ring.write_bytes(b"no keyring")
    assert "finds no public key" in told("HEAD", "--keyring", str(ring))["keys"]["unread"]


def test_without_gpg_the_review_says_that_keys_were_not_looked_at(
    made: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    git = shutil.which("git")
    assert git is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").symlink_to(git)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    made.write({"fleet/waves.yaml": waves("v1.4.2"), "fleet/images/golden/rootfs/etc/edge/keys/release.gpg": b"x"})
    result = run("HEAD")
    assert result.exit_code == 0
    assert (
        "keys: not looked at (fleet/images/golden/rootfs/etc/edge/keys/release.gpg: gpg cannot be run" in result.stdout
    )


def test_other_branches_that_touch_the_same(made: Repo) -> None:
    for name, files in (
        ("promote/lab", {"fleet/waves.yaml": waves("v1.4.2", "v1.4.1", "v1.4.1")}),
        ("site/new", {"fleet/sites/SITE-9.yaml": site("SITE-9", "Europe/Berlin")}),
    ):
        made.git("checkout", "-q", "-b", name, "main")
        made.commit(name, dict(files))
    made.git("checkout", "-q", "-b", "mine", "main")
    made.commit("Mine", {"fleet/waves.yaml": waves("v1.4.2")})
    found = told("main")["overlaps"]
    assert found["looked"] == 2
    (other,) = found["branches"]
    assert (other["branch"], other["waves"], other["releases"], other["sites"]) == (
        "promote/lab",
        ["lab"],
        ["v1.4.2"],
        [],
    )
    assert "overlap: branch promote/lab touches lab, v1.4.2 too" in run("main", "mine").stdout
    assert told("main", "--branches", "site/*")["overlaps"]["branches"] == []


def test_markdown_is_a_comment(made: Repo) -> None:
    made.write({"fleet/waves.yaml": waves("v1.4.2")})
    text = run("HEAD", "--output", "markdown").stdout
    assert text.startswith("**HEAD")
    assert "<details><summary>Calendar (3)</summary>" in text


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nowhere"], 1),
        (["HEAD", "nowhere"], 1),
        (["--", "-x"], 1),
        ([], 2),
        (["HEAD", "--at", "soon"], 2),
        (["HEAD", "--observed", "a", "--config", "b"], 2),
        (["HEAD", "--server", "https://x.example"], 2),
        (["HEAD", "--config", "none.yaml"], 2),
        (["HEAD", "--keyring", "none.gpg"], 2),
        (["HEAD", "--fleet", "none"], 1),
    ],
)
def test_what_cannot_be_done_says_so(made: Repo, arguments: list[str], code: int) -> None:
    assert run(*arguments).exit_code == code


def test_invalid_documents_end_it_with_their_places(made: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    made.write({"fleet/waves.yaml": waves("v7.0.0")})
    assert run("HEAD").exit_code == 1
    assert "fleet/waves.yaml:10:14: wave 'lab' asks for image v7.0.0" in capsys.readouterr().err


def test_a_service_that_does_not_answer(made: Repo, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-token\n")
    made.write({"fleet/waves.yaml": waves("v1.4.2")})
    assert run("HEAD", "--server", "http://127.0.0.1:9", "--token-file", str(token)).exit_code == 3


def test_a_large_fleet_is_told_the_same_side_by_side(
    made: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.write({"fleet/waves.yaml": waves("v1.4.2")})
    path = tmp_path / "seen.json"
    seen = {"image": "v1.4.1", "health": "ok", "lastSeen": "2026-01-15T06:59:30Z"}
    names = ["LAB-1-1", "SITE-1-1", "SITE-1-2", "SITE-2-1", "SITE-3-1", "SITE-3-2", "SITE-3-3"]
    devices = [{"name": name, **seen} for name in names]
    path.write_text(
        json.dumps({"at": "2026-01-15T07:00:00Z", "devices": devices, "artifacts": {"v1.4.1": "published"}})
    )
    before = told("HEAD", "--observed", str(path))
    monkeypatch.setattr("reconciler.review.make.MANY", 1)
    assert told("HEAD", "--observed", str(path)) == before
    assert before["calendar"]["provenAt"]["earliest"] is not None


@pytest.mark.slow
def test_a_review_loads_nothing_heavy(made: Repo) -> None:
    """Start-up time is a bar: neither GitPython nor a client of anything is imported to compare two commits."""
    made.write({"fleet/waves.yaml": waves("v1.4.2")})
    code = (
        "import sys\nfrom reconciler.cli.main import cli\n"
        "cli(['diff', 'HEAD', '--output', 'markdown'], standalone_mode=False)\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("**HEAD")
    assert done.stderr.split() == []
