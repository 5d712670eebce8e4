"""Reads objects of a bare repository: one persistent `git cat-file --batch`, and pure parsers of what git prints.

Blobs, commits and trees are read by hash as bytes: no filter, no encoding, no checkout. Called by
`adapters.git_source`. Source: git-cat-file(1) "BATCH OUTPUT", git-diff-tree(1) "RAW OUTPUT FORMAT",
gitformat-signature(5).
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from subprocess import Popen
from typing import Any

from reconciler.adapters.git_remote import NEEDED_FOR
from reconciler.ports import TerminalError, TreeEntry

BLOB_LIMIT = 32 * 1024 * 1024
"""Bytes. A larger blob is no fleet document and no recipe file, and is not read into memory."""

ABSENT_MODE = "000000"


class MissingObject(Exception):
    """The repository has no such object, or cannot read it. `damaged` where git itself gave up on it."""

    def __init__(self, name: str, *, damaged: bool = False) -> None:
        self.name, self.damaged = name, damaged
        super().__init__(name)


class ObjectReader:
    """Objects by hash through one child process, started at the first read.

    Safe from any thread, one read at a time.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._process: Any = None
        self._end: Callable[[], object] | None = None
        self._lock = threading.Lock()

    def read(self, name: str, kind: str, limit: int = BLOB_LIMIT) -> bytes:
        """The bytes of object `name` of type `kind`.

        MissingObject; TerminalError: another type, or more than `limit` bytes.
        """
        with self._lock:
            for last in (False, True):
                try:
                    return self._read(name, kind, limit)
                except (OSError, EOFError):
                    # The child was killed or died of a broken object; a fresh one tells the two apart.
                    self._close()
                    if last:
                        raise MissingObject(name, damaged=True) from None
                except TerminalError:
                    self._close()  # the rest of an unread object is still in the pipe
                    raise
        raise AssertionError("unreachable")

    def _read(self, name: str, kind: str, limit: int) -> bytes:
        if self._process is None:
            self._process = self._start()
            # Ends the child also where a mirror is dropped without `close`.
            self._end = weakref.finalize(self, _end, self._process.proc)
        process = self._process
        process.stdin.write(name.encode("ascii") + b"\n")
        process.stdin.flush()
        header = process.stdout.readline()
        parts = header.split()
        if len(parts) == 2 and parts[1] in (b"missing", b"ambiguous"):
            raise MissingObject(name)
        if len(parts) != 3:
            raise EOFError
        size = int(parts[2])
        if parts[1].decode("ascii") != kind:
            raise TerminalError(
                f"object {name} is a {parts[1].decode('ascii')}, not a {kind}",
                needed_for=NEEDED_FOR,
                remedy="give the hash of one",
            )
        if size > limit:
            raise TerminalError(
                f"object {name} has {size} bytes, more than {limit}",
                needed_for=NEEDED_FOR,
                remedy="keep large files out of the fleet repo; artifacts belong in the image store",
            )
        data: bytes = process.stdout.read(size + 1)
        if len(data) != size + 1:
            raise EOFError
        return data[:-1]

    def _close(self) -> None:
        self._process = None
        if self._end is not None:
            self._end()

    def close(self) -> None:
        """End the child process; the next read starts another."""
        with self._lock:
            self._close()


def _end(child: Popen[bytes]) -> None:
    """Close the pipes and end the child at once."""
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    child.kill()
    child.wait()


@dataclass(frozen=True, slots=True)
class ParsedCommit:
    """A commit object taken apart.

    `signed` is the object without its signature header, the bytes that a signature covers.
    """

    tree: str
    parents: tuple[str, ...]
    author: str
    message: str
    committed_at: datetime
    signature: bytes | None
    signed: bytes


def parse_commit(data: bytes) -> ParsedCommit:
    """The bytes of a commit object → its parts. ValueError: not a commit.

    A commit with two signatures, or with one for another hash, is taken as unsigned: which of them would count is a
    matter of git's version, and nobody makes such a commit by accident.
    """
    head, _, body = data.partition(b"\n\n")
    fields: list[tuple[bytes, bytes, bytes]] = []
    for line in head.split(b"\n"):
        if line.startswith(b" ") and fields:
            key, value, raw = fields[-1]
            fields[-1] = (key, value + b"\n" + line[1:], raw + b"\n" + line)
        else:
            key, _, value = line.partition(b" ")
            fields.append((key, value, line))
    signatures = [(key, value) for key, value, _ in fields if key in (b"gpgsig", b"gpgsig-sha256")]
    kept = [raw for key, _, raw in fields if key not in (b"gpgsig", b"gpgsig-sha256")]
    single = len(signatures) == 1 and signatures[0][0] == b"gpgsig"
    first = {key: value for key, value, _ in reversed(fields)}
    encoding = first.get(b"encoding", b"utf-8").decode("ascii", "replace")
    author, _ = _person(first[b"author"], encoding)
    _, committed_at = _person(first[b"committer"], encoding)
    return ParsedCommit(
        tree=first[b"tree"].decode("ascii"),
        parents=tuple(value.decode("ascii") for key, value, _ in fields if key == b"parent"),
        author=author,
        message=_decode(body, encoding),
        committed_at=committed_at,
        signature=signatures[0][1] + b"\n" if single else None,
        signed=b"\n".join(kept) + b"\n\n" + body,
    )


def _decode(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding, "replace")
    except LookupError:
        return data.decode("utf-8", "replace")


def _person(value: bytes, encoding: str) -> tuple[str, datetime]:
    """`Name <address> 1700000000 +0100` → the name with its address, and the instant."""
    who, _, when = value.rpartition(b"> ")
    seconds = int(when.split()[0])
    try:
        instant = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        raise ValueError(f"date {seconds} is out of range") from None
    return _decode(who + b">", encoding), instant


def parse_tree(data: bytes) -> list[TreeEntry]:
    """Output of `git ls-tree -r -z` → entries, sorted by path. Paths that are not UTF-8 are shown with backslashes."""
    entries = []
    for record in data.split(b"\0"):
        if record:
            meta, _, path = record.partition(b"\t")
            mode, _, blob = meta.decode("ascii").split(" ")
            entries.append(TreeEntry(path.decode("utf-8", "backslashreplace"), blob, mode))
    entries.sort(key=lambda entry: entry.path)
    return entries


def parse_raw_diff(data: bytes) -> Iterator[tuple[str, TreeEntry | None, TreeEntry | None]]:
    """Output of `git diff-tree -r -z --raw --no-renames` → (path, old entry, new entry), None where there is none."""
    parts = data.split(b"\0")
    for meta, name in zip(parts[0::2], parts[1::2], strict=False):
        old_mode, new_mode, old, new, _ = meta.decode("ascii").removeprefix(":").split(" ")
        path = name.decode("utf-8", "backslashreplace")
        before = None if old_mode == ABSENT_MODE else TreeEntry(path, old, old_mode)
        after = None if new_mode == ABSENT_MODE else TreeEntry(path, new, new_mode)
        yield path, before, after
