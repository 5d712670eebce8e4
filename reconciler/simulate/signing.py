"""Signatures in virtual time: the assignment key's twin, as cheap as a hash and as strict as a signature.

A signature is a keyed hash over exactly the bytes that were signed, so other bytes, another key or a key that is not allowed are
refused with the codes of the real verifier. The key is symmetric, which real ones are not: nobody in a simulation forges. Signs
for the real loop (`ports.AssignmentSigner`), verifies for the real agent (`agent.judge.Verify`). Source: design §5, "Trust".
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from datetime import datetime

from reconciler.agent.judge import Keyring
from reconciler.protocol.signature import Refused, Verified

_MARK = b"simulated "
_FINGERPRINT = 40


class SimulatedSigner:
    """`ports.AssignmentSigner` with a key made from a word."""

    def __init__(self, word: str = "assignment") -> None:
        self._key = hashlib.sha256(f"key {word}".encode()).digest()
        self.fingerprint = _fingerprint(self._key)

    @property
    def keyring(self) -> Keyring:
        """What a device holds to verify with."""
        return Keyring(self._key, (self.fingerprint,))

    def sign_root(self, root: bytes) -> bytes:
        """The signature over `root`."""
        return _MARK + self.fingerprint.encode() + b" " + _hash(self._key, root)


def verify(
    data: bytes, signature: bytes, keyring: bytes, allowed_fingerprints: Collection[str], now: datetime
) -> Verified:
    """`agent.judge.Verify`: that an allowed key signed just these bytes. Raises Refused, with the real verifier's codes."""
    mark, fingerprint, found = signature[: len(_MARK)], signature[len(_MARK) :][:_FINGERPRINT], signature[-64:]
    if mark != _MARK or len(signature) != len(_MARK) + _FINGERPRINT + 1 + 64:
        raise Refused("signature-malformed", "there is no signature in it")
    name = fingerprint.decode("ascii", "replace")
    if name != _fingerprint(keyring) or name not in allowed_fingerprints:
        raise Refused("signature-foreign", f"signed by {name}, which is not an allowed key")
    if not hmac.compare_digest(found, _hash(keyring, data)):
        raise Refused("signature-bad", "the signature does not fit the data")
    return Verified(name, name, now, None, "SHA256")


def _fingerprint(key: bytes) -> str:
    return hashlib.sha256(b"fingerprint " + key).hexdigest()[:_FINGERPRINT].upper()


def _hash(key: bytes, data: bytes) -> bytes:
    return hashlib.sha256(key + data).hexdigest().encode()
