"""Durable files: what was written is there after a power cut, whole or not at all.

Python 3.10, standard library only: runs as root on a device. Every durable change of the agent goes through one
`Disk`, whose `on_step` is called before each of them with its name. Tests raise there to cut the power at every
single step.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def _no_step(_name: str) -> None:
    """Power stays on."""


class Disk:
    """The durable steps. An OSError passes through; callers translate it."""

    def __init__(self, on_step: Callable[[str], None] = _no_step) -> None:
        self.on_step = on_step

    def replace(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        """Make `data` the content of `path`: temporary file, fsync, rename, fsync of the folder."""
        temporary = path.with_name(path.name + ".new")
        self.on_step(f"write {temporary.name}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        self.rename(temporary, path)

    def overwrite(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """Make `data` the content of `path` where a rename is no atomic step (FAT); durable when it returns.

        A file of as many bytes is written over, in place and by one write. Any other is removed and made anew. A power cut
        tears it: whoever reads it has to see that, and to have the same from elsewhere.
        """
        is_new = not path.is_file() or path.is_symlink() or path.stat().st_size != len(data)
        if is_new:
            self.folder(path.parent)
            self.remove(path)
            self.sync_folder(path.parent)
        self.on_step(f"write {path.name}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_SYNC
        descriptor = os.open(path, flags, mode)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            # O_SYNC has it on the disk already; this hears of an error that came late.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            self.sync_folder(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or folder whose content is synced; durable when it returns."""
        self.on_step(f"rename {target.name}")
        os.rename(source, target)
        self.sync_folder(target.parent)

    def link(self, target: str, link: Path) -> None:
        """Point the symlink `link` at `target` in one step."""
        temporary = link.with_name(link.name + ".new")
        self.on_step(f"link {link.name}")
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(target, temporary)
        self.rename(temporary, link)

    def sync(self, file: BinaryIO) -> None:
        """fsync of an open file."""
        self.on_step(f"sync {Path(file.name).name}")
        file.flush()
        os.fsync(file.fileno())

    def sync_folder(self, folder: Path) -> None:
        """fsync of a folder: its names are durable."""
        self.on_step(f"sync folder {folder.name}")
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def folder(self, path: Path, mode: int = 0o755) -> Path:
        """Make a folder, parents included, where there is none; durable when it returns."""
        if not path.is_dir():
            self.folder(path.parent)
            self.on_step(f"make {path.name}")
            path.mkdir(mode=mode, exist_ok=True)
            # What is synced below it is lost all the same where its own name is.
            self.sync_folder(path.parent)
        return path

    def remove(self, path: Path) -> None:
        """Remove a file or a folder with its content; nothing happens where there is none."""
        if path.is_symlink() or path.exists():
            self.on_step(f"remove {path.name}")
            if path.is_dir() and not path.is_symlink():
                import shutil

                shutil.rmtree(path)
            else:
                os.unlink(path)
