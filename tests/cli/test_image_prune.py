"""`reconciler image list` and `image prune`: over a controller's own git, store and image store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.cli.main import cli
from reconciler.controller.bootstrap import make_git, make_store
from reconciler.controller.settings import load_settings
from reconciler.model.observed import DeviceObservation
from reconciler.model.plan import Action, ActionKind, Facts
from reconciler.ports import AssignmentRow, Decision, Store, TerminalError, TransientError
from reconciler.protocol.assignment import Assignment, ImageTarget
from tests.adapters.artifacts import SIGNATURE, pack
from tests.controller.harness import document
from tests.support.gitrepo import Repo
from tests.support.settings import write_settings

NOW = datetime.now(UTC)
RELEASES = {"v1.0.0": 400, "v1.1.0": 300, "v1.2.0": 200, "v1.3.0": 150, "v1.4.0": 100, "v1.5.0": 5}
"""Release → days since it was published."""


def fleet(image: str = "v1.5.0", pin: str = "") -> dict[str, str]:
    waves = f"- {{name: lab, sites: [LAB-1], image: {image}, soak: 0s}}"
    spec = f"  timezone: Europe/Berlin\n  devices: [LAB-1-a]\n{pin}"
    site = f"apiVersion: fleet/v1\nkind: Site\nmetadata: {{name: LAB-1}}\nspec:\n{spec}"
    return {
        "fleet.yaml": document("Fleet", "main"),
        "waves.yaml": f"apiVersion: fleet/v1\nkind: Waves\nmetadata: {{name: main}}\nspec:\n  waves:\n  {waves}\n",
        "sites/LAB-1.yaml": site,
        **{f"images/{release}.yaml": document("Image", release, family="edge-golden") for release in RELEASES},
    }


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "fleet")


@pytest.fixture
def config(repo: Repo, tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "secrets").mkdir(mode=0o700)
    (tmp_path / "keys.gpg").write_bytes(b"")
    config = write_settings(tmp_path, git={"url": str(repo.path)})
    settings = load_settings(config)
    sha = repo.commit("First", fleet())
    make_git(settings, lambda: NOW).refresh()
    store = make_store(settings, create=True)
    store.accept_commit(store.begin_epoch(), sha, NOW)
    store.close()
    for release, days in RELEASES.items():
        at = NOW - timedelta(days=days)
        publish(DirectoryImageStore(tmp_path / "images", now=lambda at=at: at), tmp_path / "built", release, at)  # type: ignore[misc]
    return config


def publish(images: DirectoryImageStore, folder: Path, release: str, at: datetime) -> None:
    name = f"edge-golden-{release}-{at:%Y%m%d}"
    images.stage(release, name, pack(folder / release, release, release.encode() * 100, name))
    images.attach_signature(release, SIGNATURE)
    images.publish(release)


@pytest.fixture
def store(config: Path) -> Iterator[Store]:
    opened = make_store(load_settings(config), create=False)
    yield opened
    opened.close()


def run(config: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["image", *words, "--config", str(config)])


def told(config: Path, *words: str) -> dict[str, tuple[str, str]]:
    """Release → verdict and reason, of a dry run."""
    done = run(config, "prune", "--dry-run", "--output", "json", *words)
    assert done.exit_code == 0, done.output
    return {each["release"]: (each["verdict"], each["reason"]) for each in json.loads(done.stdout)["releases"]}


def held(config: Path) -> set[str]:
    done = run(config, "list", "--output", "json")
    assert done.exit_code == 0, done.output
    return {each["release"] for each in json.loads(done.stdout)["releases"]}


def test_what_nobody_needs_is_removed_and_a_dry_run_removes_nothing(config: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.glob("images/**/*"))
    dry = run(config, "prune", "--dry-run")
    assert dry.exit_code == 0 and "would go    v1.0.0" in dry.stdout and sorted(tmp_path.glob("images/**/*")) == before
    assert "3 of 6 releases would go" in dry.stdout
    done = run(config, "prune")
    assert done.exit_code == 0, done.output
    assert "keep        v1.5.0" in done.stdout and "removed     v1.0.0" in done.stdout
    assert held(config) == {"v1.3.0", "v1.4.0", "v1.5.0"}
    assert not list(tmp_path.glob("images/*v1.0.0*"))
    assert "nothing may go, of 3 in the store" in run(config, "prune").stdout


def test_the_list_shows_every_release_highest_first(config: Path) -> None:
    done = run(config, "list")
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        [release, "published"] for release in reversed(RELEASES)
    ]


def test_keep_and_older_than_say_what_goes(config: Path) -> None:
    assert {release for release, (verdict, _) in told(config, "--keep", "1").items() if verdict == "prune"} == {
        "v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0", "v1.4.0",
    }  # fmt: skip
    young = told(config, "--keep", "1", "--older-than", "250d")
    assert young["v1.2.0"] == ("keep", "young") and young["v1.1.0"] == ("prune", "unused")
    for words in (("--older-than", "90"), ("--keep", "0")):
        assert run(config, "prune", "--dry-run", *words).exit_code == 2


def test_what_devices_have_and_were_told_stays(config: Path, store: Store) -> None:
    seen = DeviceObservation(
        name="GONE-1-a", image="v1.0.0", previous_image="v1.1.0", last_seen=NOW - timedelta(days=500)
    )
    store.observe([seen], sequences={"GONE-1-a": ("boot", 1)})
    target = ImageTarget("v1.2.0", "sha256:" + "1" * 64, "edge-golden-v1.2.0-20250101")
    assigned = Assignment(
        device="LAB-1-a", serial=(1, 1), issued_at=NOW - timedelta(days=9), expires_at=NOW, image=target
    )
    row = AssignmentRow("LAB-1-a", 1, 1, assigned.to_bytes(), (), 0, b"root", b"signature", NOW)
    store.record(store.begin_epoch(), Decision(at=NOW, commit=None, facts=Facts(), assignments=(row,)))
    reasons = told(config, "--keep", "1", "--older-than", "1d")
    assert {release: reason for release, (verdict, reason) in reasons.items() if verdict == "keep"} == {
        "v1.0.0": "current", "v1.1.0": "previous", "v1.2.0": "assigned", "v1.5.0": "wave",
    }  # fmt: skip


def test_what_the_loop_has_under_way_stays(config: Path, store: Store) -> None:
    action = Action(ActionKind.PUBLISH, {"image": "v1.0.0"})
    store.record(store.begin_epoch(), Decision(at=NOW, commit=None, facts=Facts(), actions=(action,)))
    assert told(config)["v1.0.0"] == ("keep", "busy")


def test_a_merge_that_the_loop_has_not_seen_yet_counts(config: Path, repo: Repo) -> None:
    pin = "  pin: {image: v1.1.0, why: camera firmware}\n"
    repo.commit("Go back, and pin", fleet("v1.0.0", pin))
    reasons = told(config)
    assert (reasons["v1.0.0"], reasons["v1.1.0"]) == (("keep", "wave"), ("keep", "pin"))
    # What is in force is named too, until the loop has moved on.
    assert told(config, "--keep", "1", "--older-than", "1d")["v1.5.0"] == ("keep", "wave")


def test_with_a_head_that_does_not_load_nothing_is_pruned(config: Path, repo: Repo) -> None:
    repo.commit("Break it", {"waves.yaml": "kind: Wavs\n"})
    done = run(config, "prune")
    assert isinstance(done.exception, TerminalError) and "does not load: waves.yaml:1:" in str(done.exception)
    assert held(config) == set(RELEASES)


def test_without_git_nothing_is_pruned(config: Path, repo: Repo) -> None:
    repo.path.rename(repo.path.with_name("moved"))
    assert isinstance(run(config, "prune").exception, (TerminalError, TransientError))
    assert held(config) == set(RELEASES)


def test_a_removal_that_was_cut_off_is_shown_and_ended(config: Path, tmp_path: Path) -> None:
    images = DirectoryImageStore(tmp_path / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_delete", _refuse)
        with pytest.raises(TransientError):
            images.remove("v1.0.0")
    assert "removing" in run(config, "list").stdout
    assert told(config)["v1.0.0"] == ("prune", "removing")
    assert run(config, "prune").exit_code == 0
    assert "v1.0.0" not in held(config) and not list(tmp_path.glob("images/*v1.0.0*"))


def test_what_is_removed_is_told_also_where_the_next_removal_fails(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DirectoryImageStore.remove

    def remove(store: DirectoryImageStore, release: str) -> None:
        _refuse() if release == "v1.0.0" else plain(store, release)

    monkeypatch.setattr(DirectoryImageStore, "remove", remove)
    done = run(config, "prune")
    assert isinstance(done.exception, TransientError)
    assert "removed     v1.1.0" in done.stdout and "not removed v1.0.0" in done.stdout


def test_an_empty_store_and_a_fleet_that_nothing_is_in_force_in(config: Path, tmp_path: Path) -> None:
    for folder in tmp_path.glob("images/edge-golden-*"):
        folder.rename(tmp_path / folder.name)
    (tmp_path / "images" / "index.json").unlink()
    for words in (("list",), ("prune",)):
        assert run(config, *words).stdout == "the image store holds no release\n"
    (tmp_path / "state" / "store.db").unlink()
    assert isinstance(run(config, "prune").exception, TerminalError)


def _refuse(*_: Any) -> None:
    raise TransientError("the store is down", needed_for="a test")
