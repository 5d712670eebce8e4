"""Judges the keys that an image carries: whether a device that runs it will accept the fleet's next release, and obey anybody.

gpg reads the keyring, in a home of its own that is gone afterwards; nothing of the machine's own keys is looked at. The
files' form is that which the agent reads. Called by `image.gate` and, of an install disk, by `image.disk`. Source: design §5
("a release key in the image's own keyring") and the fleet's `releaseKeys`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.image.process import PATH, program
from reconciler.ports import TerminalError

RING, FINGERPRINTS = b"etc/edge/keys/release.gpg", b"etc/edge/keys/release.fpr"
ASSIGNMENT_RING, ASSIGNMENT_FINGERPRINTS = b"etc/edge/keys/assignment.gpg", b"etc/edge/keys/assignment.fpr"
MAX_BYTES = 1 << 20
_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Key:
    """A primary key in a keyring, as gpg sees it now. `usable`: may sign. `why_not` says what is against it."""

    fingerprint: str
    secret: bool
    why_not: str | None


def judge(
    ring: bytes | None, fingerprints: bytes | None, allowed: Collection[str] | None
) -> Iterator[tuple[bytes, str]]:
    """What is wrong with the two files (None: absent), as (path, what). `allowed`: fingerprints of the keys that may
    sign releases in this fleet; None: not known, so not asked. TerminalError: gpg is missing or does not answer."""
    if ring is None:
        yield RING, "there is none: the device could verify no release"
    if fingerprints is None:
        yield FINGERPRINTS, "there is none: the device would accept no key"
    for is_ring, what in _pair(ring, fingerprints, allowed, "release"):
        yield (RING if is_ring else FINGERPRINTS), what


def judge_assignment(ring: bytes | None, fingerprints: bytes | None) -> Iterator[tuple[bytes, str]]:
    """The same of the keys that sign assignments. An image may hold neither file: a device can have them from its enrolment.
    With one of them alone it reads no other, and obeys nobody."""
    if (ring is None) != (fingerprints is None):
        path = ASSIGNMENT_RING if ring is None else ASSIGNMENT_FINGERPRINTS
        yield path, "there is none, and the other of the two is there: the device would obey nobody"
    for is_ring, what in _pair(ring, fingerprints, None, "assignment"):
        yield (ASSIGNMENT_RING if is_ring else ASSIGNMENT_FINGERPRINTS), what


def _pair(
    ring: bytes | None, fingerprints: bytes | None, allowed: Collection[str] | None, kind: str
) -> Iterator[tuple[bool, str]]:
    """What is wrong with a keyring (True) and its file of fingerprints (False), of those that are there."""
    named, problems = _named(fingerprints) if fingerprints is not None else ((), ())
    yield from ((False, problem) for problem in problems)
    keys: dict[str, Key] = {}
    if ring is not None:
        # gpgv, which the agent calls, reads packets; armour it does not, and a keybox is gpg's own.
        if not ring or len(ring) > MAX_BYTES or not ring[0] & 0x80:
            yield True, "no binary OpenPGP keyring, which is all that gpgv reads (is it armoured?)"
            return
        keys = {key.fingerprint: key for key in read_keys(ring)}
        if not keys:
            yield True, "gpg finds no key in it"
        if any(key.secret for key in keys.values()):
            yield True, "it holds a secret key"
    if ring is None or fingerprints is None or not keys:
        return
    for name in named:
        if name not in keys:
            yield False, f"{name} is not in {kind}.gpg as a primary key"
    if named:
        yield from _accepts(named, keys, allowed, kind)


def _accepts(
    named: Collection[str], keys: dict[str, Key], allowed: Collection[str] | None, kind: str
) -> Iterator[tuple[bool, str]]:
    """Whether one of the keys that the device trusts may sign the next release, or assignment."""
    wanted = None if allowed is None else {word.upper() for word in allowed}
    trusted = [keys[name] for name in named if name in keys and (wanted is None or name in wanted)]
    if any(key.why_not is None for key in trusted):
        return
    if wanted is not None and not set(named) & wanted:
        yield (
            False,
            f"none of its keys is one that the fleet allows ({', '.join(sorted(wanted)) or 'it allows none'})",
        )
    for key in trusted:
        yield True, f"key {key.fingerprint} {key.why_not}, and no other key here may sign the next {kind}"


def _named(data: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fingerprints in upper case, and what is wrong with the file."""
    words = data[:MAX_BYTES].split()
    good = tuple(word.decode().upper() for word in words if re.fullmatch(rb"[0-9A-Fa-f]{40}", word))
    if not words:
        return (), ("it names no fingerprint",)
    if len(good) != len(words):
        return good, ("it must hold fingerprints of 40 hexadecimal digits, one a line, and nothing else",)
    return good, ()


def read_keys(ring: bytes) -> tuple[Key, ...]:
    """The primary keys of a keyring. Empty where gpg reads none. TerminalError: gpg is missing or does not answer."""
    gpg = program("gpg", "gnupg", "checking the image's release keys")
    with tempfile.TemporaryDirectory(prefix="gate-", dir="/tmp") as home:
        argv = [gpg, "--homedir", home, "--batch", "--no-tty", "--quiet", "--no-autostart", "--with-colons"]
        argv += ["--fixed-list-mode", "--import-options", "show-only", "--import"]
        try:
            done = subprocess.run(
                argv,
                input=ring,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
                env={"PATH": PATH, "LC_ALL": "C", "HOME": home},
            )
        except (OSError, subprocess.TimeoutExpired):
            raise TerminalError(
                "gpg did not answer",
                needed_for="checking the image's release keys",
                remedy="try gpg --version, then check again",
            ) from None
        shutil.rmtree(Path(home) / "private-keys-v1.d", ignore_errors=True)
    return tuple(_keys(done.stdout.decode("utf-8", "replace"), time.time()))


def _keys(listing: str, now: float) -> Iterator[Key]:
    """Keys of gpg's listing with colons (doc/DETAILS in GnuPG's sources)."""
    rows = [line.split(":") for line in listing.splitlines()]
    starts = [index for index, row in enumerate(rows) if row[0] in ("pub", "sec")]
    for start, end in zip(starts, [*starts, len(rows)][1:], strict=True):
        primary = rows[start]
        parts = [row for row in rows[start:end] if row[0] in ("pub", "sec", "sub", "ssb")]
        fingerprint = next((row[9].upper() for row in rows[start:end] if row[0] == "fpr"), "")
        yield Key(fingerprint, any(row[0] in ("sec", "ssb") for row in parts), _why_not(primary, parts, now))


def _why_not(primary: list[str], parts: list[list[str]], now: float) -> str | None:
    if primary[1] == "r":
        return "is revoked"
    if _expired(primary, now):
        return "has expired"
    if primary[1] in ("i", "d"):
        return "is not valid"
    # Lower case: what this very part may do. The primary key or any subkey of it may sign.
    if not any("s" in row[11] and row[1] not in ("r", "i", "d") and not _expired(row, now) for row in parts):
        return "cannot sign, nor can a subkey of it"
    return None


def _expired(row: list[str], now: float) -> bool:
    return row[1] == "e" or (row[6].isdigit() and int(row[6]) <= now)
