"""Bearer tokens: made here, kept as hashes only. Pure but for randomness; used by server and CLI.

A token is 256 random bits, so its sha256 needs no salt and no stretching: it cannot be guessed from the hash. Source:
design §5, "it has its own identity from enrolment".
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from reconciler.ports import TerminalError

PREFIX = "edge_"
"""Lets secret scanners recognise a token that was committed by mistake."""

_TOKEN = re.compile(r"edge_[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"[0-9a-f]{64}")


class Scope(StrEnum):
    """What an operator's token may ask for."""

    ALL = "all"
    READ = "read"
    """Plan, status and the observed snapshot; nothing else, and nothing that will come later. For a pull request's checks."""


def make_token() -> str:
    """A new token: prefix and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """The sha256 of a token, 64 hexadecimal digits: what is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


def bearer(header: str | None) -> str | None:
    """The token of an Authorization header, None where it has none of ours."""
    scheme, _, value = (header or "").partition(" ")
    token = value.strip()
    return token if scheme.lower() == "bearer" and _TOKEN.fullmatch(token) else None


def is_among(token_hash: str, hashes: Iterable[str]) -> bool:
    """Whether a hash is one of these. Compares with each, in constant time."""
    found = False
    for known in hashes:
        found |= hmac.compare_digest(known, token_hash)
    return found


def read_hashes(path: Path, scope: Scope = Scope.ALL) -> frozenset[str]:
    """Hashes of a file that have a scope: `HASH [SCOPE]` a line, all where none is written; `#` begins a note.

    TerminalError: unreadable, a line is no hash, or a scope is unknown.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise TerminalError(
            f"cannot read {path}: {reason}",
            needed_for="knowing the operators",
            remedy="make it with `reconciler token operator`, or drop `server.operators`",
        ) from None
    hashes = set()
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not _HASH.fullmatch(words[0]):
            # The line is not shown: it may be a token that somebody put there by mistake.
            raise TerminalError(
                f"{path}:{number}:1: is not the sha256 of a token",
                needed_for="knowing the operators",
                remedy="write 64 lower-case hexadecimal digits, as `reconciler token operator` does",
            )
        if len(words) > 2 or words[-1] not in (words[0], *Scope):
            # A scope that is not understood is no scope: a narrow token must not become a wide one by a mistake in writing.
            raise TerminalError(
                f"{path}:{number}:{line.index(words[1]) + 1}: is not a scope",
                needed_for="knowing the operators",
                remedy=f"write one of {', '.join(Scope)} after the hash, or nothing for all",
            )
        if (words[1] if len(words) == 2 else Scope.ALL) == scope:
            hashes.add(words[0])
    return frozenset(hashes)


def write_token(path: Path, token: str) -> None:
    """Write a token to a new file for its owner alone (mode 0600). TerminalError: it exists, or cannot be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise TerminalError(
            f"cannot write {path}: {error.strerror}",
            needed_for="handing out a token",
            remedy="name a folder that is writable and does not hold that device's token yet",
        ) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
