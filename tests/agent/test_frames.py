"""An image in frames is unpacked by several programs at once, each of which reads back what it wrote; a slot is recorded only
when all of it came back as assigned. Their faults are played by the programs themselves, with one call spoilt."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.agent import frames, writer
from reconciler.agent.artifact import Proven
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.hardware import HardwareError
from reconciler.protocol import seekable
from reconciler.protocol.manifest import Manifest
from reconciler.protocol.report import Slot
from reconciler.protocol.signature import Refused
from tests.agent.test_writer import MIB, SLOT_BYTES, PowerCut, held, image, refuses, run, zstds
from tests.support.system import need

pytestmark = pytest.mark.system
LARGE = image(8 * MIB + 5, (4096, 3 * MIB), (6 * MIB, 100), (8 * MIB - 1, 6))
LENGTH = 2 * MIB
_MAIN = frames._PROGRAM


@pytest.fixture
def hardware(tmp_path: Path) -> DirectoryHardware:
    made = DirectoryHardware(tmp_path / "device", slot_bytes=SLOT_BYTES)
    (made.root / "slot-b.img").write_bytes(b"\xff" * (9 * MIB))
    made.record_slot("b", "v0", "sha256:" + "0" * 64, 9 * MIB)
    return made


def framed(folder: Path, data: bytes, length: int = LENGTH, *, proves: bool = True) -> tuple[Proven, Path]:
    """An artifact in frames of `length` bytes, and with `proves` a manifest that names their sha256s."""
    cut = [data[at : at + length] for at in range(0, len(data), length)]
    made = [
        subprocess.run(
            [need("zstd"), "-q", "-1", "-c", f"--stream-size={len(piece)}"],
            input=piece,
            capture_output=True,
            check=True,
        ).stdout
        for piece in cut
    ]
    table = seekable.table((len(packed), len(piece)) for packed, piece in zip(made, cut, strict=True))
    path = folder / "packed"
    path.write_bytes(b"".join(made) + table)
    told = {"frames": {"size": length, "sha256": [hashlib.sha256(piece).hexdigest() for piece in cut]}}
    return sealed(path, data, told if proves else {}), path


def sealed(path: Path, data: bytes, extra: dict[str, object]) -> Proven:
    """What is proven of a packed file, as it lies there now."""
    packed, digest = path.read_bytes(), f"sha256:{hashlib.sha256(data).hexdigest()}"
    manifest = Manifest("v2", "v2.img", len(packed), "zstd", len(data), digest, extra)
    return Proven(manifest, hashlib.sha256(packed).hexdigest())


def table(packed: Path) -> tuple[seekable.Frame, ...]:
    with packed.open("rb") as file:
        found = seekable.read(file.fileno())
    assert found is not None
    return found


def orders(packed: Path, manifest: Manifest) -> tuple[seekable.Frame, ...]:
    with packed.open("rb") as file:
        return frames.of(file, manifest)


def spoil(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Have each program do something first."""
    monkeypatch.setattr(frames, "_PROGRAM", f"import os, fcntl\n{how}\n{_MAIN}")


# ------------------------------------------------------------ what is written


@pytest.mark.parametrize("programs", [1, 4])
@pytest.mark.parametrize("proves", [True, False], ids=["proven-there", "read-behind"])
@pytest.mark.parametrize(
    "data",
    [LARGE, image(1, (0, 1)), image(4 * MIB), image(4 * MIB, (4 * MIB - 1, 1)), image(7 * MIB, (0, 7 * MIB))],
    ids=["mixed", "a-byte", "zeros", "last-byte", "full"],
)
def test_an_image_in_frames_is_written_as_it_is(
    hardware: DirectoryHardware,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    proves: bool,
    programs: int,
) -> None:
    monkeypatch.setattr(frames, "MOST_PROGRAMS", programs)
    proven, packed = framed(tmp_path, data, proves=proves)
    run(hardware, proven, packed)
    assert held(hardware) == data
    assert hardware.slots()["b"] == Slot("v2", proven.manifest.digest, False)
    blocks = sum(any(data[at : at + 4096]) for at in range(0, len(data), 4096))
    assert (hardware.root / "slot-b.img").stat().st_blocks * 512 <= 1.05 * 4096 * (blocks + 1)
    assert zstds() == 0


@pytest.mark.slow
def test_a_frame_that_does_not_fit_into_memory_is_written_in_pieces(
    hardware: DirectoryHardware, tmp_path: Path
) -> None:
    """One frame, as images were packed before there were any: 40 MiB, with zeros where a piece ends."""
    data = image(40 * MIB + 4096, (3 * MIB, 25 * MIB), (33 * MIB, 100), (40 * MIB, 4096))
    proven, packed = framed(tmp_path, data, 64 * MIB)
    assert len(orders(packed, proven.manifest)) == 1
    run(hardware, proven, packed)
    assert held(hardware) == data


@pytest.mark.parametrize("proves", [True, False], ids=["proven-there", "read-behind"])
@pytest.mark.parametrize(
    "how",
    [
        "def no(*_): raise OSError(22, 'no O_DIRECT here')\nfcntl.fcntl = no",
        "put, ask, flags = os.pwrite, fcntl.fcntl, [0]\n"
        "def noted(fd, cmd, arg=0):\n    flags.append(arg if cmd == fcntl.F_SETFL else flags[-1]); return ask(fd, cmd, arg)\n"
        "def picky(*args):\n    if flags[-1]: raise OSError(22, 'not aligned as this disk wants it')\n    return put(*args)\n"
        "fcntl.fcntl, os.pwrite = noted, picky",
        "put = os.pwrite\nos.pwrite = lambda fd, data, at: put(fd, data[:4096 * 3], at)",
        "get = os.preadv\nos.preadv = lambda fd, buffers, at: get(fd, [buffers[0][:4096 * 3]], at)",
    ],
    ids=["refused", "refused-late", "short-writes", "short-reads"],
)
def test_a_disk_with_its_own_ways_is_written(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, proves: bool
) -> None:
    proven, packed = framed(tmp_path, LARGE, proves=proves)
    spoil(monkeypatch, how)
    run(hardware, proven, packed)
    assert held(hardware) == LARGE


def test_frames_of_another_length_than_the_manifest_says_are_read_behind(
    hardware: DirectoryHardware, tmp_path: Path
) -> None:
    proven, packed = framed(tmp_path, LARGE)
    hashes = [hashlib.sha256(LARGE[at : at + MIB]).hexdigest() for at in range(0, len(LARGE), MIB)]
    other = replace(proven, manifest=replace(proven.manifest, extra={"frames": {"size": MIB, "sha256": hashes}}))
    assert not any(frame.sha256 for frame in orders(packed, other.manifest))
    run(hardware, other, packed)
    assert held(hardware) == LARGE


# ------------------------------------------------------------ faults


@pytest.mark.parametrize("at", [4096, 3 * MIB, 5 * MIB, len(LARGE) - 1])
@pytest.mark.parametrize("proves", [True, False], ids=["proven-there", "read-behind"])
def test_one_wrong_bit_on_the_disk_is_found(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, proves: bool
) -> None:
    """Also where zeros were skipped, which nobody wrote."""
    proven, packed = framed(tmp_path, LARGE, proves=proves)
    spoil(
        monkeypatch,
        f"put = os.pwrite\ndef flip(fd, data, at):\n    done = put(fd, data, at)\n"
        f"    with open('/proc/self/fd/%d' % fd, 'r+b') as slot:\n        slot.seek({at}); slot.write(b'\\x5a'); slot.flush()\n"
        "    return done\nos.pwrite = flip",
    )
    assert LARGE[at] != 0x5A
    with pytest.raises(writer.Spoiled, match="does not hold what was written"):
        run(hardware, proven, packed)
    assert hardware.slots()["b"] == Slot()
    assert zstds() == 0


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("def full(*_): raise OSError(28, 'No space left on device')\nos.pwrite = full", "No space left on device"),
        ("def torn(*_): raise OSError(5, 'Input/output error')\nos.preadv = torn", "Input/output error"),
        ("def die(*_): os.kill(os.getpid(), 9)\nos.pwrite = die", "ended with status -9"),
        ("import ctypes\ndef none(*_): raise OSError('not found')\nctypes.CDLL = none", "Debian package libzstd1"),
        ("raise SystemExit('a Python that is broken')", "a Python that is broken"),
    ],
    ids=["full", "unreadable", "killed", "no-library", "no-python"],
)
def test_a_fault_that_is_not_the_artifacts_is_named(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, says: str
) -> None:
    proven, packed = framed(tmp_path, LARGE)
    spoil(monkeypatch, how)
    with pytest.raises(HardwareError, match=says):
        run(hardware, proven, packed)
    assert hardware.slots()["b"] == Slot()
    assert zstds() == 0
    monkeypatch.undo()
    run(hardware, proven, packed)
    assert held(hardware) == LARGE


def test_a_program_that_hangs_is_ended(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven, packed = framed(tmp_path, LARGE)
    spoil(monkeypatch, "import time\ntime.sleep(600)")
    monkeypatch.setattr(frames, "STALL_S", 0.2)
    with pytest.raises(HardwareError, match="nothing of the image was unpacked"):
        run(hardware, proven, packed)
    assert zstds() == 0


def test_a_machine_without_python_is_named(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven, packed = framed(tmp_path, LARGE)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("sys.executable", "/nowhere/python3")
    with pytest.raises(HardwareError, match="python3 cannot be run"):
        run(hardware, proven, packed)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("damage", ["a frame", "cut short"])
def test_a_packed_file_that_changes_after_it_was_proven_is_refused(
    hardware: DirectoryHardware, tmp_path: Path, damage: str
) -> None:
    proven, packed = framed(tmp_path, LARGE)
    data = bytearray(packed.read_bytes())
    if damage == "a frame":
        data[MIB] ^= 1
    else:
        del data[MIB:]

    def swap(step: str) -> None:
        if step == "open slot-b.img":
            packed.write_bytes(data)

    hardware.disk.on_step = swap
    refuses(hardware, proven, packed, "artifact-digest")


def test_without_its_table_an_image_is_one_frame(hardware: DirectoryHardware, tmp_path: Path) -> None:
    proven, packed = framed(tmp_path, LARGE)
    packed.write_bytes(packed.read_bytes()[: table(packed)[-1].end])
    proven = sealed(packed, LARGE, dict(proven.manifest.extra))
    assert len(orders(packed, proven.manifest)) == 1
    run(hardware, proven, packed)
    assert held(hardware) == LARGE


def test_a_file_that_is_cut_short_under_a_programs_hands_ends_that_one_alone(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is mapped: the kernel sends SIGBUS, and not to the agent."""
    proven, packed = framed(tmp_path, LARGE)
    spoil(
        monkeypatch,
        "import mmap\nplain = mmap.mmap\ndef cut(fd, *args):\n    made = plain(fd, *args)\n"
        "    if fd != -1: os.truncate('/proc/self/fd/%d' % fd, 4096)\n    return made\nmmap.mmap = cut",
    )
    with pytest.raises(Refused) as found:
        run(hardware, proven, packed)
    assert found.value.code == "artifact-digest"
    assert hardware.slots()["b"] == Slot()


@pytest.mark.parametrize(
    ("spoilt", "code"), [("digest", "image-digest"), ("size", "image-size"), ("a frame", "image-packing")]
)
def test_a_signed_artifact_that_lies_is_refused(
    hardware: DirectoryHardware, tmp_path: Path, spoilt: str, code: str
) -> None:
    proven, packed = framed(tmp_path, LARGE)
    if spoilt == "digest":
        lying = replace(proven.manifest, digest="sha256:" + "1" * 64, extra={})
    elif spoilt == "size":
        lying = replace(proven.manifest, image_size=len(LARGE) - 1)
    else:
        data = bytearray(packed.read_bytes())
        data[4:40] = bytes(36)
        packed.write_bytes(data)
        proven = sealed(packed, LARGE, dict(proven.manifest.extra))
        lying = proven.manifest
    refuses(hardware, replace(proven, manifest=lying), packed, code)
    assert (hardware.root / "slot-b.img").stat().st_size <= len(LARGE)


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_frame_that_is_not_what_the_manifest_names_is_not_recorded(
    hardware: DirectoryHardware, tmp_path: Path, number: int
) -> None:
    proven, packed = framed(tmp_path, LARGE)
    told = proven.manifest.extra["frames"]
    hashes = [*told["sha256"][:number], "0" * 64, *told["sha256"][number + 1 :]]
    other = replace(proven.manifest, extra={"frames": {**told, "sha256": hashes}})
    with pytest.raises(writer.Spoiled):
        run(hardware, replace(proven, manifest=other), packed)
    assert hardware.slots()["b"] == Slot()


@pytest.mark.parametrize("lengths", [(LENGTH + 4096, LENGTH - 4096), (LENGTH - 4096, LENGTH + 4096)])
def test_a_table_that_lies_of_its_frames_fills_no_slot(
    hardware: DirectoryHardware, tmp_path: Path, lengths: tuple[int, int]
) -> None:
    data = image(2 * LENGTH, (0, 2 * LENGTH))
    _, packed = framed(tmp_path, data)
    found = table(packed)
    whole = packed.read_bytes()[: found[-1].end]
    sizes = [(frame.end - frame.start, length) for frame, length in zip(found, lengths, strict=True)]
    packed.write_bytes(whole + seekable.table(sizes))
    with pytest.raises(HardwareError, match="was not written: the image unpacks to"):
        run(hardware, sealed(packed, data, {}), packed)
    assert hardware.slots()["b"] == Slot()


# ------------------------------------------------------------ cut off


def test_dropped_at_any_piece_the_programs_end_with_the_job(hardware: DirectoryHardware, tmp_path: Path) -> None:
    proven, packed = framed(tmp_path, LARGE)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for pieces in (1, 5, 8, 12):
        job = writer.write_image(proven, packed, "b", hardware)
        for _ in range(pieces):
            next(job, None)
        del job
        assert zstds() == 0
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, files)
    run(hardware, proven, packed)
    assert held(hardware) == LARGE


def test_the_power_goes_at_any_step_and_the_next_write_is_whole(hardware: DirectoryHardware, tmp_path: Path) -> None:
    proven, packed = framed(tmp_path, LARGE)
    steps: list[str] = []
    hardware.disk.on_step = steps.append
    run(hardware, proven, packed)
    # Results come in one piece or in many: one step at least for each is not promised, and some are.
    assert steps.count("write slot") > 1
    for cut in range(len(steps)):
        left = iter(range(cut))

        def meter(_name: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise PowerCut

        hardware.disk.on_step = meter
        before = hardware.slots()["b"]
        try:
            run(hardware, proven, packed)
        except PowerCut:
            assert zstds() == 0
        hardware.disk.on_step = lambda _name: None
        slot = hardware.slots()["b"]
        assert slot in (Slot(), before) or held(hardware) == LARGE, f"cut before step {cut}, {steps[cut]}"
        run(hardware, proven, packed)
        assert held(hardware) == LARGE
