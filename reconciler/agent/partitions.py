"""The slots of a device as partitions of the disk that it runs from: found by name, emptied, opened, read.

Python 3.10, standard library only: runs as root on a device. Finds and opens; what is written and what is recorded of it
is others' to know. A partition of another disk is never taken, whatever its name: an installer's disk bears the same
ones. Called by `partitioned`. Source: docs/reference/boot.md.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from reconciler.agent import slotfile
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError

ROOT = {"a": "root-a", "b": "root-b"}
ESP, DATA = "esp", "edge-data"
SECTOR = 512
"""What sysfs counts in, whatever the disk's own sectors are."""
_BLKZEROOUT = 0x127F
_STRIDE = 64 * 1024 * 1024


class Slots(Protocol):
    """Where slots lie. Every method may raise HardwareError."""

    def path(self, slot: str) -> Path:
        """The block device or file of a slot."""

    def size(self, slot: str) -> int:
        """Bytes of it."""


@dataclass(frozen=True)
class FileSlots:
    """Slots that are files of `room` bytes each, or less where nothing was written yet."""

    a: Path
    b: Path
    room: int

    def path(self, slot: str) -> Path:
        return self.a if slot == "a" else self.b

    def size(self, slot: str) -> int:
        return self.room


@dataclass(frozen=True)
class Partition:
    """A partition as the kernel shows it: its name in the table, its device, its bytes."""

    name: str
    device: Path
    size: int


class PartitionSlots:
    """The partitions of the disk that `mount`, the booted slot's file system, is on."""

    def __init__(self, mount: Path, booted: str, *, sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> None:
        """Nothing is looked for before it is asked for."""
        self._mount, self._booted, self._sys, self._dev = mount, booted, sys, dev

    def path(self, slot: str) -> Path:
        return self._slot(slot).device

    def size(self, slot: str) -> int:
        return self._slot(slot).size

    def is_esp(self, mount: Path) -> bool:
        """Whether what is mounted at `mount` is the ESP of this disk."""
        try:
            number = os.stat(mount).st_dev
        except OSError:
            return False
        here = self._block(number)
        return here is not None and here.parent == self._running().parent and _facts(here).get("PARTNAME") == ESP

    def _slot(self, slot: str) -> Partition:
        running = self._running()
        if _facts(running).get("PARTNAME") != ROOT[self._booted]:
            raise HardwareError(
                f"slot {self._booted} was booted, but {self._mount} is {_facts(running).get('DEVNAME', running.name)}, whose"
                f" name is not {ROOT[self._booted]}; no slot is written until that is clear"
            )
        if slot == self._booted:
            return self._partition(running)
        found = [path for path in _beside(running) if _facts(path).get("PARTNAME") == ROOT[slot]]
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise HardwareError(
                f"the disk {running.parent.name} must have one partition named {ROOT[slot]}, and has {names}; mend its partition"
                " table (sfdisk --part-label), or install the device again"
            )
        return self._partition(found[0])

    def _partition(self, path: Path) -> Partition:
        facts = _facts(path)
        try:
            size = int((path / "size").read_text("ascii")) * SECTOR
        except (OSError, ValueError) as error:
            raise HardwareError(f"the size of {path.name} cannot be read: {error}") from None
        return Partition(facts.get("PARTNAME", ""), self._dev / facts.get("DEVNAME", path.name), size)

    def _running(self) -> Path:
        try:
            number = os.stat(self._mount).st_dev
        except OSError as error:
            raise HardwareError(f"the booted slot is not mounted at {self._mount}: {error.strerror}") from None
        found = self._block(number)
        if found is None or not (found / "partition").exists():
            raise HardwareError(
                f"{self._mount} is not on a partition; this machine did not boot from a slot of its disk"
            )
        return found

    def _block(self, number: int) -> Path | None:
        """A block device's folder in sysfs, below its disk's."""
        link = self._sys / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
        return link.resolve() if link.exists() else None


def _beside(partition: Path) -> list[Path]:
    """All partitions of a disk, itself included."""
    try:
        return sorted(path for path in partition.parent.iterdir() if (path / "partition").exists())
    except OSError as error:
        raise HardwareError(f"the partitions of {partition.parent.name} cannot be listed: {error}") from None


def _facts(path: Path) -> dict[str, str]:
    """What the kernel tells of a block device. Nothing, where it is gone."""
    with suppress(OSError):
        text = (path / "uevent").read_text("utf-8", "replace")
        return dict(line.partition("=")[::2] for line in text.splitlines())
    return {}


def open_slot(slots: Slots, slot: str, size: int, disk: Disk) -> slotfile.SlotFile:
    """Open a slot for an image of `size` bytes, all of them zeros. HardwareError: it is missing, too small, or in use."""
    path, room = slots.path(slot), slots.size(slot)
    if size > room:
        raise HardwareError(f"the image of {size} bytes does not fit into slot {slot} ({path.name}) of {room} bytes")
    disk.on_step(f"open {path.name}")
    try:
        is_device = stat.S_ISBLK(os.stat(path).st_mode)
        # Exclusively: a partition that somebody has mounted, or opened so, is not written under their hands.
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_EXCL if is_device else 0))
    except OSError as error:
        in_use = "; it is in use: see `lsblk` for where it is mounted" if error.errno == errno.EBUSY else ""
        raise HardwareError(f"{path} cannot be opened: {error.strerror}{in_use}") from None
    return slotfile.SlotFile(descriptor, path.name, size, disk, zero_device if is_device else zero_file)


def zero_device(descriptor: int, size: int) -> None:
    """Make the first `size` bytes of a block device zeros: by its Write Zeroes, else the kernel writes them. OSError."""
    room = os.lseek(descriptor, 0, os.SEEK_END)
    os.lseek(descriptor, 0, os.SEEK_SET)
    end = min(-(-size // slotfile.BLOCK) * slotfile.BLOCK, room)
    for at in range(0, end, _STRIDE):
        fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("=QQ", at, min(_STRIDE, end - at)))


def zero_file(descriptor: int, size: int) -> None:
    """Make a file one hole of `size` bytes. OSError."""
    os.ftruncate(descriptor, 0)
    os.ftruncate(descriptor, size)


def read_slot(path: Path, end: int, start: int = 0) -> Iterator[memoryview]:
    """As `slotfile.read_from_disk`. HardwareError: it cannot be read."""
    try:
        yield from slotfile.read_from_disk(path, start, end)
    except OSError as error:
        raise HardwareError(f"{path} cannot be read: {error.strerror}") from None
