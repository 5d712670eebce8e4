"""Packs a raw image into an artifact: compressed image, manifest.json, SHA256SUMS.

Same bytes for the same input and tools.

Called by `image.builder`. Signing is another process's work. Formats: `protocol.manifest`, `protocol.sums`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.image.process import PATH, Surroundings, failed, run
from reconciler.protocol.manifest import NAME, SUMS, Manifest
from reconciler.protocol.sums import format_sums

_CHUNK = 1 << 20


def compression() -> str:
    """`zstd` where the program is installed, else `none`."""
    return "zstd" if shutil.which("zstd", path=PATH) else "none"


def hashed(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 (64 hex digits) of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def compress(where: Surroundings, raw: Path, folder: Path, name: str, method: str) -> Path:
    """The packed image in `folder`: `NAME.img.zst`, or `NAME.img` as it is."""
    if method == "none":
        packed = folder / f"{name}.img"
        shutil.copyfile(raw, packed)
        return packed
    packed = folder / f"{name}.img.zst"
    # One thread: with several, where zstd cuts the input depends on their number.
    argv = ["zstd", "-q", "-f", "-3", "--single-thread", "--no-progress", "--check", "-o", str(packed), str(raw)]
    done = run(where, "pack", argv)
    if done.status != 0:
        raise failed("pack", f"zstd: {done.last}", where.log)
    return packed


def write_artifact(folder: Path, packed: Path, raw: Path, release: str, method: str, extra: Mapping[str, Any]) -> str:
    """Write manifest.json and SHA256SUMS beside the packed image, all of it synced; returns the raw image's digest."""
    raw_size, raw_digest = hashed(raw)
    packed_size, packed_digest = hashed(packed)
    manifest = Manifest(
        release=release,
        file=packed.name,
        size=packed_size,
        compression=method,
        image_size=raw_size,
        digest=f"sha256:{raw_digest}",
        extra={**extra, "sha256": packed_digest, "minSlotSize": raw_size},
    )
    data = manifest.to_bytes()
    (folder / NAME).write_bytes(data)
    sums = {packed.name: packed_digest, NAME: hashlib.sha256(data).hexdigest()}
    (folder / SUMS).write_bytes(format_sums(sums))
    for path in (packed, folder / NAME, folder / SUMS, folder):
        sync(path)
    return manifest.digest


def sync(path: Path) -> None:
    """Have a file or folder on the disk before anything counts on it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
