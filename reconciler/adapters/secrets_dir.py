"""Secrets as a folder of files: the local twin of `secrets_aws`.

The reference `edge/SITE-2847/vpn` is the file `folder/edge/SITE-2847/vpn`: UTF-8 text, at most 64 KiB, one trailing
newline not counted. A file that group or others may read, write or execute is refused, and so is one of another owner
(root apart), a path out of the folder, and a folder that others may write to.

*Versions* must change with the value and must not reveal it: a plain sha256 of a short password can be guessed
offline, and a modification time changes without the value. So a version is an HMAC-SHA256 of reference and value
under a random key that is made once (`.version-key`, 0600, beside the secrets, or `key_file`). The same value keeps
its version over restarts and copies; two references with one value show different versions; losing the key only makes
every site's configuration be sent once more. A version file kept by hand was left out: a value changed without it
would never reach a device.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from reconciler.adapters import durable
from reconciler.ports import TerminalError

MAX_SECRET = 65536
_PART = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_+=.@-]*$")
_KEY = ".version-key"
_KEY_BYTES = 32


class DirectorySecrets:
    """`ports.Secrets` in `folder`, which must exist and not be writable by others."""

    def __init__(self, folder: Path, *, key_file: Path | None = None) -> None:
        self._folder = folder.absolute()
        self._key_file = key_file.absolute() if key_file else self._folder / _KEY
        self._key: bytes | None = None
        with durable.os_errors(f"read {folder}", needed_for="reading secrets"):
            mode = self._folder.stat().st_mode
        if not stat.S_ISDIR(mode) or mode & 0o022:
            raise TerminalError(
                f"{folder} is not a folder that only its owner may write to (mode {stat.S_IMODE(mode):04o})",
                needed_for="reading secrets",
                remedy=f"chmod 0700 {folder}",
            )

    def versions(self, references: Iterable[str]) -> Mapping[str, str]:
        """Reference → version; those without a file are left out. TerminalError: a file that is refused."""
        out = {}
        for reference in references:
            value = self._read(reference, f"the version of {reference}")
            if value is not None:
                message = len(reference).to_bytes(4, "big") + reference.encode() + value
                out[reference] = hmac.new(self._version_key(), message, hashlib.sha256).hexdigest()[:32]
        return out

    def value(self, reference: str) -> str:
        """The current value. TerminalError: no such file, refused, or not UTF-8 text."""
        purpose = f"the value of {reference}"
        data = self._read(reference, purpose)
        if data is None:
            raise TerminalError(
                f"there is no secret {reference} in {self._folder}",
                needed_for=purpose,
                remedy=f"write it to {self._folder / reference} with mode 0600, or correct the reference in git",
            )
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            remedy = "write it as UTF-8 text; encode binary values, for instance in base64"
            raise TerminalError(f"secret {reference} is not text", needed_for=purpose, remedy=remedy) from None

    def _read(self, reference: str, purpose: str) -> bytes | None:
        if len(reference) > 512 or not all(_PART.match(part) for part in reference.split("/")):
            raise TerminalError(
                f"{reference[:100]!r} is not a reference to a secret",
                needed_for=purpose,
                remedy="use letters, digits and _ + = . @ - with / between the parts, as edge/SITE-2847/vpn",
            )
        path = self._folder / reference
        with durable.os_errors(f"read {path}", needed_for=purpose):
            try:
                real = path.resolve(strict=True)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if not real.is_relative_to(self._folder.resolve()):
                remedy = "put the file itself there"
                raise TerminalError(f"{path} leads out of {self._folder}", needed_for=purpose, remedy=remedy)
            data = _read_private(real, purpose)
        return data.removesuffix(b"\n")

    def _version_key(self) -> bytes:
        if self._key is None:
            path, purpose = self._key_file, "the versions of secrets"
            with durable.os_errors(f"make {path}", needed_for=purpose):
                if not path.exists():
                    part, _ = durable.write_beside(path, [secrets.token_bytes(_KEY_BYTES)], 0o600)
                    with suppress(FileExistsError):  # another process was first: its key counts
                        os.link(part, path)
                    part.unlink()
                    durable.sync_folder(path.parent)
                key = _read_private(path, purpose)
            if len(key) != _KEY_BYTES:
                remedy = "remove it: a new one is made, and every site's configuration is sent once more"
                raise TerminalError(f"{path} is not a version key", needed_for=purpose, remedy=remedy)
            self._key = key
        return self._key


def _read_private(path: Path, purpose: str) -> bytes:
    """A file's bytes, checked on the open file so that nobody can swap it in between. TerminalError: refused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        mode = stat.S_IMODE(found.st_mode)
        if not stat.S_ISREG(found.st_mode):
            raise TerminalError(f"{path} is not a regular file", needed_for=purpose, remedy="put the file itself there")
        if mode & 0o077 or found.st_uid not in (0, os.geteuid()):
            raise TerminalError(
                f"{path} is open to others (mode {mode:04o}, owner {found.st_uid})",
                needed_for=purpose,
                remedy=f"chown it to the reconciler's user, chmod 0600 {path}, and change the secret: it was exposed",
            )
        if found.st_size > MAX_SECRET:
            wrong = f"{path} has {found.st_size} bytes, more than {MAX_SECRET}"
            raise TerminalError(wrong, needed_for=purpose, remedy="shorten the secret")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(MAX_SECRET + 1)
    finally:
        os.close(descriptor)
