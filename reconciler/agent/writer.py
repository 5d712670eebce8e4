"""Writes a proven artifact to the inactive slot and reads it back.

Python 3.10, standard library and the programs zstd and prlimit: runs as root on a device. The packed file is hashed before the
slot is touched. Then four things go on at once: zstd writes the unpacked image straight into the slot, skipping zeros; a thread
syncs what it has written; the stretch before that is read back from the disk here, and hashed by another thread. A slot gets
its record only when the digest of what was read back is the one that was assigned: it proves the packed file, the unpacking and
the disk at once. Where it is not, the artifact is looked at again to say which of them is at fault. Unpacking stops at the size
that the signed manifest names, so a bomb fills nothing. Memory: a few pieces of 1 MiB, and what zstd takes (a window of 128 MiB
at most). Source: design, section 5.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from reconciler.agent.artifact import Proven
from reconciler.agent.hardware import Hardware, HardwareError, SlotWriter, Spoiled
from reconciler.protocol.signature import Refused

CHUNK = 1024 * 1024
STRETCH = 16 * CHUNK
"""Read back at once, once there is as much. A multiple of 4096."""
HASHED = 128 * 1024
"""Read at once of the packed file: it is hashed while it lies in the processor's own cache."""
STALL_S = 120.0
MOST_THREADS = 4
"""Hash the packed file at once, where the machine has as many processors."""
_POLL_S = 0.005
_PAUSE_S = 0.02
_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Large pages for zstd's window, where kernel and C library know them: a tenth of its time. Elsewhere nobody reads it."""
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class _Failed(Exception):
    """The slot was not filled. Whose fault it is has to be found out; one clause for a person."""


def write_image(proven: Proven, packed: Path, slot: str, hardware: Hardware) -> Iterator[float]:
    """Write `packed` to `slot` and record it there; yields between pieces.

    Raises Refused (the packed file is not the proven one any more, or not what was assigned), Spoiled, or HardwareError.
    """
    manifest = proven.manifest
    with _opened(packed) as file:
        yield from _prove_packed(proven, file)
        hardware.forget_slot(slot)
        writer = hardware.open_slot(slot, manifest.image_size)
        try:
            with closing(ReadBack(slot, hardware)) as back:
                yield from _fill(proven, file, writer, back)
                digest = back.digest()
        except _Failed as error:
            yield from _blame(proven, file)
            raise HardwareError(f"slot {slot} was not written: {error}") from None
        finally:
            writer.abandon()
        if digest != manifest.digest:
            yield from _blame(proven, file)
            raise Spoiled(f"slot {slot} does not hold what was written to it")
    hardware.record_slot(slot, manifest.release, manifest.digest, manifest.image_size)


def prove_image(proven: Proven, packed: Path) -> Iterator[float]:
    """Hash the packed file, unpack it, and hash what it unpacks to, which is written nowhere; yields between pieces.

    Raises Refused (it is not the proven one, or not what its manifest says), or HardwareError.
    """
    with _opened(packed) as file:
        yield from _blame(proven, file)


def read_back(slot: str, digest: str, size: int, hardware: Hardware) -> Iterator[float]:
    """Hash `size` bytes of a slot; yields between pieces. Raises Spoiled where they are not `digest`."""
    with closing(ReadBack(slot, hardware)) as back:
        yield from back.up_to(size)
        found = back.digest()
    if found != digest:
        raise Spoiled(f"slot {slot} does not hold what was written to it")


class ReadBack:
    """The digest of what a slot gives back, from its first byte to `place`. A thread hashes a piece while the next is read."""

    def __init__(self, slot: str, hardware: Hardware) -> None:
        self._slot, self._hardware, self._hash, self.place = slot, hardware, hashlib.sha256(), 0
        self._thread, self._hashing = ThreadPoolExecutor(1, "hash"), list[Future[None]]()

    def up_to(self, end: int) -> Iterator[float]:
        """Read on to `end`; yields between pieces. A slot that ends sooner has another digest."""
        for data in self._hardware.read_slot(self._slot, end, self.place):
            # One piece is hashed at a time, in order: the one before this one stays as it is until the next is asked for.
            self._settle()
            self._hashing.append(self._thread.submit(self._hash.update, data))
            yield 0.0
        self._settle()
        self.place = end

    def digest(self) -> str:
        """`sha256:…` of all that was read."""
        self._settle()
        return f"sha256:{self._hash.hexdigest()}"

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._thread.shutdown()

    def _settle(self) -> None:
        while self._hashing:
            self._hashing.pop().result()


def _fill(proven: Proven, file: BinaryIO, writer: SlotWriter, back: ReadBack) -> Iterator[float]:
    """Write the slot, and read it back a stretch behind; all of it is synced and read when this ends."""
    size = proven.manifest.image_size
    way = _copied if proven.manifest.compression == "none" else _unpacked
    # The program ends before the thread is waited for, whatever happens here.
    with ThreadPoolExecutor(1, "sync") as beside, closing(way(file, writer, size)) as steps:
        # What lies before `end` is synced when `syncing` is done, and no sooner.
        end, syncing = 0, beside.submit(lambda: None)
        for _ in steps:
            place = writer.place()
            # Zeros are skipped without writing, so only this stops a bomb that is made of them.
            if place > size:
                raise _Failed(f"the image unpacks to more than {size} bytes")
            if place - end >= STRETCH:
                syncing.result()
                synced, end = end, place // CHUNK * CHUNK
                syncing = beside.submit(writer.sync)
                yield from back.up_to(synced)
            yield 0.0
        syncing.result()
        if writer.place() != size:
            raise _Failed(f"the image unpacks to {writer.place()} bytes, not to {size}")
        syncing = beside.submit(writer.sync)
        yield from back.up_to(end)
        syncing.result()
    writer.finish()
    yield from back.up_to(size)


@contextmanager
def _opened(packed: Path) -> Iterator[BinaryIO]:
    """The packed file, the same one from its first reading to its last, whatever comes to bear its name."""
    try:
        file = open(packed, "rb", buffering=0)  # noqa: SIM115 - closed below; what fails inside is not about it
    except OSError as error:
        raise HardwareError(f"the downloaded artifact cannot be read: {error}") from None
    with file:
        yield file


def _pieces(file: BinaryIO, length: int = CHUNK) -> Iterator[bytes]:
    try:
        file.seek(0)
        while data := file.read(length):
            yield data
    except OSError as error:
        raise HardwareError(f"the downloaded artifact cannot be read: {error}") from None


def _prove_packed(proven: Proven, file: BinaryIO) -> Iterator[float]:
    """Refused: the packed file is not the one that SHA256SUMS names, any more."""
    if (parts := proven.manifest.parts) is not None:
        same = yield from _has_parts(file, proven.manifest.size, *parts)
    else:
        digest = hashlib.sha256()
        for data in _pieces(file, HASHED):
            digest.update(data)
            yield 0.0
        same = digest.hexdigest() == proven.sha256
    if not same:
        raise Refused("artifact-digest", "the downloaded file has changed since it was verified")


def _has_parts(file: BinaryIO, size: int, length: int, hashes: Sequence[str]) -> Generator[float, None, bool]:
    """Whether the file is of `size` bytes, in parts of `length` bytes with these sha256s. The manifest that SHA256SUMS binds
    names them: together they prove what its one digest of the file proves, on as many processors as there are."""
    descriptor = file.fileno()

    def right(number: int) -> bool:
        digest, at, end = hashlib.sha256(), number * length, min((number + 1) * length, size)
        while at < end and (data := os.pread(descriptor, min(HASHED, end - at), at)):
            digest.update(data)
            at += len(data)
        return at == end and digest.hexdigest() == hashes[number]

    if os.fstat(descriptor).st_size != size:
        return False
    pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), "hash")
    try:
        waiting = [pool.submit(right, number) for number in range(len(hashes))]
        for part in waiting:
            while not part.done():
                wait([part], _PAUSE_S)
                yield 0.0
            if not part.result():
                return False
    except OSError as error:
        raise HardwareError(f"the downloaded artifact cannot be read: {error}") from None
    finally:
        pool.shutdown(cancel_futures=True)
    return True


def _copied(file: BinaryIO, writer: SlotWriter, size: int) -> Generator[None, None, None]:
    """Write an image that is not packed."""
    for data in _pieces(file):
        if writer.place() + len(data) > size:
            raise _Failed(f"the image has more than {size} bytes")
        writer.write(data)
        yield


def _unpacked(file: BinaryIO, writer: SlotWriter, size: int) -> Generator[None, None, None]:
    """Let zstd write the image into the slot; yields when there is a stretch to read back, and often enough besides."""
    file.seek(0)
    # zstd's own checksum is left unread, a twelfth of its time: the digest of what is read back proves more.
    with _zstd(["--sparse", "--no-check"], file, writer.descriptor(), size) as process:
        seen, moved_at, place = 0, time.monotonic(), 0
        while process.poll() is None:
            before, place = place, writer.place()
            if place != before:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > STALL_S:
                raise HardwareError(f"zstd has written nothing for {STALL_S:.0f} s")
            if place - seen >= STRETCH:
                seen = place
            else:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
            yield
        if process.returncode != 0:
            raise _Failed(_ending(process))


def _blame(proven: Proven, file: BinaryIO) -> Iterator[float]:
    """Find out whether the artifact is at fault when a slot does not hold what it should; yields between pieces.

    Refused: the packed file has changed, or it does not unpack to what was assigned. Else the disk is at fault.
    """
    yield from _prove_packed(proven, file)
    manifest = proven.manifest
    digest, size = hashlib.sha256(), 0
    with closing(_image(proven, file)) as pieces:
        for data in pieces:
            size += len(data)
            if size > manifest.image_size:
                raise Refused("image-size", f"the image unpacks to more than {manifest.image_size} bytes")
            digest.update(data)
            yield 0.0
    if size != manifest.image_size:
        raise Refused("image-size", f"the image unpacks to {size} bytes, not to {manifest.image_size}")
    if f"sha256:{digest.hexdigest()}" != manifest.digest:
        raise Refused("image-digest", "the unpacked image is not the one that was assigned")


def _image(proven: Proven, file: BinaryIO) -> Generator[bytes, None, None]:
    """The bytes of the raw image, written nowhere. Refused: zstd cannot unpack it."""
    if proven.manifest.compression == "none":
        yield from _pieces(file)
        return
    file.seek(0)
    with _zstd([], file, subprocess.PIPE, proven.manifest.image_size) as process:
        assert process.stdout is not None
        while data := process.stdout.read(CHUNK):
            yield data
        process.wait(STALL_S)
        if process.returncode != 0:
            raise Refused("image-packing", f"zstd could not unpack the image: {_ending(process)}")


@contextmanager
def _zstd(options: Sequence[str], file: BinaryIO, output: int, size: int) -> Iterator[subprocess.Popen[bytes]]:
    """zstd, unpacking `file` to `output`. It is ended with the block, and can make no file longer than `size` bytes."""
    # Set by a program and not between fork and exec: that is not safe where threads run.
    limited = [_program("prlimit", "util-linux"), f"--fsize={size}", "--core=0", "--"]
    # A window of 128 MiB at most: what an image asks for in memory is bounded too.
    command = [_program("zstd", "zstd"), "--decompress", "--stdout", "--quiet", "--long=27", *options]
    try:
        process = subprocess.Popen(
            limited + command,
            stdin=file,
            stdout=output,
            stderr=subprocess.PIPE,
            env={"PATH": _PATH, "LC_ALL": "C", **_LARGE_PAGES},
        )
    except OSError as error:
        raise HardwareError(f"zstd cannot be started: {error}") from None
    try:
        yield process
    except subprocess.TimeoutExpired:
        raise HardwareError("zstd does not end") from None
    finally:
        if process.poll() is None:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STALL_S)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a program ended, in its own words where it said any."""
    said = process.stderr.read(4096).decode("utf-8", "replace").strip() if process.stderr is not None else ""
    return said.splitlines()[-1][:200] if said else f"zstd ended with status {process.returncode}"


def _program(name: str, package: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":" + _PATH)
    if path is None:
        raise HardwareError(f"{name} is not installed, and images are unpacked with it (Debian package {package})")
    return path
