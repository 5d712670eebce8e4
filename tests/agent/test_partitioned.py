"""A device with two partitions: what is recognised, what is never written, and what it says where something is missing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.agent import partitioned
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import BootFlags, HardwareError, ImageVersion
from reconciler.protocol.report import Slot
from tests.agent.bench import BenchHardware
from tests.agent.conftest import Releases
from tests.agent.firmware import BACKUP, ENVIRONMENT, FOLDER, backup, choose, environment
from tests.support.system import need

pytestmark = pytest.mark.system
OTHER = "sha256:" + "9" * 64
ROOM = 1 << 20


@pytest.fixture
def machine(releases: Releases, tmp_path: Path) -> BenchHardware:
    """A device as it was installed: v1 in slot a, nothing recorded."""
    return BenchHardware(tmp_path / "device", image=releases.v1.image, cache=releases.root / "unpacked")


def recognised(machine: BenchHardware) -> int:
    """Run the job to its end; how many pieces it had."""
    job = machine.recognise()
    assert job is not None
    return len(list(job))


# ------------------------------------------------------------ the booted slot, recognised


def test_a_new_device_finds_out_what_it_runs_and_that_it_is_good(machine: BenchHardware, releases: Releases) -> None:
    assert machine.slots() == {"a": Slot(), "b": Slot()}
    assert recognised(machine) >= 1
    assert machine.slots() == {"a": Slot("v1", releases.v1.digest, True), "b": Slot()}
    # The image's own length, not the partition's.
    assert machine.slot_size("a") == len(releases.v1.image) < ROOM
    assert machine.recognise() is None


def test_a_slot_on_trial_is_recognised_and_not_good(machine: BenchHardware, releases: Releases) -> None:
    written(machine, releases.v2.image)
    machine.arm("b")
    machine.boot()
    (machine.root / "agent" / "slots.json").unlink()
    recognised(machine)
    assert machine.slots() == {"a": Slot(), "b": Slot("v2", releases.v2.digest, False)}
    machine.mark_good("b")
    assert machine.slots()["b"].good


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"a": 5, "b": {}}', b"\xff" * 5000, b"[" * 5000])
def test_records_that_are_damaged_make_no_slot_usable_and_the_booted_one_is_recognised_again(
    machine: BenchHardware, releases: Releases, damage: bytes
) -> None:
    recognised(machine)
    machine.record_slot("b", "v2", OTHER, 5)
    (machine.root / "agent" / "slots.json").write_bytes(damage)
    assert machine.slots() == {"a": Slot(), "b": Slot()}
    assert machine.slot_size("b") == 0
    recognised(machine)
    assert machine.slots() == {"a": Slot("v1", releases.v1.digest, True), "b": Slot()}


@pytest.mark.parametrize(
    "change", [{"digest": "sha256:5"}, {"release": ""}, {"release": None}, {"size": 0}, {"size": True}, {"size": "5"}]
)
def test_half_a_record_is_none(machine: BenchHardware, change: dict[str, object]) -> None:
    record = {"release": "v2", "digest": OTHER, "good": True, "size": 5}
    file = machine.root / "agent" / "slots.json"
    file.write_text(json.dumps({"b": record}))
    assert machine.slots()["b"] == Slot("v2", OTHER, True)
    file.write_text(json.dumps({"b": {**record, **change}}))
    assert machine.slots()["b"] == Slot()


def test_a_slot_written_past_the_agent_is_recognised_again(machine: BenchHardware, releases: Releases) -> None:
    """The record says v1, the slot says v2: somebody copied an image onto the disk by hand."""
    recognised(machine)
    with open(machine.slot_file("a"), "r+b") as file:
        file.write(releases.v2.image)
    machine.boot()
    assert machine.slots()["a"] == Slot()
    recognised(machine)
    assert machine.slots()["a"] == Slot("v2", releases.v2.digest, True)


def test_a_slot_that_names_no_release_is_not_recognised(machine: BenchHardware) -> None:
    (machine.root / "run" / "slot").unlink()
    with pytest.raises(HardwareError, match="names no RELEASE"):
        recognised(machine)
    assert machine.slots()["a"] == Slot()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: bytes(2048) + data[2048:], "no whole ext4"),
        # Twice as many blocks as there are.
        (lambda data: data[:1028] + (2 * ROOM // 1024).to_bytes(4, "little") + data[1032:], "no whole ext4"),
        (lambda data: data[:1000], "no whole ext4"),
    ],
)
def test_a_slot_without_a_whole_file_system_is_not_recognised(
    machine: BenchHardware, damage: Callable[[bytes], bytes], says: str
) -> None:
    file = machine.slot_file("a")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(HardwareError, match=says):
        recognised(machine)


def test_a_slot_that_ends_too_soon_is_not_recognised(machine: BenchHardware, releases: Releases) -> None:
    file = machine.slot_file("a")
    file.write_bytes(file.read_bytes()[: len(releases.v1.image) - 1])
    with pytest.raises(HardwareError, match="ends after"):
        recognised(machine)


def test_what_boots_by_default_must_be_known_before_a_slot_is_called_good(machine: BenchHardware) -> None:
    (machine.root / "esp" / FOLDER / ENVIRONMENT).unlink()
    (machine.root / "esp" / FOLDER / ENVIRONMENT).mkdir()
    with pytest.raises(HardwareError, match="cannot be read"):
        recognised(machine)
    assert machine.slots()["a"] == Slot()


@pytest.mark.parametrize(("blocks", "options"), [("256k", "^64bit"), ("300k", "64bit"), ("5M", "^has_journal")])
@pytest.mark.parametrize("size", ["1024", "4096"])
def test_the_size_of_a_file_system_is_read_from_its_superblock(
    tmp_path: Path, blocks: str, options: str, size: str
) -> None:
    image = tmp_path / "image"
    command = [need("mke2fs", "e2fsprogs"), "-q", "-t", "ext4", "-b", size, "-O", options, str(image), blocks]
    subprocess.run(command, check=True, capture_output=True)
    assert partitioned.file_system_bytes(image.read_bytes()[:2048]) == image.stat().st_size


def test_a_superblock_may_count_beyond_32_bits() -> None:
    head = bytearray(2048)
    head[1024 + 0x38 : 1024 + 0x3A] = b"\x53\xef"
    head[1024 + 0x4 : 1024 + 0x8] = (7).to_bytes(4, "little")
    head[1024 + 0x18] = 2
    assert partitioned.file_system_bytes(bytes(head)) == 7 * 4096
    head[1024 + 0x150] = 1
    assert partitioned.file_system_bytes(bytes(head)) == 7 * 4096
    head[1024 + 0x60] = 0x80
    assert partitioned.file_system_bytes(bytes(head)) == (7 + 2**32) * 4096
    head[1024 + 0x18] = 40
    assert partitioned.file_system_bytes(bytes(head)) is None


# ------------------------------------------------------------ what is never written


def written(machine: BenchHardware, data: bytes, slot: str = "b", release: str = "v2") -> None:
    machine.forget_slot(slot)
    writer = machine.open_slot(slot, len(data))
    writer.write(data)
    writer.finish()
    machine.record_slot(slot, release, "sha256:" + hashlib.sha256(data).hexdigest(), len(data))


def test_before_a_slot_is_written_no_copy_of_the_flags_names_it(machine: BenchHardware, releases: Releases) -> None:
    """A mark that was cut short names b in the copy alone. b is written; then the variables are torn as well."""
    esp = machine.root / "esp"
    (esp / FOLDER / BACKUP).write_bytes(backup("b"))
    machine.forget_slot("b")
    writer = machine.open_slot("b", 100_000)
    writer.write(b"\x53\xef" * 50_000)
    writer.abandon()
    (esp / FOLDER / ENVIRONMENT).write_bytes(bytes(1024))
    assert choose(esp, lambda _slot: True) == "a"


def test_an_armed_slot_is_disarmed_before_it_is_written(machine: BenchHardware) -> None:
    machine.arm("b")
    machine.forget_slot("b")
    assert machine.flags() == BootFlags("a")


def test_with_memory_for_a_data_partition_nothing_is_begun_and_it_says_why(machine: BenchHardware) -> None:
    before = {path: path.read_bytes() for path in machine.root.rglob("*") if path.is_file()}
    (machine.root / "run" / "storage").write_text("slot=a\ndata=memory\n")
    acts: tuple[Callable[[], object], ...] = (
        lambda: machine.forget_slot("b"),
        lambda: machine.open_slot("b", 5),
        lambda: machine.record_slot("b", "v2", OTHER, 5),
        lambda: machine.arm("b"),
        lambda: machine.mark_good("a"),
    )
    for act in acts:
        with pytest.raises(HardwareError, match="data partition is missing or broken"):
            act()
    (machine.root / "run" / "storage").write_text("slot=a\ndata=/dev/sda4\n")
    assert {path: path.read_bytes() for path in machine.root.rglob("*") if path.is_file()} == before
    # A trial that cannot be remembered can still be called off.
    (machine.root / "esp" / FOLDER / ENVIRONMENT).write_bytes(environment("a", "b", "1"))
    (machine.root / "run" / "storage").write_text("slot=a\ndata=memory\n")
    machine.disarm()
    assert machine.flags() == BootFlags("a")


def test_an_image_larger_than_the_other_slot_is_not_begun(machine: BenchHardware) -> None:
    machine.forget_slot("b")
    before = machine.slot_file("b").stat()
    with pytest.raises(HardwareError, match="does not fit into slot b"):
        machine.open_slot("b", ROOM + 1)
    assert machine.slot_file("b").stat().st_mtime_ns == before.st_mtime_ns
    assert machine.slot_bytes() == ROOM


def test_what_a_slot_held_before_does_not_show_through_zeros(machine: BenchHardware, releases: Releases) -> None:
    machine.slot_file("b").write_bytes(b"\xff" * ROOM)
    machine.forget_slot("b")
    writer = machine.open_slot("b", 3 * 4096 + 5)
    writer.write(bytes(8192) + b"x" * 4096 + bytes(5))
    writer.finish()
    assert b"".join(map(bytes, machine.read_slot("b", 3 * 4096 + 5))) == bytes(8192) + b"x" * 4096 + bytes(5)


def test_a_slot_that_cannot_be_opened_is_named(machine: BenchHardware) -> None:
    machine.slot_file("b").unlink()
    machine.forget_slot("b")
    with pytest.raises(HardwareError, match=r"slot-b\.img cannot be opened"):
        machine.open_slot("b", 5)
    with pytest.raises(HardwareError, match=r"slot-b\.img cannot be read"):
        list(machine.read_slot("b", 5))


def test_an_esp_that_takes_no_writes_keeps_a_slot_from_being_written(
    machine: BenchHardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.record_slot("b", "v2", OTHER, 5)
    monkeypatch.setattr("os.access", lambda _path, _mode: False)
    with pytest.raises(HardwareError, match="mounted read-only"):
        machine.forget_slot("b")
    assert machine.slots()["b"].digest == OTHER
    # Nothing is amiss that would have to be written.
    machine.begin()
    machine.disarm()


# ------------------------------------------------------------ marking good


def test_a_mark_cut_between_flags_and_record_is_completed(machine: BenchHardware, releases: Releases) -> None:
    written(machine, releases.v2.image)
    machine.arm("b")
    machine.boot()
    machine.disk.on_step = lambda name: (
        (_ for _ in ()).throw(KeyboardInterrupt) if name == "write slots.json.new" else None
    )
    with pytest.raises(KeyboardInterrupt):
        machine.mark_good("b")
    machine.disk.on_step = lambda _name: None
    assert (machine.flags(), machine.slots()["b"].good) == (BootFlags("b"), False)
    machine.mark_good("b")
    assert machine.slots()["b"] == Slot("v2", releases.v2.digest, True)


def test_a_mark_whose_record_is_lost_moves_the_default_all_the_same(machine: BenchHardware, releases: Releases) -> None:
    written(machine, releases.v2.image)
    machine.arm("b")
    machine.boot()
    (machine.root / "agent" / "slots.json").write_bytes(b"torn")
    machine.mark_good("b")
    assert machine.flags() == BootFlags("b")
    recognised(machine)
    assert machine.slots()["b"] == Slot("v2", releases.v2.digest, True)


# ------------------------------------------------------------ the version file


def test_versions_outlive_the_layer_of_a_slot(machine: BenchHardware, releases: Releases) -> None:
    etc = machine.root / "etc" / "edge-image-version"
    etc.write_text("current=v1\nprevious=\n")
    machine.begin()
    assert machine.version() == ImageVersion("v1")
    written(machine, releases.v2.image)
    machine.arm("b")
    machine.boot()
    # What the image says of itself, in a layer of its own.
    etc.write_text("current=v2\nprevious=\n")
    machine.begin()
    assert (etc.read_text(), machine.version()) == ("current=v2\nprevious=\n", ImageVersion("v1"))
    machine.mark_good("b")
    machine.set_version(ImageVersion("v2", "v1"))
    assert etc.read_text() == "current=v2\nprevious=v1\n"
    etc.write_text("current=v2\nprevious=\n")
    machine.begin()
    assert etc.read_text() == "current=v2\nprevious=v1\n"


def test_a_truth_that_says_nothing_gives_way_to_what_the_slot_says(machine: BenchHardware) -> None:
    (machine.root / "etc" / "edge-image-version").write_text("current=v1\nprevious=v0\n")
    (machine.root / "agent" / "image-version").write_bytes(b"")
    assert machine.version() == ImageVersion("v1", "v0")
    machine.begin()
    assert (machine.root / "agent" / "image-version").read_text() == "current=v1\nprevious=v0\n"


def test_a_copy_of_the_version_that_cannot_be_written_holds_nothing_up(machine: BenchHardware) -> None:
    (machine.root / "etc" / "edge-image-version").mkdir()
    machine.set_version(ImageVersion("v2", "v1"))
    assert machine.version() == ImageVersion("v2", "v1")
    machine.begin()


# ------------------------------------------------------------ what kernel and initrd say


@pytest.mark.parametrize("line", ["", "root=/dev/sda1 ro", "edge.slot=c", "edge.slot=", "xedge.slot=a"])
def test_a_machine_that_was_booted_from_no_slot_says_what_to_do(tmp_path: Path, line: str) -> None:
    (tmp_path / "cmdline").write_text(line + "\n")
    with pytest.raises(HardwareError, match="reconciler image disk"):
        partitioned.booted_slot(tmp_path / "cmdline")


def test_the_last_word_of_the_command_line_counts(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_text("edge.slot=a ro edge.slot=b\n")
    assert partitioned.booted_slot(tmp_path / "cmdline") == "b"
    with pytest.raises(HardwareError, match="cannot be read"):
        partitioned.booted_slot(tmp_path / "none")


def test_a_lost_boot_loader_file_is_mended_when_a_life_begins(machine: BenchHardware) -> None:
    recognised(machine)
    for name in (ENVIRONMENT, BACKUP):
        (machine.root / "esp" / FOLDER / name).unlink()
    machine.begin()
    assert (machine.root / "esp" / FOLDER / ENVIRONMENT).read_bytes() == environment("a")
    assert (machine.root / "esp" / FOLDER / BACKUP).read_bytes() == backup("a")


def test_where_both_are_lost_a_good_slot_b_stays_the_default(releases: Releases, tmp_path: Path) -> None:
    machine = BenchHardware(tmp_path / "b", default="b", image=releases.v1.image, cache=releases.root / "unpacked")
    recognised(machine)
    for name in (ENVIRONMENT, BACKUP):
        (machine.root / "esp" / FOLDER / name).write_bytes(b"")
    machine.begin()
    assert (machine.flags(), machine.boot()) == (BootFlags("b"), "b")


def test_a_reboot_is_asked_for_once_and_what_refuses_it_is_named(
    machine: BenchHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\necho \"$*\" >>{tmp_path}/asked\necho 'Access denied' >&2\nexit 1\n")
    systemctl.chmod(0o755)
    monkeypatch.setattr(partitioned, "PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(HardwareError, match="Access denied"):
        partitioned.systemctl_reboot()
    assert (tmp_path / "asked").read_text() == "reboot\n"
    systemctl.unlink()
    monkeypatch.setattr(partitioned, "PATH", str(tmp_path))
    with pytest.raises(HardwareError, match="cannot be rebooted"):
        partitioned.systemctl_reboot()


# ------------------------------------------------------------ bounds


@pytest.mark.slow
def test_recognising_a_large_slot_takes_slices_and_little_memory(tmp_path: Path) -> None:
    """1 GiB of data, in pieces of 1 MiB; the process stays below the bar of a flash."""
    code = """
import re, sys
from pathlib import Path
from reconciler.agent.disk import Disk
from reconciler.agent.partitions import FileSlots, read_slot
import hashlib
path = Path(sys.argv[1])
digest, pieces = hashlib.sha256(), 0
for piece in read_slot(path, 1 << 30):
    digest.update(piece)
    pieces += 1
# Not getrusage: it counts what the process was forked from.
print(pieces, re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    path = tmp_path / "slot"
    with open(path, "wb") as file:
        for _ in range(1024):
            file.write(b"\x01" * (1 << 20))
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    path.unlink()
    pieces, peak = map(int, done.stdout.split())
    assert pieces == 1024
    assert peak < 64 * 1024


def test_every_durable_change_is_a_step(machine: BenchHardware, releases: Releases) -> None:
    steps: list[str] = []
    machine.disk.on_step = steps.append
    recognised(machine)
    written(machine, releases.v2.image)
    machine.arm("b")
    machine.boot()
    machine.mark_good("b")
    machine.set_version(ImageVersion("v2", "v1"))
    machine.reboot()
    names = [step for step in steps if step.startswith(("write", "open", "reboot"))]
    assert names == [
        "write slots.json.new",
        "open slot-b.img",
        "write slot",
        "write slots.json.new",
        "write grubenv",
        "write grubenv.bak",
        "write grubenv",
        "write slots.json.new",
        "write image-version.new",
        "write edge-image-version.new",
        "reboot",
    ]
    assert isinstance(machine.disk, Disk)
