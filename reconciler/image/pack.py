"""Packs a raw image into an artifact: compressed image, chunk index, list of software, manifest.json, SHA256SUMS.

Same bytes for the same input and tools. Files, for an artifact NAME = FAMILY-RELEASE-YYYYMMDD:

    NAME.img.zst     the image of a root slot, zstd (or NAME.img as it is, where zstd is not installed)
    NAME.chunks      its chunk index (`protocol.chunks`)
    NAME.cdx.json    the Debian packages in it, CycloneDX (`image.sbom`); not for an image without packages
    manifest.json    what the files are, what they were made from (`protocol.manifest`)
    SHA256SUMS       the sha256 of each of these; its signature covers them all

Called by `image.builder`. Signing is another process's work.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.image import sbom
from reconciler.image.process import PATH, Surroundings, bound, failed, run
from reconciler.ports import TerminalError
from reconciler.protocol import chunks
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import MAX_MANIFEST_BYTES, MAX_PARTS, NAME, SUMS, Manifest
from reconciler.protocol.sums import format_sums

_CHUNK = 1 << 20
_PART = 16 << 20
SBOM_SUFFIX = ".cdx.json"

# Measured on a Debian 12 image of 1.6 GB, one thread: level 3 gives 302 MB in 6 s, 9 gives 263 MB in 16 s, 9 with a window
# of 128 MiB 237 MB in 18 s, 12 without it 261 MB in 37 s. Unpacking takes 1.4 s and 135 MB of memory, instead of 1.1 s and
# 9 MB; a site's line of 5 Mbit/s is spared 100 s a device. 2^27 is the widest window that zstd unpacks unasked.
_ZSTD = ("-9", "--long=27")


@dataclass(frozen=True, slots=True)
class Software:
    """What the list of software needs to know beside the image: where its programs run, the distribution (`debian`,
    `ubuntu`), the family that the image belongs to, and its time in seconds."""

    where: Surroundings
    vendor: str
    family: str
    epoch: int


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


def wrong_parts(path: Path, manifest: Manifest) -> str | None:
    """What is wrong with `parts` of a manifest, None if nothing: a device that goes by a wrong list refuses the right file."""
    if manifest.extra.get("parts") is None:
        return None
    if manifest.parts is None:
        return f"its list of parts is not one of all of {manifest.file}"
    length, hashes = manifest.parts
    with path.open("rb") as file:
        for number, wanted in enumerate(hashes):
            digest, left = hashlib.sha256(), length
            while left and (data := file.read(min(_CHUNK, left))):
                digest.update(data)
                left -= len(data)
            if digest.hexdigest() != wanted:
                return f"part {number + 1} of {len(hashes)} of {manifest.file} has another sha256 than its list of parts says"
    return None


def hashed_parts(path: Path) -> dict[str, Any]:
    """`parts` of a manifest: the size of a part of the file, grown until they are not too many, and the sha256 of each."""
    part = _PART
    while path.stat().st_size > part * MAX_PARTS:
        part *= 2
    found = []
    with path.open("rb") as file:
        while data := file.read(min(_CHUNK, part)):
            digest = hashlib.sha256(data)
            for _ in range(part // _CHUNK - 1):
                digest.update(file.read(_CHUNK))
            found.append(digest.hexdigest())
    return {"size": part, "sha256": found}


def compress(where: Surroundings, raw: Path, folder: Path, name: str, method: str) -> Path:
    """The packed image in `folder`: `NAME.img.zst`, or `NAME.img` as it is."""
    if method == "none":
        packed = folder / f"{name}.img"
        shutil.copyfile(raw, packed)
        return packed
    packed = folder / f"{name}.img.zst"
    # One thread: with several, where zstd cuts the input depends on their number.
    how = (*_ZSTD, "--single-thread", "--no-progress", "--check")
    done = run(where, "artifact", bound(["zstd", "-q", "-f", *how, "-o", str(packed), str(raw)]))
    if done.status != 0:
        raise failed("artifact", f"zstd: {done.last}", where.log)
    return packed


def write_artifact(
    folder: Path,
    packed: Path,
    raw: Path,
    release: str,
    method: str,
    extra: Mapping[str, Any],
    *,
    software: Software | None = None,
) -> str:
    """Write the files beside the packed image, all of it synced; returns the raw image's digest (`sha256:…`).

    `extra` are keys of the manifest: `inputs`, `commit`, `builder`, `tools`, `healthcheck`, …. With `software`, the list of
    software is written too, and `packages` of the manifest are those that are installed in the image; without it, an image
    of no packages, they are as `extra` has them. TerminalError: debsbom is missing or fails, or the manifest is too large.
    """
    name = re.sub(r"\.img(?:\.zst)?$", "", packed.name)
    index_file, index = folder / f"{name}{chunks.SUFFIX}", _index(raw)
    index_file.write_bytes(index.to_bytes())
    packed_size, packed_digest = hashed(packed)
    sums = {packed.name: packed_digest, index_file.name: hashed(index_file)[1]}
    more: dict[str, Any] = {
        "sha256": packed_digest,
        "parts": hashed_parts(packed),
        # The file system is as large as the image: a slot must hold all of it.
        "minSlotSize": index.image_size,
        "chunks": {
            "file": index_file.name,
            "sha256": sums[index_file.name],
            "blockSize": chunks.BLOCK_SIZE,
            "mappedBytes": index.mapped_bytes,
        },
    }
    if (day := re.search(r"-(\d{8})$", name)) is not None:
        more["serial"] = int(day[1])
    if software is not None:
        listed = folder / f"{name}{SBOM_SUFFIX}"
        more["packages"] = _list_software(software, raw, listed, release, index.digest)
        sums[listed.name] = hashed(listed)[1]
        more["sbom"] = {"file": listed.name, "sha256": sums[listed.name]}
    manifest = Manifest(
        release=release,
        file=packed.name,
        size=packed_size,
        compression=method,
        image_size=index.image_size,
        digest=index.digest,
        extra={**extra, **more},
    )
    data = manifest.to_bytes()
    if len(data) > MAX_MANIFEST_BYTES:
        raise TerminalError(
            f"manifest.json would have {len(data)} bytes, and devices read {MAX_MANIFEST_BYTES} at most",
            needed_for=f"the artifact of {release}",
            remedy="let healthcheck.sh say less",
        )
    (folder / NAME).write_bytes(data)
    sums[NAME] = hashlib.sha256(data).hexdigest()
    (folder / SUMS).write_bytes(format_sums(sums))
    for path in (*(folder / file for file in sorted(sums)), folder / SUMS, folder):
        sync(path)
    return manifest.digest


def _list_software(software: Software, raw: Path, out: Path, release: str, digest: str) -> dict[str, str]:
    """Write the list of software to `out`; returns the packages in the image, name → version."""
    status = sbom.write(
        software.where,
        raw,
        out,
        name=software.family,
        version=release,
        vendor=software.vendor,
        digest=digest,
        epoch=software.epoch,
    )
    return sbom.installed(status)


def _index(raw: Path) -> chunks.ChunkIndex:
    """The chunk index, and with it size and digest of the raw image: one reading for all three."""
    try:
        with raw.open("rb") as file:
            return chunks.index(file)
    except Malformed as error:
        raise TerminalError(str(error), needed_for="the artifact", remedy="build a smaller image") from None


def sync(path: Path) -> None:
    """Have a file or folder on the disk before anything counts on it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
