"""Looks into public OpenPGP keyrings with gpg: fingerprints, names, expiry, revocation. Imports nothing, trusts nothing.

gpg runs in an empty home of its own, reads the keyring on its standard input, and writes nothing that stays. Implements
`review.ports.Keyrings`; called by `cli.diff`. Source: gpg(1) --show-keys, GnuPG doc/DETAILS "Format of the colon listings".
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from reconciler.adapters.git_remote import printable
from reconciler.ports import PublicKey, TerminalError

NEEDED_FOR = "looking at the signing keys"
TIMEOUT_S = 30.0


@dataclass(slots=True)
class _Found:
    """One primary key while its lines are read."""

    expires: datetime | None
    revoked: bool
    signs: list[datetime | None] = field(default_factory=list)
    fingerprint: str = ""
    user: str = ""


class GpgKeys:
    """The gpg program."""

    def keys(self, keyring: bytes) -> Sequence[PublicKey]:
        """Every key of a keyring, in its order. TerminalError: no keyring, or no gpg."""
        with tempfile.TemporaryDirectory(prefix="gk-") as home:
            argv = ["gpg", "--batch", "--no-tty", "--quiet", "--no-options", "--homedir", home, "--no-autostart"]
            argv += ["--with-colons", "--fixed-list-mode", "--show-keys"]
            try:
                done = subprocess.run(argv, input=keyring, capture_output=True, timeout=TIMEOUT_S, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                why = (error.strerror or "error").lower() if isinstance(error, OSError) else "it did not end"
                raise TerminalError(
                    f"gpg cannot be run ({why})", needed_for=NEEDED_FOR, remedy="apt-get install gnupg"
                ) from None
        found = [_key(key) for key in _read(done.stdout.decode("utf-8", "replace").splitlines())]
        if not found:
            raise TerminalError(
                f"gpg finds no public key in it ({printable(done.stderr.decode('utf-8', 'replace')) or 'empty'})",
                needed_for=NEEDED_FOR,
                remedy="write it with gpg --export FINGERPRINT",
            )
        return found


def _read(lines: Sequence[str]) -> Iterator[_Found]:
    current: _Found | None = None
    primary = False
    for line in lines:
        fields = line.split(":")
        kind = fields[0]
        if kind == "pub":
            if current is not None:
                yield current
            current = _Found(_instant(fields[6]), fields[1] == "r")
        if current is None:
            continue
        if kind in ("pub", "sub"):
            primary = kind == "pub"
            # Lower case: what this very key can do. Upper case would be the whole key's.
            if "s" in fields[11] and fields[1] not in ("r", "i"):
                current.signs.append(_instant(fields[6]))
        elif kind == "fpr" and primary and not current.fingerprint:
            current.fingerprint = fields[9].upper()
        elif kind == "uid" and not current.user:
            current.user = fields[9]
    if current is not None:
        yield current


def _instant(text: str) -> datetime | None:
    return datetime.fromtimestamp(int(text), UTC) if text.isdigit() else None


def _key(found: _Found) -> PublicKey:
    """A signature counts while the primary key stands and some key that can sign does."""
    last = None if None in found.signs else max((at for at in found.signs if at is not None), default=None)
    expires = min((at for at in (found.expires, last) if at is not None), default=None)
    return PublicKey(found.fingerprint, found.user, expires, found.revoked or not found.signs)
