"""The one strict verifier of OpenPGP signatures, used by agent, signer, store adapters and everyone else.

Python 3.10, standard library and gpgv: runs as root on a device. Decides whether one detached signature over given
bytes was made by an allowed key; what the bytes mean is for the caller. Exit statuses are not evidence: gpgv exits 0
for signatures dated in 2099, for two signatures in one file, and over weak hashes. Evidence are the status lines on
their own descriptor, read by exact tokens and against a list of what may appear; everything else refuses.

Time. `now` decides about the signature's own dates. Whether a *key* has expired gpgv judges by the system's clock,
which on a device is the same clock; there is no way to hand gpgv another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import subprocess
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock

from reconciler.protocol import scratch
from reconciler.protocol.canonical import parse_epoch

MAX_SIGNATURE_BYTES = 16 * 1024
MAX_KEYRING_BYTES = 1024 * 1024
MAX_DATA_BYTES = 16 * 1024 * 1024
MAX_STATUS_BYTES = 256 * 1024
MAX_TOLERANCE = timedelta(minutes=5)
TIMEOUT_S = 20.0

_STRONG_HASHES = {"8": "SHA256", "9": "SHA384", "10": "SHA512"}
_FINGERPRINT = re.compile(r"[0-9A-F]{40}")
_ARMOR = re.compile(
    rb"\s*-----BEGIN PGP SIGNATURE-----\r?\n(?:[A-Za-z]+: [^\r\n]*\r?\n)*[ \t]*\r?\n"
    rb"([A-Za-z0-9+/=\r\n]+?)(?:\r?\n=[A-Za-z0-9+/]{4})?\r?\n-----END PGP SIGNATURE-----\s*"
)
_HARMLESS = {"NEWSIG", "GOODSIG", "VALIDSIG", "SIG_ID", "KEY_CONSIDERED", "VERIFICATION_COMPLIANCE_MODE"}
_NOTATIONS = {"NOTATION_NAME", "NOTATION_FLAGS", "NOTATION_DATA", "POLICY_URL"}
_REFUSING = (
    ("REVKEYSIG", "key-revoked", "the signing key is revoked"),
    ("EXPKEYSIG", "key-expired", "the signing key has expired"),
    ("EXPSIG", "signature-expired", "the signature has expired"),
    ("BADSIG", "signature-bad", "the signature does not fit the data"),
    ("NO_PUBKEY", "signature-foreign", "the signing key is not in the keyring"),
    (
        "ERRSIG",
        "signature-unusable",
        "the signature cannot be checked: weak hash, unusable key, or a date before its key's",
    ),
    ("NODATA", "signature-malformed", "there is no signature in it"),
)


class Refused(Exception):
    """The signature is not accepted. `code` is stable and for machines, `reason` one sentence for people."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class Verified:
    """An accepted signature: the key that made it, its primary key (both 40 hex digits), when, and until when if it
    says so."""

    fingerprint: str
    primary: str
    created_at: datetime
    expires_at: datetime | None
    hash: str


def verify_detached(
    data: bytes | Path,
    signature: bytes,
    keyring: bytes | Path,
    allowed_fingerprints: Collection[str],
    now: datetime,
    *,
    tolerance: timedelta = MAX_TOLERANCE,
    timeout_s: float = TIMEOUT_S,
) -> Verified:
    """Accept one detached signature over `data` by a key whose primary fingerprint is allowed, or raise Refused.

    `signature` is binary or armoured; `keyring` a binary export of public keys (bytes, or a path);
    `allowed_fingerprints` are 40 hexadecimal digits each; `now` is aware. A signature may be dated at most
    `tolerance` (0 to 5 minutes) after `now`.
    """
    if now.utcoffset() is None:
        raise ValueError("now has no offset")
    if not timedelta(0) <= tolerance <= MAX_TOLERANCE:
        raise ValueError(f"a tolerance of {tolerance} is not within 0 to {MAX_TOLERANCE}")
    allowed = _fingerprints(allowed_fingerprints)
    packet = single_signature_packet(signature)
    status = _run_gpgv(_bounded(data, MAX_DATA_BYTES, "data"), packet, _keyring(keyring), timeout_s)
    verified = _judge_status(status)
    if verified.primary not in allowed:
        raise Refused("signature-foreign", f"signed by {verified.primary}, which is not an allowed key")
    check_dates(verified, now, tolerance)
    return verified


def check_dates(verified: Verified, now: datetime, tolerance: timedelta = MAX_TOLERANCE) -> None:
    """Refuse a signature from the future or past its own expiry. Exactly at its expiry it has expired."""
    if verified.created_at > now + tolerance:
        raise Refused("signature-future", f"signed at {verified.created_at.isoformat()}, after {now.isoformat()}")
    if verified.expires_at is not None and now >= verified.expires_at:
        raise Refused("signature-expired", f"the signature expired at {verified.expires_at.isoformat()}")


class Verifier:
    """`verify_detached` with a memory of what it accepted, for a process that meets the same signature again and again.

    Only acceptances are kept, by the hash of everything that decided them, and their dates are judged anew each time.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._known: OrderedDict[bytes, Verified] = OrderedDict()
        self._lock = Lock()

    def __call__(
        self, data: bytes, signature: bytes, keyring: bytes, allowed_fingerprints: Collection[str], now: datetime
    ) -> Verified:
        """As `verify_detached`, of bytes."""
        key = hashlib.sha256(
            b"".join(
                len(part).to_bytes(8, "big") + part
                for part in (data, signature, keyring, "\n".join(sorted(allowed_fingerprints)).encode())
            )
        ).digest()
        with self._lock:
            verified = self._known.get(key)
        if verified is None:
            verified = verify_detached(data, signature, keyring, allowed_fingerprints, now)
            with self._lock:
                self._known[key] = verified
                while len(self._known) > self._limit:
                    self._known.popitem(last=False)
        check_dates(verified, now)
        return verified


def single_signature_packet(signature: bytes) -> bytes:
    """Binary or armoured bytes → the one binary signature packet that they consist of, and nothing else. Raises
    Refused.

    This is what makes a signature *detached*: inline and clearsigned messages, and two signatures in a row, end here.
    """
    if not signature:
        raise Refused("signature-missing", "the signature is empty")
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise Refused("signature-malformed", f"the signature has {len(signature)} bytes, at most {MAX_SIGNATURE_BYTES}")
    if not signature[0] & 0x80:
        match = _ARMOR.fullmatch(signature)
        if match is None:
            raise Refused("signature-malformed", "it is neither one binary nor one armoured detached signature")
        try:
            signature = base64.b64decode(b"".join(match.group(1).split()), validate=True)
        except (binascii.Error, ValueError):
            raise Refused("signature-malformed", "its armour is not base64") from None
    tag, start, length = _packet(signature)
    if tag != 2:
        raise Refused("signature-malformed", f"it begins with a packet of type {tag}, not with a detached signature")
    if start + length < len(signature):
        raise Refused("signature-several", "something follows the signature; exactly one is accepted")
    if start + length > len(signature):
        raise Refused("signature-malformed", "the signature is cut off")
    return signature


def _packet(data: bytes) -> tuple[int, int, int]:
    """Header of an OpenPGP packet → (tag, start of its body, length of its body). RFC 4880, section 4.2."""
    malformed = Refused("signature-malformed", "it is not an OpenPGP packet")
    if len(data) < 2 or not data[0] & 0x80:
        raise malformed
    if data[0] & 0x40:
        first = data[1]
        if first < 192:
            return data[0] & 0x3F, 2, first
        if first < 224 and len(data) >= 3:
            return data[0] & 0x3F, 3, ((first - 192) << 8) + data[2] + 192
        if first == 255 and len(data) >= 6:
            return data[0] & 0x3F, 6, int.from_bytes(data[2:6], "big")
        raise malformed
    size = (1, 2, 4, 0)[data[0] & 3]
    # A packet of indeterminate length (old format, type 3) has no end that could be checked.
    if size == 0 or len(data) < 1 + size:
        raise malformed
    return (data[0] >> 2) & 0x0F, 1 + size, int.from_bytes(data[1 : 1 + size], "big")


def _fingerprints(allowed: Collection[str]) -> Collection[str]:
    if isinstance(allowed, (str, bytes)):
        raise ValueError("allowed_fingerprints is a collection of fingerprints, not one text")
    wanted = {item.upper() for item in allowed}
    for item in wanted:
        if _FINGERPRINT.fullmatch(item) is None:
            raise ValueError(f"{item!r} is not a fingerprint of 40 hexadecimal digits")
    if not wanted:
        raise Refused("no-keys", "no key is allowed to sign this")
    return wanted


def _bounded(source: bytes | Path, limit: int, what: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            with open(source, "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise Refused(f"{what}-unreadable", f"{what} cannot be read: {error}") from None
    if len(data) > limit:
        raise Refused(f"{what}-too-large", f"{what} has more than {limit} bytes")
    return data


def _keyring(source: bytes | Path) -> bytes:
    data = _bounded(source, MAX_KEYRING_BYTES, "keyring")
    if not data:
        raise Refused("no-keys", "the keyring is empty")
    if not data[0] & 0x80:
        raise Refused(
            "keyring-unreadable", "the keyring is not a binary export of public keys (gpg --export, no armour)"
        )
    return data


def _run_gpgv(data: bytes, packet: bytes, keyring: bytes, timeout_s: float) -> list[list[str]]:
    """Run gpgv in an empty home of its own and return its status lines, each split into tokens."""
    program = scratch.find_program("gpgv")
    if program is None:
        raise Refused("verifier-missing", "gpgv is not installed")
    with scratch.private_folder("gv-") as folder:
        for name, content in (("data", data), ("sig", packet), ("keys", keyring)):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        home = os.path.join(folder, "home")
        os.mkdir(home, 0o700)
        status_path = os.path.join(folder, "status")
        descriptor = os.open(status_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        weak = [option for name in ("MD5", "SHA1", "RIPEMD160") for option in ("--weak-digest", name)]
        options = ["--homedir", home, "--keyring", f"{folder}/keys", *weak]
        try:
            subprocess.run(
                [program, *options, "--status-fd", str(descriptor), "--", f"{folder}/sig", f"{folder}/data"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(descriptor,),
                env={"LC_ALL": "C", "PATH": "/usr/bin:/bin", "HOME": home},
                timeout=timeout_s,
                check=False,  # its exit status is no evidence either way
            )
        except subprocess.TimeoutExpired:
            raise Refused("verifier-failed", f"gpgv took longer than {timeout_s:g} seconds") from None
        except OSError as error:
            raise Refused("verifier-failed", f"gpgv could not be run: {error}") from None
        finally:
            os.close(descriptor)
        status = _bounded(Path(status_path), MAX_STATUS_BYTES, "status")
    return _status_lines(status)


def _status_lines(status: bytes) -> list[list[str]]:
    """Tokens of each status line. gpgv escapes line breaks in user ids, so a line that is not one of its own
    refuses."""
    lines = []
    for line in status.decode("utf-8", "replace").split("\n")[:-1]:
        tokens = line.split(" ")
        if len(tokens) < 2 or tokens[0] != "[GNUPG:]":
            raise Refused("verifier-failed", "gpgv wrote a status line that is not one")
        lines.append(tokens[1:])
    return lines


def _judge_status(lines: list[list[str]]) -> Verified:
    """Exactly one NEWSIG, GOODSIG and VALIDSIG, and nothing that is not known to be harmless."""
    words = [tokens[0] for tokens in lines]
    for word, code, reason in _REFUSING:
        if word in words:
            raise Refused(code, reason)
    for word in words:
        if word not in _HARMLESS and word not in _NOTATIONS:
            raise Refused("signature-unusable", f"gpgv reports {word[:40]}")
    for word in ("NEWSIG", "GOODSIG", "VALIDSIG"):
        if words.count(word) != 1:
            raise Refused(
                "signature-unusable", f"gpgv reports {words.count(word)} times {word}; exactly once is accepted"
            )
    valid = lines[words.index("VALIDSIG")]
    good = lines[words.index("GOODSIG")]
    if len(valid) != 11 or len(good) < 2:
        raise Refused("verifier-failed", "gpgv wrote a VALIDSIG line of unknown form")
    fingerprint, _, created, expires, _, _, _, hash_number, kind, primary = valid[1:]
    if not (_FINGERPRINT.fullmatch(fingerprint) and _FINGERPRINT.fullmatch(primary) and fingerprint.endswith(good[1])):
        raise Refused("verifier-failed", "gpgv named no full fingerprint")
    if hash_number not in _STRONG_HASHES:
        raise Refused("signature-weak", f"the hash (number {hash_number[:8]}) is weaker than SHA-256")
    if kind != "00":
        raise Refused("signature-malformed", f"the signature is of class {kind[:8]}, not over binary data")
    if not (created.isdigit() and expires.isdigit() and len(created) <= 10 and len(expires) <= 10):
        raise Refused("verifier-failed", "gpgv wrote no date in seconds")
    return Verified(
        fingerprint=fingerprint,
        primary=primary,
        created_at=parse_epoch(int(created)),
        expires_at=parse_epoch(int(expires)) if int(expires) else None,
        hash=_STRONG_HASHES[hash_number],
    )
