"""What it costs to write an image to a slot, and to build one again that was built before.

The write is `agent.writer.write_image` on a slot file: the packed file hashed, unpacked into the slot, synced, read back and
hashed. What has to be done in any case is its yardstick: hashing the raw bytes, unpacking the packed ones. Both need no disk,
so all of it lies in memory where there is a file system in memory; it takes two processors that have nothing else to do. With
`zstd | dd conv=fsync`, which proves nothing, it is compared on a disk. The images: one of a gigabyte, half of it mapped, made of
the files of this machine's /usr; and the golden image, which is built where it can be.
Run by `python -m tests.benchmarks`, or alone: `python -m tests.benchmarks.imaging`. No test depends on a time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from reconciler.agent import writer
from reconciler.agent.artifact import Proven
from reconciler.agent.directory import DirectoryHardware
from reconciler.image import pack
from reconciler.image.bareroot import BareRoot
from reconciler.image.builder import ImageBuilder
from reconciler.image.job import Maker
from reconciler.image.rootfs import DistributionRoot
from reconciler.protocol import chunks
from reconciler.protocol.manifest import NAME, Manifest
from reconciler.repo.load import load_folder
from tests.support import golden

Row = tuple[str, float, str, float, float]
ROOT = Path(__file__).parents[2]
MEMORY_FOLDER = Path("/dev/shm")
MIB = 1 << 20
IMAGE_BYTES = 1024 * MIB
ROUNDS = 7
PACK = ("-9", "--long=27", "--single-thread")
# A process that holds nothing but the agent. Not ru_maxrss: that one begins with what the parent held.
PEAK = """
import sys
from pathlib import Path
from reconciler.agent.artifact import Proven
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.writer import write_image
from reconciler.protocol.manifest import Manifest
manifest = Manifest.from_bytes(sys.stdin.buffer.read())
packed, folder, sha256 = sys.argv[1:]
hardware = DirectoryHardware(Path(folder))
for _ in write_image(Proven(manifest, sha256), Path(packed), "b", hardware):
    pass
assert hardware.slots()["b"].digest == manifest.digest
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024)
"""


@dataclass(frozen=True)
class Subject:
    """An image to write: its name in the table, the raw file, the packed one, and what was proven of it."""

    name: str
    raw: Path
    packed: Path
    proven: Proven
    mapped_bytes: int

    @property
    def label(self) -> str:
        """Its name, and how much of it is mapped: `dd` writes the rest too, so its row depends on that."""
        return f"{self.name} ({self.mapped_bytes / self.proven.manifest.image_size:.0%} mapped)"


def measure() -> Iterator[Row]:
    """(work, ours, yardstick, theirs, bar)."""
    memory = MEMORY_FOLDER if _room(MEMORY_FOLDER) > 6 * IMAGE_BYTES else None
    with tempfile.TemporaryDirectory(dir=memory) as near, tempfile.TemporaryDirectory() as disk:
        for make in (_made, _golden):
            subject = make(Path(near))
            if subject is not None:
                yield from _writes(subject, Path(near), "in memory" if memory else "on disk")
                ours, theirs = _best(partial(_write, subject, Path(disk)), partial(_dd, subject, Path(disk)))
                yield f"write {subject.label} to a slot, on disk", ours, "zstd | dd conv=fsync", theirs, 0.5
                shutil.rmtree(Path(disk) / "device")
                subject.raw.unlink()
                subject.packed.unlink()
        yield from _rebuilds(Path(disk))


# ------------------------------------------------------------ writing


def _writes(subject: Subject, folder: Path, where: str) -> Iterator[Row]:
    """Time, bytes and memory of a write."""
    written = _write(subject, folder)
    ours, hashing, unpacking = _best(
        partial(_write, subject, folder), partial(_hash, subject.raw), partial(_unpack, subject)
    )
    slower = ("hashlib's sha256", hashing) if hashing > unpacking else ("zstd's decompression", unpacking)
    yield f"write {subject.label} to a slot, {where}", ours, *slower, 1.3
    yield "its bytes on the medium (MB)", written / 1e6, "mapped blocks", subject.mapped_bytes / 1e6, 1.05
    shutil.rmtree(folder / "device")
    told = subprocess.run(
        [sys.executable, "-c", PEAK, str(subject.packed), str(folder / "device"), subject.proven.sha256],
        input=subject.proven.manifest.to_bytes(),
        check=True,
        capture_output=True,
        cwd=ROOT,
    ).stdout
    shutil.rmtree(folder / "device")
    yield "peak memory of the process that writes it (MiB)", float(told), "64 MiB", 64.0, 1.0


def _write(subject: Subject, folder: Path) -> int:
    """Write and read back; bytes that the slot takes."""
    device = folder / "device"
    shutil.rmtree(device, ignore_errors=True)
    hardware = DirectoryHardware(device, slot_bytes=subject.proven.manifest.image_size)
    for _ in writer.write_image(subject.proven, subject.packed, "b", hardware):
        pass
    assert hardware.slots()["b"].digest == subject.proven.manifest.digest
    return (device / "slot-b.img").stat().st_blocks * 512


def _dd(subject: Subject, folder: Path) -> None:
    slot = folder / "device" / "dd"
    slot.unlink(missing_ok=True)
    line = 'zstd -dcq --long=27 "$0" | dd of="$1" bs=1M iflag=fullblock conv=fsync status=none'
    subprocess.run(["bash", "-c", line, str(subject.packed), str(slot)], check=True)


def _unpack(subject: Subject) -> None:
    command = ["zstd", "-dcq", "--long=27", str(subject.packed)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _hash(raw: Path) -> str:
    digest = hashlib.sha256()
    with raw.open("rb") as file:
        while data := file.read(MIB):
            digest.update(data)
    return digest.hexdigest()


# ------------------------------------------------------------ images


def _subject(name: str, raw: Path, packed: Path) -> Subject:
    with raw.open("rb") as file:
        index = chunks.index(file)
    # What the builder names too: devices hash the packed file by its parts.
    more = {"parts": pack.hashed_parts(packed)}
    manifest = Manifest("v2", packed.name, packed.stat().st_size, "zstd", index.image_size, index.digest, more)
    return Subject(name, raw, packed, Proven(manifest, _hash(packed)), index.mapped_bytes)


def _made(folder: Path) -> Subject:
    """Stretches of 16 MiB, every other one a hole: about what a file system that is half full looks like."""
    raw, packed, contents = folder / "made.img", folder / "made.img.zst", _files(Path("/usr"))
    with raw.open("wb") as out:
        out.truncate(IMAGE_BYTES)
        for at in range(0, IMAGE_BYTES, 32 * MIB):
            out.seek(at)
            left = 16 * MIB
            while left:
                data = next(contents)[:left]
                out.write(data)
                left -= len(data)
    subprocess.run(["zstd", "-q", "-f", *PACK, str(raw), "-o", str(packed)], check=True)
    return _noted(_subject("a made image", raw, packed))


def _golden(folder: Path) -> Subject | None:
    """The golden image, where it can be built; it is kept for the tests."""
    try:
        artifact = golden.artifact()
    except (pytest.skip.Exception, pytest.fail.Exception) as reason:
        print(f"# no golden image: {reason}")
        return None
    manifest = Manifest.from_bytes((artifact / NAME).read_bytes())
    raw, packed = folder / "golden.img", folder / manifest.file
    shutil.copyfile(artifact / manifest.file, packed)
    subprocess.run(["zstd", "-dqf", "--long=27", str(packed), "-o", str(raw)], check=True)
    return _noted(_subject("the golden image", raw, packed))


def _noted(subject: Subject) -> Subject:
    manifest = subject.proven.manifest
    print(
        f"# {subject.name}: {manifest.image_size / 1e6:.0f} MB, {subject.mapped_bytes / 1e6:.0f} MB mapped,"
        f" {manifest.size / 1e6:.0f} MB packed; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    )
    return subject


def _files(top: Path) -> Iterator[bytes]:
    """The contents of all files below a folder in pieces, by name; from the beginning again, if they do not do."""
    while True:
        for folder, folders, names in os.walk(top):
            folders.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                if not path.is_symlink() and path.is_file() and os.access(path, os.R_OK):
                    with path.open("rb") as file:
                        while data := file.read(MIB):
                            yield data


# ------------------------------------------------------------ building again


def _rebuilds(folder: Path) -> Iterator[Row]:
    """What was built is not built again. First builds have nothing to go on: the distribution's takes minutes."""
    fleet = golden.fleet()
    loaded = load_folder(fleet, scenarios=False).desired
    assert loaded is not None, "the example fleet does not load"
    makers: dict[str, Callable[[], Maker]] = {"files": BareRoot}
    try:
        golden.artifact()
        makers["distribution"] = lambda: DistributionRoot(folder / "cache", {})
    except (pytest.skip.Exception, pytest.fail.Exception):
        pass
    for kind, maker in makers.items():
        place = folder / kind
        builder = ImageBuilder(place, place / "artifacts", committed_at=lambda _: golden.COMMITTED_AT, maker=maker)
        build = partial(
            builder.build,
            golden.RELEASE,
            loaded.images[golden.RELEASE],
            fleet / "images" / "edge-golden",
            golden.COMMIT,
        )
        first = _timed(build)
        again = min(_timed(build) for _ in range(ROUNDS))
        if kind == "files":
            # A second's work, beside which asking the tools for their versions is no longer little: no bar.
            print(f"# rebuild with nothing changed, {kind}: {again:.4f} s, the first build {first:.4f} s")
        else:
            yield f"rebuild with nothing changed, {kind}", again, "the first build", first, 0.01


# ------------------------------------------------------------ time


def _best(*works: Callable[[], object]) -> list[float]:
    """Seconds of each, taking turns; the least of several, since what else the machine does only adds."""
    rounds = [[_timed(work) for work in works] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _room(folder: Path) -> int:
    return shutil.disk_usage(folder).free if folder.is_dir() else 0


if __name__ == "__main__":
    for row in measure():
        print(row, f"ratio {row[1] / row[3]:.3f}", flush=True)
