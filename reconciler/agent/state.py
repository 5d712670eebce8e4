"""What an agent remembers over a power cut, as one file that is replaced as a whole.

Python 3.10, standard library only: runs as root on a device. Holds the assignment in force, the open intent, failed
attempts and the checks before the last update. What the hardware itself can tell (slots, boot flags, apps,
configuration) is not kept here: two records of one thing disagree one day.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from reconciler.agent.disk import Disk
from reconciler.agent.judge import Accepted
from reconciler.protocol.assignment import Assignment, AssignmentError
from reconciler.protocol.canonical import Fields, Malformed, clip, dump, load
from reconciler.protocol.report import HEALTH, MAX_ATTEMPTS, MAX_CHECKS, Check, Serial

MAX_STATE_BYTES = 512 * 1024
MAX_KEY = 256
MAX_COUNT = 1_000_000
"""A report takes no higher count of attempts. Nobody fails so often: a higher one is damage."""
MAX_SEQUENCE = 1 << 52
"""Room for every report that will ever be sent, below the highest number that a report takes."""
SEQUENCE_BLOCK = 10_000
"""Sequence numbers are reserved in blocks, so that a report needs no write; a crash skips the rest of a block."""


REMEDY = (
    "it guards the serial, so no assignment is accepted and nothing new is begun. Restore it; or move it away, and the next"
    " assignment is taken whatever its serial"
)
_SAID = 200
"""Characters of what is wrong: what to do has to fit into the same reason."""


class StateError(Exception):
    """The state file is there and cannot be read. It is never overwritten by itself: it guards the serial."""


@dataclass(frozen=True)
class Intent:
    """Something begun that a later life must finish. `kind` is image, app or config; `key` names it in reports.

    For an image, `slot` was armed; for an app or a configuration, `before` is the digest to put back (None: there was
    none).
    """

    kind: str
    key: str
    digest: str
    serial: Serial
    slot: str | None = None
    app: str | None = None
    before: str | None = None
    checks: tuple[Check, ...] = ()
    by_hand: bool = False
    """Whether a person at the console asked for it."""


@dataclass(frozen=True)
class Memory:
    """The content of the state file."""

    accepted: Accepted | None = None
    last_serial: Serial | None = None
    intent: Intent | None = None
    attempts: Mapping[str, int] = field(default_factory=dict)
    failed_under: Mapping[str, Serial] = field(default_factory=dict)
    checks_before: tuple[Check, ...] = ()
    sequence_reserved: int = 0
    held_under: Serial | None = None
    """A person went back while this was the last serial: no image is brought under it, or under an older one."""

    def after_failure(self, intent: Intent) -> Memory:
        """One more failed attempt of what was intended, nothing open, and no further try under this serial."""
        # What a person asked for says nothing about the release: git never wanted it now.
        if intent.by_hand:
            return replace(self, intent=None)
        attempts = dict(self.attempts)
        # A configuration has no attempts in the contract: it is put back, named in a refusal, and offered again by git.
        if intent.kind != "config":
            attempts[intent.key] = min(attempts.get(intent.key, 0) + 1, MAX_COUNT)
            attempts = _newest(attempts, intent.key)
        failed = {**self.failed_under, intent.key: intent.serial}
        # The newest come last, and are the ones that still matter.
        return replace(self, intent=None, attempts=attempts, failed_under=_newest(failed, intent.key))


def _newest(values: Mapping[str, Any], last: str) -> dict[str, Any]:
    ordered = {key: value for key, value in values.items() if key != last}
    return dict([*list(ordered.items())[-(MAX_ATTEMPTS - 1) :], (last, values[last])])


class MemoryStore(Protocol):
    """Where an agent's memory outlives it."""

    def load(self) -> Memory:
        """What is on record; an empty memory where there is none. StateError: unreadable."""

    def save(self, memory: Memory) -> None:
        """Make it durable, whole or not at all. OSError: what was on record stands."""


class StateFile:
    """`MemoryStore` in one file."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk

    def load(self) -> Memory:
        """What is on record; an empty memory where there is no file. StateError: unreadable."""
        try:
            with open(self._path, "rb") as file:
                data = file.read(MAX_STATE_BYTES + 1)
        except FileNotFoundError:
            return Memory()
        except OSError as error:
            raise StateError(f"{self._path} cannot be read: {error.strerror or error}; {REMEDY}") from None
        try:
            return _parse(Fields(load(data, MAX_STATE_BYTES, "state"), "state"))
        except (Malformed, binascii.Error, ValueError, LookupError, TypeError, OverflowError) as error:
            raise StateError(f"{self._path} is damaged ({clip(str(error), _SAID)}); {REMEDY}") from None

    def save(self, memory: Memory) -> None:
        """Replace the file. OSError: the disk said no, and the old file stands."""
        intent = memory.intent
        value: dict[str, Any] = {
            "version": 1,
            "assignment": base64.b64encode(memory.accepted.document).decode("ascii") if memory.accepted else None,
            "lastSerial": list(memory.last_serial) if memory.last_serial else None,
            "attempts": [[key, count] for key, count in memory.attempts.items()],
            "failedUnder": [[key, list(serial)] for key, serial in memory.failed_under.items()],
            "checksBefore": _checks_out(memory.checks_before),
            "sequenceReserved": memory.sequence_reserved,
            "heldUnder": list(memory.held_under) if memory.held_under else None,
            "intent": None
            if intent is None
            else {
                "kind": intent.kind,
                "key": intent.key,
                "digest": intent.digest,
                "serial": list(intent.serial),
                "slot": intent.slot,
                "app": intent.app,
                "before": intent.before,
                "byHand": intent.by_hand,
                "checks": _checks_out(intent.checks),
            },
        }
        self._disk.replace(self._path, dump(value) + b"\n", 0o600)


def _checks_out(checks: tuple[Check, ...]) -> list[list[str]]:
    return [[check.name, check.status, check.message] for check in checks]


def _checks_in(items: list[Any]) -> tuple[Check, ...]:
    found = []
    for name, status, message in items:
        if status not in HEALTH:
            raise Malformed(f"check {name!r} has status {status!r}")
        found.append(Check(str(name), status, str(message)))
    return tuple(found)


def _parse(fields: Fields) -> Memory:
    fields.whole("version", 1, 1)
    encoded = fields.optional("assignment", lambda key: fields.text(key, 128 * 1024))
    accepted = None
    if encoded is not None:
        document = base64.b64decode(encoded, validate=True)
        # After a rollback an older agent may meet an assignment that it cannot follow. It keeps the serial and waits
        # for another; it must not refuse to start.
        with suppress(AssignmentError):
            accepted = Accepted(document, Assignment.from_bytes(document))
    attempts = {_key(key): _count(key, count) for key, count in fields.items("attempts", MAX_ATTEMPTS)}
    failed = {_key(key): _serial_of(key, serial) for key, serial in fields.items("failedUnder", MAX_ATTEMPTS)}
    return Memory(
        accepted=accepted,
        last_serial=fields.optional("lastSerial", fields.serial),
        intent=fields.optional("intent", lambda key: _intent(Fields(fields.value[key], "state intent"))),
        attempts=attempts,
        failed_under=failed,
        checks_before=_checks_in(fields.items("checksBefore", MAX_CHECKS)),
        sequence_reserved=fields.whole("sequenceReserved", 0, MAX_SEQUENCE),
        held_under=fields.optional("heldUnder", fields.serial),
    )


def _key(key: Any) -> str:
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        raise Malformed(f"state: {str(key)[:80]!r} is no name of what was tried")
    return key


def _count(key: Any, count: Any) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_COUNT:
        raise Malformed(
            f"state: `attempts` of {str(key)[:80]!r} is {str(count)[:80]}, not a count from 0 to {MAX_COUNT}"
        )
    return count


def _serial_of(key: Any, serial: Any) -> Serial:
    return Fields({"failedUnder": serial}, f"state {str(key)[:80]!r}").serial("failedUnder")


def _intent(fields: Fields) -> Intent:
    return Intent(
        kind=fields.word("kind", ("image", "app", "config")),
        key=fields.text("key", MAX_KEY),
        digest=fields.digest("digest"),
        serial=fields.serial("serial"),
        slot=fields.optional("slot", lambda key: fields.word(key, ("a", "b"))),
        app=fields.optional("app", fields.name),
        before=fields.optional("before", fields.digest),
        by_hand=fields.value.get("byHand") is True,
        checks=_checks_in(fields.items("checks", MAX_CHECKS)),
    )
