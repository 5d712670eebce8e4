"""Writes a proven artifact to the inactive slot and reads it back.

Python 3.10, standard library and the program zstd: runs as root on a device. The packed file is hashed again while it
is read, the unpacked image while it is written, and the slot once more when it is synced: a slot gets its record only
when all three agree. Unpacking stops at the size that the signed manifest names, so a bomb fills nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from reconciler.agent.artifact import Proven
from reconciler.agent.hardware import Hardware, HardwareError
from reconciler.protocol.signature import Refused

CHUNK = 1024 * 1024
STALL_S = 120.0


class Spoiled(Exception):
    """What stands in the slot is not what should: the disk, not the artifact, is at fault."""


def write_image(proven: Proven, packed: Path, slot: str, hardware: Hardware) -> Iterator[float]:
    """Write `packed` to `slot` and record it there; yields between chunks.

    Raises Refused (the packed file is not the proven one any more), Spoiled, or HardwareError. The packed file is
    hashed before the slot is touched, so that a file gone bad costs no slot.
    """
    manifest = proven.manifest
    for _ in _checked(proven, packed):
        yield 0.0
    hardware.forget_slot(slot)
    digest, size = hashlib.sha256(), 0
    writer = hardware.open_slot(slot)
    try:
        for data in _unpacked(proven, packed):
            size += len(data)
            if size > manifest.image_size:
                raise Refused("image-size", f"the image unpacks to more than {manifest.image_size} bytes")
            digest.update(data)
            writer.write(data)
            yield 0.0
        if size != manifest.image_size:
            raise Refused("image-size", f"the image unpacks to {size} bytes, not to {manifest.image_size}")
        if f"sha256:{digest.hexdigest()}" != manifest.digest:
            raise Refused("image-digest", "the unpacked image is not the one that was assigned")
        writer.finish()
    finally:
        writer.abandon()
    yield from read_back(slot, manifest.digest, manifest.image_size, hardware)
    hardware.record_slot(slot, manifest.release, manifest.digest, manifest.image_size)


def read_back(slot: str, digest: str, size: int, hardware: Hardware) -> Iterator[float]:
    """Hash `size` bytes of a slot; yields between chunks. Raises Spoiled where they are not `digest`."""
    found, length = hashlib.sha256(), 0
    for data in hardware.read_slot(slot, size):
        found.update(data)
        length += len(data)
        yield 0.0
    if length != size or f"sha256:{found.hexdigest()}" != digest:
        raise Spoiled(f"slot {slot} does not hold what was written to it")


def _unpacked(proven: Proven, packed: Path) -> Iterator[bytes]:
    """Bytes of the raw image. The packed file is compared with SHA256SUMS once more, in the same pass."""
    if proven.manifest.compression == "none":
        yield from _checked(proven, packed)
        return
    program = shutil.which("zstd", path=os.environ.get("PATH", "") + ":/usr/bin:/bin")
    if program is None:
        raise HardwareError("zstd is not installed, and the image is packed with it")
    # A window of 128 MiB at most: what an image asks for in memory is bounded too.
    process = subprocess.Popen(
        [program, "--decompress", "--stdout", "--quiet", "--long=27", "--no-progress"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
    )
    failures: list[BaseException] = []
    feeder = threading.Thread(target=_feed, args=(proven, packed, process, failures), daemon=True)
    feeder.start()
    try:
        assert process.stdout is not None
        while data := process.stdout.read(CHUNK):
            yield data
        feeder.join(STALL_S)
        status = process.wait(STALL_S)
    except subprocess.TimeoutExpired:
        raise HardwareError("zstd does not end") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        feeder.join(STALL_S)
        with suppress(OSError):
            process.stdout.close()  # type: ignore[union-attr]
    if failures:
        raise failures[0]
    if status != 0:
        raise Refused("image-packing", f"zstd could not unpack the image (exit status {status})")


def _feed(proven: Proven, packed: Path, process: subprocess.Popen[bytes], failures: list[BaseException]) -> None:
    assert process.stdin is not None
    try:
        for data in _checked(proven, packed):
            process.stdin.write(data)
    except (BrokenPipeError, ValueError):
        pass  # zstd gave up; its exit status says so
    except (Refused, HardwareError) as error:
        failures.append(error)
        process.kill()
    finally:
        with suppress(OSError, ValueError):
            process.stdin.close()


def _checked(proven: Proven, packed: Path) -> Iterator[bytes]:
    digest = hashlib.sha256()
    try:
        with open(packed, "rb") as file:
            while data := file.read(CHUNK):
                digest.update(data)
                yield data
    except OSError as error:
        raise HardwareError(f"the downloaded artifact cannot be read: {error}") from None
    if digest.hexdigest() != proven.sha256:
        raise Refused("artifact-digest", "the downloaded file has changed since it was verified")
