"""What a rule of the sysprep gate is made of: where it looks, and small tests of one file that say what is wrong with it.

Pure: a file's name, kind and bytes in, sentences out, never the value of a secret. Paths are globs over the image's own
paths without a leading slash: `*` stays within a name, `**` crosses folders. Used by `image.gate_rules` and its tables.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """A file under a rule's eyes: its path, its kind, its size in bytes, and its first MiB when asked for."""

    path: bytes
    kind: str
    size: int
    read: Callable[[], bytes]


# Says what is wrong with a file, never the value of a secret; nothing where it is as it should be.
Test = Callable[[Found], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Look:
    """Where a rule looks, and what for."""

    paths: tuple[str, ...]
    test: Test
    # Folders, links and empty files are looked at too, not files with bytes alone.
    whatever: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """What the gate refuses. `refuses`, `why` and `remedy` are for people, each a sentence without its full stop."""

    name: str
    refuses: str
    why: str
    remedy: str
    looks: tuple[Look, ...] = ()


# ---------------------------------------------------------------- what to look for in a file


def holds(what: str) -> Test:
    """Any file with bytes."""

    def test(file: Found) -> Iterator[str]:
        yield f"{what} ({file.size} bytes)"

    return test


def exists(what: str) -> Test:
    """Anything but a folder, empty or not."""

    def test(file: Found) -> Iterator[str]:
        if file.kind != "folder":
            yield what

    return test


def anything(what: str) -> Test:
    """Anything, a folder too."""

    def test(file: Found) -> Iterator[str]:
        yield what

    return test


def says(pattern: str, what: str) -> Test:
    """A text with a line that the pattern finds. The first line's number is told, not what it says."""
    compiled = re.compile(pattern.encode(), re.MULTILINE | re.IGNORECASE)

    def test(file: Found) -> Iterator[str]:
        data = file.read()
        match = compiled.search(data)
        if match is not None:
            at = match.start() + len(match[0]) - len(match[0].lstrip())
            yield f"{what} (line {data.count(10, 0, at) + 1})"

    return test


def authorized(file: Found) -> Iterator[str]:
    """Authorized keys, but for the fleet's own: public keys for an account, in the folder that the recipe's sshd reads."""
    account = re.fullmatch(rb"etc/ssh/authorized_keys\.d/([^/]+)", file.path)
    if account is None:
        yield f"authorized keys ({file.size} bytes)"
    elif account[1] == b"root":
        yield "authorized keys of root, whom no key may log in"
    else:
        for number, line in enumerate(file.read().splitlines(), 1):
            if line.strip() and not re.match(rb"\s*#", line) and not _PUBLIC_KEY.search(line):
                yield f"no public key (line {number})"


_PUBLIC_KEY = re.compile(rb"(?:^|\s)(?:sk-)?(?:ssh|ecdsa)-[\w.@-]+ AAAA[\w+/=]{16,}(?:\s|$)")


def site_id(file: Found) -> Iterator[str]:
    """A SITE_ID that is set to something else than golden."""
    for number, line in enumerate(file.read().splitlines(), 1):
        match = re.match(rb"\s*(?:export\s+|Environment=)?[\"']?SITE_ID\s*[=:]\s*(.*?)\s*$", line)
        value = match[1].split(b"#")[0].strip().strip(b"\"'").strip() if match else b""
        if value and value != b"golden" and not value.startswith(b"$"):
            yield f"a site's SITE_ID, not golden (line {number})"


def hosts(file: Found) -> Iterator[str]:
    """An address in a hosts file that is not the machine's own or a group's."""
    for number, line in enumerate(file.read().splitlines(), 1):
        words = line.split(b"#")[0].split()
        if words and not re.match(rb"127\.|::1$|f[ef]0[0-2]::|0\.0\.0\.0$|::$|255\.255\.255\.255$", words[0]):
            yield f"a host's address (line {number})"


def hostname(file: Found) -> Iterator[str]:
    """A host name that is none of an image's."""
    words = [line.strip() for line in file.read().splitlines() if line.strip() and not line.startswith(b"#")]
    if words and words[0].split(b".")[0] not in _NEUTRAL_NAMES:
        yield "a machine's host name"


_NEUTRAL_NAMES = (b"localhost", b"golden", b"edge", b"edge-golden", b"debian", b"ubuntu")


def shadow(empty_is_open: bool) -> Test:
    """A password in the second field of a line, locked or not; with `empty_is_open`, one that is missing too."""

    def test(file: Found) -> Iterator[str]:
        for number, line in enumerate(file.read().splitlines(), 1):
            fields = line.split(b":")
            if len(fields) < 2 or line.startswith(b"#") or (re.fullmatch(rb"[!*x]*", fields[1]) and fields[1]):
                continue
            if fields[1]:
                yield f"a password's hash (line {number})"
            elif empty_is_open and not line.startswith((b"+", b"-")):
                yield f"an account that needs no password (line {number})"

    return test


def in_homes(*names: str) -> tuple[str, ...]:
    """Globs for names below any folder."""
    return tuple(f"**/{name}" for name in names)


@functools.cache
def glob(pattern: str) -> str:
    """A glob as a regular expression over a whole path: `*` and `?` stay within a name, `**` crosses them."""
    out, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".+", at + 2
        elif pattern[at] == "[":
            end = pattern.index("]", at)
            out, at = out + pattern[at : end + 1], end + 1
        else:
            out, at = out + {"*": "[^/]*", "?": "[^/]"}.get(pattern[at], re.escape(pattern[at])), at + 1
    return out
