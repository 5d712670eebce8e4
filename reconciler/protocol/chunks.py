"""The chunk index of an image: which of its 4 KiB blocks hold anything, and the sha256 of each that does.

Python 3.10, standard library only: runs as root on a device. Written by `reconciler.image` beside the packed image and
bound by SHA256SUMS; with it a device can tell what it already has, in its other slot say, before it fetches anything.
Pure, but for `index`, which reads a file once. Source: design, sections 4.9 and 5.

    8 bytes   magic, the version in it
    4         block size: 4096
    8         image size in bytes
    32        sha256 of the whole image
    4         number of runs
    4         number of mapped blocks: those that hold a byte that is not zero
    8 a run   first block, number of blocks; ascending, not touching each other
    32 a mapped block   its sha256, in order; the last block of an image may be short

Whole numbers are big-endian. There is one byte form for one index: what `ChunkIndex.from_bytes` takes, `to_bytes` gives back.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import struct
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import MAX_IMAGE_BYTES

BLOCK_SIZE = 4096
MAX_INDEX_BYTES = 128 * 1024**2
"""Enough for 16 GB of mapped blocks. An index is held in memory whole, on a device too."""
SUFFIX = ".chunks"

_MAGIC = b"EDGECHK\x01"
_HEAD = struct.Struct(">8sIQ32sII")
_RUN = struct.Struct(">II")
_HASH_BYTES = 32
_PIECE = 1024 * 1024
_ZERO_BLOCK = bytes(BLOCK_SIZE)
_ZERO_PIECE = bytes(_PIECE)

Run = tuple[int, int]
"""(first block, number of blocks)."""


class ChunksError(Malformed):
    """Bytes are not a chunk index, or a file is none that can have one."""


@dataclass(frozen=True)
class ChunkIndex:
    """What an image of `image_size` bytes holds. `digest` is `sha256:…` of all of it; `runs` are its mapped blocks,
    `hashes` their sha256s, 32 bytes each, one after the other. Blocks that no run names are zeros."""

    image_size: int
    digest: str
    runs: tuple[Run, ...]
    hashes: bytes

    @property
    def mapped_blocks(self) -> int:
        """Number of blocks that hold anything."""
        return len(self.hashes) // _HASH_BYTES

    @property
    def mapped_bytes(self) -> int:
        """Bytes of these blocks: what has to be written of the image."""
        return runs_bytes(self.runs, self.image_size)

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """(number of the block, its sha256) of every mapped block, in order."""
        at = 0
        for first, count in self.runs:
            for number in range(first, first + count):
                yield number, self.hashes[at : at + _HASH_BYTES]
                at += _HASH_BYTES

    def known(self) -> frozenset[bytes]:
        """The sha256s of all mapped blocks: what a device has that holds this image."""
        hashes = self.hashes
        return frozenset(hashes[at : at + _HASH_BYTES] for at in range(0, len(hashes), _HASH_BYTES))

    def missing(self, have: ChunkIndex | Collection[bytes]) -> tuple[Run, ...]:
        """The blocks of this image that a device lacks, as runs. `have`: what it has, an index or a set of sha256s.

        A block counts as had wherever it lies. Zeros are never missing. One that occurs twice is missing twice: what is
        asked for may be written as it comes.
        """
        held = have.known() if isinstance(have, ChunkIndex) else have
        return _as_runs(number for number, sha256 in self.blocks() if sha256 not in held)

    def to_bytes(self) -> bytes:
        """The byte form. ChunksError: more mapped blocks than an index may have."""
        digest = bytes.fromhex(self.digest.partition("sha256:")[2])
        head = _HEAD.pack(_MAGIC, BLOCK_SIZE, self.image_size, digest, len(self.runs), self.mapped_blocks)
        data = b"".join((head, *(_RUN.pack(*run) for run in self.runs), self.hashes))
        if len(data) > MAX_INDEX_BYTES:
            raise ChunksError(f"the chunk index has {len(data)} bytes; at most {MAX_INDEX_BYTES} are read")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> ChunkIndex:
        """Parse bytes that nobody vouches for. Raises ChunksError. Nothing is allocated by a size that they only claim."""
        if len(data) > MAX_INDEX_BYTES:
            raise ChunksError(f"the chunk index has {len(data)} bytes; at most {MAX_INDEX_BYTES} are read")
        if len(data) < _HEAD.size or not data.startswith(_MAGIC[:-1]):
            raise ChunksError("this is no chunk index")
        magic, block_size, image_size, digest, run_count, blocks = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise ChunksError(f"the chunk index is of version {magic[-1]}; this program reads {_MAGIC[-1]}")
        if block_size != BLOCK_SIZE:
            raise ChunksError(f"the chunk index has blocks of {block_size} bytes; this program reads {BLOCK_SIZE}")
        if not 1 <= image_size <= MAX_IMAGE_BYTES:
            raise ChunksError(f"the chunk index is of an image of {image_size} bytes, not of 1 to {MAX_IMAGE_BYTES}")
        hashes_at = _HEAD.size + _RUN.size * run_count
        if len(data) != hashes_at + _HASH_BYTES * blocks:
            raise ChunksError(f"the chunk index has {len(data)} bytes, not those of {run_count} runs, {blocks} blocks")
        runs = tuple(_RUN.iter_unpack(data[_HEAD.size : hashes_at]))
        end, mapped = -1, 0
        for first, count in runs:
            # Touching runs would be one: an index has one byte form.
            if first <= end or count < 1:
                raise ChunksError(f"the chunk index's run {first}+{count} is empty, or touches the one before")
            end, mapped = first + count, mapped + count
        if end > -(-image_size // BLOCK_SIZE):
            raise ChunksError(f"the chunk index names blocks up to {end}, past an image of {image_size} bytes")
        if mapped != blocks:
            raise ChunksError(f"the chunk index's runs hold {mapped} blocks, but it has hashes of {blocks}")
        return cls(image_size, f"sha256:{digest.hex()}", runs, data[hashes_at:])


def runs_bytes(runs: Collection[Run], image_size: int) -> int:
    """Bytes of the blocks in `runs` of an image of `image_size` bytes, whose last block may be short."""
    return sum(min((first + count) * BLOCK_SIZE, image_size) - first * BLOCK_SIZE for first, count in runs)


def index(file: BinaryIO) -> ChunkIndex:
    """Index a raw image, from the beginning to the end of `file`, in one pass. ChunksError: it is empty or too large.

    Holes are not read where the file system tells of them. The whole is hashed by a thread beside this one: hashlib
    lets go of the interpreter for pieces as large as these.
    """
    whole, pieces = hashlib.sha256(), queue.Queue[bytes](16)
    hasher = threading.Thread(target=_hash_all, args=(whole, pieces), daemon=True)
    hasher.start()
    numbers, hashes, size = [], [], 0
    new, zero = hashlib.sha256, _ZERO_BLOCK
    try:
        for data in _pieces(file):
            if size + len(data) > MAX_IMAGE_BYTES:
                raise ChunksError(f"the image has more than {MAX_IMAGE_BYTES} bytes")
            pieces.put(data)
            # One comparison for a piece of zeros, which is how most zeros come.
            if data is not _ZERO_PIECE and data != _ZERO_PIECE:
                for at in range(0, len(data), BLOCK_SIZE):
                    block = data[at : at + BLOCK_SIZE]
                    if block != zero and (len(block) == BLOCK_SIZE or block.strip(b"\0")):
                        numbers.append((size + at) // BLOCK_SIZE)
                        hashes.append(new(block).digest())
                if len(hashes) * _HASH_BYTES > MAX_INDEX_BYTES:
                    raise ChunksError(f"the image's chunk index would have more than {MAX_INDEX_BYTES} bytes")
            size += len(data)
    finally:
        pieces.put(b"")
        hasher.join()
    if size == 0:
        raise ChunksError("the image is empty")
    return ChunkIndex(size, f"sha256:{whole.hexdigest()}", _as_runs(numbers), b"".join(hashes))


def _hash_all(whole: hashlib._Hash, pieces: queue.Queue[bytes]) -> None:
    while data := pieces.get():
        whole.update(data)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """The file's bytes; all but the last piece are of `_PIECE` bytes. One that lies in a hole is `_ZERO_PIECE` itself."""
    try:
        descriptor = file.fileno()
        size = os.lseek(descriptor, 0, os.SEEK_END)
        data_at(descriptor, 0, size)
    except (OSError, ValueError):
        # A pipe, bytes in memory, or a file system that tells of no holes: read as it comes.
        with suppress(OSError, ValueError):
            file.seek(0)
        while data := _filled(file.read, _PIECE):
            yield data
        return
    at = next_data = 0
    while at < size:
        length = min(_PIECE, size - at)
        if next_data <= at:
            next_data = data_at(descriptor, at, size)
        if next_data >= at + length:
            data = _ZERO_PIECE if length == _PIECE else bytes(length)
        else:
            os.lseek(descriptor, at, os.SEEK_SET)
            data = _filled(partial(os.read, descriptor), length)
        # Past a new end there is nothing, and it looks like a hole.
        if len(data) < length or os.lseek(descriptor, 0, os.SEEK_END) != size:
            raise ChunksError("the image changed its size while it was read")
        yield data
        at += length


def _filled(read: Callable[[int], bytes], length: int) -> bytes:
    """Bytes of as many reads as it takes; fewer than `length` at the end alone."""
    parts = []
    while length > 0 and (data := read(length)):
        parts.append(data)
        length -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def data_at(descriptor: int, at: int, size: int) -> int:
    """Where data begins, at `at` or behind it; `size` where only a hole follows. OSError: this file cannot be asked."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def _as_runs(numbers: Iterator[int] | list[int]) -> tuple[Run, ...]:
    runs: list[Run] = []
    first = end = -1
    for number in numbers:
        if number == end:
            end += 1
            continue
        if first >= 0:
            runs.append((first, end - first))
        first, end = number, number + 1
    if first >= 0:
        runs.append((first, end - first))
    return tuple(runs)
