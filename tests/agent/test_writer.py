"""A slot is written sparsely, read back from the disk, and recorded only when what comes back is what was assigned."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.agent import writer
from reconciler.agent.artifact import Proven
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.factory import install
from reconciler.agent.hardware import HardwareError
from reconciler.agent.slotfile import SlotFile
from reconciler.protocol.manifest import Manifest
from reconciler.protocol.report import Slot
from reconciler.protocol.signature import Refused
from tests.support.system import need

MIB = 1024 * 1024
SLOT_BYTES = 64 * MIB
pytestmark = pytest.mark.system


class PowerCut(BaseException):
    """Not an Exception: nothing in the agent may catch it."""


def image(size: int, *spans: tuple[int, int]) -> bytes:
    """Zeros, with stretches (place, length) that hold something."""
    data, bits = bytearray(size), random.Random(size)
    for at, length in spans:
        data[at : at + length] = bits.randbytes(length)
    return bytes(data)


LARGE = image(8 * MIB + 5, (4096, 3 * MIB), (6 * MIB, 100), (8 * MIB - 1, 6))


def artifact(folder: Path, data: bytes, compression: str = "zstd", packed: bytes | None = None) -> tuple[Proven, Path]:
    """A packed image and what was proven of it. `packed`: other bytes than the image's own, as signed."""
    if packed is None:
        command = [need("zstd"), "-q", "-1", "-c"]
        packed = (
            data
            if compression == "none"
            else subprocess.run(command, input=data, capture_output=True, check=True).stdout
        )
    path = folder / "packed"
    path.write_bytes(packed)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    manifest = Manifest("v2", "v2.img", len(packed), compression, len(data), digest)
    return Proven(manifest, hashlib.sha256(packed).hexdigest()), path


@pytest.fixture
def hardware(tmp_path: Path) -> DirectoryHardware:
    made = DirectoryHardware(tmp_path / "device", slot_bytes=SLOT_BYTES)
    # What a slot held before must not shine through where the next image has zeros.
    (made.root / "slot-b.img").write_bytes(b"\xff" * (9 * MIB))
    made.record_slot("b", "v0", "sha256:" + "0" * 64, 9 * MIB)
    return made


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "STRETCH", MIB)


def run(hardware: DirectoryHardware, proven: Proven, packed: Path) -> None:
    for wait_s in writer.write_image(proven, packed, "b", hardware):
        assert wait_s == 0.0


def held(hardware: DirectoryHardware) -> bytes:
    return (hardware.root / "slot-b.img").read_bytes()


def zstds() -> int:
    """Children of this process that still run."""
    return len(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


# ------------------------------------------------------------ what is written


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize(
    "data",
    [
        LARGE,
        image(1, (0, 1)),
        image(4 * MIB),
        image(4 * MIB, (4 * MIB - 1, 1)),
        image(4 * MIB + 7, (0, 1)),
        image(3 * MIB, (0, 3 * MIB)),
    ],
    ids=["mixed", "a-byte", "zeros", "last-byte", "first-byte", "full"],
)
@pytest.mark.usefixtures("short_stretches")
def test_an_image_is_written_as_it_is(
    hardware: DirectoryHardware, tmp_path: Path, data: bytes, compression: str
) -> None:
    proven, packed = artifact(tmp_path, data, compression)
    run(hardware, proven, packed)
    assert held(hardware) == data
    assert hardware.slots()["b"] == Slot("v2", proven.manifest.digest, False)
    assert hardware.slot_size("b") == len(data)
    assert list(writer.read_back("b", proven.manifest.digest, len(data), hardware)) is not None


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_zeros_are_not_written(hardware: DirectoryHardware, tmp_path: Path, compression: str) -> None:
    run(hardware, *artifact(tmp_path, image(32 * MIB, (MIB, MIB), (30 * MIB, 4096)), compression))
    assert (hardware.root / "slot-b.img").stat().st_blocks * 512 <= 1.05 * (MIB + 4096)


def test_a_factory_skips_zeros_too(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(LARGE)
    made = DirectoryHardware(tmp_path / "device", slot_bytes=SLOT_BYTES)
    assert install(made, tmp_path / "image", "v1") == f"sha256:{hashlib.sha256(LARGE).hexdigest()}"
    assert held(made) == LARGE
    assert (made.root / "slot-b.img").stat().st_blocks * 512 < 4 * MIB


def test_little_memory_is_taken(hardware: DirectoryHardware, tmp_path: Path) -> None:
    proven, packed = artifact(tmp_path, image(24 * MIB, (0, 20 * MIB)))
    tracemalloc.start()
    run(hardware, proven, packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MIB


# ------------------------------------------------------------ reading back


def test_a_disk_that_cannot_be_read_is_named(hardware: DirectoryHardware, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.preadv", broken)
    with pytest.raises(HardwareError, match="slot b cannot be read"):
        list(hardware.read_slot("b", MIB))


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.usefixtures("short_stretches")
def test_each_stretch_is_synced_before_it_is_read(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    """What lay before the place when a sync began is on the disk when it ends, and only so much is read."""
    reads: list[tuple[int, int, int]] = []
    read, sync, synced = hardware.read_slot, SlotFile.sync, 0

    def noted(slot: str, end: int, start: int = 0) -> Iterator[memoryview]:
        reads.append((start, end, synced))
        return read(slot, end, start)

    def slow(slot: SlotFile) -> None:
        nonlocal synced
        place = slot.place()
        time.sleep(0.02)
        sync(slot)
        synced = place

    hardware.read_slot = noted  # type: ignore[method-assign]
    monkeypatch.setattr(SlotFile, "sync", slow)
    run(hardware, *artifact(tmp_path, LARGE, compression))
    assert all(end <= synced for _, end, synced in reads), reads
    ends = [0, *(end for _, end, _ in reads)]
    assert [start for start, _, _ in reads] == ends[:-1], "each stretch once, none left out"
    assert ends[-1] == len(LARGE)
    if compression == "none":
        assert len(reads) > 3


def test_no_thread_is_left(hardware: DirectoryHardware, tmp_path: Path) -> None:
    proven, packed = artifact(tmp_path, LARGE)
    before = threading.active_count()
    job = writer.write_image(proven, packed, "b", hardware)
    for _ in range(12):
        next(job, None)
    del job
    run(hardware, proven, packed)
    assert threading.active_count() == before


@pytest.mark.parametrize("at", [0, 3 * MIB, len(LARGE) - 1])
@pytest.mark.usefixtures("short_stretches")
def test_one_wrong_bit_on_the_disk_is_found(hardware: DirectoryHardware, tmp_path: Path, at: int) -> None:
    proven, packed = artifact(tmp_path, LARGE)
    sync = SlotFile.sync

    def flipping(slot: SlotFile) -> None:
        sync(slot)
        byte = LARGE[at] ^ 1
        os.pwrite(slot.descriptor(), bytes([byte]), at)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(writer.Spoiled):
        patch.setattr(SlotFile, "sync", flipping)
        run(hardware, proven, packed)
    assert hardware.slots()["b"] == Slot()


# ------------------------------------------------------------ refusals and faults


def refuses(hardware: DirectoryHardware, proven: Proven, packed: Path, code: str) -> None:
    with pytest.raises(Refused) as found:
        run(hardware, proven, packed)
    assert found.value.code == code, found.value.reason
    assert hardware.slots()["b"] == Slot()
    assert zstds() == 0


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_packed_file_gone_bad_costs_no_slot(hardware: DirectoryHardware, tmp_path: Path, compression: str) -> None:
    proven, packed = artifact(tmp_path, LARGE, compression)
    packed.write_bytes(packed.read_bytes()[:-1] + b"?")
    before = held(hardware)
    with pytest.raises(Refused) as found:
        run(hardware, proven, packed)
    assert found.value.code == "artifact-digest"
    assert held(hardware) == before
    assert hardware.slots()["b"].release == "v0"


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_packed_file_that_changes_after_it_was_proven_is_refused(
    hardware: DirectoryHardware, tmp_path: Path, compression: str
) -> None:
    proven, packed = artifact(tmp_path, LARGE, compression)
    other = tmp_path / "other"
    other.mkdir()
    _, foreign = artifact(other, LARGE[::-1], compression)

    def swap(step: str) -> None:
        if step == "open slot-b.img":
            packed.write_bytes(foreign.read_bytes())

    hardware.disk.on_step = swap
    refuses(hardware, proven, packed, "artifact-digest")


def in_parts(proven: Proven, packed: Path, length: int) -> Proven:
    """With a manifest that names the packed file's parts."""
    data = packed.read_bytes()
    hashes = [hashlib.sha256(data[at : at + length]).hexdigest() for at in range(0, len(data), length)]
    return replace(proven, manifest=replace(proven.manifest, extra={"parts": {"size": length, "sha256": hashes}}))


@pytest.mark.parametrize("length", [1000 * 1000, MIB, 64 * MIB])
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_packed_file_is_proven_by_its_parts(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, length: int
) -> None:
    proven, packed = artifact(tmp_path, LARGE, compression)
    monkeypatch.setattr(writer, "_pieces", None if compression == "zstd" else writer._pieces)
    run(hardware, in_parts(proven, packed, length), packed)
    assert held(hardware) == LARGE


@pytest.mark.parametrize("damage", ["first", "middle", "last", "longer", "shorter", "swapped", "empty"])
def test_a_part_gone_bad_costs_no_slot(hardware: DirectoryHardware, tmp_path: Path, damage: str) -> None:
    proven, packed = artifact(tmp_path, LARGE)
    proven, data = in_parts(proven, packed, MIB), packed.read_bytes()
    at = {"first": 0, "middle": MIB + 17, "last": len(data) - 1}.get(damage, -1)
    bad = {
        "longer": data + b"\0",
        "shorter": data[:-1],
        "swapped": data[MIB : 2 * MIB] + data[:MIB] + data[2 * MIB :],
        "empty": b"",
    }.get(damage) or (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if at >= 0 else b"")
    packed.write_bytes(bad)
    before, threads = held(hardware), threading.active_count()
    with pytest.raises(Refused) as found:
        run(hardware, proven, packed)
    assert found.value.code == "artifact-digest"
    assert held(hardware) == before
    assert hardware.slots()["b"].release == "v0"
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    "parts",
    [
        {"size": 0, "sha256": []},
        {"size": -1, "sha256": []},
        {"size": True, "sha256": ["0" * 64]},
        {"size": MIB, "sha256": ["0" * 64]},
        {"size": 64 * MIB, "sha256": ["0" * 63]},
        {"size": 64 * MIB, "sha256": "0"},
        {"size": 64 * MIB, "sha256": ["0" * 64, "0" * 64]},
        {"size": 64 * MIB},
        [],
        "many",
        None,
    ],
)  # fmt: skip
def test_parts_that_are_none_leave_the_one_digest(hardware: DirectoryHardware, tmp_path: Path, parts: object) -> None:
    proven, packed = artifact(tmp_path, LARGE)
    assert len(packed.read_bytes()) > 2 * MIB
    told = replace(proven, manifest=replace(proven.manifest, extra={"parts": parts}))
    assert told.manifest.parts is None
    run(hardware, told, packed)
    packed.write_bytes(packed.read_bytes()[:-1] + b"?")
    with pytest.raises(Refused):
        run(hardware, told, packed)


def test_another_file_under_its_name_is_not_looked_at(hardware: DirectoryHardware, tmp_path: Path) -> None:
    proven, packed = artifact(tmp_path, LARGE)

    def swap(step: str) -> None:
        if step == "open slot-b.img":
            (tmp_path / "new").write_bytes(b"something else")
            os.rename(tmp_path / "new", packed)

    hardware.disk.on_step = swap
    run(hardware, proven, packed)
    assert held(hardware) == LARGE


@pytest.mark.parametrize(
    ("claimed", "code"), [(len(LARGE) - 1, "image-size"), (len(LARGE) + 1, "image-size"), (len(LARGE), "image-digest")]
)
def test_a_signed_artifact_that_lies_is_refused(
    hardware: DirectoryHardware, tmp_path: Path, claimed: int, code: str
) -> None:
    proven, packed = artifact(tmp_path, LARGE)
    lying = replace(proven.manifest, image_size=claimed, digest="sha256:" + "1" * 64)
    refuses(hardware, replace(proven, manifest=lying), packed, code)
    assert (hardware.root / "slot-b.img").stat().st_size <= claimed


def test_an_unpacked_artifact_with_another_digest_is_refused(hardware: DirectoryHardware, tmp_path: Path) -> None:
    proven, packed = artifact(tmp_path, LARGE, "none")
    refuses(
        hardware,
        replace(proven, manifest=replace(proven.manifest, digest="sha256:" + "1" * 64)),
        packed,
        "image-digest",
    )


@pytest.mark.parametrize("fill", [b"\0", b"x"], ids=["zeros", "bytes"])
def test_a_bomb_fills_nothing(hardware: DirectoryHardware, tmp_path: Path, fill: bytes) -> None:
    """A lot in a few kilobytes: neither zeros, which are skipped, nor bytes go past the size that was signed."""
    small = tmp_path / "small"
    with open(small, "wb") as out:
        for _ in range(8):
            subprocess.run([need("zstd"), "-q", "-c"], input=fill * (32 * MIB), stdout=out, check=True)
    proven, packed = artifact(tmp_path, b"y" * MIB, packed=small.read_bytes())
    refuses(hardware, proven, packed, "image-size")
    assert (hardware.root / "slot-b.img").stat().st_size <= MIB


def test_a_program_that_skips_past_the_end_is_ended(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a bomb of zeros does, without an end: no limit on files holds it up."""
    proven, packed = artifact(tmp_path, LARGE)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "zstd").write_text(
        f"#!/usr/bin/env -S python3 -S\nimport os, sys, time\nif '--sparse' not in sys.argv:\n"
        f"    os.execv({shutil.which('zstd')!r}, sys.argv)\nwhile True:\n"
        "    os.lseek(1, 1 << 20, os.SEEK_CUR)\n    time.sleep(0.01)\n"
    )
    (tmp_path / "bin" / "zstd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(HardwareError, match="unpacks to more than"):
        run(hardware, proven, packed)
    assert zstds() == 0
    assert hardware.slots()["b"] == Slot()


@pytest.mark.parametrize("damage", ["not zstd", "cut short"])
def test_what_zstd_cannot_unpack_is_refused(hardware: DirectoryHardware, tmp_path: Path, damage: str) -> None:
    _, packed = artifact(tmp_path, LARGE)
    bad = packed.read_bytes()[:100_000] if damage == "cut short" else b"not zstd"
    refuses(hardware, *artifact(tmp_path, LARGE, packed=bad), "image-packing")


def test_a_disk_that_is_full_is_not_the_artifacts_fault(tmp_path: Path) -> None:
    """The file size limit stands in for a full disk: what zstd says of it is told."""
    hardware = DirectoryHardware(tmp_path / "device", slot_bytes=SLOT_BYTES)
    proven, packed = artifact(tmp_path, LARGE)
    limited = tmp_path / "bin"
    limited.mkdir()
    (limited / "zstd").write_text(
        "#!/bin/bash\n[[ $* == *--sparse* ]] && { echo 'zstd: error 70 : Write error : No space left on device' >&2; exit 70; }\n"
        f'exec {shutil.which("zstd")} "$@"\n'
    )
    (limited / "zstd").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(HardwareError, match="No space left on device"):
        patch.setenv("PATH", f"{limited}:{os.environ['PATH']}")
        run(hardware, proven, packed)
    assert hardware.slots()["b"] == Slot()


def test_a_program_that_hangs_is_ended(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven, packed = artifact(tmp_path, LARGE)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "zstd").write_text("#!/bin/bash\nexec sleep 60\n")
    (tmp_path / "bin" / "zstd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(writer, "STALL_S", 0.2)
    with pytest.raises(HardwareError, match="written nothing"):
        run(hardware, proven, packed)
    assert zstds() == 0


@pytest.mark.parametrize("missing", ["zstd", "prlimit"])
def test_a_missing_program_is_named_with_its_package(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    proven, packed = artifact(tmp_path, LARGE)
    which: Callable[..., str | None] = shutil.which
    monkeypatch.setattr("shutil.which", lambda name, path=None: None if name == missing else which(name, path=path))
    with pytest.raises(HardwareError, match=rf"{missing} is not installed.*Debian package"):
        run(hardware, proven, packed)


def test_an_image_larger_than_the_slot_is_not_begun(tmp_path: Path) -> None:
    hardware = DirectoryHardware(tmp_path / "device", slot_bytes=MIB)
    with pytest.raises(HardwareError, match="does not fit"):
        run(hardware, *artifact(tmp_path, LARGE))
    assert not (hardware.root / "slot-b.img").exists()


def test_a_packed_file_that_is_gone_is_named(hardware: DirectoryHardware, tmp_path: Path) -> None:
    proven, packed = artifact(tmp_path, LARGE)
    packed.unlink()
    with pytest.raises(HardwareError, match="cannot be read"):
        run(hardware, proven, packed)
    assert hardware.slots()["b"].release == "v0"


# ------------------------------------------------------------ cut off


@pytest.mark.usefixtures("short_stretches")
def test_the_power_goes_at_any_step_and_the_next_write_is_whole(
    hardware: DirectoryHardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)
    data = image(3 * MIB + 5, (4096, MIB), (3 * MIB, 3))
    proven, packed = artifact(tmp_path, data, "none")
    steps: list[str] = []
    hardware.disk.on_step = steps.append
    run(hardware, proven, packed)
    for cut in range(len(steps)):
        left = iter(range(cut))

        def meter(_name: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise PowerCut

        hardware.disk.on_step = meter
        before, whole = hardware.slots()["b"], held(hardware)
        with pytest.raises(PowerCut):
            run(hardware, proven, packed)
        hardware.disk.on_step = lambda _name: None
        slot = hardware.slots()["b"]
        assert slot in (Slot(), before) or held(hardware) == data, f"cut before step {cut}, {steps[cut]}"
        assert slot != before or held(hardware) == whole
        run(hardware, proven, packed)
        assert held(hardware) == data


@pytest.mark.usefixtures("short_stretches")
def test_dropped_at_any_piece_the_program_ends_with_the_job(hardware: DirectoryHardware, tmp_path: Path) -> None:
    proven, packed = artifact(tmp_path, LARGE)
    for pieces in (1, 5, 8, 12):
        job = writer.write_image(proven, packed, "b", hardware)
        for _ in range(pieces):
            next(job, None)
        del job
        assert zstds() == 0
    run(hardware, proven, packed)
    assert held(hardware) == LARGE
