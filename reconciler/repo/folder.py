"""A fleet repo's work tree on disk → tree entries, as a commit would have them. Reads regular files only, follows no link.

Called by `repo.load.load_folder`. A file that is too large is not read, and one that cannot be read is a problem, not a crash.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import sha1
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from reconciler.repo.documents import FOLDERS, place_of
from reconciler.repo.paths import looked_at, shown
from reconciler.repo.problem import Problem
from reconciler.repo.reader import MAX_BYTES

_DEEPEST = 2
_ONCE = 16384
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class File(NamedTuple):
    """One file of a work tree; `blob` is the hash that git would give its bytes."""

    path: str
    blob: str
    mode: str
    size: int | None


@dataclass(slots=True)
class Files:
    """What a folder holds. `contents` keeps the bytes for the load in progress."""

    entries: list[File] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)

    def read(self, blob: str) -> bytes:
        """The bytes of a blob of this folder."""
        return self.contents.get(blob, b"")


def folder_entries(root: Path, *, scenarios: bool) -> Files:
    """Every file below `root` that is a document or might be one by mistake."""
    files = Files()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        message = f"the fleet repo's folder {what}; name the folder that holds fleet.yaml"
        files.problems.append(Problem(shown(str(root)), 1, 1, message, "error", "no-folder"))
        return files
    _walk(root, "", 0, scenarios, files)
    return files


def _walk(root: Path, below: str, depth: int, scenarios: bool, files: Files) -> None:
    folder = os.path.join(root, below)
    try:
        with os.scandir(folder) as listing:
            found = sorted(listing, key=attrgetter("name"))
    except OSError as error:
        files.problems.append(_unreadable(below or ".", error))
        return
    for entry in found:
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith(".") or (path == "tests" and not scenarios):
            continue
        if entry.is_dir(follow_symlinks=False):
            kind = place_of(path).kind
            if kind is not None:
                message = f"is a folder, where a document ({kind}) is expected; put a file here, or rename the folder"
                files.problems.append(Problem(shown(path), 1, 1, message, "error", "folder"))
            elif depth < _DEEPEST:
                _walk(root, path, depth + 1, scenarios, files)
        elif place_of(path).kind is not None or looked_at(path) or path in FOLDERS:
            _add(entry, path, files)


def _add(entry: os.DirEntry[str], path: str, files: Files) -> None:
    """One file. Opened without following a link and without waiting for a pipe, whatever it became meanwhile."""
    data, size = b"", 0
    try:
        if entry.is_file(follow_symlinks=False):
            mode = "100644"
            handle = os.open(entry.path, _OPEN)
            try:
                data, size = _whole(handle)
            finally:
                os.close(handle)
        else:
            mode = "120000" if entry.is_symlink() else "other"
    except OSError as error:
        files.problems.append(_unreadable(path, error))
        return
    blob = sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    files.contents[blob] = data
    files.entries.append(File(path, blob, mode, size))


def _whole(handle: int) -> tuple[bytes, int]:
    """The bytes of an open file, none where it is too large, and its size. Most files are read by the first call."""
    data = os.read(handle, _ONCE)
    # A short read of a regular file is its end; the next call would only say so.
    if len(data) < _ONCE:
        return data, len(data)
    size = os.fstat(handle).st_size
    if size > MAX_BYTES:
        return b"", size
    while len(data) <= MAX_BYTES and (more := os.read(handle, MAX_BYTES + 1 - len(data))):
        data += more
    return data, max(size, len(data))


def _unreadable(path: str, error: OSError) -> Problem:
    reason = (error.strerror or "error").lower()
    message = f"cannot be read ({reason}), and a fleet is loaded whole or not at all; make it readable"
    return Problem(shown(path), 1, 1, message, "error", "unreadable")
