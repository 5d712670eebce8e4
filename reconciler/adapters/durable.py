"""Files that survive a power cut, for the adapters that keep state in folders.

Written beside, synced, renamed, and the folder synced: a reader sees the old bytes or the new, never a mix. It knows
no format and no port; the directory twins call it. POSIX only: `rename` within one file system, and `flock` between
processes (on NFS, only where the server supports locks).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reconciler.ports import ArtifactFile, TerminalError, TransientError

CHUNK = 1 << 20
PART = ".part-"
"""Prefix of a file that is still being written; readers of a folder skip it."""

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EINTR}


@contextmanager
def os_errors(doing: str, *, needed_for: str) -> Iterator[None]:
    """Translate `OSError`: a full disk or a stale mount passes (TransientError), a missing right does not."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        wrong = f"cannot {doing}: {error.strerror or type(error).__name__}{where}"
        if error.errno in _PASSING:
            remedy = "free space or mend the disk; it is tried again"
            raise TransientError(wrong, needed_for=needed_for, remedy=remedy) from None
        remedy = "check that the folder exists and that this user may read and write it"
        raise TerminalError(wrong, needed_for=needed_for, remedy=remedy) from None


def chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, a mebibyte at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def sha256_of(parts: Iterable[bytes]) -> tuple[int, str]:
    """Size in bytes and sha256 (64 hex digits) of a stream."""
    size, digest = 0, hashlib.sha256()
    for part in parts:
        size += len(part)
        digest.update(part)
    return size, digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_beside(path: Path, parts: Iterable[bytes], mode: int = 0o644) -> tuple[Path, ArtifactFile]:
    """Write a stream, synced, to a temporary file beside `path`; returns it with the name, size and sha256 to be."""
    part = path.with_name(f"{PART}{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    size, digest = 0, hashlib.sha256()
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in parts:
                size += len(chunk)
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    return part, ArtifactFile(path.name, size, digest.hexdigest())


def put_in_place(part: Path, path: Path) -> None:
    """Rename a finished temporary file over `path`, durably."""
    os.replace(part, path)
    sync_folder(path.parent)


def write_atomic(path: Path, parts: Iterable[bytes], mode: int = 0o644) -> ArtifactFile:
    """Replace `path` by a stream's bytes, all or nothing. OSError is the caller's to translate."""
    part, file = write_beside(path, parts, mode)
    put_in_place(part, path)
    return file


def make_folder(folder: Path, mode: int = 0o755) -> None:
    """Create a folder with its parents, each durable in its parent."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with suppress(FileExistsError):
            each.mkdir(mode)
        sync_folder(each.parent)


def sweep_parts(folder: Path, older_than_s: float) -> None:
    """Remove temporary files that a killed writer left behind. Young ones may belong to a writer at work."""
    limit = time.time() - older_than_s
    for part in folder.glob(f"{PART}*"):
        with suppress(OSError):
            if part.stat().st_mtime < limit:
                part.unlink()


@contextmanager
def locked(path: Path, *, timeout_s: float, needed_for: str) -> Iterator[None]:
    """Hold an exclusive lock on a file between processes and threads; it ends with the process that holds it.

    TransientError: not free within `timeout_s`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        end = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise TransientError(
                        f"{path} has been locked by another process for {timeout_s:g} s",
                        needed_for=needed_for,
                        remedy="look for a second reconciler on this folder; it is tried again",
                        retry_after_s=timeout_s,
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
