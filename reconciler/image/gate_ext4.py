"""Reads an ext4 file system out of a file: names as bytes, metadata, contents, and every block that no file uses.

Reads only, mounts nothing, needs no root and follows no symlink of the image on this machine. Names may hold any byte,
contents are streamed, holes are not read. What it cannot read for certain (an unknown feature, a damaged structure) is
an `Unreadable`, never a file left out: the gate must not pass what it did not see. Called by `image.gate`; by
`image.gate_file` and `image.disk_slot` too. Source: the kernel's description of the on-disk format
(Documentation/filesystems/ext4).
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType

CHUNK = 1 << 20
SUPERBLOCK_AT, SUPERBLOCK_BYTES = 1024, 1024
ROOT, JOURNAL, RESIZE, _RESERVED = 2, 8, 7, 11
_MAGIC, _EXTENT_MAGIC, _XATTR_MAGIC = 0xEF53, 0xF30A, 0xEA020000
_FLAG_EXTENTS, _FLAG_INLINE, _FLAG_EA = 0x80000, 0x10000000, 0x200000
_RECOVER = 0x4
# filetype, extents, 64bit, flex_bg, csum_seed, largedir, casefold: they change nothing in how this module reads.
_KNOWN = 0x2 | 0x40 | 0x80 | 0x200 | 0x2000 | 0x4000 | 0x20000
_INCOMPATIBLE = {
    0x1: "compression",
    0x8: "journal_dev",
    0x10: "meta_bg",
    0x100: "mmp",
    0x400: "ea_inode",
    0x1000: "dirdata",
    0x8000: "inline_data",
    0x10000: "encrypt",
}
_SPARSE, _BIGALLOC, _METADATA_CSUM, _ORPHAN_PRESENT = 0x1, 0x200, 0x400, 0x10000
_UNWRITTEN = 32768


class Unreadable(Exception):
    """The bytes are no ext4 file system that can be read for certain; says why."""


@dataclass(frozen=True, slots=True)
class Inode:
    """An inode. Size in bytes; `blocks` the 60 bytes that map its contents; `xattrs` its extended attributes, raw."""

    number: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    flags: int
    blocks: bytes
    xattrs: bytes
    acl: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in the image: path from its root without a leading slash, as bytes, and its inode."""

    path: bytes
    inode: Inode

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.inode.mode)

    @property
    def is_folder(self) -> bool:
        """A folder."""
        return stat.S_ISDIR(self.inode.mode)

    @property
    def is_link(self) -> bool:
        """A symbolic link."""
        return stat.S_ISLNK(self.inode.mode)


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks of a file in a row: first block in the file, first in the file system, how many, and whether written."""

    logical: int
    physical: int
    count: int
    written: bool = True


@dataclass(frozen=True, slots=True)
class _Group:
    block_bitmap: int
    inode_bitmap: int
    inode_table: int


@dataclass(slots=True)
class Shape:
    """The superblock, as far as it matters here. `made_at`: when the file system was made, Unix time."""

    block_size: int
    blocks: int
    inodes: int
    first_block: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    reserved_gdt: int
    sparse: bool
    needs_recovery: bool
    made_at: int
    groups: list[_Group] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the file system."""
        return self.blocks * self.block_size


def read_superblock(data: bytes) -> Shape:
    """What the superblock says; `data` are its `SUPERBLOCK_BYTES`, which lie `SUPERBLOCK_AT` bytes into the file system.

    Unreadable: it is none, or of a file system with features that this reader does not know.
    """
    if len(data) != SUPERBLOCK_BYTES or struct.unpack_from("<H", data, 0x38)[0] != _MAGIC:
        raise Unreadable("no ext4 superblock")
    (inodes, low, _, _, _, first, log_size, _, per_group, _, inodes_per_group) = struct.unpack_from("<11I", data)
    compat, incompat, ro_compat = struct.unpack_from("<3I", data, 0x5C)
    unknown = incompat & ~_KNOWN & ~_RECOVER
    if unknown or ro_compat & _BIGALLOC:
        names = [_INCOMPATIBLE.get(1 << bit, hex(1 << bit)) for bit in range(32) if unknown >> bit & 1]
        raise Unreadable(f"ext4 with features that are not known here: {', '.join(names) or 'bigalloc'}")
    wide = bool(incompat & 0x80)
    high = struct.unpack_from("<I", data, 0x150)[0] if wide else 0
    revision, inode_size = struct.unpack_from("<I", data, 0x4C)[0], struct.unpack_from("<H", data, 0x58)[0]
    shape = Shape(
        block_size=1024 << log_size if log_size <= 6 else 0,
        blocks=low | high << 32,
        inodes=inodes,
        first_block=first,
        blocks_per_group=per_group,
        inodes_per_group=inodes_per_group,
        inode_size=inode_size if revision else 128,
        descriptor_size=max(32, struct.unpack_from("<H", data, 0xFE)[0]) if wide else 32,
        reserved_gdt=struct.unpack_from("<H", data, 0xCE)[0] if compat & 0x10 else 0,
        sparse=bool(ro_compat & _SPARSE),
        needs_recovery=bool(incompat & _RECOVER or ro_compat & _ORPHAN_PRESENT),
        made_at=struct.unpack_from("<I", data, 0x108)[0],
    )
    sound = (
        shape.block_size in (1024, 2048, 4096, 8192, 16384, 32768, 65536)
        and 0 < shape.blocks_per_group <= 8 * shape.block_size
        and 0 < shape.inodes_per_group <= 8 * shape.block_size
        and shape.inode_size in (128, 256, 512, 1024)
        and shape.first_block < shape.blocks
    )
    if not sound:
        raise Unreadable("a damaged ext4 superblock")
    return shape


class Volume:
    """An ext4 file system at `offset` bytes of a file. A context manager: closes the file."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        """Unreadable: no ext4 there, or one with features that this reader does not know. OSError: as the system says."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._at = offset
        try:
            self._end = os.fstat(self._fd).st_size or os.lseek(self._fd, 0, os.SEEK_END)
            self.shape = self._superblock()
            self._descriptors()
            # One byte a block: whether the file system, or a file that was met, uses it.
            self.used = bytearray(self.shape.blocks)
            # Inodes that have bytes behind their file's end, or in blocks that were set aside and never written.
            self.slack: set[int] = set()
            self._mark_metadata()
        except BaseException:
            os.close(self._fd)
            raise
        self._table = lru_cache(maxsize=32)(self._read_table)

    def __enter__(self) -> Volume:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._fd)

    # ------------------------------------------------ what the file system is

    def _superblock(self) -> Shape:
        shape = read_superblock(self._bytes(SUPERBLOCK_AT, SUPERBLOCK_BYTES))
        if shape.size > self._end - self._at:
            have = self._end - self._at
            raise Unreadable(f"an ext4 file system of {shape.size} bytes, cut off after {have}")
        return shape

    def _descriptors(self) -> None:
        shape = self.shape
        count = -(-(shape.blocks - shape.first_block) // shape.blocks_per_group)
        if count * shape.inodes_per_group < shape.inodes:
            raise Unreadable("a damaged ext4 superblock")
        table = self._bytes((shape.first_block + 1) * shape.block_size, count * shape.descriptor_size)
        for at in range(0, len(table), shape.descriptor_size):
            places = list(struct.unpack_from("<3I", table, at))
            if shape.descriptor_size >= 64:
                places = [
                    low | high << 32
                    for low, high in zip(places, struct.unpack_from("<3I", table, at + 32), strict=True)
                ]
            if not all(0 < place < shape.blocks for place in places):
                raise Unreadable("damaged ext4 group descriptors")
            shape.groups.append(_Group(*places))

    def _mark_metadata(self) -> None:
        """Mark what belongs to the file system itself. Files' own blocks are marked as they are met."""
        shape = self.shape
        descriptors = -(-len(shape.groups) * shape.descriptor_size // shape.block_size)
        table = -(-shape.inodes_per_group * shape.inode_size // shape.block_size)
        self._mark(0, shape.first_block + 1)
        for number, group in enumerate(shape.groups):
            if not shape.sparse or number in (0, 1) or any(_power(number, base) for base in (3, 5, 7)):
                start = shape.first_block + number * shape.blocks_per_group
                self._mark(start, min(1 + descriptors + shape.reserved_gdt, shape.blocks - start))
            self._mark(group.block_bitmap, 1)
            self._mark(group.inode_bitmap, 1)
            self._mark(group.inode_table, table)

    def _mark(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.shape.blocks:
            raise Unreadable(f"a block outside the file system ({start}+{count})")
        self.used[start : start + count] = b"\1" * count

    # ------------------------------------------------ bytes

    def _bytes(self, at: int, count: int) -> bytes:
        """Bytes of the file system. Unreadable: the file ends before."""
        data = os.pread(self._fd, count, self._at + at)
        while 0 < len(data) < count:
            more = os.pread(self._fd, count - len(data), self._at + at + len(data))
            if not more:
                break
            data += more
        if len(data) != count:
            raise Unreadable("the file ends within the file system")
        return data

    def block(self, number: int, count: int = 1) -> bytes:
        """Blocks in a row."""
        if number < 0 or number + count > self.shape.blocks:
            raise Unreadable(f"a block outside the file system ({number})")
        return self._bytes(number * self.shape.block_size, count * self.shape.block_size)

    # ------------------------------------------------ inodes

    def _read_table(self, group: int) -> bytes:
        shape = self.shape
        return self._bytes(
            shape.groups[group].inode_table * shape.block_size, shape.inodes_per_group * shape.inode_size
        )

    def inode_bytes(self, number: int) -> bytes:
        """An inode as it lies in its table."""
        if not 0 < number <= self.shape.inodes:
            raise Unreadable(f"an inode that does not exist ({number})")
        group, index = divmod(number - 1, self.shape.inodes_per_group)
        size = self.shape.inode_size
        return self._table(group)[index * size : (index + 1) * size]

    def inode(self, number: int) -> Inode:
        """An inode. Unreadable: there is none, or one with flags that are not known here."""
        data = self.inode_bytes(number)
        mode, uid, size, gid, links, flags = struct.unpack_from("<HHI16xHHxxxxI", data, 0)
        high, acl_high, uid_high, gid_high = struct.unpack_from("<I6xHHH", data, 0x6C)
        if flags & (_FLAG_INLINE | _FLAG_EA):
            raise Unreadable(f"inode {number} keeps its contents in a way that is not known here")
        extra = b""
        if len(data) > 128:
            begin = 128 + struct.unpack_from("<H", data, 128)[0]
            if begin + 4 <= len(data) and struct.unpack_from("<I", data, begin)[0] == _XATTR_MAGIC:
                extra = data[begin:]
        return Inode(
            number=number,
            mode=mode,
            uid=uid | uid_high << 16,
            gid=gid | gid_high << 16,
            size=size | high << 32,
            links=links,
            flags=flags,
            blocks=data[0x28:0x64],
            xattrs=extra,
            acl=struct.unpack_from("<I", data, 0x68)[0] | acl_high << 32,
        )

    def xattrs(self, inode: Inode) -> bytes:
        """Extended attributes as they lie on the disk: names and values in one."""
        if not inode.acl:
            return inode.xattrs
        self._mark(inode.acl, 1)
        return inode.xattrs + self.block(inode.acl)

    # ------------------------------------------------ contents

    def runs(self, inode: Inode) -> list[Run]:
        """Where an inode's contents lie, in the order of the file. Marks those blocks, and those of the map, as used."""
        if stat.S_ISLNK(inode.mode) and inode.size < 60 and not inode.flags & _FLAG_EXTENTS:
            return []
        if inode.flags & _FLAG_EXTENTS:
            runs = sorted(self._extents(inode.blocks, 5), key=lambda run: run.logical)
        else:
            runs = list(self._mapped(inode.blocks))
        end = 0
        for run in runs:
            if run.logical < end:
                raise Unreadable(f"inode {inode.number} maps a block twice")
            end = run.logical + run.count
            self._mark(run.physical, run.count)
        return runs

    def _extents(self, node: bytes, depth_left: int) -> Iterator[Run]:
        magic, count, _, depth = struct.unpack_from("<4H", node)
        if magic != _EXTENT_MAGIC or depth_left < 0 or depth > 5 or 12 + count * 12 > len(node):
            raise Unreadable("a damaged extent tree")
        for at in range(12, 12 + count * 12, 12):
            if depth:
                _, low, high = struct.unpack_from("<IIH", node, at)
                self._mark(low | high << 32, 1)
                yield from self._extents(self.block(low | high << 32), depth_left - 1)
            else:
                logical, length, high, low = struct.unpack_from("<IHHI", node, at)
                written = length <= _UNWRITTEN
                yield Run(logical, low | high << 32, length if written else length - _UNWRITTEN, written)

    def _mapped(self, words: bytes) -> Iterator[Run]:
        """A block map as ext2 wrote it: twelve blocks, then one, two and three levels of indirection."""
        pointers = struct.unpack("<15I", words)
        per_block = self.shape.block_size // 4
        for logical, physical in enumerate(pointers[:12]):
            if physical:
                yield Run(logical, physical, 1)
        start = 12
        for level in (1, 2, 3):
            if pointers[11 + level]:
                yield from self._indirect(pointers[11 + level], level, start)
            start += per_block**level

    def _indirect(self, block: int, level: int, start: int) -> Iterator[Run]:
        self._mark(block, 1)
        per_block = self.shape.block_size // 4
        for index, pointer in enumerate(struct.unpack(f"<{per_block}I", self.block(block))):
            if pointer and level > 1:
                yield from self._indirect(pointer, level - 1, start + index * per_block ** (level - 1))
            elif pointer:
                yield Run(start + index, pointer, 1)

    def stream(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        """What is written of a file: position and bytes, 1 MiB at most each. What is not given out is zero."""
        size = self.shape.block_size
        for run in self.runs(inode):
            if not run.written:
                if self.dirty(run.physical, run.physical + run.count):
                    self.slack.add(inode.number)
                continue
            step = max(1, CHUNK // size)
            for index in range(0, run.count, step):
                at = (run.logical + index) * size
                data = self.block(run.physical + index, min(step, run.count - index))
                if at + len(data) > inode.size:
                    keep = max(0, inode.size - at)
                    if data.count(0, keep) != len(data) - keep:
                        self.slack.add(inode.number)
                    data = data[:keep]
                if data:
                    yield at, data

    def dirty(self, start: int, end: int) -> int:
        """How many blocks of a row are not empty. Holes of the image's own file are not read."""
        size, count, at = self.shape.block_size, 0, start
        while at < end:
            try:
                there = (os.lseek(self._fd, self._at + at * size, os.SEEK_DATA) - self._at) // size
            except OSError:
                return count  # nothing but a hole up to the file's end
            at = max(at, there)
            if at >= end:
                return count
            step = min(end - at, max(1, CHUNK // size))
            data = self.block(at, step)
            if data.count(0) != len(data):
                count += sum(data.count(0, i, i + size) != size for i in range(0, len(data), size))
            at += step
        return count

    def unused_inodes(self, met: set[int]) -> int:
        """How many inodes that nothing names still hold something."""
        count, size = 0, self.shape.inode_size
        for group in range(len(self.shape.groups)):
            table = self._table(group)
            first = group * self.shape.inodes_per_group + 1
            for index in range(self.shape.inodes_per_group):
                number = first + index
                if number >= _RESERVED and number not in met:
                    count += table.count(0, index * size, (index + 1) * size) != size
        return count

    def around(self) -> Iterator[str]:
        """Where bytes lie before the superblock, or behind the file system (a file of its own, not a partition)."""
        if self._bytes(0, 1024).strip(b"\0"):
            yield "before the file system"
        end = self.shape.size
        at = end
        while self._at == 0 and at < self._end:
            data = os.pread(self._fd, CHUNK, at)
            if data.strip(b"\0"):
                yield "behind the file system"
                return
            at += max(1, len(data))

    def read(self, inode: Inode, limit: int = CHUNK) -> bytes:
        """The first `limit` bytes of a file, holes filled with zeros, or a symlink's target."""
        if stat.S_ISLNK(inode.mode) and inode.size < 60 and not inode.flags & _FLAG_EXTENTS:
            return inode.blocks[: inode.size]
        data = bytearray()
        for at, part in self.stream(inode):
            if at >= limit:
                break
            data += bytes(at - len(data)) + part
        data += bytes(max(0, min(inode.size, limit) - len(data)))
        return bytes(data[:limit])

    # ------------------------------------------------ names

    def entries(self) -> Iterator[Entry]:
        """Every name in the image but the root's own, a folder before what is in it."""
        waiting, seen = [(b"", self.inode(ROOT))], {ROOT}
        while waiting:
            path, folder = waiting.pop()
            for name, number in self._names(folder):
                entry = Entry(path + b"/" + name if path else name, self.inode(number))
                yield entry
                if entry.is_folder:
                    if number in seen:
                        raise Unreadable("a folder that is in two places")
                    seen.add(number)
                    waiting.append((entry.path, entry.inode))

    def _names(self, folder: Inode) -> Iterator[tuple[bytes, int]]:
        """Names in a folder. An index of hashes looks like unused entries, so reading in a row finds every name."""
        size = self.shape.block_size
        for _, data in self.stream(folder):
            for begin in range(0, len(data), size):
                at, end = begin, min(begin + size, len(data))
                while at + 8 <= end:
                    number, length, name_length = struct.unpack_from("<IHB", data, at)
                    length = end - at if length in (0, 65535) and size == 65536 else length
                    if length < 8 or at + length > end or 8 + name_length > length:
                        raise Unreadable(f"a damaged folder (inode {folder.number})")
                    name = data[at + 8 : at + 8 + name_length]
                    if number and name not in (b".", b".."):
                        yield name, number
                    at += length


def _power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1
