"""Real OpenPGP keys and signatures for tests, made by gpg in a short-lived home. Good and bad ones alike.

Homes lie under /tmp whatever the test's own folder is called: gpg-agent's socket path has a limit of 108 characters.
A home is closed by `Home.close` (or `with`), which also ends its gpg-agent; what a crashed test leaves is closed at
exit.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from tests.support.system import need


class Home:
    """A GNUPGHOME of its own. Keys have no passphrase."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gpg = need("gpg", "gnupg")
        self._open = True
        atexit.register(self.close)

    def __enter__(self) -> Home:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the home's gpg-agent and remove the home. Idempotent."""
        if self._open:
            self._open = False
            with suppress(OSError, subprocess.TimeoutExpired):
                self._kill()
            shutil.rmtree(self.path, ignore_errors=True)
            atexit.unregister(self.close)

    def end_agent(self) -> None:
        """End the home's gpg-agent, and with it what it remembers; returns once it has gone."""
        self._kill()
        # It answers before it ends, and the last that it does is to remove its socket, whoever has made another one by then.
        deadline = time.monotonic() + 60
        while (self.path / "S.gpg-agent").exists():
            assert time.monotonic() < deadline, "gpg-agent does not end"
            time.sleep(0.01)

    def _kill(self) -> None:
        argv = ["gpgconf", "--homedir", str(self.path), "--kill", "all"]
        subprocess.run(argv, capture_output=True, timeout=60, check=False)

    def run(self, *arguments: str, data: bytes = b"", at: datetime | None = None) -> bytes:
        """Run gpg in this home, at a faked system time if given, and return its output. RuntimeError: it failed."""
        faked = ["--faked-system-time", f"{at.astimezone(UTC):%Y%m%dT%H%M%S}!"] if at else []
        options = ["--homedir", str(self.path), "--batch", "--no-tty", "--quiet", "--yes", "--no-auto-check-trustdb"]
        options += ["--pinentry-mode", "loopback", "--passphrase", "", "--trust-model", "always"]
        done = subprocess.run(
            [self.gpg, *options, *faked, *arguments], input=data, capture_output=True, timeout=240, check=False
        )
        if done.returncode:
            raise RuntimeError(f"gpg {' '.join(arguments)}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def generate(
        self,
        uid: str,
        *,
        algorithm: str = "ed25519",
        expires: str = "never",
        at: datetime | None = None,
        signing_subkey: bool = False,
    ) -> str:
        """Make a signing key and return its primary fingerprint (40 hex digits).

        `expires` is gpg's (`never`, `1d`, `seconds=60`), counted from `at` (now unless said). With `signing_subkey`
        the primary key only certifies and a subkey signs.
        """
        before = set(self.fingerprints())
        usage = "cert" if signing_subkey else "cert,sign"
        self.run("--quick-generate-key", "--", uid, algorithm, usage, expires, at=at)
        (fingerprint,) = set(self.fingerprints()) - before
        if signing_subkey:
            self.run("--quick-add-key", fingerprint, algorithm, "sign", expires, at=at)
        return fingerprint

    def fingerprints(self) -> list[str]:
        """Primary fingerprints of the home's keys."""
        found, primary = [], False
        for line in self.run("--list-keys", "--with-colons", "--fixed-list-mode").decode(errors="replace").splitlines():
            kind, *rest = line.split(":")
            if kind == "fpr" and primary:
                found.append(rest[8])
            primary = kind == "pub"
        return found

    def revoke(self, fingerprint: str) -> None:
        """Import the revocation certificate that gpg made with the key."""
        text = (self.path / "openpgp-revocs.d" / f"{fingerprint}.rev").read_text()
        self.run("--import", data=text.replace(":-----BEGIN", "-----BEGIN").encode())

    def sign_detached(
        self,
        data: bytes,
        fingerprint: str,
        *,
        at: datetime | None = None,
        expires: str | None = None,
        digest: str = "SHA512",
        armour: bool = False,
    ) -> bytes:
        """A detached signature over `data`, at a faked time, with an expiry (gpg's form) or another hash if asked."""
        options = ["--local-user", fingerprint, "--digest-algo", digest]
        options += ["--default-sig-expire", expires] if expires else []
        options += ["--armor"] if armour else []
        return self.run(*options, "--detach-sign", "--output", "-", data=data, at=at)

    def sign_inline(self, data: bytes, fingerprint: str) -> bytes:
        """A signed message that holds its data."""
        return self.run("--local-user", fingerprint, "--sign", "--output", "-", data=data)

    def clearsign(self, data: bytes, fingerprint: str) -> bytes:
        """A clearsigned text."""
        return self.run("--local-user", fingerprint, "--clearsign", "--output", "-", data=data)

    def export(self, fingerprints: Iterable[str]) -> bytes:
        """A binary keyring of public keys, as gpgv takes it."""
        return b"".join(self.run("--export", fingerprint) for fingerprint in fingerprints)


def make_home(_tmp: Path | None = None) -> Home:
    """A fresh home under /tmp. The argument is accepted for symmetry with other fixtures and not used: see above."""
    need("gpgv")
    return Home(Path(tempfile.mkdtemp(prefix="gh-", dir="/tmp")))


def days_ago(days: float) -> datetime:
    """An instant before now, whole seconds, for `at`."""
    return (datetime.now(UTC) - timedelta(days=days)).replace(microsecond=0)
