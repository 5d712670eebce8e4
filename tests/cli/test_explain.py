"""`reconciler explain` on a real git repository: who asked for it, and how the command behaves."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.main import cli
from reconciler.controller.bootstrap import make_git, make_store
from reconciler.controller.settings import load_settings
from reconciler.model.events import CheckSaid, HealthChange
from tests.support.gitrepo import Repo
from tests.support.settings import write_settings

AT = "2026-01-15T02:30:00Z"
OLD = "2026-01-01T00:00:00Z"
HEAD = "apiVersion: fleet/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
WAVES = """\
apiVersion: fleet/v1
kind: Waves
metadata:
  name: waves
spec:
  waves:
    - name: canary
      sites: [SITE-0001, SITE-0003]
      image: v1
      soak: 48h
    - {name: all, percent: 100, image: v1, maxOffline: 10%, soak: 24h}
"""


def document(kind: str, name: str, spec: str) -> str:
    return HEAD.format(kind=kind, name=name, spec=spec)


FILES: dict[str, str | bytes | None] = {
    "fleet.yaml": document("Fleet", "fleet", "{}"),
    "images/v1.yaml": document("Image", "v1", "{}"),
    "images/v2.yaml": document("Image", "v2", "{}"),
    "sites/SITE-0001.yaml": document("Site", "SITE-0001", "{timezone: UTC, devices: [SITE-0001-1]}"),
    "sites/SITE-0002.yaml": document("Site", "SITE-0002", "{timezone: UTC, devices: [SITE-0002-1, all]}"),
    "sites/SITE-0003.yaml": document("Site", "SITE-0003", "{timezone: UTC, devices: [SITE-0003-1]}"),
    "waves.yaml": WAVES,
}


def device(name: str, **more: Any) -> dict[str, Any]:
    sound = {"image": "v1", "imageSince": OLD, "health": "ok", "healthSince": OLD, "lastSeen": AT}
    return {"name": name, **sound, **more}


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    made = Repo(tmp_path / "fleet")
    made.commit("Describe the fleet", FILES)
    snapshot = {
        "devices": [
            device("SITE-0001-1", image="v2", imageSince="2026-01-13T20:00:00Z", healthSince="2026-01-13T20:30:00Z"),
            device("SITE-0003-1", image="v2", imageSince="2026-01-13T19:00:00Z", healthSince="2026-01-13T19:30:00Z"),
            device("SITE-0002-1"),
            device("all"),
        ],
        "artifacts": {"v1": "published", "v2": "published"},
    }
    (tmp_path / "observed.json").write_text(json.dumps(snapshot))
    return made


def run(repo: Repo, *words: str) -> Result:
    observed = str(repo.path.parent / "observed.json")
    return CliRunner().invoke(cli, ["explain", *words, "--fleet", str(repo.path), "--observed", observed, "--at", AT])


def told(repo: Repo, *words: str) -> dict[str, Any]:
    done = run(repo, *words, "--output", "json")
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def raised(text: str) -> str:
    return text.replace("image: v1", "image: v2")


def asked(said: dict[str, Any], part: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = said["parts"][part]["askedFor"]
    return found


def test_the_chain_is_shown_with_the_commit_that_asked_for_it(repo: Repo) -> None:
    sha = repo.commit("Promote v2", {"waves.yaml": raised(WAVES)})
    done = run(repo, "SITE-0002-1")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "SITE-0002-1 at SITE-0002, wave all, at 2026-01-15T02:30:00Z (last seen 2026-01-15T02:30:00Z)",
        "  image: v1 → v2: soaking",
        "    SITE-0002-1 is not on v2 ← wave all waits ← wave canary soaks v2, 30 h of 48 h"
        " ← SITE-0001-1 healthy on v2 for 30 h",
        "    why: The earlier wave is complete, and its soak runs.",
        f"    asked for by {sha[:7]} (Ada, 2026-01-01): {repo.path}/waves.yaml:11"
        " - {name: all, percent: 100, image: v2, maxOffline: 10%, soak: 24h}",
        "    ← wave all waits (until 2026-01-15T20:30:00Z)",
    ]
    assert "      opens at 2026-01-15T20:30:00Z if wave canary stays healthy" in lines
    assert lines[lines.index("      opens at 2026-01-15T20:30:00Z if wave canary stays healthy") + 1].strip() == (
        "earlier: nothing"
    )


def test_the_commit_that_set_the_value_is_named_and_not_the_one_that_touched_its_line(repo: Repo) -> None:
    sha = repo.commit("Promote v2", {"waves.yaml": raised(WAVES)})
    other = raised(WAVES).replace("soak: 24h", "soak: 12h, maxFailed: 1")
    later = repo.commit("Soak for less", {"waves.yaml": other})
    said = told(repo, "SITE-0002-1")
    assert asked(said)["commit"] == sha
    assert asked(said)["summary"] == "Promote v2"
    moved = other.replace(
        "    - name: canary", "    - name: lab\n      sites: [LAB-0001]\n      soak: 1h\n    - name: canary"
    )
    lab = document("Site", "LAB-0001", "{timezone: UTC, lab: true, devices: [LAB-0001-1]}")
    repo.commit("Put a wave before", {"waves.yaml": moved, "sites/LAB-0001.yaml": lab})
    assert asked(told(repo, "SITE-0002-1"))["commit"] == sha
    assert later != sha


def test_what_is_not_committed_is_said_to_be(repo: Repo) -> None:
    repo.write({"waves.yaml": raised(WAVES)})
    found = asked(told(repo, "SITE-0001-1"))
    assert (found["commit"], found["note"]) == (None, "not committed yet")
    assert found["text"] == "image: v2"


def test_a_value_that_others_on_its_line_changed_uncommitted_keeps_its_commit(repo: Repo) -> None:
    sha = repo.commit("Promote v2", {"waves.yaml": raised(WAVES)})
    repo.write({"waves.yaml": raised(WAVES).replace("soak: 24h", "soak: 12h")})
    assert asked(told(repo, "SITE-0002-1"))["commit"] == sha


@pytest.mark.parametrize(
    ("name", "text", "path", "line", "why"),
    [
        ("fleet.yaml", document("Fleet", "fleet", "{paused: true}"), "fleet.yaml", 4, "paused"),
        (
            "fleet.yaml",
            document("Fleet", "fleet", f"\n  freezes:\n    - {{from: {OLD}, to: 2026-02-01T00:00:00Z, why: fair}}"),
            "fleet.yaml", 6, "frozen",
        ),
        ("waves.yaml", raised(WAVES).replace("soak: 48h", "soak: 48h\n      paused: true"), "waves.yaml", 11, "paused"),
        (
            "sites/SITE-0001.yaml",
            document("Site", "SITE-0001", "{timezone: UTC, suspended: true, devices: [SITE-0001-1]}"),
            "sites/SITE-0001.yaml", 4, "suspended",
        ),
        ("images/v2.yaml", document("Image", "v2", "{withdrawn: leaks}"), "images/v2.yaml", 4, "withdrawn"),
    ],
)  # fmt: skip
def test_whoever_stops_it_is_named_with_what_to_edit(
    repo: Repo, name: str, text: str, path: str, line: int, why: str
) -> None:
    snapshot = repo.path.parent / "observed.json"
    devices = [device(name) for name in ("SITE-0001-1", "SITE-0002-1", "SITE-0003-1", "all")]
    snapshot.write_text(json.dumps({"devices": devices, "artifacts": {"v1": "published", "v2": "published"}}))
    repo.commit("Promote v2", {"waves.yaml": raised(WAVES)})
    sha = repo.commit("Stop it", {name: text})
    found = told(repo, "SITE-0001-1")["parts"][0]
    assert found["decision"] == why
    last = found["chain"][-1]
    assert last["reason"] == why
    assert (last["askedFor"]["path"], last["askedFor"]["line"]) == (f"{repo.path}/{path}", line)
    assert last["askedFor"]["commit"] == sha
    assert any(change["what"].endswith(f" in {repo.path}/{path}:{line}") for change in last["changes"])


def test_a_pin_is_asked_for_by_the_site(repo: Repo) -> None:
    pinned = "{timezone: UTC, devices: [SITE-0001-1], pin: {image: v1, why: a trial}}"
    sha = repo.commit("Pin it", {"sites/SITE-0001.yaml": document("Site", "SITE-0001", pinned)})
    part = told(repo, "SITE-0001-1")["parts"][0]
    assert part["because"] == "the site pins it in git: a trial"
    assert (part["askedFor"]["commit"], part["askedFor"]["line"]) == (sha, 4)


def test_a_site_whose_file_has_another_name_is_found(repo: Repo) -> None:
    moved: dict[str, str | bytes | None] = {
        "sites/SITE-0001.yaml": None,
        "sites/berlin.yaml": document("Site", "SITE-0001", "{timezone: UTC, suspended: true, devices: [SITE-0001-1]}"),
    }
    repo.commit("Call it by its town", moved)
    notes = told(repo, "SITE-0001")["notes"]
    assert notes[0]["askedFor"]["path"] == f"{repo.path}/sites/berlin.yaml"


def test_a_wave_is_explained_with_every_name(repo: Repo) -> None:
    sha = repo.commit("Promote v2", {"waves.yaml": raised(WAVES)})
    said = told(repo, "canary")
    assert (said["of"], said["sites"]["listed"]) == ("wave", ["SITE-0001", "SITE-0003"])
    part = said["parts"][0]
    assert part["soak"] == {
        "length": "48 h", "since": "2026-01-13T20:30:00Z", "until": "2026-01-15T20:30:00Z", "progress": "30 h of 48 h",
    }  # fmt: skip
    assert part["next"] == {
        "wave": "all",
        "statement": "wave all may begin at 2026-01-15T20:30:00Z, if what soaks stays healthy",
        "at": "2026-01-15T20:30:00Z",
    }
    assert part["askedFor"]["commit"] == sha


def test_a_name_of_two_kinds_needs_to_be_said_which(repo: Repo) -> None:
    done = run(repo, "all")
    assert done.exit_code == 2
    assert "'all' is the name of a device and of a wave; say which with --kind" in done.stderr
    assert told(repo, "all", "--kind", "wave")["of"] == "wave"
    assert told(repo, "all", "--kind", "device")["of"] == "device"


def test_an_unknown_name_is_told_the_nearest_of_all_kinds(repo: Repo) -> None:
    done = run(repo, "canari")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: 'canari' is no device, site or wave of this fleet; did you mean wave 'canary'?\n"
    near = run(repo, "SITE-0002-11").stderr
    assert "device 'SITE-0002-1'" in near
    assert "it is the name of a wave" in run(repo, "canary", "--kind", "site").stderr


def test_outside_of_git_it_says_so(repo: Repo, tmp_path: Path) -> None:
    (repo.path / ".git").rename(tmp_path / "elsewhere")
    done = run(repo, "SITE-0002-1")
    assert done.exit_code == 0
    assert done.stdout.endswith(f"no author is shown: {repo.path} is in no git work tree\n")
    assert f"asked for in {repo.path}/waves.yaml:11 " in done.stdout


def test_without_history_git_is_not_asked(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    without = run(repo, "SITE-0002-1", "--no-history")
    assert (without.exit_code, without.stderr) == (0, "")
    assert "no author" not in without.stdout
    done = run(repo, "SITE-0002-1")
    assert done.exit_code == 0
    assert "no author is shown: the git program was not found" in done.stdout


def test_a_commit_cannot_steer_the_terminal(repo: Repo) -> None:
    repo.write({"waves.yaml": raised(WAVES)})
    repo.git("add", "-A")
    repo.record("Promote", env={"GIT_AUTHOR_NAME": "Eve\x1b[2J"})
    done = run(repo, "SITE-0001-1")
    assert done.exit_code == 0
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_a_cut_off_history_is_said_to_be(repo: Repo, tmp_path: Path) -> None:
    repo.commit("Touch something else", {"README.md": "x"})
    shallow = Repo(tmp_path / "shallow")
    shallow.git("fetch", "-q", "--depth=1", f"file://{repo.path}", "main")
    shallow.git("reset", "-q", "--hard", "FETCH_HEAD")
    found = asked(told(shallow, "SITE-0001-1"))
    assert found["note"] == "or by an older commit: the history here is cut off"


@pytest.fixture
def in_force(repo: Repo, tmp_path: Path) -> tuple[Path, str]:
    """Settings of a controller whose mirror has the fleet repo, and the commit that its store says is in force."""
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "secrets").mkdir(mode=0o700)
    (tmp_path / "keys.gpg").write_bytes(b"")
    allowed = {"images": ["s3://edge-images/"], "registries": ["registry.invalid"]}
    config = write_settings(tmp_path, git={"url": str(repo.path)}, allowed=allowed)
    settings = load_settings(config)
    sha = repo.commit("Promote v2", {"waves.yaml": raised(WAVES)})
    git = make_git(settings, lambda: datetime.now(UTC))
    git.refresh()
    store = make_store(settings, create=True)
    try:
        store.accept_commit(store.begin_epoch(), sha, datetime.now(UTC))
    finally:
        store.close()
    return config, sha


def test_what_is_in_force_is_explained_from_the_mirror(in_force: tuple[Path, str], repo: Repo) -> None:
    """Of the commit in force, and not of what was committed after it."""
    config, sha = in_force
    repo.commit(
        "Go on", {"waves.yaml": raised(WAVES).replace("      soak: 48h", "      maxFailed: 1\n      soak: 48h")}
    )
    done = CliRunner().invoke(cli, ["explain", "canary", "--config", str(config), "--output", "json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["commit"] == sha
    assert asked(said) | {"at": None} == {
        "path": "waves.yaml", "line": 9, "text": "image: v2", "commit": sha, "author": "Ada", "at": None,
        "summary": "Promote v2", "note": None,
    }  # fmt: skip


def test_a_check_that_warns_is_told_of_a_device_and_of_its_site(in_force: tuple[Path, str]) -> None:
    config, _ = in_force
    store, at = make_store(load_settings(config), create=False), datetime(2026, 1, 15, tzinfo=UTC)
    try:
        store.add_health(
            [HealthChange("SITE-0001-1", at, "warning", "v1", (CheckSaid("disk", "warning", "91\x1b % full"),))]
        )
    finally:
        store.close()
    for name in ("SITE-0001-1", "SITE-0001"):
        done = CliRunner().invoke(cli, ["explain", name, "--config", str(config), "--no-history"])
        assert done.exit_code == 0, done.output
        said = "  health of SITE-0001-1: warning since 2026-01-15T00:00:00Z\n    disk: warning: 91  % full\n"
        assert said in done.stdout
    assert "disk" not in CliRunner().invoke(cli, ["explain", "canary", "--config", str(config)]).stdout
