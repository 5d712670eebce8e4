"""Releases for devices whose slots are files: a small file system with what an agent looks for in an image.

The recipe's own files, healthcheck and keys, a kernel none: such a device has no boot loader. Packed and described by the
project's own code, as `releases` does for whole images. What fills them is random, so that nothing of it packs away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from reconciler.image import pack
from reconciler.image.inputs import BUILDER_VERSION
from reconciler.image.rootfs import DistributionRoot
from reconciler.protocol.manifest import NAME, Manifest
from tests.support import golden
from tests.support.gpg import Home
from tests.support.system import need
from tests.vm.releases import DAY, FAMILY, Release

MIB = 1 << 20


def make(release: str, payload: int, assignment: Home, key: str, folder: Path) -> tuple[Release, Path]:
    """The release and its raw image, with `payload` bytes that cannot be packed; made below `folder`."""
    tree, raw = folder / f"{release}.tree", folder / f"{release}.img"
    _fill(tree, release, payload)
    keys = tree / "etc/edge/keys"
    (keys / "assignment.gpg").write_bytes(assignment.export([key]))
    (keys / "assignment.fpr").write_text(f"{key}\n")
    size = (payload // MIB + 16) * MIB
    argv = [need("mke2fs", "e2fsprogs"), "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", str(tree), str(raw)]
    subprocess.run([*argv, f"{size // 1024}k"], check=True, capture_output=True)
    shutil.rmtree(tree)
    artifact = folder / f"{FAMILY}-{release}-{DAY}"
    artifact.mkdir()
    packed = artifact / f"{artifact.name}.img.zst"
    argv = [need("zstd"), "-q", "-1", "--long=27", "--check", "-T1", "-o", str(packed), str(raw)]
    subprocess.run(argv, check=True)
    extra = {
        "name": artifact.name,
        "family": FAMILY,
        "committedAt": "2026-01-15T12:00:00Z",
        "builder": BUILDER_VERSION,
        "builderType": DistributionRoot.kind,
        "packages": {},
        "healthcheck": {"status": "ok", "checks": [{"name": "files", "status": "ok", "message": "small"}]},
    }
    pack.write_artifact(artifact, packed, raw, release, "zstd", extra)
    return Release(release, artifact, Manifest.from_bytes((artifact / NAME).read_bytes())), raw


def _fill(tree: Path, release: str, payload: int) -> None:
    recipe = golden.fleet() / "images/edge-golden"
    shutil.copytree(recipe / "rootfs", tree, symlinks=True)
    check = tree / "usr/local/bin/healthcheck.sh"
    check.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(recipe / "healthcheck.sh", check)
    check.chmod(0o755)
    (tree / "usr/lib/edge").mkdir(parents=True, exist_ok=True)
    (tree / "usr/lib/edge/image-id").write_text(f"{release}\n")
    (tree / "etc/edge-release").write_text(f"FAMILY={FAMILY}\nRELEASE={release}\nBUILT_AT=2026-01-15T12:00:00Z\n")
    if payload:
        (tree / "opt").mkdir(exist_ok=True)
        (tree / "opt/payload").write_bytes(os.urandom(payload))
