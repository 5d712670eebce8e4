"""Signs with a person's own gpg: their home, agent, pinentry or smart card. No passphrase goes through this program.

gpg keeps the terminal, so that its pinentry can ask there. What it made is judged by the one strict verifier, as a device
would judge it, before anybody gets it. Called by `cli.image_sign`. A daemon's key is `gpg_signer`'s.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from reconciler.ports import TerminalError
from reconciler.protocol.signature import Refused, verify_detached

_ASKING_S = 900.0
"""Seconds: somebody looks for a card and types a PIN."""


class PersonalKey:
    """A key that the user's gpg can sign with. `home` is their GNUPGHOME where it is not gpg's own choice."""

    def __init__(self, fingerprint: str, home: Path | None, *, needed_for: str) -> None:
        self.fingerprint, self._needed_for = fingerprint.upper(), needed_for
        self._argv = ["gpg", *(["--homedir", str(home.absolute())] if home is not None else [])]
        if not re.fullmatch(r"[0-9A-F]{40}", self.fingerprint):
            raise self._error(f"{fingerprint!r} is not a fingerprint", "write the key's 40 hex digits")

    def public(self) -> bytes:
        """The public key, as a binary keyring. TerminalError: gpg does not have it."""
        exported = self._run(["--batch", "--no-tty", "--export", "--", self.fingerprint], timeout_s=60)
        if not exported:
            raise self._error(
                f"gpg has no key {self.fingerprint}",
                "import it, or name its home with --home (for a card: gpg --card-edit, then fetch)",
            )
        return exported

    def sign(self, data: bytes, now: datetime) -> bytes:
        """A detached signature over `data`, by this key, which devices would take. TerminalError: gpg or they would not."""
        keyring = self.public()
        with tempfile.TemporaryDirectory(prefix="reconciler-sign-") as folder:
            path = Path(folder) / "SHA256SUMS"
            path.write_bytes(data)
            options = ["--local-user", self.fingerprint, "--digest-algo", "SHA512", "--no-armor"]
            made = self._run([*options, "--output", "-", "--detach-sign", "--", str(path)], timeout_s=_ASKING_S)
        if not made:
            raise self._error(
                f"gpg did not sign with {self.fingerprint}",
                "see what it says above: an expired or revoked key, a wrong PIN, a card that is not there",
            )
        try:
            verify_detached(data, made, keyring, {self.fingerprint}, now)
        except Refused as error:
            raise self._error(
                f"what gpg made would be refused by devices: {error.reason} ({error.code})",
                "sign with a key of `keys.releases` that is neither expired nor revoked",
            ) from None
        return made

    def _run(self, arguments: list[str], *, timeout_s: float) -> bytes:
        """gpg's output; empty where it failed, which it says on standard error itself."""
        environment = dict(os.environ)
        if sys.stdin is not None and sys.stdin.isatty():
            environment.setdefault("GPG_TTY", os.ttyname(sys.stdin.fileno()))
        try:
            done = subprocess.run(
                [*self._argv, *arguments], stdout=subprocess.PIPE, env=environment, timeout=timeout_s, check=False
            )
        except FileNotFoundError:
            raise self._error("gpg is not installed", "apt-get install gnupg") from None
        except subprocess.TimeoutExpired:
            raise self._error(f"gpg did not end within {timeout_s:g} s", "try again") from None
        # What it wrote before it failed is no signature.
        return done.stdout if done.returncode == 0 else b""

    def _error(self, wrong: str, remedy: str) -> TerminalError:
        return TerminalError(wrong, needed_for=self._needed_for, remedy=remedy)
