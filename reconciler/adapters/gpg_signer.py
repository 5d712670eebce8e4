"""Signs with a key in a GnuPG home, through python-gnupg: detached, binary, SHA-512.

`GpgKey` holds no key: gpg-agent of that home does, or of another home or user whose socket is there, or a smart card. A
passphrase (or a card's PIN) comes from a file of mode 0600 and is handed to gpg on a descriptor (loopback pinentry),
never in argv; without such a file nobody is asked for one: the agent has it, or the signature fails. Every signature is
verified before it is returned, by the key's fingerprint: gpg picks another key where a home's default says so, and signs
with a revoked one.
Implements `ports.AssignmentSigner` and, with a recheck, `ports.Signer`.
"""

from __future__ import annotations

import re
import stat
import threading
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from reconciler.ports import GitSource, ImageStore, TerminalError, TransientError
from reconciler.protocol.signature import Refused, verify_detached

_SOCKET_LIMIT = 90
"""Characters of a home's path: gpg-agent's socket below it may have 108."""


class KeyPlace(Protocol):
    """Where a key is: the settings' `KeyPlace`, or anything like it."""

    @property
    def home(self) -> Path: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def passphrase_file(self) -> Path | None: ...


class GpgKey:
    """One secret key in one home. TerminalError at the start: no gpg, no such key, or a home that cannot work."""

    def __init__(self, home: Path, fingerprint: str, *, passphrase_file: Path | None = None, needed_for: str) -> None:
        self._needed_for = needed_for
        self.fingerprint = fingerprint.upper()
        if not re.fullmatch(r"[0-9A-F]{40}", self.fingerprint):
            raise self._error(f"{fingerprint!r} is not a fingerprint", "write the key's 40 hex digits")
        if not home.is_dir():
            raise self._error(
                f"there is no GnuPG home {home}", "make it with mode 0700, and generate or import the key there"
            )
        if len(str(home.absolute())) > _SOCKET_LIMIT:
            raise self._error(
                f"the path of GnuPG home {home} is too long for gpg-agent's socket", "move it to a shorter path"
            )
        self._passphrase = self._read(passphrase_file) if passphrase_file is not None else None
        self._lock = threading.Lock()
        try:
            import gnupg

            # Nobody sits before this process: a prompt would wait for ever.
            options = ["--pinentry-mode", "error" if self._passphrase is None else "loopback"]
            self._gpg: Any = gnupg.GPG(gnupghome=str(home.absolute()), use_agent=False, options=options)
        except (OSError, ValueError) as error:
            raise self._error(f"gpg cannot be run ({error})", "apt-get install gnupg") from None
        if self.fingerprint not in {key["fingerprint"] for key in self._gpg.list_keys(True)}:
            raise self._error(f"GnuPG home {home} has no secret key {self.fingerprint}", "generate or import it there")

    def _error(self, wrong: str, remedy: str) -> TerminalError:
        return TerminalError(wrong, needed_for=self._needed_for, remedy=remedy)

    def _read(self, path: Path) -> str:
        try:
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise self._error(f"{path} can be read by others", f"chmod 600 {path}")
            return path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise self._error(f"{path} cannot be read ({type(error).__name__})", "name the passphrase's file") from None

    def sign(self, data: bytes) -> bytes:
        """A detached binary signature over `data`. TransientError: gpg did not sign."""
        with self._lock:
            signed = self._gpg.sign(
                data,
                keyid=self.fingerprint,
                detach=True,
                binary=True,
                clearsign=False,
                passphrase=self._passphrase,
                extra_args=["--digest-algo", "SHA512"],
            )
        made: bytes = signed.data
        if not made or not signed.fingerprint:
            # gpg's own words may hold a user id, never the passphrase.
            raise self._unsigned(signed.status or "no reason given")
        # gpg signs with revoked and expired keys too where it is told their names: judged as those who get it will.
        try:
            verify_detached(data, made, self._public(), {self.fingerprint}, datetime.now(UTC))
        except Refused as error:
            raise self._unsigned(f"its signature would be refused: {error.reason}") from None
        return made

    def _public(self) -> bytes:
        with self._lock:
            exported = self._gpg.export_keys(self.fingerprint, armor=False)
        return exported if isinstance(exported, bytes) else b""

    def _unsigned(self, why: str) -> TransientError:
        return TransientError(
            f"gpg did not sign with {self.fingerprint} ({why})",
            needed_for=self._needed_for,
            remedy="check the key's expiry, whether it is revoked, and its passphrase",
        )


class RootSigner:
    """`ports.AssignmentSigner` with a key in a home of its own."""

    def __init__(self, place: KeyPlace) -> None:
        self._key = _key(place, "signing assignments")

    def sign_root(self, root: bytes) -> bytes:
        """Detached signature over a tick's root document (port)."""
        return self._key.sign(root)


class ReleaseSigner:
    """`ports.Signer` in this process. Rechecks commit, papers, bytes and image before every signature (`image.recheck`).

    `required`: the commit itself must be signed by one of the signers that `source` was told. `keys`: fingerprints that
    may sign releases, of which the image must trust one. `builder_type`: how releases are built here. `scratch`: a folder
    with room for the image, twice.
    """

    def __init__(
        self,
        place: KeyPlace,
        source: GitSource,
        store: ImageStore,
        *,
        builder_type: str,
        keys: Collection[str] = (),
        required: bool = False,
        scratch: Path | None = None,
    ) -> None:
        from reconciler.image.recheck import Recheck

        def unsigned(commit: str) -> str | None:
            return None if source.commit(commit).signer else f"commit {commit[:12]} is signed by no allowed signer"

        self._key = _key(place, "signing a release")
        accepts = unsigned if required else None
        self._recheck = Recheck(
            source,
            store,
            builder_type=builder_type,
            keys=keys or (self._key.fingerprint,),
            accepts=accepts,
            scratch=scratch,
        )

    def sign_release(self, release: str, commit: str) -> bytes:
        """Detached signature over the release's SHA256SUMS (port)."""
        return self._key.sign(self._recheck.sums(release, commit))


def _key(place: KeyPlace, needed_for: str) -> GpgKey:
    return GpgKey(place.home, place.fingerprint, passphrase_file=place.passphrase_file, needed_for=needed_for)
