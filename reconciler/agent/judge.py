"""Which assignments a device accepts. Pure, given a verifier.

Python 3.10, standard library only: runs as root on a device. The order is that of design section 5: signed by the
reconciler's key, for this device, serial not lower than the last accepted, not expired. A refusal carries a code and
changes nothing. Called by `agent` for every bundle that an exchange brings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from reconciler.protocol.assignment import Assignment
from reconciler.protocol.bundle import Bundle, prove
from reconciler.protocol.canonical import Malformed, format_instant
from reconciler.protocol.report import Serial
from reconciler.protocol.signature import Refused, Verified

CLOCK_TOLERANCE = timedelta(minutes=5)

Verify = Callable[[bytes, bytes, bytes, Collection[str], datetime], Verified]
"""`signature.verify_detached` over bytes, or a `signature.Verifier`."""


@dataclass(frozen=True)
class Keyring:
    """Public keys (a binary export) and the primary fingerprints of them that are allowed to sign."""

    data: bytes
    fingerprints: tuple[str, ...]


@dataclass(frozen=True)
class Accepted:
    """The assignment in force: its bytes and what they say."""

    document: bytes
    assignment: Assignment


def judge(
    bundle: Bundle,
    *,
    device: str,
    accepted: Accepted | None,
    last: Serial | None,
    keyring: Keyring,
    now: datetime,
    verify: Verify,
) -> Accepted | None:
    """The new assignment to put in force, or None where the bundle holds the one in force. Raises Refused.

    `last` is the serial of the last accepted assignment; it outlives `accepted`, which an older agent may be unable
    to read.
    """
    # The very bytes in force were proven when they were accepted; proving them again each minute costs and tells
    # nothing.
    if accepted is not None and bundle.document == accepted.document:
        return None
    root = prove(bundle, lambda data, signature: verify(data, signature, keyring.data, keyring.fingerprints, now))
    try:
        assignment = Assignment.from_bytes(bundle.document)
    except Malformed as error:
        raise Refused("assignment-malformed", error.reason) from None
    if assignment.device != device:
        raise Refused("wrong-device", f"the assignment is for {assignment.device}, this is {device}")
    if assignment.serial[0] != root.epoch:
        raise Refused("wrong-epoch", f"serial {_show(assignment.serial)} under a root of epoch {root.epoch}")
    _check_serial(assignment.serial, last)
    if assignment.expires_at <= now:
        raise Refused("assignment-expired", f"the assignment expired at {format_instant(assignment.expires_at)}")
    if assignment.issued_at > now + CLOCK_TOLERANCE:
        raise Refused(
            "assignment-from-the-future",
            f"issued at {format_instant(assignment.issued_at)}, and it is {format_instant(now)} here; set the clock",
        )
    return Accepted(bundle.document, assignment)


def _check_serial(serial: Serial, last: Serial | None) -> None:
    if last is None:
        return
    if serial < last:
        raise Refused("serial-old", f"serial {_show(serial)} is lower than the last accepted, {_show(last)}")
    if serial == last:
        raise Refused("serial-reused", f"serial {_show(serial)} was accepted with other content")


def _show(serial: Serial) -> str:
    return f"{serial[0]}.{serial[1]}"
