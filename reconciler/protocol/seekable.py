"""A packed image in frames, each of which unpacks by itself: several processors unpack one image at once.

Python 3.10, standard library only: runs as root on a device. Written by `reconciler.image`, read by the agent's `frames`.
The file is plain zstd, one frame behind the other, to every other program; behind the last stands a table in a frame that
programs skip. Pure, but for `read`, which reads a few bytes of an open file. Source: zstd's seekable format, version 0.1.0
(contrib/seekable_format in zstd's sources):

    4 bytes   magic of a frame that is skipped, 0x184D2A5E
    4         bytes that follow
    8 a frame packed size, size of what it unpacks to (12, where it has a checksum beside them)
    4         number of frames
    1         bit 7: entries have checksums; bits 2 to 6: zero
    4         magic, 0x8F92EAB1

Whole numbers are little-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

FRAME_BYTES = 32 * 1024 * 1024
"""What a frame of our images unpacks to; the last one may be shorter. See `image.pack` for what it costs, and saves."""
BLOCK = 4096
"""A frame that a device unpacks by itself begins at a multiple of it."""
MAX_FRAMES = 4096
_HEAD = struct.Struct("<II")
_ENTRY = struct.Struct("<II")
_FOOT = struct.Struct("<IBI")
_SKIPPED, _SEEKABLE, _ZSTD = 0x184D2A5E, 0x8F92EAB1, 0xFD2FB528
_CHECKSUMS, _RESERVED, _CHECKSUM_BYTES = 0x80, 0x7C, 4


class Frame(NamedTuple):
    """Bytes `start` to `end` of the packed file unpack to `length` bytes of the image, from `place` on. `sha256`: of these, or
    empty where nobody has said."""

    start: int
    end: int
    place: int
    length: int
    sha256: bytes = b""


def table(sizes: Iterable[tuple[int, int]]) -> bytes:
    """The table of frames of (packed, unpacked) bytes. ValueError: there are more than `MAX_FRAMES`."""
    entries = b"".join(_ENTRY.pack(*pair) for pair in sizes)
    count = len(entries) // _ENTRY.size
    if count > MAX_FRAMES:
        raise ValueError(f"{count} frames, and {MAX_FRAMES} at most are read")
    return _HEAD.pack(_SKIPPED, len(entries) + _FOOT.size) + entries + _FOOT.pack(count, 0, _SEEKABLE)


def read(descriptor: int) -> tuple[Frame, ...] | None:
    """The frames of a packed file, in order; None, where it has no table, or one that is not about all of it.

    It proves nothing: who unpacks has to see that each frame gives what is said here. OSError passes through.
    """
    size = os.fstat(descriptor).st_size
    foot = os.pread(descriptor, _FOOT.size, max(0, size - _FOOT.size))
    if len(foot) < _FOOT.size:
        return None
    count, flags, magic = _FOOT.unpack(foot)
    if magic != _SEEKABLE or flags & _RESERVED or not 0 < count <= MAX_FRAMES:
        return None
    stride = _ENTRY.size + (_CHECKSUM_BYTES if flags & _CHECKSUMS else 0)
    length = _HEAD.size + count * stride + _FOOT.size
    data = os.pread(descriptor, length, size - length) if length <= size else b""
    if len(data) < length or _HEAD.unpack_from(data) != (_SKIPPED, length - _HEAD.size):
        return None
    found, start, place = [], 0, 0
    for number in range(count):
        packed, unpacked = _ENTRY.unpack_from(data, _HEAD.size + number * stride)
        if os.pread(descriptor, 4, start) != _ZSTD.to_bytes(4, "little"):
            return None
        found.append(Frame(start, start + packed, place, unpacked))
        start, place = start + packed, place + unpacked
    return tuple(found) if start + length == size else None
