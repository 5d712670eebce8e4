"""Looks for secrets in packed data: gzip, xz, lzma, bzip2, zstd, zip (zipapps too), tar, ar (.deb, .a), and the initramfs
with its early part.

Bytes in, kinds and places out; works in a temporary file, runs zstd where it meets it, and unpacks 1 GiB and three
layers at most, and no more members and for no longer than `Bounds` says. What cannot be looked into whole is reported,
never passed. Called by `image.gate`.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Protocol

from reconciler.image.gate_secrets import Scanner, whole
from reconciler.image.process import PATH, program

MAX_BYTES = 1 << 30
MAX_LAYERS = 3
_CHUNK = 1 << 20
_MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"070701": "cpio",
    b"070702": "cpio",
    b"PK\x03\x04": "zip",
    b"!<arch>\n": "ar",
    b"#!": "zip",  # perhaps: a zipapp begins with its interpreter's line
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"hsqs": "squashfs",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
_CLOSED = ("lz4", "squashfs", "7z", "rar")
Place = dict[tuple[str, str], str]


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _TooMuch(Exception):
    """More than is unpacked; what of it."""


@dataclass(slots=True)
class Bounds:
    """What looking into one file may take, all its layers together: members, and seconds (`until`, of the monotonic clock)."""

    members: int = 100_000
    seconds: float = 300.0
    until: float = 0.0

    def begin(self) -> None:
        """The time begins."""
        self.until = time.monotonic() + self.seconds

    def member(self) -> None:
        """One more member. _TooMuch."""
        self.members -= 1
        if self.members < 0:
            raise _TooMuch("too many members")
        self.piece()

    def piece(self) -> None:
        """One more piece of data. _TooMuch."""
        if time.monotonic() > self.until:
            raise _TooMuch(f"more than {self.seconds:g} seconds of work")


def unpack(
    head: bytes, pieces: Callable[[], Iterable[tuple[int, bytes]]], strict: bool, bounds: Bounds | None = None
) -> Place:
    """(rule, what) → where, of what is packed in a file. `head` is its first piece, `pieces` gives all of it."""
    kind = _kind(head)
    if kind is None:
        return {}
    if kind in _CLOSED:
        return {("unread", f"packed as {kind}, which is not looked into"): "the whole file"}
    if head.startswith(b"#!") and b"PK\x03\x04" not in head[:4096]:
        return {}
    with tempfile.TemporaryFile(prefix="gate-") as file:
        for at, data in pieces():
            file.seek(at)
            file.write(data)
        bounds = bounds or Bounds()
        bounds.begin()
        return _inside(file, kind, strict, 1, bounds)


def _kind(head: bytes) -> str | None:
    if head[257:262] == b"ustar":
        return "tar"
    # No magic of its own: its usual properties, and a size that is not told or below 2^40.
    if head[:3] == b"\x5d\0\0" and (head[5:13] == b"\xff" * 8 or head[10:13] == b"\0\0\0"):
        return "lzma"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _inside(file: IO[bytes], kind: str, strict: bool, layer: int, bounds: Bounds) -> Place:
    """Look through one layer, and those in it."""
    if layer > MAX_LAYERS:
        return {("unread", f"packed more than {MAX_LAYERS} times over"): f"in {kind}"}
    found: Place = {}
    try:
        for member in _members(file, kind):
            bounds.member()
            with tempfile.TemporaryFile(prefix="gate-") as inner:
                scanner, head, at = Scanner(strict), b"", 0
                for data in member:
                    bounds.piece()
                    head = head or data
                    scanner.feed(at, data)
                    at += len(data)
                    if at > MAX_BYTES:
                        raise _TooMuch(f"more than {MAX_BYTES >> 30} GiB of data")
                    inner.write(data)
                found.update(dict.fromkeys(scanner.found, f"in {kind} data"))
                binary = whole(head)
                if binary is not None:
                    found[binary] = f"in {kind} data"
                below = _kind(head)
                if below in _CLOSED:
                    found["unread", f"packed as {below}, which is not looked into"] = f"in {kind} data"
                elif below is not None and not head.startswith(b"#!"):
                    inner.seek(0)
                    # What lies in a tar, or is a tar, is not packed once more by that.
                    found.update(_inside(inner, below, strict, layer + (below not in ("tar", "ar")), bounds))
    except _TooMuch as what:
        found["unread", str(what)] = f"in {kind}"
    except RuntimeError:  # how zipfile says that a member is encrypted
        found["unread", "encrypted data"] = f"in {kind}"
    except (
        OSError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        tarfile.TarError,
        NotImplementedError,
        ValueError,
    ):
        pass  # damaged, or no such data after all: what came out was looked through, the packed bytes are besides
    return found


def _members(file: IO[bytes], kind: str) -> Iterator[Iterator[bytes]]:
    """The contents of a packed file, one stream each."""
    file.seek(0)
    if kind == "gzip":
        with gzip.GzipFile(fileobj=file) as text:
            yield _pieces(text)
    elif kind in ("xz", "lzma"):
        with lzma.LZMAFile(file) as text:
            yield _pieces(text)
    elif kind == "bzip2":
        with bz2.BZ2File(file) as text:
            yield _pieces(text)
    elif kind == "zstd":
        yield _zstd(file)
    elif kind == "zip":
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    yield iter(())
                    continue
                with archive.open(info) as member:
                    yield _pieces(member)
    elif kind == "tar":
        with tarfile.open(fileobj=file, mode="r:") as members:
            for each in members:
                opened = members.extractfile(each) if each.isfile() else None
                yield _pieces(opened) if opened is not None else iter(())
    elif kind == "cpio":
        yield from _after_cpio(file)
    elif kind == "ar":
        yield from _ar(file)


def _pieces(file: _Readable) -> Iterator[bytes]:
    while data := file.read(_CHUNK):
        yield data


def _ar(file: IO[bytes]) -> Iterator[Iterator[bytes]]:
    """The members of an ar archive, as a Debian package is one: 60 bytes of header, and data padded to an even length."""
    at, end = 8, file.seek(0, 2)
    while at + 60 <= end:
        file.seek(at)
        header = file.read(60)
        size = int(header[48:58])
        if size < 0:
            raise ValueError("no ar archive")
        yield _part(file, at + 60, size)
        at += 60 + size + size % 2


def _part(file: IO[bytes], at: int, size: int) -> Iterator[bytes]:
    file.seek(at)
    while size > 0 and (data := file.read(min(size, _CHUNK))):
        yield data
        size -= len(data)


def _zstd(file: IO[bytes]) -> Iterator[bytes]:
    zstd = program("zstd", "zstd", "checking the image")
    file.flush()
    child = subprocess.Popen(
        [zstd, "-dcq", "--long=31"],
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": PATH, "LC_ALL": "C"},
    )
    assert child.stdout is not None
    try:
        with child.stdout:
            yield from _pieces(child.stdout)
    finally:
        child.kill()
        child.wait()


def _after_cpio(file: IO[bytes]) -> Iterator[Iterator[bytes]]:
    """What follows a cpio archive in an initramfs: the part with the files, packed. The archive itself is in clear."""
    at, end = 0, file.seek(0, 2)
    while at + 110 <= end:
        file.seek(at)
        header = file.read(110)
        if header[:6] not in (b"070701", b"070702"):
            break
        size, name_length = int(header[54:62], 16), int(header[94:102], 16)
        name = file.read(min(name_length, 4096))
        at = -(-(at + 110 + name_length) // 4) * 4
        at = -(-(at + size) // 4) * 4
        if name.startswith(b"TRAILER!!!"):
            at = _past_zeros(file, at)
    if 0 < at < end:
        file.seek(at)
        yield _pieces(file)


def _past_zeros(file: IO[bytes], at: int) -> int:
    while True:
        file.seek(at)
        data = file.read(_CHUNK)
        rest = data.lstrip(b"\0")
        if rest or not data:
            return at + len(data) - len(rest)
        at += len(data)
