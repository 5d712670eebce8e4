"""The slot image that goes onto an install disk: an artifact's folder, a raw file, or one packed by zstd.

Decides whether the bytes are what they claim to be: an artifact's against its manifest.json and SHA256SUMS, these
against their signature where keys are at hand, any image against its own ext4 superblock. Writes to the place it is
given, and nowhere else. Called by `image.disk` and `reconciler image disk`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from reconciler.image import process
from reconciler.image.gate_ext4 import SUPERBLOCK_AT, SUPERBLOCK_BYTES, Unreadable, read_superblock
from reconciler.image.unpack import stream
from reconciler.ports import TerminalError
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import NAME, SUMS, SUMS_SIGNATURE, Manifest
from reconciler.protocol.signature import Refused, verify_detached
from reconciler.protocol.sums import parse_sums

CHUNK = 1 << 20
_HOLE = 1 << 16
_ZEROS = bytes(CHUNK)
_PURPOSE = "the slot of an install disk"
_DAMAGED = "copy it again: it is damaged"


@dataclass(frozen=True, slots=True)
class SlotSource:
    """A slot image before it is read. `size`, `digest` (64 hex digits) and `release` are known of an artifact alone;
    `least` is the smallest slot that it may be written to, 0 where nothing says so."""

    path: Path
    packed: bool
    size: int | None = None
    digest: str | None = None
    release: str | None = None
    least: int = 0


@dataclass(frozen=True, slots=True)
class SlotImage:
    """A slot image as it was written: bytes, sha256 (64 hex digits), and when its file system was made (Unix time)."""

    size: int
    digest: str
    made_at: int


def open_source(path: Path) -> SlotSource:
    """What `path` is: an artifact's folder, or an image file. TerminalError: neither, or it contradicts itself."""
    if path.is_dir():
        return _artifact(path)
    if not path.is_file():
        raise _wrong(f"{path} does not exist", "name an artifact's folder, or its image: FILE.img or FILE.img.zst")
    with path.open("rb") as file:
        packed = file.read(4) == b"\x28\xb5\x2f\xfd"
    return SlotSource(path, packed, None if packed else path.stat().st_size)


def _artifact(folder: Path) -> SlotSource:
    """The image of an artifact whose papers agree with each other. The packed file is hashed here."""
    remedy = "copy the artifact's folder again, whole, from the store"
    try:
        sums = parse_sums((folder / SUMS).read_bytes())
        data = (folder / NAME).read_bytes()
        manifest = Manifest.from_bytes(data)
    except OSError as error:
        raise _wrong(f"{folder} is no artifact: {Path(error.filename).name}: {error.strerror}", remedy) from None
    except Malformed as error:
        raise _wrong(f"{folder}: {error.reason}", remedy) from None
    if sums.get(NAME) != hashlib.sha256(data).hexdigest():
        raise _wrong(f"{folder / NAME} is not the one that {SUMS} names", remedy)
    image = folder / manifest.file
    expected = sums.get(manifest.file)
    if expected is None or not image.is_file():
        raise _wrong(f"{folder} lacks {manifest.file}, or {SUMS} does not name it", remedy)
    if _sha256(image) != expected:
        raise _wrong(f"{image} has another sha256 than {SUMS} says", remedy)
    least = manifest.extra.get("minSlotSize")
    return SlotSource(
        path=image,
        packed=manifest.compression == "zstd",
        size=manifest.image_size,
        digest=manifest.digest.removeprefix("sha256:"),
        release=manifest.release,
        least=least if isinstance(least, int) else manifest.image_size,
    )


def check_signature(folder: Path, keys: Path) -> None:
    """Refuse an artifact that none of the release keys in `keys` (release.gpg, release.fpr) has signed.

    As strict as a device: `protocol.signature`, not gpgv's exit status. TerminalError: refused, or nothing to check.
    """
    remedy = "take the artifact from the store again; write nothing to a device before it is accepted"
    if not (folder / SUMS_SIGNATURE).exists():
        raise _wrong(
            f"{folder} is not signed: it has no {SUMS_SIGNATURE}",
            "take the artifact from the store once it is signed; in a build's own folder it never is",
        )
    try:
        verify_detached(
            (folder / SUMS).read_bytes(),
            (folder / SUMS_SIGNATURE).read_bytes(),
            (keys / "release.gpg").read_bytes(),
            (keys / "release.fpr").read_text("ascii").split(),
            datetime.now(UTC),
        )
    except OSError as error:
        raise _wrong(f"{error.filename} cannot be read: {error.strerror}", "name a folder that holds it") from None
    except Refused as error:
        raise _wrong(f"{folder} is refused: {error.reason} ({error.code})", remedy) from None
    except ValueError as error:
        raise _wrong(f"{keys / 'release.fpr'}: {error}", "write one fingerprint of 40 digits a line") from None


def write_slot(source: SlotSource, disk: int, at: int, room: int, progress: Callable[[int], None]) -> SlotImage:
    """Write the raw image to the open file `disk`, from byte `at`; blocks of zeros stay holes. `progress` hears the
    bytes read so far.

    TerminalError: larger than `room`, not what the manifest says, or no ext4 file system. The caller throws the disk
    away then.
    """
    digest, size, head = hashlib.sha256(), 0, b""
    # Closed here, so that zstd is gone before the caller clears away.
    with closing(stream(source.path, source.packed, needed_for=_PURPOSE, remedy=_DAMAGED)) as pieces:
        for data in pieces:
            if size + len(data) > room:
                raise _wrong(
                    f"{source.path} unpacks to more than a slot of {mib(room)}",
                    "make the slots larger with --slot-size",
                )
            digest.update(data)
            head = head or data[:4096]
            write_sparse(disk, data, at + size)
            size += len(data)
            progress(size)
    found = digest.hexdigest()
    if (source.size is not None and size != source.size) or (source.digest is not None and found != source.digest):
        raise _wrong(
            f"{source.path} unpacks to {size} bytes with sha256 {found}, and the manifest says otherwise",
            "copy the artifact again from the store",
        )
    return SlotImage(size, found, _superblock(source.path, head, size))


def _superblock(path: Path, head: bytes, size: int) -> int:
    """When the file system was made. TerminalError: none is there, or it is another length than the image."""
    try:
        shape = read_superblock(head[SUPERBLOCK_AT : SUPERBLOCK_AT + SUPERBLOCK_BYTES])
    except Unreadable as error:
        raise _wrong(
            f"{path} is no ext4 file system that a slot can hold: {error}",
            "name the image of a slot: FILE.img or FILE.img.zst of an artifact",
        ) from None
    if shape.size != size:
        raise _wrong(
            f"{path} has {size} bytes, and its file system {shape.size}", "copy it again: it is cut off, or padded"
        )
    return shape.made_at


def write_sparse(disk: int, data: bytes, at: int) -> None:
    """Write `data` to the open, new file `disk` at byte `at`, leaving out blocks of zeros: a hole reads as zeros too."""
    view = memoryview(data)
    start = 0
    while start < len(data):
        end = start
        while end < len(data) and not _is_zero(view[end : end + _HOLE]):
            end += _HOLE
        for offset in range(start, min(end, len(data)), CHUNK):
            _write_all(disk, view[offset : min(offset + CHUNK, end)], at + offset)
        start = end + _HOLE


def copy_sparse(path: Path, disk: int, at: int) -> None:
    """Copy a file into the open, new file `disk` at byte `at`, leaving out blocks of zeros."""
    with path.open("rb") as file:
        offset = at
        while data := file.read(CHUNK):
            write_sparse(disk, data, offset)
            offset += len(data)


def _is_zero(view: memoryview) -> bool:
    return view == _ZEROS[: len(view)]


def _write_all(disk: int, view: memoryview, at: int) -> None:
    while view:
        written = os.pwrite(disk, view, at)
        view, at = view[written:], at + written


def program(name: str, package: str) -> str:
    """Path of a program. TerminalError: not installed."""
    return process.program(name, package, "making an install disk")


def mib(size: int) -> str:
    """A size for people: whole MiB, or GiB where it is whole."""
    if size and size % (1 << 30) == 0:
        return f"{size >> 30} GiB"
    return f"{(size + (1 << 20) - 1) >> 20} MiB"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wrong(what: str, remedy: str) -> TerminalError:
    return TerminalError(what, needed_for=_PURPOSE, remedy=remedy)
