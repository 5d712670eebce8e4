"""Notifications as values: what is told of which events, to whom, and how far that has come. Pure; sends nothing.

`controller.notices` says which events become one message and in which words, the store keeps a delivery until the target has
taken it, and `adapters.webhook` sends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from reconciler.model.events import Event, EventKind
from reconciler.model.scalars import format_instant, parse_instant

MOST_EVENTS = 20
"""Events of one message that are kept whole; the others are counted."""
MOST_NAMES = 20
"""Waves and releases of one message that are kept by name."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one kind that are told in one message. `events` are the first few, `count` is how many there are; `waves` and
    `releases` are those that they name, in order of appearance."""

    kind: EventKind
    count: int
    first_at: datetime
    last_at: datetime
    waves: tuple[str, ...]
    releases: tuple[str, ...]
    events: tuple[Event, ...]

    @classmethod
    def of(cls, events: Sequence[Event]) -> Batch:
        """A batch of events, one at least, all of one kind."""
        return cls(
            kind=events[0].kind,
            count=len(events),
            first_at=min(event.at for event in events),
            last_at=max(event.at for event in events),
            waves=_names(event.wave for event in events),
            releases=_names(event.release for event in events),
            events=tuple(events[:MOST_EVENTS]),
        )

    def with_(self, more: Batch) -> Batch:
        """Both, of one kind, as one."""
        return replace(
            self,
            count=self.count + more.count,
            first_at=min(self.first_at, more.first_at),
            last_at=max(self.last_at, more.last_at),
            waves=_names((*self.waves, *more.waves)),
            releases=_names((*self.releases, *more.releases)),
            events=(self.events + more.events)[:MOST_EVENTS],
        )

    def to_dict(self) -> dict[str, Any]:
        """As the store keeps it, in JSON."""
        return {
            "kind": self.kind.value,
            "count": self.count,
            "firstAt": format_instant(self.first_at),
            "lastAt": format_instant(self.last_at),
            "waves": list(self.waves),
            "releases": list(self.releases),
            "events": [{**event.to_dict(), "key": event.key} for event in self.events],
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Batch:
        """Back from the store."""
        return cls(
            kind=EventKind(tree["kind"]),
            count=int(tree["count"]),
            first_at=parse_instant(tree["firstAt"]),
            last_at=parse_instant(tree["lastAt"]),
            waves=tuple(tree["waves"]),
            releases=tuple(tree["releases"]),
            events=tuple(_event(event) for event in tree["events"]),
        )


def _names(found: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in found if name))[:MOST_NAMES]


def _event(tree: Mapping[str, Any]) -> Event:
    values = {name: tree[name] for name in ("commit", "wave", "site", "device", "release", "reason", "message")}
    return Event(tree["id"], parse_instant(tree["at"]), EventKind(tree["kind"]), tree["key"], **values)


class Outcome(StrEnum):
    """How a delivery ended."""

    DELIVERED = "delivered"
    GIVEN_UP = "given-up"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message to one target, on record until the target has taken it. `message_id` is the same at every attempt.

    It is sent from `ready_at` on; until then it may grow. `refusals` counts answers that say that it will not be taken,
    `not_before` is when the target asked to be called again.
    """

    id: int | None
    target: str
    message_id: str
    batch: Batch
    created_at: datetime
    ready_at: datetime
    attempts: int = 0
    refusals: int = 0
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """What a person reads, before it takes the form that a target wants. `text` is sentences, one a line; `link` is a page of
    the dashboard, `command` what to type where there is none. No secret is in any of it."""

    kind: str
    title: str
    text: str
    reason: str
    at: datetime
    count: int
    link: str | None
    command: str
    commit: str | None = None
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a target said to a message. `gone`: it says that it will never take one again. `said` is why not, for people, without
    the target's address and key."""

    accepted: bool
    status: int
    said: str = ""
    gone: bool = False
