"""The digests that let a device prove an artifact on several processors: of the packed file's parts, and of what its frames
unpack to.

Both lists stand in the manifest (`protocol.manifest`), and a device that goes by a wrong one refuses the right image: who signs
a release (`image.recheck`) or looks into one (`image.gate_file`) compares them with the files. Called by `image.pack`, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reconciler.protocol import seekable
from reconciler.protocol.manifest import MAX_PARTS, Manifest

_CHUNK = 1 << 20
_PART = 16 << 20


def hashed_parts(packed: Path) -> dict[str, Any]:
    """`parts` of a manifest: the size of a part of the file, grown until they are not too many, and the sha256 of each."""
    part = _PART
    while packed.stat().st_size > part * MAX_PARTS:
        part *= 2
    return {"size": part, "sha256": list(_digests(packed, part))}


def hashed_frames(raw: Path) -> dict[str, Any]:
    """`frames` of a manifest: what a frame unpacks to, in bytes, and the sha256 of each of these stretches of the image."""
    return {"size": seekable.FRAME_BYTES, "sha256": list(_digests(raw, seekable.FRAME_BYTES))}


def wrong_parts(packed: Path, manifest: Manifest) -> str | None:
    """What is wrong with `parts` of a manifest, None if nothing, or there are none."""
    if manifest.extra.get("parts") is None:
        return None
    if manifest.parts is None:
        return f"its list of parts is not one of all of {manifest.file}"
    return _wrong(
        packed, *manifest.parts, f"part {{}} of {{}} of {manifest.file} has another sha256 than its list of parts says"
    )


def wrong_frames(packed: Path, raw: Path, manifest: Manifest) -> str | None:
    """What is wrong with `frames` of a manifest, None if nothing, or there are none."""
    if manifest.extra.get("frames") is None:
        return None
    if manifest.frames is None:
        return "its list of frames is not one of all of the image"
    length, hashes = manifest.frames
    with packed.open("rb") as file:
        table = seekable.read(file.fileno())
    lengths = [min(length, manifest.image_size - at) for at in range(0, manifest.image_size, length)]
    if table is None or [frame.length for frame in table] != lengths:
        return f"{manifest.file} is not cut into frames as its list says"
    return _wrong(raw, length, hashes, "what frame {} of {} unpacks to has another sha256 than its list of frames says")


def _wrong(path: Path, length: int, hashes: Sequence[str], what: str) -> str | None:
    for number, (found, wanted) in enumerate(zip(_digests(path, length), hashes, strict=True), 1):
        if found != wanted:
            return what.format(number, len(hashes))
    return None


def _digests(path: Path, length: int) -> Iterator[str]:
    """The sha256 of each `length` bytes of a file, the last may be fewer."""
    with path.open("rb") as file:
        size = path.stat().st_size
        while (begun := file.tell()) < size:
            digest, left = hashlib.sha256(), min(length, size - begun)
            while left and (data := file.read(min(_CHUNK, left))):
                digest.update(data)
                left -= len(data)
            yield digest.hexdigest()
