"""A trial that goes wrong ends by itself, and the good slot comes back: the golden image in both slots, one of them spoiled.

Every way in which a release can fail to come up, from its kernel to an agent that never speaks. No hand helps: no key, no
button, no host. Slot b is spoiled with debugfs; the image, its initrd, its watchdog's driver and the boot loader are the real
ones. Each takes two boots under emulation, so most of them are left to the full run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.image.disk import MIB, Disk, make_disk
from reconciler.image.disk_slot import open_source
from tests.vm import disks
from tests.vm.machine import Machine

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]
BOOT_S = 600
SLOT_BYTES = 2048 * MIB
INIT = "/usr/sbin/init"
STARTS = r"Command line: .*edge\.slot=([ab]).*$"
# QEMU's stand-ins: a card with a watchdog, and a management controller as servers have.
CARD = ("-device", "i6300esb", "-action", "watchdog=reset")
CHIPSET = ("-global", "ICH9-LPC.noreboot=false", "-action", "watchdog=reset")
CONTROLLER = ("-device", "ipmi-bmc-sim,id=bmc", "-device", "isa-ipmi-kcs,bmc=bmc")
NOTHING = ("-machine", "pc")  # an older chipset
HANGS = b"""#!/bin/sh
echo "this init does nothing" >/dev/console
while :; do sleep 1000; done
"""
CRASHES = b"""#!/bin/sh
echo "this init is of no use" >/dev/console
echo c >/proc/sysrq-trigger
"""


@dataclass(frozen=True, slots=True)
class Spoilt:
    """What is done to slot b, and what the console says of it before the way back."""

    commands: tuple[str, ...]
    says: str
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def ground(golden_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """A disk with the golden image in both slots, b armed for a trial. No test writes to it."""
    folder = tmp_path_factory.mktemp("trial")
    made = make_disk(open_source(golden_image), folder / "disk.img", slot_size=SLOT_BYTES, data_size=256 * MIB)
    disks.write_slot(made, made.layout.root_b, golden_image)
    disks.set_environment(made, edge_default="a", edge_trial="b", edge_tries="1")
    yield made
    made.path.unlink()


@pytest.fixture
def disk(ground: Disk, tmp_path: Path) -> Iterator[Disk]:
    made = disks.copy(ground, tmp_path / "disk.img")
    yield made
    made.path.unlink()


def replace_init(script: bytes) -> Spoilt:
    """Another first process in slot b."""
    commands = (f"rm {INIT}", f"write init {INIT}", f"set_inode_field {INIT} mode 0100755")
    return Spoilt(commands, "this init ", {"init": script})


def spoil(disk: Disk, how: Spoilt) -> None:
    disks.change(disk, disk.layout.root_b, *how.commands, **how.files)


def hurry(disk: Disk, seconds: int) -> None:
    """Have the watchdog reset sooner than the image does by itself."""
    name = "EFI/debian/grub.cfg"
    text = disks.read_esp(disk, name)
    assert text.count(b" panic=5 $2;") == 1
    disks.write_esp(disk, name, text.replace(b" panic=5 $2;", f" panic=5 $2 edge.watchdog={seconds};".encode()))


def comes_back(machine: Machine, says: str, timeout_s: float = BOOT_S) -> str:
    """b is tried, fails as `says` (on the console), and a starts, not on trial; what was said before a did."""
    tried = machine.wait_for(STARTS, BOOT_S)
    assert tried[1] == "b" and " edge.trial=1" in tried[0]
    machine.wait_for(says, BOOT_S)
    said = machine.log.read_text("utf-8", "replace")
    back = machine.wait_for(STARTS, timeout_s)
    assert back[1] == "a" and "edge.trial" not in back[0]
    return said


def test_a_trial_whose_userland_hangs_is_reset_by_the_watchdog_and_the_good_slot_comes_up(
    disk: Disk, tmp_path: Path
) -> None:
    spoil(disk, replace_init(HANGS))
    hurry(disk, 25)
    with Machine(disk.path, tmp_path / "vm", more=CARD).start() as machine:
        said = comes_back(machine, "this init does nothing")
        assert "edge: on trial: i6300esb resets the machine after 25 s of silence" in said
        machine.wait_for(r"login:", BOOT_S, never=r"Kernel panic|emergency mode")
        assert "edge: on trial" not in machine.console()
    assert disks.environment(disk) == {"edge_default": "a", "edge_trial": "b", "edge_tries": "0"}


@pytest.mark.full
@pytest.mark.parametrize(
    ("more", "driver"),
    [(CARD, "i6300esb"), (CHIPSET, "iTCO_wdt"), (CONTROLLER, "ipmi_watchdog"), (NOTHING, "softdog")],
    ids=["card", "chipset", "controller", "none"],
)
def test_every_kind_of_watchdog_resets_a_trial_that_hangs(
    disk: Disk, tmp_path: Path, more: tuple[str, ...], driver: str
) -> None:
    spoil(disk, replace_init(HANGS))
    if driver != "i6300esb":  # which shows the time that the image takes by itself
        hurry(disk, 25)
    with Machine(disk.path, tmp_path / "vm", more=more).start() as machine:
        said = comes_back(machine, "this init does nothing")
    seconds = 180 if driver == "i6300esb" else 25
    assert f"edge: on trial: {driver} resets the machine after {seconds} s of silence" in said


@pytest.mark.full
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(replace_init(CRASHES), id="init-panics"),
        pytest.param(Spoilt((f"rm {INIT}",), "edge: the slot has no /sbin/init", {}), id="no-init"),
        pytest.param(
            Spoilt(("rm /usr/lib/systemd/systemd",), "edge: the slot has no /sbin/init", {}), id="init-leads-nowhere"
        ),
    ],
)
def test_a_trial_without_a_first_process_comes_back_at_once(disk: Disk, tmp_path: Path, how: Spoilt) -> None:
    spoil(disk, how)
    with Machine(disk.path, tmp_path / "vm", more=CARD).start() as machine:
        comes_back(machine, how.says, 120)


def boot_file(image: Path, link: str) -> str:
    """The file in /boot that a link there leads to."""
    (name,) = (name for name in disks.names_in(image, "/boot") if re.match(rf"{re.escape(link)}-", name))
    return f"/boot/{name}"


@pytest.mark.full
def test_a_trial_with_half_an_initrd_comes_back(disk: Disk, golden_image: Path, tmp_path: Path) -> None:
    path = boot_file(golden_image, "initrd.img")
    whole = disks.file_of(golden_image, path)
    spoil(disk, Spoilt((f"rm {path}", f"write initrd {path}"), "", {"initrd": whole[: len(whole) // 2]}))
    with Machine(disk.path, tmp_path / "vm", more=CARD).start() as machine:
        comes_back(machine, "Kernel panic|Rebooting automatically")


@pytest.mark.full
def test_a_trial_with_an_empty_kernel_is_not_started(disk: Disk, golden_image: Path, tmp_path: Path) -> None:
    path = boot_file(golden_image, "vmlinuz")
    spoil(disk, Spoilt((f"rm {path}", f"write kernel {path}"), "", {"kernel": b""}))
    with Machine(disk.path, tmp_path / "vm", more=CARD).start() as machine:
        machine.wait_for("edge: slot b does not start", BOOT_S)
        assert machine.wait_for(STARTS, BOOT_S)[1] == "a"
    assert disks.environment(disk)["edge_tries"] == "0"


@pytest.mark.full
def test_a_trial_with_half_a_kernel_comes_back(disk: Disk, golden_image: Path, tmp_path: Path) -> None:
    path = boot_file(golden_image, "vmlinuz")
    whole = disks.file_of(golden_image, path)
    spoil(disk, Spoilt((f"rm {path}", f"write kernel {path}"), "", {"kernel": whole[: len(whole) // 2]}))
    with Machine(disk.path, tmp_path / "vm", more=CARD).start() as machine:
        # Without Secure Boot GRUB starts it, and the processor runs into nothing: a reset.
        machine.wait_for("edge: trial of slot b", BOOT_S)
        assert machine.wait_for(STARTS, BOOT_S)[1] == "a"


@pytest.mark.full
def test_a_trial_that_ends_in_emergency_mode_is_ended_by_its_time(disk: Disk, tmp_path: Path) -> None:
    soon = b"[Timer]\nOnBootSec=\nOnBootSec=120s\n"
    folder = "/etc/systemd/system/edge-trial.timer.d"
    spoil(
        disk,
        Spoilt(
            ("rm /etc/fstab", "write fstab /etc/fstab", f"mkdir {folder}", f"write soon {folder}/soon.conf"),
            "",
            {"fstab": b"none /var/log nosuchfs defaults 0 0\n", "soon": soon},
        ),
    )
    with Machine(disk.path, tmp_path / "vm", more=CARD).start() as machine:
        comes_back(machine, "emergency mode")
