"""Makes an install disk from a slot image: GPT with `esp`, `root-a`, `root-b` and `edge-data`, bootable by UEFI.

Slot a holds the image, slot b nothing: its first content is the first update, which the device's agent verifies and
records; until then the boot loader passes over b. The data partition is small and grows at the first boot. The same
inputs give the same bytes, identifiers included. Needs no root and no loop device: sfdisk, mtools, mke2fs and debugfs
work on files, and partitions are written at their offsets. Nothing appears under the disk's name before it is whole.
Called by `reconciler image disk`. The layout: docs/reference/boot.md.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.image import disk_boot, disk_data, gate_keys
from reconciler.image.disk_slot import CHUNK, SlotImage, SlotSource, copy_sparse, mib, program, write_slot
from reconciler.image.process import PATH
from reconciler.ports import TerminalError, TransientError

MIB = 1 << 20
ESP_BYTES = 256 * MIB
SLOT_BYTES, DATA_BYTES = 8 << 30, 1 << 30
LEAST_DATA_BYTES = 64 * MIB
MOST_BYTES = 16 << 40
# GPT at the beginning, its copy at the end; what they leave of a MiB keeps everything aligned.
_EDGE = MIB
_SECTOR = 512
_ZEROS = bytes(CHUNK)
# Part of every identifier: another layout under the same inputs is another disk.
LAYOUT_VERSION = "edge-disk-1"

Device = Mapping[str, Mapping[str, bytes]]
"""What makes the disk one device's: folder of the data partition → file → bytes."""

Progress = Callable[[str, int], None]
"""Hears the stage (`slot`, `boot loader`, `data`, `pack`) and the bytes done in it so far."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition: its GPT name and type, and where it lies, in bytes."""

    name: str
    type: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The four partitions, in the order of their numbers, and the disk's size in bytes."""

    esp: Partition
    root_a: Partition
    root_b: Partition
    data: Partition
    size: int

    def partitions(self) -> tuple[Partition, ...]:
        """All four, 1 to 4. grub.cfg knows slot a as 2 and slot b as 3."""
        return (self.esp, self.root_a, self.root_b, self.data)


@dataclass(frozen=True, slots=True)
class Disk:
    """A finished install disk: what was written, and the digests (64 hex digits) of the disk, raw and as a file."""

    path: Path
    layout: Layout
    slot: SlotImage
    vendor: str
    digest: str
    file_digest: str
    file_size: int


def plan_layout(slot_size: int, data_size: int) -> Layout:
    """Where the partitions lie, for sizes in bytes. TerminalError: a size that is no whole MiB, or makes no sense."""
    for option, size, least in (("slot", slot_size, MIB), ("data", data_size, LEAST_DATA_BYTES)):
        if size % MIB:
            raise TerminalError(
                f"--{option}-size is {size} bytes, no whole MiB",
                needed_for="partitions that begin at whole MiB",
                remedy="give it in MiB or GiB, as 8GiB",
            )
        if not least <= size <= MOST_BYTES:
            raise TerminalError(
                f"--{option}-size is {mib(size)}",
                needed_for="the layout of an install disk",
                remedy=f"give between {mib(least)} and {mib(MOST_BYTES)}",
            )
    # Types as in the Discoverable Partitions Specification: ESP, root of x86-64, generic Linux data.
    root = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
    wanted = (
        ("esp", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", ESP_BYTES),
        ("root-a", root, slot_size),
        ("root-b", root, slot_size),
        ("edge-data", "0FC63DAF-8483-4772-8E79-3D69D8477DE4", data_size),
    )
    at, made = _EDGE, []
    for name, kind, size in wanted:
        made.append(Partition(name, kind, at, size))
        at += size
    esp, root_a, root_b, data = made
    return Layout(esp, root_a, root_b, data, at + _EDGE)


def make_disk(
    source: SlotSource,
    out: Path,
    *,
    slot_size: int = SLOT_BYTES,
    data_size: int = DATA_BYTES,
    seed: Mapping[str, bytes] | None = None,
    enrolment: Mapping[str, bytes] | None = None,
    managed: bool = False,
    progress: Progress = lambda stage, done: None,
) -> Disk:
    """Make the disk and move it to `out`; packed by zstd where that name ends in `.zst`. Sizes in bytes.

    `seed` and `enrolment` are files, name → bytes. With one of them the disk's file can be read by its owner alone:
    user-data may hold a tunnel's key, and an enrolment holds a token. `managed` refuses an image without the key that
    signs assignments: its device would report, and obey nobody. TerminalError: an input that
    cannot be used, or a program that is missing; TransientError: the folder of `out` is full.
    """
    layout = plan_layout(slot_size, data_size)
    least = max(source.least, source.size or 0)
    if least > slot_size:
        raise TerminalError(
            f"{source.path} needs a slot of {mib(least)}, and --slot-size is {mib(slot_size)}",
            needed_for="the slot of an install disk",
            remedy="make the slots larger with --slot-size; the next releases need room too",
        )
    if out.exists() and out.samefile(source.path):
        raise TerminalError(
            f"{out} is the image itself", needed_for="making an install disk", remedy="name another file with --out"
        )
    try:
        # Beside the result, so that the last step is a rename; nobody else may look in: the seed may hold secrets.
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise _unwritable(out, error) from None
    try:
        device = {disk_data.SEED: dict(seed or {}), disk_data.ENROLMENT: dict(enrolment or {})}
        return _make(source, out, layout, device, scratch, progress, managed=managed)
    except OSError as error:
        if error.filename is not None and Path(error.filename) == source.path:
            raise TerminalError(
                f"{source.path} cannot be read: {error.strerror}",
                needed_for="the slot of an install disk",
                remedy="check that this user may read it",
            ) from None
        raise _unwritable(out, error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make(
    source: SlotSource,
    out: Path,
    layout: Layout,
    device: Device,
    scratch: Path,
    progress: Progress,
    *,
    managed: bool,
) -> Disk:
    raw = scratch / "disk.raw"
    descriptor = os.open(raw, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, layout.size)
        slot = write_slot(
            source, descriptor, layout.root_a.start, layout.root_a.size, lambda done: progress("slot", done)
        )
        progress("boot loader", 0)
        loader = disk_boot.read_loader(raw, layout.root_a.start)
        if managed:
            _check_obeys(raw, layout.root_a.start, source.path)
        ids = _identifiers(layout, slot, device)
        esp = scratch / "esp.img"
        disk_boot.make_esp(esp, ESP_BYTES, loader.files(), volume=ids("esp-volume").int >> 96, epoch=slot.made_at)
        copy_sparse(esp, descriptor, layout.esp.start)
        progress("data", 0)
        data = scratch / "data.img"
        disk_data.make_data(data, layout.data.size, device, uuid=str(ids("data-file-system")), epoch=slot.made_at)
        copy_sparse(data, descriptor, layout.data.start)
        _partition(raw, layout, ids)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    packed = scratch / "disk.zst" if out.suffix == ".zst" else None
    digest, file_digest = _pack(raw, packed, lambda done: progress("pack", done))
    made = packed or raw
    made.chmod(0o600 if any(device.values()) else 0o644 & ~_umask())
    size = made.stat().st_size
    _move(made, out)
    return Disk(out, layout, slot, loader.vendor, digest, file_digest, size)


def _check_obeys(disk: Path, at: int, image: Path) -> None:
    """TerminalError: a device with the image at byte `at` of `disk` could verify no assignment."""
    paths = (gate_keys.ASSIGNMENT_RING, gate_keys.ASSIGNMENT_FINGERPRINTS)
    ring, named = (disk_boot.read_file(disk, at, f"/{path.decode()}") for path in paths)
    wrong = [f"/{path.decode()}: {what}" for path, what in gate_keys.judge_assignment(ring, named)]
    if ring is None and named is None:
        wrong = [f"it has no /{paths[0].decode()}"]
    if wrong:
        raise TerminalError(
            f"{image.name} holds no key that signs this fleet's assignments ({'; '.join(wrong)}): the device would report, "
            "and obey nobody",
            needed_for="a disk that makes a managed device (--enrol)",
            remedy="put assignment.gpg (gpg --export) and assignment.fpr (its fingerprint) into rootfs/etc/edge/keys of the "
            "recipe, and build the release again",
        )


def _identifiers(layout: Layout, slot: SlotImage, device: Device) -> Callable[[str], uuid.UUID]:
    """What names the disk, its partitions and file systems, from everything that decides the bytes in them."""
    told = [LAYOUT_VERSION, slot.digest, str(layout.root_a.size), str(layout.data.size)]
    for files in device.values():
        told += [f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in sorted(files.items())]
    space = uuid.uuid5(uuid.NAMESPACE_OID, "\n".join(told))
    return lambda name: uuid.uuid5(space, name)


def _partition(raw: Path, layout: Layout, ids: Callable[[str], uuid.UUID]) -> None:
    """Write both copies of the partition table."""
    lines = ["label: gpt", f"label-id: {ids('disk')}", "unit: sectors", f"sector-size: {_SECTOR}", ""]
    lines += [
        f"start={part.start // _SECTOR}, size={part.size // _SECTOR}, type={part.type}, uuid={ids(part.name)}, "
        f'name="{part.name}"'
        for part in layout.partitions()
    ]
    argv = [program("sfdisk", "fdisk"), "-q", "--no-reread", "--no-tell-kernel", "--wipe", "never"]
    argv += ["--wipe-partitions", "never", raw.name]
    disk_boot.must(argv, {}, raw.parent, ("\n".join(lines) + "\n").encode("ascii"))


def _pack(raw: Path, packed: Path | None, progress: Callable[[int], None]) -> tuple[str, str]:
    """sha256 of the raw disk and of the file that is handed over; packs it on the way where `packed` is given."""
    if packed is None:
        digest = _hash_through(raw, None, progress)
        return digest, digest
    # One thread: with several, where zstd cuts the input depends on the version's mind.
    argv = [program("zstd", "zstd"), "-q", "-3", "--single-thread", "--check", "-c"]
    with packed.open("xb") as to:
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=to, env={"PATH": PATH, "LC_ALL": "C"})
        assert child.stdin is not None
        try:
            digest = _hash_through(raw, child.stdin.fileno(), progress)
            child.stdin.close()
            if child.wait() != 0:
                raise OSError(errno.ENOSPC, "zstd could not write all of it")
        except BrokenPipeError:
            raise OSError(errno.ENOSPC, "zstd could not write all of it") from None
        finally:
            child.kill()
            child.wait()
        os.fsync(to.fileno())
    with packed.open("rb") as file:
        return digest, hashlib.file_digest(file, "sha256").hexdigest()


def _hash_through(raw: Path, to: int | None, progress: Callable[[int], None]) -> str:
    """sha256 of a file; its bytes go to the open file `to` as well. Holes are not read: nine tenths of a disk are."""
    digest, done = hashlib.sha256(), 0
    with raw.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while done < size:
            hole = min(_next_data(file.fileno(), done, size) - done, CHUNK)
            data = _ZEROS[:hole] if hole else os.pread(file.fileno(), min(CHUNK, size - done), done)
            digest.update(data)
            view = memoryview(data)
            while to is not None and view:
                view = view[os.write(to, view) :]
            done += len(data)
            progress(done)
    return digest.hexdigest()


def _next_data(file: int, at: int, size: int) -> int:
    """Where the next written bytes begin, from `at`; the end where only a hole follows."""
    try:
        return os.lseek(file, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def _move(made: Path, out: Path) -> None:
    made.rename(out)
    folder = os.open(out.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _unwritable(out: Path, error: OSError) -> TerminalError | TransientError:
    wrong = f"{out} cannot be written: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return TransientError(
            wrong,
            needed_for="making an install disk",
            remedy="make room in its folder: about twice the mapped size of the image is needed for a while",
        )
    return TerminalError(
        wrong, needed_for="making an install disk", remedy="name a file in a folder that you may write to"
    )
