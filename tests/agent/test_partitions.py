"""Slots as partitions: found beside the running one and nowhere else, zeroed, and refused where something is unclear."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.agent import partitions
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError
from reconciler.agent.partitions import FileSlots, PartitionSlots
from tests.support.system import need

MIB = 1 << 20


@dataclass(frozen=True)
class Sysfs:
    """Block devices as the kernel shows them. Whatever is mounted below `root` is on the device that `runs_on` named."""

    root: Path

    def disk(self, disk: str, *names: str, sectors: int = 16384) -> None:
        folder = self.root / "sys" / "devices" / "pci" / "block" / disk
        folder.mkdir(parents=True)
        (folder / "uevent").write_text(f"MAJOR=8\nMINOR=0\nDEVNAME={disk}\nDEVTYPE=disk\n")
        for number, name in enumerate(names, 1):
            part = folder / f"{disk}{number}"
            part.mkdir()
            (part / "partition").write_text(f"{number}\n")
            (part / "size").write_text(f"{sectors}\n")
            (part / "uevent").write_text(
                f"MAJOR=8\nMINOR={number}\nDEVNAME={disk}{number}\nPARTN={number}\nPARTNAME={name}\n"
            )

    def part(self, disk: str, number: int) -> Path:
        return self.root / "sys" / "devices" / "pci" / "block" / disk / f"{disk}{number}"

    def runs_on(self, target: Path, mount: Path | None = None) -> None:
        number = (mount or self.root).stat().st_dev
        link = self.root / "sys" / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)

    def slots(self, booted: str = "a") -> PartitionSlots:
        return PartitionSlots(self.root, booted, sys=self.root / "sys", dev=self.root / "dev")


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    made = Sysfs(tmp_path)
    made.disk("sda", "esp", "root-a", "root-b", "edge-data")
    made.runs_on(made.part("sda", 2))
    return made


def test_the_other_slot_is_the_one_beside_the_running_one(sysfs: Sysfs) -> None:
    sysfs.disk("sdb", "esp", "root-a", "root-b", "edge-data", sectors=8)
    slots = sysfs.slots()
    assert (slots.path("a"), slots.path("b")) == (sysfs.root / "dev" / "sda2", sysfs.root / "dev" / "sda3")
    assert slots.size("b") == 16384 * 512
    sysfs.runs_on(sysfs.part("sdb", 3))
    slots = sysfs.slots("b")
    assert (slots.path("a"), slots.path("b")) == (sysfs.root / "dev" / "sdb2", sysfs.root / "dev" / "sdb3")
    assert slots.size("a") == 8 * 512


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("esp", "root-a", "edge-data"), "has none"),
        (("esp", "root-a", "root-b", "root-b"), "has sdc3, sdc4"),
        (("esp", "root-a", "ROOT-B"), "has none"),
    ],
)
def test_one_partition_must_bear_the_name(sysfs: Sysfs, names: tuple[str, ...], says: str) -> None:
    sysfs.disk("sdc", *names)
    sysfs.runs_on(sysfs.part("sdc", 2))
    slots = sysfs.slots()
    # What runs can be read all the same.
    assert slots.path("a") == sysfs.root / "dev" / "sdc2"
    for ask in (slots.path, slots.size):
        with pytest.raises(HardwareError, match=f"one partition named root-b.*{says}"):
            ask("b")


def test_a_second_partition_of_the_running_ones_name_does_not_confuse_it(sysfs: Sysfs) -> None:
    sysfs.disk("sdc", "esp", "root-a", "root-b", "root-a")
    sysfs.runs_on(sysfs.part("sdc", 4))
    assert sysfs.slots().path("a") == sysfs.root / "dev" / "sdc4"
    assert sysfs.slots().path("b") == sysfs.root / "dev" / "sdc3"


def test_a_slot_that_is_not_what_was_booted_keeps_every_slot_from_being_written(sysfs: Sysfs) -> None:
    with pytest.raises(HardwareError, match=r"slot b was booted.*sda2.*not root-b"):
        sysfs.slots("b").path("a")


def test_a_machine_that_runs_from_no_partition_says_so(sysfs: Sysfs) -> None:
    sysfs.runs_on(sysfs.part("sda", 2).parent)
    with pytest.raises(HardwareError, match="not on a partition"):
        sysfs.slots().path("b")
    with pytest.raises(HardwareError, match="not mounted"):
        PartitionSlots(sysfs.root / "none", "a").path("b")
    # A real kernel, and a folder in memory: no block device at all.
    with pytest.raises(HardwareError, match="not on a partition"):
        PartitionSlots(Path("/proc"), "a").path("b")


def test_a_size_that_cannot_be_read_is_named(sysfs: Sysfs) -> None:
    (sysfs.part("sda", 3) / "size").write_text("many")
    with pytest.raises(HardwareError, match="size of sda3"):
        sysfs.slots().size("b")


def test_the_esp_is_the_one_of_the_running_disk(sysfs: Sysfs) -> None:
    slots = sysfs.slots()
    assert not slots.is_esp(sysfs.root)  # It is root-a that is mounted there.
    sysfs.runs_on(sysfs.part("sda", 1))
    assert slots.is_esp(sysfs.root)
    assert not slots.is_esp(sysfs.root / "none")
    assert not slots.is_esp(Path("/proc"))


def test_the_esp_of_another_disk_is_not_taken_for_ones_own(sysfs: Sysfs) -> None:
    esp = Path("/proc")
    sysfs.disk("sdb", "esp", "root-a")
    sysfs.runs_on(sysfs.part("sda", 1), esp)
    assert sysfs.slots().is_esp(esp)
    sysfs.runs_on(sysfs.part("sdb", 1), esp)
    assert not sysfs.slots().is_esp(esp)


def test_a_file_is_one_hole_after_it_was_opened(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path / "a", tmp_path / "b", 4 * MIB)
    (tmp_path / "b").write_bytes(b"\xff" * (3 * MIB))
    writer = partitions.open_slot(slots, "b", 2 * MIB + 5, Disk())
    assert (tmp_path / "b").stat().st_size == 2 * MIB + 5
    assert (tmp_path / "b").stat().st_blocks == 0
    writer.abandon()


def test_a_link_in_a_slots_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "b").symlink_to(tmp_path / "victim")
    with pytest.raises(HardwareError, match="cannot be opened"):
        partitions.open_slot(FileSlots(tmp_path / "a", tmp_path / "b", MIB), "b", 5, Disk())
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_disk_that_cannot_be_zeroed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_descriptor: int, _size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "b").write_bytes(b"x")
    monkeypatch.setattr(partitions, "zero_file", refused)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HardwareError, match="Input/output error"):
        partitions.open_slot(FileSlots(tmp_path / "a", tmp_path / "b", MIB), "b", 5, Disk())
    assert len(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------ real block devices


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device full of noise, as root."""
    losetup = need("losetup", "mount")
    file = tmp_path / "disk"
    file.write_bytes(random.Random(1).randbytes(MIB) * 8)
    done = subprocess.run([losetup, "--find", "--show", str(file)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs root and loop devices: {done.stderr.strip()}")
    yield Path(done.stdout.strip())
    subprocess.run([losetup, "--detach", done.stdout.strip()], check=True)


@pytest.mark.vm
def test_a_block_device_reads_as_zeros_where_nothing_was_written(device: Path) -> None:
    slots, size = FileSlots(device, device, 8 * MIB), 5 * MIB + 512
    writer = partitions.open_slot(slots, "b", size, Disk())
    writer.write(b"x" * 5000 + bytes(3 * MIB) + b"y" * 100)
    writer.sync()
    writer.finish()
    expected = (b"x" * 5000 + bytes(3 * MIB) + b"y" * 100).ljust(size, b"\0")
    found = b"".join(map(bytes, partitions.read_slot(device, size)))
    assert hashlib.sha256(found).hexdigest() == hashlib.sha256(expected).hexdigest()
    # What lies behind the image is none of its business; zeros end at a whole block.
    assert any(b"".join(map(bytes, partitions.read_slot(device, 8 * MIB, 5 * MIB + 4096))))


@pytest.mark.vm
def test_a_block_device_in_use_is_not_written(device: Path) -> None:
    before = device.read_bytes()[:MIB]
    holder = os.open(device, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(HardwareError, match="in use"):
            partitions.open_slot(FileSlots(device, device, 8 * MIB), "b", 5, Disk())
    finally:
        os.close(holder)
    assert device.read_bytes()[:MIB] == before


@pytest.mark.vm
def test_a_read_only_block_device_is_not_written(device: Path) -> None:
    subprocess.run([need("blockdev", "util-linux"), "--setro", str(device)], check=True)
    before = device.read_bytes()[:MIB]
    try:
        with pytest.raises(HardwareError, match=r"cannot be (opened|given)"):
            partitions.open_slot(FileSlots(device, device, 8 * MIB), "b", 5, Disk())
    finally:
        subprocess.run([need("blockdev", "util-linux"), "--setrw", str(device)], check=True)
    assert device.read_bytes()[:MIB] == before
