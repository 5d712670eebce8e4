"""The debian-12 golden image, built once from the example fleet and kept in build/golden/ for every test that needs it.

`artifact()` is the artifact's folder (unsigned), `image()` the raw slot image, `root()` the root file system unpacked as
root, `fleet()` the fleet folder that it was built from, `key()` the release key that it trusts: a throw-away one, made for
this checkout. All are read-only for tests: copy what you change. A change of the recipe, the agent or the builder gives
another folder. Skips the test visibly, and fails it in CI, where it cannot be built. Run as a program it builds ahead of
the tests: `python -m tests.support.golden`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from reconciler.image.builder import ImageBuilder
from reconciler.image.inputs import inputs_digest, read_recipe
from reconciler.image.rootfs import DistributionRoot
from reconciler.model.desired import ImageSpec
from reconciler.ports import PortError, TransientError
from reconciler.protocol.manifest import NAME, Manifest
from reconciler.repo.load import load_folder
from tests.support.gpg import Home, make_home
from tests.support.system import need

TOP = Path(__file__).parents[2]
PLACE = TOP / "build" / "golden"
RELEASE = "v1.4.2"
COMMIT = "c" * 40
COMMITTED_AT = datetime(2026, 1, 15, 12, tzinfo=UTC)
_KEPT = 2


@dataclass(frozen=True, slots=True)
class Key:
    """The release key: its fingerprint, and its secret half as a file for `gpg --import`."""

    fingerprint: str
    secret: Path

    def home(self) -> Home:
        """A GnuPG home with the key; the caller closes it."""
        made = make_home()
        made.run("--import", str(self.secret))
        return made


@dataclass(frozen=True, slots=True)
class Golden:
    """One build: the fleet it is of, its folder, and the release's document."""

    folder: Path
    spec: ImageSpec

    @property
    def fleet(self) -> Path:
        """The fleet folder."""
        return self.folder / "fleet"

    @property
    def recipe(self) -> Path:
        """The recipe in it."""
        return self.fleet / "images" / "edge-golden"

    def build(self) -> Path:
        """The artifact's folder; built, if it is not there."""

        def told(stage: str, elapsed_s: float) -> None:
            print(f"golden image: {elapsed_s:5.0f} s {stage}", file=sys.stderr, flush=True)

        builder = ImageBuilder(
            self.folder / "work",
            self.folder / "artifacts",
            committed_at=lambda _: COMMITTED_AT,
            maker=lambda: DistributionRoot(PLACE / "cache", {}),
            progress=told,
        )
        return builder.build(RELEASE, self.spec, self.recipe, COMMIT).folder


def artifact() -> Path:
    """The artifact's folder: image, chunk index, list of software, manifest.json, SHA256SUMS. No signature."""
    return _artifact()


def image() -> Path:
    """The raw slot image."""
    folder = artifact()
    raw = _golden().folder / "slot.img"
    with _locked("image"):
        if not raw.exists():
            part = raw.with_suffix(".part")
            manifest = Manifest.from_bytes((folder / NAME).read_bytes())
            argv = [
                need("zstd"),
                "-q",
                "-d",
                "-f",
                "--long=27",
                "--sparse",
                "-o",
                str(part),
                str(folder / manifest.file),
            ]
            subprocess.run(argv, check=True, timeout=600)
            part.rename(raw)
    return raw


def root() -> Path:
    """The root file system, unpacked with its owners. Needs root: skips the test visibly elsewhere, fails it in CI."""
    if os.geteuid() != 0:
        _without("unpacking the golden image's root file system needs root")
    raw = image()
    unpacked = _golden().folder / "root"
    with _locked("root"):
        if not unpacked.exists():
            part, mounted = unpacked.with_suffix(".part"), unpacked.with_suffix(".mounted")
            subprocess.run(["rm", "-rf", str(part)], check=True)
            mounted.mkdir(exist_ok=True)
            # In a mount namespace of its own: whatever happens, nothing stays mounted here.
            script = 'mount -o ro,loop -t ext4 "$1" "$2" && cp -a "$2" "$3"'
            argv = ["unshare", "--mount", "sh", "-ec", script, "-", str(raw), str(mounted), str(part)]
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=900)
            if done.returncode != 0:
                _without(f"the golden image cannot be mounted here: {done.stderr.strip()[:300]}")
            part.rename(unpacked)
    return unpacked


def fleet() -> Path:
    """The fleet folder: the example with base debian/bookworm, and the release key in the recipe."""
    return _golden().fleet


@cache
def key() -> Key:
    """The release key of this checkout. Made once."""
    need("gpg", "gnupg")
    secret, name = PLACE / "release-key.asc", PLACE / "release-key.fpr"
    with _locked("key"):
        if not name.exists():
            with make_home() as home:
                made = home.generate("Golden tests <golden@example.org>")
                secret.write_bytes(home.run("--armor", "--export-secret-keys", made))
                (PLACE / "release-key.gpg").write_bytes(home.export([made]))
                name.write_text(f"{made}\n")
    return Key(name.read_text().strip(), secret)


@cache
def _golden() -> Golden:
    """The example fleet as it is now, with what differs for the tests, in a folder named by what an image is made from."""
    made = key()
    PLACE.mkdir(parents=True, exist_ok=True)
    with _locked("fleet"):
        part = PLACE / "fleet.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(TOP / "fleet", part)
        document = part / "images" / f"{RELEASE}.yaml"
        head = document.read_text().partition("spec:")[0]
        document.write_text(
            f"{head}spec:\n  family: edge-golden\n  recipe: edge-golden/\n  base: {{distribution: debian, suite: bookworm}}\n"
        )
        keys = part / "images/edge-golden/rootfs/etc/edge/keys"
        keys.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PLACE / "release-key.gpg", keys / "release.gpg")
        (keys / "release.fpr").write_text(f"{made.fingerprint}\n")
        loaded = load_folder(part, scenarios=False)
        assert loaded.desired is not None, loaded.problems
        spec = loaded.desired.images[RELEASE]
        inputs = inputs_digest(RELEASE, spec, read_recipe(part / "images/edge-golden"), DistributionRoot.kind)
        folder = PLACE / inputs.removeprefix("sha256:")[:16]
        if not (folder / "fleet").exists():
            folder.mkdir(exist_ok=True)
            part.rename(folder / "fleet")
        os.utime(folder)
        others = sorted(
            (path for path in PLACE.glob("?" * 16) if path != folder), key=lambda path: path.stat().st_mtime
        )
        for old in others[: -_KEPT + 1]:
            subprocess.run(["rm", "-rf", "--one-file-system", str(old)], check=False)
    return Golden(folder, spec)


@cache
def _artifact() -> Path:
    for program, package in (("mmdebstrap", None), ("bwrap", "bubblewrap"), ("mke2fs", "e2fsprogs"), ("zstd", None)):
        need(program, package)
    told = Path("/etc/os-release").read_text()
    if "ID=debian" not in told or "VERSION_CODENAME=bookworm" not in told:
        _without("the golden image is built with the apt sources of a Debian 12 machine, which this is not")
    made = _golden()
    try:
        return made.build()
    except TransientError as error:
        _without(f"the golden image cannot be built: {error}")
    except PortError as error:
        if "user namespace" in str(error) or "build as root" in str(error):
            _without(f"the golden image cannot be built: {error}")
        raise


def _without(why: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    """One test at a time makes it; the others wait."""
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(artifact())
    except (pytest.skip.Exception, pytest.fail.Exception) as reason:
        print(f"golden image: {reason}", file=sys.stderr)
        sys.exit(os.environ.get("CI") == "true")
