"""The boot loader of an install disk under real firmware: which slot starts, for every state of its variables.

The slots hold the golden image's kernel and no system, so a kernel that starts prints its command line, panics, and
resets itself 5 s later (`panic=5`): what a release that cannot boot does. A few seconds each.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.image.disk import MIB, Disk, make_disk
from reconciler.image.disk_boot import BACKUP, ENVIRONMENT, GRUB, SHIM, read_loader
from reconciler.image.disk_slot import open_source
from reconciler.protocol import grubenv
from tests.support.system import need
from tests.vm import disks
from tests.vm.machine import Machine

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]
STARTS = r"Command line: .*edge\.slot=([ab])"
WAIT_S = 120


@dataclass(frozen=True)
class Ground:
    """A disk that no test writes to, and images of slots: one that starts, one whose kernel nobody signed."""

    disk: Disk
    image: Path
    unsigned: Path


def slot_image(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    root, image = folder / f"root-{name}", folder / f"{name}.img"
    for path, data in files.items():
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).write_bytes(data)
    for link in ("vmlinuz", "initrd.img"):
        (root / "boot" / link).symlink_to(f"{link}-6")
    argv = [need("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", "-b", "4096", "-d", str(root), str(image), "48m"]
    subprocess.run(argv, check=True)
    return image


@pytest.fixture(scope="module")
def ground(golden_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("boot-loader")
    loader = read_loader(golden_image, 0)
    (kernel,) = (name for name in disks.names_in(golden_image, "/boot") if name.startswith("vmlinuz-"))
    signed = disks.file_of(golden_image, f"/boot/{kernel}")
    files = {SHIM: loader.shim, GRUB: loader.grub, "/boot/initrd.img-6": b"none", "/boot/vmlinuz-6": signed}
    image = slot_image(folder, "signed", files)
    # One byte of what the signature covers: firmware without Secure Boot would start it.
    changed = signed.replace(b"Linux version", b"Linux Version", 1)
    changed = changed if changed != signed else signed[:-100000] + bytes([signed[-100000] ^ 1]) + signed[-99999:]
    unsigned = slot_image(folder, "unsigned", {**files, "/boot/vmlinuz-6": changed})
    disk = make_disk(open_source(image), folder / "disk.img", slot_size=64 * MIB, data_size=64 * MIB)
    disks.write_slot(disk, disk.layout.root_b, image)
    return Ground(disk, image, unsigned)


@pytest.fixture
def disk(ground: Ground, tmp_path: Path) -> Iterator[Disk]:
    made = disks.copy(ground.disk, tmp_path / "disk.img")
    yield made
    made.path.unlink()


def started(disk: Disk, folder: Path, count: int = 1) -> str:
    """The slots whose kernels started, in order, from one switching on: `ba` for b and then, by itself, a."""
    with Machine(disk.path, folder, memory_mib=512).start() as machine:
        return "".join(machine.wait_for(STARTS, WAIT_S)[1] for _ in range(count))


def test_a_new_disk_starts_slot_a_read_only_and_says_which(disk: Disk, tmp_path: Path) -> None:
    with Machine(disk.path, tmp_path / "vm", memory_mib=512).start() as machine:
        line = machine.wait_for(r"Command line: (.*)$", WAIT_S)[1]
    words = "root=PARTLABEL=root-a ro edge.slot=a console=tty0 console=ttyS0,115200 panic=5"
    assert line == f"BOOT_IMAGE=(hd0,gpt2)/boot/vmlinuz {words}"


def test_the_default_slot_is_the_agents_to_choose(disk: Disk, tmp_path: Path) -> None:
    disks.set_environment(disk, edge_default="b", edge_trial="", edge_tries="0")
    assert started(disk, tmp_path / "vm") == "b"


def test_a_trial_that_panics_is_spent_and_the_default_comes_back_by_itself(disk: Disk, tmp_path: Path) -> None:
    disks.set_environment(disk, edge_default="a", edge_trial="b", edge_tries="1")
    with Machine(disk.path, tmp_path / "vm", memory_mib=512).start() as machine:
        tried = machine.wait_for(r"Command line: .*edge\.slot=([ab]).*$", WAIT_S)
        assert tried[1] == "b" and tried[0].endswith(" panic=5 edge.trial=1")
        # Now, while the trial's kernel runs: power may go at any instant of it.
        assert disks.environment(disk) == {"edge_default": "a", "edge_trial": "b", "edge_tries": "0"}
        back = machine.wait_for(r"Command line: .*edge\.slot=([ab]).*$", WAIT_S)
        assert back[1] == "a" and "edge.trial" not in back[0]
    # No hand helped: b's kernel panicked, waited 5 s, and reset the machine.
    assert "Rebooting in 5 seconds" in machine.log.read_text("utf-8", "replace")
    assert disks.environment(disk, BACKUP) == {"edge_default": "a"}


@pytest.mark.parametrize(
    ("variables", "slot"),
    [
        ({"edge_default": "b", "edge_trial": "a", "edge_tries": "0"}, "b"),
        ({"edge_default": "b", "edge_trial": "c", "edge_tries": "1"}, "b"),
        ({"edge_default": "b", "edge_trial": "a", "edge_tries": "1"}, "a"),
    ],
)
def test_only_an_armed_trial_of_a_known_slot_is_tried(
    disk: Disk, tmp_path: Path, variables: dict[str, str], slot: str
) -> None:
    disks.set_environment(disk, **variables)
    assert started(disk, tmp_path / "vm") == slot


TORN = grubenv.encode({"edge_default": "a", "edge_trial": "a", "edge_tries": "1"})


@pytest.mark.parametrize(
    ("data", "backup", "slot"),
    [
        (bytes(1024), "b", "b"),
        (b"", "b", "b"),
        # Its first words are lost, the armed trial is not: it is not to be trusted.
        (TORN.replace(b"edge_default=a", b"edge_default=#"), "b", "b"),
        (None, "b", "b"),
        (None, None, "a"),
        (bytes(1024), "nonsense", "a"),
    ],
)
def test_a_torn_or_missing_environment_falls_back_on_its_copy_then_on_a(
    disk: Disk, tmp_path: Path, data: bytes | None, backup: str | None, slot: str
) -> None:
    if data is None:
        disks.remove_environment(disk, ENVIRONMENT)
    else:
        disks.set_environment(disk, data=data)
    if backup is None:
        disks.remove_environment(disk, BACKUP)
    else:
        disks.set_environment(disk, BACKUP, edge_default=backup)
    assert started(disk, tmp_path / "vm") == slot


@pytest.mark.parametrize("default", ["a", "b"])
def test_a_slot_without_a_kernel_is_passed_over(disk: Disk, tmp_path: Path, default: str) -> None:
    disks.set_environment(disk, edge_default=default, edge_trial="", edge_tries="0")
    disks.wipe_slot(disk, disk.layout.root_a if default == "a" else disk.layout.root_b)
    assert started(disk, tmp_path / "vm") == {"a": "b", "b": "a"}[default]


def test_a_trial_of_an_empty_slot_is_spent_too(disk: Disk, tmp_path: Path) -> None:
    disks.set_environment(disk, edge_default="a", edge_trial="b", edge_tries="1")
    disks.wipe_slot(disk, disk.layout.root_b)
    assert started(disk, tmp_path / "vm") == "a"
    assert disks.environment(disk)["edge_tries"] == "0"


def test_a_machine_with_no_slot_says_so_and_tries_again(disk: Disk, tmp_path: Path) -> None:
    disks.wipe_slot(disk, disk.layout.root_a)
    disks.wipe_slot(disk, disk.layout.root_b)
    with Machine(disk.path, tmp_path / "vm", memory_mib=512).start() as machine:
        for _ in range(2):
            machine.wait_for("edge: neither slot starts; again in 10 s", 2 * WAIT_S)


def test_a_trial_that_cannot_be_noted_is_not_tried(disk: Disk, tmp_path: Path) -> None:
    disks.set_environment(disk, edge_default="a", edge_trial="b", edge_tries="1")
    with Machine(disk.path, tmp_path / "vm", bus="virtio", memory_mib=512, read_only=True).start() as machine:
        assert machine.wait_for(STARTS, WAIT_S)[1] == "a"
    assert disks.environment(disk)["edge_tries"] == "1"


def test_secure_boot_starts_what_is_signed_and_passes_over_what_is_not(
    ground: Ground, disk: Disk, tmp_path: Path
) -> None:
    disks.write_slot(disk, disk.layout.root_a, ground.unsigned)
    with Machine(disk.path, tmp_path / "vm", memory_mib=512, secure_boot=True).start() as machine:
        machine.wait_for("edge: slot a does not start", WAIT_S)
        assert machine.wait_for(STARTS, WAIT_S)[1] == "b"
        machine.wait_for("Secure boot enabled", WAIT_S)
