"""A slot as an open file: written forward, zeros skipped, synced piece by piece, and read back from the disk.

Python 3.10, standard library only: runs as root on a device. Knows nothing of images and of what is recorded of slots;
`directory` and `partitions` open them, `writer` decides what is written. Blocks of zeros are not written: whoever opened a
slot has made sure that they are there, and in a file that was made empty they are holes. The slot's place lies in the
kernel, in the open file itself, so that a program that is given the descriptor moves it too. Source: design, section 5.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError
from reconciler.protocol.chunks import data_at

BLOCK = 4096
PIECE = 1024 * 1024
_ZEROS = bytes(BLOCK)
_ZERO_PIECE = memoryview(bytes(PIECE))


class SlotFile:
    """`hardware.SlotWriter` over a file that was just made empty, or a partition. Takes the descriptor over."""

    def __init__(
        self, descriptor: int, name: str, size: int, disk: Disk, empty: Callable[[int, int], None] = os.ftruncate
    ) -> None:
        """`empty` makes the first bytes of the open file read as zeros, so many of them."""
        self._open: int | None = descriptor
        self._name, self._size, self._disk = name, size, disk
        try:
            empty(descriptor, size)
        except OSError as error:
            self.abandon()
            raise HardwareError(f"{name} cannot be given {size} bytes: {error}") from None

    def descriptor(self) -> int:
        self._disk.on_step("write slot")
        return self._descriptor()

    def place(self) -> int:
        try:
            return os.lseek(self._descriptor(), 0, os.SEEK_CUR)
        except OSError as error:
            raise self._failed(error) from None

    def write(self, data: bytes) -> None:
        descriptor = self._descriptor()
        if self.place() + len(data) > self._size:
            raise HardwareError(f"more than {self._size} bytes were given for {self._name}")
        self._disk.on_step("write slot")
        try:
            for start, end, mapped in _stretches(data):
                if not mapped:
                    os.lseek(descriptor, end - start, os.SEEK_CUR)
                    continue
                view = memoryview(data)[start:end]
                while view:
                    view = view[os.write(descriptor, view) :]
        except OSError as error:
            raise self._failed(error) from None

    def sync(self) -> None:
        descriptor = self._descriptor()
        self._disk.on_step(f"sync {self._name}")
        try:
            os.fsync(descriptor)
            # What is synced leaves memory; what came since begins to be written without being waited for.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise self._failed(error) from None

    def finish(self) -> None:
        self.sync()
        descriptor, self._open = self._descriptor(), None
        try:
            os.close(descriptor)
        except OSError as error:
            raise self._failed(error) from None

    def abandon(self) -> None:
        descriptor, self._open = self._open, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def _descriptor(self) -> int:
        if self._open is None:
            raise HardwareError(f"{self._name} is closed")
        return self._open

    def _failed(self, error: OSError) -> HardwareError:
        return HardwareError(f"{self._name} cannot be written: {error}")


def _stretches(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it holds anything): the stretches of whole blocks of `data`, neighbours unlike each other."""
    start, mapped = 0, not data.startswith(_ZEROS)
    for at in range(BLOCK, len(data), BLOCK):
        # The last block may be short. It is written: a slot's end is worth no hole.
        holds = not data.startswith(_ZEROS, at)
        if holds is not mapped:
            yield start, at, mapped
            start, mapped = at, holds
    yield start, len(data), mapped


def read_from_disk(path: Path, start: int, end: int) -> Iterator[memoryview]:
    """The bytes from `start`, a multiple of 4096, to `end`, or to the end of the file; each piece is valid until
    the one after the next is asked for.

    They are read past the page cache where the file system can (O_DIRECT): what comes is what the disk gives. Elsewhere
    the pages were dropped when they were synced (`SlotFile.sync`), which the kernel does unless somebody else holds them. A
    disk's own cache answers for what lies in it either way. A file's holes are zeros because the file system says so, and
    are not read. OSError passes through.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = min(end, os.lseek(descriptor, 0, os.SEEK_END))
        is_direct, next_data = _past_the_cache(descriptor, True), start
        # Not closed by hand: who took a piece may look at it still. Memory goes with the last who holds it.
        views = [memoryview(mmap.mmap(-1, PIECE)) for _ in range(2)]
        while start < end:
            length = min(PIECE, end - start)
            if next_data <= start:
                with suppress(OSError):
                    next_data = data_at(descriptor, start, end)
            if next_data >= start + length:
                yield _ZERO_PIECE[:length]
                start += length
                continue
            try:
                length = min(os.preadv(descriptor, [views[0]], start), length)
            except OSError as error:
                if error.errno != errno.EINVAL or not is_direct:
                    raise
                is_direct = _past_the_cache(descriptor, False)
                continue
            if length <= 0:
                return
            yield views[0][:length]
            views.reverse()
            start += length
    finally:
        os.close(descriptor)


def _past_the_cache(descriptor: int, wanted: bool) -> bool:
    """Ask for reads past the page cache, or for plain ones; whether they are granted."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT if wanted else 0)
    except OSError:
        return False
    return wanted
