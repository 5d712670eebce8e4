"""What `reconciler image check` may be given, and the gate over all of it: a slot image, packed or not, an artifact, a disk.

An artifact is held to its own papers too: SHA256SUMS, manifest.json and the chunk index say of its files, and of the
image in them, what they are. Whether a signature is a good one is for the device and the signer. Of an install disk
both slots are inspected, and its data partition may hold no file. Called by `cli.image_check`.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import struct
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.image.gate import Fault, fault, inspect
from reconciler.image.gate_ext4 import Unreadable, Volume
from reconciler.image.pack import hashed, wrong_parts
from reconciler.image.papers import contradictions
from reconciler.image.process import PATH, program
from reconciler.image.unpack import unpacked
from reconciler.ports import TerminalError
from reconciler.protocol import chunks
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import NAME, SUMS, SUMS_SIGNATURE, Manifest
from reconciler.protocol.sums import parse_sums

_ZSTD = b"\x28\xb5\x2f\xfd"
_SECTOR = 512
_NEEDED_FOR = "checking the image"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a file was (`artifact`, `slot image`, `install disk`, or one of the two `packed`), and every fault, sorted."""

    kind: str
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a disk: its name in the table, where it begins and its size, in bytes."""

    name: str
    start: int
    size: int


def check(file: Path, *, allowed: Collection[str] | None = None) -> Checked:
    """Check a file or an artifact's folder. `allowed` as for `inspect`. Unpacks to TMPDIR, and removes that again.

    TerminalError: it is nothing that can be checked, a program is missing, or there is no room to unpack.
    """
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            return Checked("artifact", tuple(sorted(_artifact(file, allowed))))
        # A pipe would keep us waiting, and can be read but once.
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise _wrong(f"{file} is neither a file nor a disk", "name another file")
        packed = _head(file).startswith(_ZSTD)
    except OSError as error:
        raise _wrong(f"{file} cannot be read ({error.strerror or error})", "name another file") from None
    if not packed:
        return _raw(file, allowed)
    with tempfile.TemporaryDirectory(prefix="reconciler-check-") as folder:
        raw = Path(folder) / "image"
        _decompress(file, raw)
        checked = _raw(raw, allowed)
        return dataclasses.replace(checked, kind=f"packed {checked.kind}")


def _raw(file: Path, allowed: Collection[str] | None) -> Checked:
    """A slot image or an install disk, not packed."""
    if _head(file)[_SECTOR:] == b"EFI PART":
        return Checked("install disk", tuple(sorted(_disk(file, allowed))))
    return Checked("slot image", inspect(file, allowed=allowed))


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_SECTOR + 8)


# ---------------------------------------------------------------- an artifact


def _artifact(folder: Path, allowed: Collection[str] | None) -> Iterator[Fault]:
    """The papers first: an image whose papers cannot be read is not looked for."""
    try:
        for name in (SUMS, NAME):
            if not (folder / name).is_file():
                raise _wrong(f"{folder} is no artifact: it has no {name}", "name an artifact's folder, or an image")
        listed = parse_sums((folder / SUMS).read_bytes())
        data = (folder / NAME).read_bytes()
        manifest = Manifest.from_bytes(data)
    except Malformed as error:
        raise _wrong(f"{folder} is no artifact: {error}", "build the release again") from None
    yield from _sums(folder, listed)
    yield from (_paper(name, what) for name, what in contradictions(listed, data, manifest))
    packed = folder / manifest.file
    if not packed.is_file():
        yield _paper(NAME, f"it names {manifest.file}, which is not there")
        return
    if packed.stat().st_size != manifest.size:
        yield _paper(NAME, f"it says {manifest.size} bytes of {manifest.file}, which has {packed.stat().st_size}")
    elif (parts := wrong_parts(packed, manifest)) is not None:
        yield _paper(NAME, f"{parts}: devices would refuse the file")
    with tempfile.TemporaryDirectory(prefix="reconciler-check-") as scratch:
        raw = Path(scratch) / "image"
        try:
            digest = unpacked(packed, raw, manifest, needed_for=_NEEDED_FOR)
        except OSError as error:
            raise _wrong(
                f"{packed.name} cannot be unpacked ({error.strerror})", "set TMPDIR to a place with room"
            ) from None
        if digest != manifest.digest:
            yield _paper(NAME, f"it says {manifest.digest} of the raw image, which has {digest}")
        yield from _chunks(folder, manifest, raw)
        yield from inspect(raw, allowed=allowed)


def _sums(folder: Path, listed: dict[str, str]) -> Iterator[Fault]:
    there = {path.name for path in folder.iterdir()}
    for name in sorted(there - set(listed) - {SUMS, SUMS_SIGNATURE}):
        yield _paper(SUMS, f"it does not list {name}")
    for name, digest in listed.items():
        if not (folder / name).is_file():
            yield _paper(SUMS, f"it lists {name}, which is not there")
        elif hashed(folder / name)[1] != digest:
            yield _paper(SUMS, f"the bytes of {name} are not those that it lists")


def _chunks(folder: Path, manifest: Manifest, raw: Path) -> Iterator[Fault]:
    """The chunk index is the one that this image has."""
    paper = manifest.extra.get("chunks")
    path = folder / Path(str(paper.get("file"))).name if isinstance(paper, dict) else None
    if path is None or not path.is_file():
        return
    try:
        with raw.open("rb") as file:
            own = chunks.index(file).to_bytes()
    except Malformed as error:
        yield _paper(path.name, str(error))
        return
    if own != path.read_bytes():
        yield _paper(path.name, "it is not the index of this image")


def _paper(name: str, what: str) -> Fault:
    return fault(f"<{name}>", "artifact", what)


# ---------------------------------------------------------------- an install disk


def _disk(disk: Path, allowed: Collection[str] | None) -> Iterator[Fault]:
    """Both slots, and the data partition. A slot without a byte in it holds nothing, which is as it should be."""
    found = {partition.name: partition for partition in partitions(disk)}
    slots = [found[name] for name in ("root-a", "root-b") if name in found]
    if not slots:
        raise _wrong(f"{disk} has no partition root-a or root-b", "name an install disk, or a slot image")
    inspected = 0
    for slot in slots:
        if _is_empty(disk, slot):
            continue
        inspected += 1
        for found_fault in inspect(disk, allowed=allowed, offset=slot.start):
            yield dataclasses.replace(found_fault, path=f"{slot.name}:{found_fault.path}")
    if not inspected:
        raise _wrong(f"{disk} has nothing in its slots", "make it again with `reconciler image disk`")
    if "edge-data" in found and not _is_empty(disk, found["edge-data"]):
        yield from _data(disk, found["edge-data"])


def _data(disk: Path, partition: Partition) -> Iterator[Fault]:
    """No file: what lies there is a site's or a device's."""
    try:
        with Volume(disk, partition.start) as volume:
            for entry in volume.entries():
                if entry.is_file and entry.inode.size:
                    kind = "a site's seed" if entry.path.startswith(b"cidata/") else "a file of a site or a device"
                    one = fault(entry.path, "site-data", f"{kind}: the disk is for that one alone")
                    yield dataclasses.replace(
                        one, path=f"edge-data:{one.path}", remedy="make a disk without --seed to give away"
                    )
    except Unreadable as error:
        raise _wrong(
            f"edge-data of {disk} cannot be read: {error}", "make it again with `reconciler image disk`"
        ) from None


def partitions(disk: Path) -> tuple[Partition, ...]:
    """The partitions of a GPT. TerminalError: the table is damaged."""
    with disk.open("rb") as file:
        file.seek(_SECTOR)
        header = file.read(92)
        if len(header) < 92:
            raise _wrong(f"{disk} ends in its partition table", "make it again")
        table, count, size = struct.unpack_from("<QII", header, 72)
        if not 128 <= size <= 4096 or count > 1024:
            raise _wrong(f"{disk} has a damaged partition table", "make it again")
        file.seek(table * _SECTOR)
        data = file.read(count * size)
        end = file.seek(0, os.SEEK_END)
    found = []
    for at in range(0, len(data) - 127, size):
        first, last = struct.unpack_from("<QQ", data, at + 32)
        if data[at : at + 16].strip(b"\0"):
            name = data[at + 56 : at + 128].decode("utf-16-le", "replace").rstrip("\0")
            if last < first or (last + 1) * _SECTOR > end:
                raise _wrong(f"partition {name!r} of {disk} lies outside of it", "make it again")
            found.append(Partition(name, first * _SECTOR, (last - first + 1) * _SECTOR))
    return tuple(found)


def _is_empty(disk: Path, partition: Partition) -> bool:
    with disk.open("rb") as file:
        at, end = partition.start, partition.start + partition.size
        while at < end:
            try:
                at = max(at, os.lseek(file.fileno(), at, os.SEEK_DATA))
            except OSError:
                return True  # a hole up to the file's end
            if at >= end:
                return True
            data = os.pread(file.fileno(), min(1 << 20, end - at), at)
            if data.count(0) != len(data):
                return False
            at += len(data) or end
    return True


def _decompress(packed: Path, raw: Path) -> None:
    """A packed image without papers. Sparse, so that it takes no more room than it must."""
    zstd = program("zstd", "zstd", _NEEDED_FOR)
    argv = [zstd, "-dqf", "--sparse", "--long=31", "-o", str(raw), "--", str(packed.absolute())]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, env={"PATH": PATH, "LC_ALL": "C"}
    )
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        raise _wrong(
            f"{packed} cannot be unpacked ({said or 'zstd gave no reason'})", "is it whole, and has TMPDIR room?"
        )


def _wrong(what: str, remedy: str) -> TerminalError:
    return TerminalError(what, needed_for=_NEEDED_FOR, remedy=remedy)
