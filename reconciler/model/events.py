"""What happened, as values: events of the rollout, and the log of a device's health. Pure; decides nothing.

An event is a fact with an instant, told once: `(kind, key)` is its identity, so that a step that is repeated after a kill tells
nothing twice. `controller.events` says what happened, the store keeps it, and pages, streams and notifications read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from reconciler.model.scalars import format_instant


class EventKind(StrEnum):
    """Kinds of event."""

    COMMIT_ACCEPTED = "commit-accepted"
    COMMIT_REFUSED = "commit-refused"
    WAVE_OPENED = "wave-opened"
    WAVE_SOAKING = "wave-soaking"
    WAVE_SOAKED = "wave-soaked"
    WAVE_COMPLETE = "wave-complete"
    GATE_FAILED = "gate-failed"
    REVERT_PROPOSED = "revert-proposed"
    DEVICE_FLAGGED = "device-flagged"
    DEVICE_RECOVERED = "device-recovered"
    CONDITION_CHANGED = "condition-changed"
    KEY_EXPIRING = "key-expiring"
    ASSIGNMENT_EXPIRING = "assignment-expiring"
    FLAG_ACKNOWLEDGED = "flag-acknowledged"


MEANINGS: dict[EventKind, str] = {
    EventKind.COMMIT_ACCEPTED: "A commit of the fleet repo came into force.",
    EventKind.COMMIT_REFUSED: "The branch's head is not acted on: it is invalid, or not allowed. What was in force stays.",
    EventKind.WAVE_OPENED: "A wave began to move to a release, or back to it.",
    EventKind.WAVE_SOAKING: "All that counts of a wave runs the release in good health: the soak began, or began again.",
    EventKind.WAVE_SOAKED: "The wave passed its gate for the release: the proof is on record, and the next wave may follow.",
    EventKind.WAVE_COMPLETE: "Every device of the wave runs the release, and the gate is passed.",
    EventKind.GATE_FAILED: "A wave failed its gate for a release: the release is stopped in every wave.",
    EventKind.REVERT_PROPOSED: "The revert of a stopped release was proposed.",
    EventKind.DEVICE_FLAGGED: "A device failed on the release that its wave asks for: a person should look at it.",
    EventKind.DEVICE_RECOVERED: "A flagged device is not failed any more, or its release is not asked for any more.",
    EventKind.CONDITION_CHANGED: "A condition of the controller has another status or reason (never `Progressing`).",
    EventKind.KEY_EXPIRING: "A key that releases or assignments are signed with is about to expire, or has expired.",
    EventKind.ASSIGNMENT_EXPIRING: "Devices' assignments are about to expire, and were not made anew.",
    EventKind.FLAG_ACKNOWLEDGED: "A person has seen a flag and said so.",
}
"""What each kind means, for the documentation and for people who choose among them."""

MOST_MESSAGE = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `id` is the store's, rising in the order in which events became visible; None before that.

    `key` is unique among the events of its kind. `release` is `v1.4.2`, or `video-ingest@2.8.0`. `reason` is a short code,
    `message` one sentence for people; neither holds a secret.
    """

    id: int | None
    at: datetime
    kind: EventKind
    key: str
    commit: str | None = None
    wave: str | None = None
    site: str | None = None
    device: str | None = None
    release: str | None = None
    reason: str = ""
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As `/v1/events` shows it."""
        return {
            "id": self.id,
            "at": format_instant(self.at),
            "kind": self.kind.value,
            "commit": self.commit,
            "wave": self.wave,
            "site": self.site,
            "device": self.device,
            "release": self.release,
            "reason": self.reason,
            "message": self.message,
        }


MOST_HEALTH = 200
"""Rows of the health log kept of one device."""
MOST_SAID = 16
"""Checks kept of one row."""


@dataclass(frozen=True, slots=True)
class CheckSaid:
    """A check that was not `ok`: what it said."""

    name: str
    status: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class HealthChange:
    """A device's health from an instant on, until its next row. `checks` are those that were not `ok`, the first few of them;
    `worse` those that were worse than before the last update. `release` is the image that it ran."""

    device: str
    at: datetime
    health: str
    release: str | None = None
    checks: tuple[CheckSaid, ...] = ()
    worse: tuple[str, ...] = ()
    id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `/v1/devices/{name}` shows it."""
        return {
            "at": format_instant(self.at),
            "health": self.health,
            "release": self.release,
            "checks": [{"name": check.name, "status": check.status, "message": check.message} for check in self.checks],
            "worse": list(self.worse),
        }
