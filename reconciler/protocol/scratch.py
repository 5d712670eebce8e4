"""Files without a name, and folders that only we can read, gone when they are done with.

Python 3.10, standard library only: runs as root on a device. What `tempfile` and `shutil` do for this project's needs, without
them: they bring half a MiB of other modules (random, bz2, lzma, …), which an agent would hold for as long as it runs. Called by
`signature` and by the agent's `child` and `runtime`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_TRIES = 100


def place() -> str:
    """The folder for what does not last: `TMPDIR`, or `/tmp`."""
    return os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 (names in it are made so that nobody can guess or take them)


def nameless_file() -> BinaryIO:
    """An empty file that is open for reading and writing, and gone when it is closed. OSError: there is no room for one."""
    for _ in range(_TRIES):
        name = os.path.join(place(), f"edge-{os.urandom(8).hex()}")
        with suppress(FileExistsError):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600)
            os.unlink(name)
            return os.fdopen(descriptor, "w+b")
    raise FileExistsError(f"no new file can be made in {place()}")


@contextmanager
def private_folder(prefix: str) -> Iterator[str]:
    """A new folder of mode 0700 in `place()`, removed with all that is in it. OSError: it cannot be made."""
    folder = new_folder(os.path.join(place(), prefix))
    try:
        yield folder
    finally:
        remove(folder)


def new_folder(start: str | Path) -> str:
    """A new folder of mode 0700 whose name begins with `start`, a path. OSError: it cannot be made."""
    for _ in range(_TRIES):
        folder = f"{start}{os.urandom(8).hex()}"
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
            return folder
    raise FileExistsError(f"no new folder can be made beside {start}")


def remove(folder: str | Path) -> None:
    """Remove a folder of ours and all that is in it; links are removed, not followed. What cannot be removed stays."""
    with suppress(OSError):
        with os.scandir(folder) as entries:
            found = list(entries)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                remove(entry.path)
            else:
                with suppress(OSError):
                    os.unlink(entry.path)
        os.rmdir(folder)


def find_program(name: str) -> str | None:
    """A program's path, in the folders of `PATH` and then in the system's own."""
    for folder in (*os.environ.get("PATH", "").split(":"), "/usr/bin", "/bin"):
        path = os.path.join(folder, name)
        # An empty entry of PATH would mean the folder that we happen to be in.
        if folder and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None
