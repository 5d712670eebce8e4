"""From a merged commit through the reconciler to a published release: the very image that boots in `test_boot`.

The real program in one pass (`reconciler run --once`): it builds in a second process, has a third one sign, and publishes to
S3. Nothing is done by hand. Its image is a second build of the golden one, by another way, in another folder, from packages
installed anew: bit for bit the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from reconciler.adapters.aws import Aws, AwsSettings
from reconciler.adapters.images_s3 import S3ImageStore
from reconciler.image import gate
from reconciler.model.observed import ArtifactState
from reconciler.protocol.manifest import NAME, SUMS, SUMS_SIGNATURE, Manifest
from tests.support import golden
from tests.support.aws import moto_server, use_test_credentials
from tests.support.gitrepo import Repo
from tests.support.gpg import Home, make_home
from tests.support.settings import write_settings
from tests.support.system import need

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
BUCKET = "s3://vlt-edge-images/"
RECONCILER = (sys.executable, "-c", "from reconciler.cli.main import main; main()")


@dataclass
class World:
    """A fleet repo whose head asks for the release, a controller's settings, and the store."""

    folder: Path
    config: Path
    commit: str
    store: S3ImageStore
    release_key: Path

    def once(self) -> subprocess.CompletedProcess[str]:
        """One pass of the program: what can be done at once is done when it ends."""
        argv = [*RECONCILER, "run", "--once", "--config", str(self.config)]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1700)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as made:
        yield made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("pipeline")
    use_test_credentials(patch)
    with moto_server() as address, golden.key().home() as releases, make_home() as home:
        client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
        client.create_bucket(Bucket="vlt-edge-images")
        commit = _fleet(folder / "fleet")
        images = {"type": "s3", "url": BUCKET, "region": "us-east-1", "endpoint": address}
        config = _settings(folder, images, home, releases)
        store = S3ImageStore(Aws(AwsSettings(region="us-east-1", endpoint_url=address)), "vlt-edge-images")
        yield World(folder, config, commit, store, golden.PLACE / "release-key.gpg")


def _fleet(path: Path) -> str:
    """The golden image's fleet as a repository; its waves are raised to the release by the last commit."""
    repo = Repo(path)
    shutil.copytree(golden.fleet(), path, dirs_exist_ok=True)
    shutil.rmtree(path / "tests", ignore_errors=True)
    fleet = (path / "fleet.yaml").read_text()
    (path / "fleet.yaml").write_text(
        fleet.replace("0123456789ABCDEF0123456789ABCDEF01234567", golden.key().fingerprint)
    )
    repo.commit("The fleet as it is")
    waves = (path / "waves.yaml").read_text()
    assert golden.RELEASE not in waves, "the example's waves ask for another release"
    # All waves at once: v1.4.1 is of the other distribution, and is asked for by nobody then.
    (path / "waves.yaml").write_text(waves.replace("v1.4.1", golden.RELEASE))
    at = golden.COMMITTED_AT.isoformat()
    repo.git("add", "-A")
    repo.git("commit", "-q", "-m", f"Promote {golden.RELEASE} to all waves", env={"GIT_COMMITTER_DATE": at})
    return repo.head()


def _settings(folder: Path, images: dict[str, Any], home: Home, releases: Home) -> Path:
    """The controller's settings, and beside them the signer's: another process, with another home."""
    key = golden.key().fingerprint
    (folder / "secrets").mkdir(mode=0o700)
    (folder / "signer").mkdir()
    shutil.copyfile(golden.PLACE / "release-key.gpg", folder / "release.gpg")
    common = {
        "images": images,
        "allowed": {"images": [BUCKET], "registries": ["123456789012.dkr.ecr.eu-central-1.amazonaws.com"]},
        "git": {"url": str(folder / "fleet")},
    }
    assignment = {"home": str(home.path), "fingerprint": home.generate("assign <assign@example.org>")}
    keys = {"assignment": assignment, "releases": [key], "releaseKeyring": str(folder / "release.gpg")}
    signs = {**keys, "signer": {"type": "key", "home": str(releases.path), "fingerprint": key}}
    own = write_settings(folder / "signer", **common, keys=signs, state="state")
    # The signer's own credential for the bucket; the controller hands it none.
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    signer = [
        need("env"),
        *(f"{name}={os.environ[name]}" for name in names),
        *RECONCILER,
        "signer",
        "--config",
        str(own),
    ]
    builder = [*RECONCILER, "builder", "--work", str(folder / "builds")]
    return write_settings(
        folder,
        **common,
        keys={**keys, "signer": {"type": "process", "command": signer}},
        builder={"command": builder},
    )


@pytest.fixture(scope="module")
def published(world: World) -> Path:
    """The published artifact, fetched from the store as a stranger would: file by file."""
    done = world.once()
    assert done.returncode == 0, done.stderr[-3000:]
    artifact = world.store.artifacts()[golden.RELEASE]
    assert artifact.state is ArtifactState.PUBLISHED, done.stderr[-3000:]
    name = world.store.folder(golden.RELEASE)
    assert name is not None
    folder = world.folder / name
    folder.mkdir()
    for small in (SUMS, SUMS_SIGNATURE, NAME):
        world.store.download(golden.RELEASE, small, folder / small)
    for line in (folder / SUMS).read_text().splitlines():
        world.store.download(golden.RELEASE, line[66:], folder / line[66:])
    return folder


def test_a_merge_is_built_signed_and_published_with_nothing_done_by_hand(world: World, published: Path) -> None:
    checked = subprocess.run([need("sha256sum"), "-c", SUMS], cwd=published, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout
    argv = [need("gpgv"), "--keyring", str(world.release_key), SUMS_SIGNATURE, SUMS]
    assert subprocess.run(argv, cwd=published, capture_output=True, check=False).returncode == 0
    manifest = json.loads((published / NAME).read_bytes())
    assert manifest["commit"] == world.commit
    assert {check["status"] for check in manifest["healthcheck"]["checks"]} <= {"ok", "skipped"}


def test_two_builds_are_bit_identical(published: Path) -> None:
    first = Manifest.from_bytes((golden.artifact() / NAME).read_bytes())
    second = Manifest.from_bytes((published / NAME).read_bytes())
    assert second.digest == first.digest and second.size == first.size
    for name in sorted(path.name for path in golden.artifact().iterdir()):
        if name not in (NAME, SUMS):  # these two name the commit
            assert _sha256(published / name) == _sha256(golden.artifact() / name), name


def test_the_published_image_passes_the_gate(world: World, published: Path, tmp_path: Path) -> None:
    raw = tmp_path / "slot.img"
    packed = published / Manifest.from_bytes((published / NAME).read_bytes()).file
    subprocess.run([need("zstd"), "-q", "-d", "--sparse", "-o", str(raw), str(packed)], check=True)
    assert gate.inspect(raw, allowed=[golden.key().fingerprint]) == ()


def test_another_pass_does_nothing(world: World, published: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (world.folder / "builds").rglob("*.img.zst")}
    done = world.once()
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name: path.stat().st_mtime_ns for path in (world.folder / "builds").rglob("*.img.zst")} == before


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
