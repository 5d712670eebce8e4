"""`image changed` and `image upload`: what a push asks to be built, and how a build made elsewhere comes into the image store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.cli.main import cli
from reconciler.model.observed import ArtifactState
from reconciler.ports import TerminalError
from reconciler.protocol.manifest import Manifest
from reconciler.protocol.sums import format_sums
from reconciler.repo.problem import InvalidInput
from tests.propose.fleets import document, files, waves
from tests.support.gitrepo import Repo

NAME = "edge-golden-v1.4.2-20251115"
RECIPE = "  recipe: golden/\n"


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["image", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit | InvalidInput | TerminalError):
        raise result.exception
    assert result.exit_code == code, f"{result.output}{result.exception}"
    return result


# ---------------------------------------------------------------- changed


@pytest.fixture
def fleet(tmp_path: Path) -> Repo:
    """A clone whose fleet has v1.0.0, v1.1.0 and v1.2.0, all with a recipe."""
    made = files(waves=waves("v1.0.0")) | {
        f"images/v1.{n}.0.yaml": document("Image", f"v1.{n}.0", RECIPE).encode() for n in range(3)
    }
    repo = Repo(tmp_path / "clone")
    repo.commit("Begin", {f"fleet/{path}": data.decode() for path, data in made.items()})
    return repo


def changed(repo: Repo, *words: str) -> list[str]:
    told = run("changed", "--fleet", str(repo.path / "fleet"), "--output", "json", *words).stdout
    found: list[str] = json.loads(told)
    return found


def test_new_releases_and_those_that_say_something_else_are_named_in_order(fleet: Repo) -> None:
    before = fleet.head()
    pinned = RECIPE + "  packages: {curl: 1-1}\n"
    fleet.commit(
        "Change",
        {
            "fleet/images/v1.10.0.yaml": document("Image", "v1.10.0", pinned),
            "fleet/images/v1.2.0.yaml": document("Image", "v1.2.0", pinned),
            "fleet/images/v1.9.yml": document("Image", "v1.9", pinned),
            "fleet/images/v1.9.1.yaml": document("Image", "v1.9.1", "  packages: {curl: 1-1}\n"),
            "fleet/images/v1.9.2.yaml": document("Image", "v1.9.2", pinned + "  withdrawn: bad\n"),
        },
    )
    assert changed(fleet, "--since", before) == ["v1.2.0", "v1.9", "v1.10.0"]
    assert changed(fleet, "--since", "HEAD~1", "--until", "HEAD") == ["v1.2.0", "v1.9", "v1.10.0"]
    shown = run("changed", "--fleet", str(fleet.path / "fleet"), "--since", before).stdout
    assert shown == "v1.2.0\nv1.9\nv1.10.0\n"


def test_what_changes_no_byte_names_nothing(fleet: Repo) -> None:
    before = fleet.head()
    fleet.commit(
        "Withdraw, comment, and touch a recipe",
        {
            "fleet/images/v1.0.0.yaml": document("Image", "v1.0.0", RECIPE + "  withdrawn: stalls\n"),
            "fleet/images/v1.1.0.yaml": "# A word.\n" + document("Image", "v1.1.0", RECIPE),
            "fleet/images/golden/setup.sh": "#!/bin/sh\n",
        },
    )
    assert changed(fleet, "--since", before) == []
    # A release that is built again after all: it was withdrawn, and is not any more.
    fleet.commit("Take it back", {"fleet/images/v1.0.0.yaml": document("Image", "v1.0.0", RECIPE)})
    assert changed(fleet, "--since", "HEAD~1") == []


def test_a_fleet_that_is_not_valid_and_a_commit_that_is_not_there_are_said(fleet: Repo) -> None:
    before = fleet.head()
    fleet.commit("Break", {"fleet/images/v1.9.yaml": document("Image", "v1.9", "  snapshot: x\n")})
    said = run("changed", "--fleet", str(fleet.path / "fleet"), "--since", before, code=1)
    assert isinstance(said.exception, InvalidInput) and "images/v1.9.yaml:" in str(said.exception)
    gone = run("changed", "--fleet", str(fleet.path / "fleet"), "--since", "0" * 40, code=1)
    assert isinstance(gone.exception, TerminalError) and "names no commit" in str(gone.exception)


# ---------------------------------------------------------------- upload


def artifact(top: Path, image: bytes = b"an image" * 100) -> Path:
    """An artifact as a build leaves it."""
    folder = top / NAME
    folder.mkdir(parents=True, exist_ok=True)
    packed = f"{NAME}.img.zst"
    digest = "sha256:" + hashlib.sha256(b"unpacked" + image).hexdigest()
    manifest = Manifest("v1.4.2", packed, len(image), "zstd", len(image) + 8, digest)
    contents = {packed: image, "manifest.json": manifest.to_bytes()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    for name, data in {**contents, "SHA256SUMS": format_sums(sums)}.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def test_an_artifact_comes_into_the_store_as_built_and_unsigned(tmp_path: Path, store: Path) -> None:
    folder = artifact(tmp_path)
    (folder / "SHA256SUMS.gpg").write_bytes(b"whoever built it signs nothing")
    told = json.loads(run("upload", str(folder), "--store", str(store), "--output", "json").stdout)
    there = DirectoryImageStore(store).artifacts()["v1.4.2"]
    assert there.state is ArtifactState.BUILT and told["state"] == "built" and told["uploaded"]
    assert told["name"] == NAME and not (store / NAME / "SHA256SUMS.gpg").exists()
    assert "is in the image store, built" in run("upload", str(folder), "--store", str(store)).stdout


def test_a_release_that_is_signed_already_is_left_and_other_bytes_are_refused(tmp_path: Path, store: Path) -> None:
    folder = artifact(tmp_path)
    run("upload", str(folder), "--store", str(store))
    DirectoryImageStore(store).attach_signature("v1.4.2", b"signed")
    assert "already, signed: nothing was uploaded" in run("upload", str(folder), "--store", str(store)).stdout
    later = artifact(tmp_path / "later").rename(tmp_path / "later" / NAME.replace("20251115", "20251114"))
    refused = run("upload", str(later), "--store", str(store), code=1)
    assert isinstance(refused.exception, TerminalError)
    other = artifact(tmp_path / "other", b"another image")
    refused = run("upload", str(other), "--store", str(store), code=1)
    assert isinstance(refused.exception, TerminalError) and "other bytes" in str(refused.exception).lower()


def test_what_is_no_whole_artifact_is_refused_before_a_store_is_asked(tmp_path: Path, store: Path) -> None:
    folder = artifact(tmp_path)
    (folder / f"{NAME}.img.zst").write_bytes(b"cut")
    assert isinstance(run("upload", str(folder), "--store", str(store), code=1).exception, TerminalError)
    assert DirectoryImageStore(store).artifacts() == {}
    (folder / "manifest.json").unlink()
    said = str(run("upload", str(folder), "--store", str(store), code=1).exception)
    assert "manifest.json: No such file or directory" in said and "FAMILY-RELEASE-YYYYMMDD" in said
    for words in (
        (),
        ("--store", str(tmp_path / "nowhere")),
        ("--store", "s3://b/", "--config", str(folder / "SHA256SUMS")),
    ):
        run("upload", str(folder), *words, code=2)
