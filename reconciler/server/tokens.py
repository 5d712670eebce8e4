"""Bearer tokens and sessions' ids: made here, kept as hashes only. Pure but for randomness; used by server and CLI.

A token is 256 random bits, so its sha256 needs no salt and no stretching: it cannot be guessed from the hash. Source:
design §5, "it has its own identity from enrolment".
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.model.access import Scope, parse_scopes
from reconciler.model.scalars import NAME_PATTERN
from reconciler.ports import TerminalError

PREFIX = "edge_"
"""Lets secret scanners recognise a token that was committed by mistake."""

_TOKEN = re.compile(r"edge_[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileToken:
    """A line of the operators' file: the hash of a token, its scopes, and the name that its note begins with."""

    token_hash: str
    scopes: frozenset[Scope]
    name: str


def make_token() -> str:
    """A new token: prefix and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def make_session_id() -> str:
    """A new session's id: 256 random bits, as a cookie's value may be written."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """The sha256 of a token, or of a session's id, 64 hexadecimal digits: what is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


def csrf_token(session_id: str) -> str:
    """What a form of this session carries, 64 hexadecimal digits. Only who has the session's id can make it."""
    return hmac.new(session_id.encode(), b"form", hashlib.sha256).hexdigest()


def bearer(header: str | None) -> str | None:
    """The token of an Authorization header, None where it has none of ours."""
    scheme, _, value = (header or "").partition(" ")
    token = value.strip()
    return token if scheme.lower() == "bearer" and looks_like_token(token) else None


def looks_like_token(text: str) -> bool:
    """Whether this has the form of a token of ours."""
    return _TOKEN.fullmatch(text) is not None


def find(token_hash: str, tokens: Sequence[FileToken]) -> FileToken | None:
    """The token of the file with this hash. Compares with each, in constant time; of a hash that stands twice, the first."""
    found = None
    for token in tokens:
        if hmac.compare_digest(token.token_hash, token_hash) and found is None:
            found = token
    return found


def read_operators(path: Path) -> tuple[FileToken, ...]:
    """The tokens of a file: `HASH [SCOPE,...]` a line, all scopes where none is written; `#` begins a note.

    A token is called what its note says, up to a comma, where that is a name; `line-N` otherwise.
    TerminalError: unreadable, a line is no hash, or a scope is unknown.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise TerminalError(
            f"cannot read {path}: {reason}",
            needed_for="knowing the operators",
            remedy="make it with `reconciler token operator NAME --file FILE`, or drop `server.operators`",
        ) from None
    found = []
    for number, line in enumerate(lines, start=1):
        text, _, note = line.partition("#")
        words = text.split()
        if not words:
            continue
        if not _HASH.fullmatch(words[0]):
            # The line is not shown: it may be a token that somebody put there by mistake.
            raise TerminalError(
                f"{path}:{number}:1: is not the sha256 of a token",
                needed_for="knowing the operators",
                remedy="write 64 lower-case hexadecimal digits, as `reconciler token operator --file` does",
            )
        try:
            scopes = parse_scopes(" ".join(words[1:]) or Scope.ALL)
        except ValueError:
            raise TerminalError(
                f"{path}:{number}:{line.index(words[1]) + 1}: is not a scope",
                needed_for="knowing the operators",
                remedy=f"write some of {', '.join(Scope)} with commas between them after the hash, or nothing for all",
            ) from None
        name = note.partition(",")[0].strip()
        found.append(FileToken(words[0], scopes, name if re.fullmatch(NAME_PATTERN, name) else f"line-{number}"))
    return tuple(found)


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
