"""Whether a build is in the image store already: by the digest of what it was made from, and by nothing less."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.controller.stored import stored_build
from reconciler.protocol.manifest import Manifest
from reconciler.protocol.sums import format_sums

FOLDER = "edge-golden-v1.4.2-20251115"
INPUTS = "sha256:" + "a" * 64


def artifact(folder: Path, release: str = "v1.4.2", inputs: str = INPUTS) -> list[Path]:
    folder.mkdir(exist_ok=True)
    image = b"an image" * 10
    digest = "sha256:" + hashlib.sha256(image).hexdigest()
    manifest = Manifest(release, f"{FOLDER}.img", len(image), "none", len(image), digest, {"inputs": inputs})
    files = {f"{FOLDER}.img": image, "manifest.json": manifest.to_bytes()}
    files["SHA256SUMS"] = format_sums({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryImageStore:
    return DirectoryImageStore(tmp_path / "images")


def test_a_build_of_the_same_inputs_is_found_at_every_step(store: DirectoryImageStore, tmp_path: Path) -> None:
    assert stored_build(store, "v1.4.2", INPUTS) is None
    store.stage("v1.4.2", FOLDER, artifact(tmp_path / "built"))
    assert stored_build(store, "v1.4.2", INPUTS) == FOLDER
    store.attach_signature("v1.4.2", b"not judged here")
    store.publish("v1.4.2")
    assert stored_build(store, "v1.4.2", INPUTS) == FOLDER
    store.remove("v1.4.2")
    assert stored_build(store, "v1.4.2", INPUTS) is None


def test_other_inputs_another_release_and_a_changed_manifest_are_not_it(
    store: DirectoryImageStore, tmp_path: Path
) -> None:
    store.stage("v1.4.2", FOLDER, artifact(tmp_path / "built"))
    assert stored_build(store, "v1.4.2", "sha256:" + "b" * 64) is None
    assert stored_build(store, "v1.4.1", INPUTS) is None
    manifest = tmp_path / "images" / FOLDER / "manifest.json"
    good = manifest.read_bytes()
    manifest.write_bytes(good.replace(b'"v1.4.2"', b'"v1.4.3"'))
    assert stored_build(store, "v1.4.2", INPUTS) is None
    manifest.write_bytes(b"{}")
    assert stored_build(store, "v1.4.2", INPUTS) is None
    manifest.unlink()
    assert stored_build(store, "v1.4.2", INPUTS) is None
    manifest.write_bytes(good)
    assert stored_build(store, "v1.4.2", INPUTS) == FOLDER


def test_a_manifest_of_another_release_is_not_it(store: DirectoryImageStore, tmp_path: Path) -> None:
    store.stage("v1.4.2", FOLDER, artifact(tmp_path / "built", release="v1.4.1"))
    assert stored_build(store, "v1.4.2", INPUTS) is None
