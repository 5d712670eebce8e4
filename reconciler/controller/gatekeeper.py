"""Two gates: one controller on a state folder, and no release published on a signature that devices would refuse.

Decides nothing about the rollout. The lock is a courtesy to people on one machine, who would otherwise end a running
controller by starting another; what holds against rivals elsewhere is the store's epoch. Called by `bootstrap`, and
through `execute.Hands` before a release is published. Source: design §5, "Trust"; §6, "A lease alone is no fence".
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from reconciler.ports import TerminalError
from reconciler.protocol.signature import Refused, verify_detached


class StateLock:
    """Held from construction to `release`, and let go by the system when the process dies. TerminalError: somebody holds it."""

    def __init__(self, state: Path) -> None:
        path = state / "controller.lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._descriptor, 20).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise TerminalError(
                f"another controller{f' (process {holder})' if holder.isdigit() else ''} works on {state}",
                needed_for="being the only one that writes there",
                remedy="stop it first, or give this one a `state` of its own",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let the next controller in. Safe to call twice."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1


class ReleaseKeys:
    """The keys that may sign releases, as devices hold them."""

    def __init__(self, keyring: Path, allowed: Collection[str], now: Callable[[], datetime]) -> None:
        self._keyring, self._now = keyring, now
        self._allowed = frozenset(key.upper() for key in allowed)

    def judge(self, release: str, sums: bytes, signature: bytes, narrowed: Collection[str]) -> None:
        """TerminalError: SHA256SUMS of a release is not signed by an allowed key. `narrowed`: the fleet's own choice of them."""
        self.signed_by(release, sums, signature, narrowed)

    def signed_by(self, release: str, sums: bytes, signature: bytes, narrowed: Collection[str] = ()) -> str:
        """The primary fingerprint of the allowed key that signed. TerminalError: as `judge`."""
        allowed = self._allowed & {key.upper() for key in narrowed} if narrowed else self._allowed
        try:
            keyring = self._keyring.read_bytes()
        except OSError as error:
            raise TerminalError(
                f"cannot read {self._keyring}: {error.strerror}",
                needed_for=f"judging the signature of {release}",
                remedy="export the release keys there: gpg --export FINGERPRINT… > FILE, and name it in `keys.releaseKeyring`",
            ) from None
        try:
            return verify_detached(sums, signature, keyring, allowed, self._now()).primary
        except Refused as error:
            raise TerminalError(
                f"SHA256SUMS.gpg of {release} is refused: {error.reason} ({error.code})",
                needed_for=f"publishing {release}",
                remedy="remove it from the image store, and sign the release with a key of `keys.releases`",
            ) from None
