"""The store's port for what happened: events, the health log, and which commits were in force. Imports the model alone.

Part of `ports.Store`, which inherits it. Held to the store's contract suite (`tests/adapters/events_contract.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from reconciler.model.events import Event, EventKind, HealthChange


@dataclass(frozen=True, slots=True)
class AcceptedCommit:
    """A commit that came into force. `number` rises with every one."""

    number: int
    sha: str
    at: datetime


class EventLog(Protocol):
    """What happened, in the order in which it became visible. Errors are those of `ports.Store`."""

    def add_events(self, epoch: int | None, events: Sequence[Event], told: str | None = None) -> tuple[Event, ...]:
        """Record events; returns those that are new, with their numbers. One whose kind and key are on record is left out.

        `epoch` is the writer's; None for what a person did, which needs no office. `told` replaces the teller's memory (see
        `told`) in the same transaction. Numbers rise without gaps that fill later: whoever has read up to one has missed none.
        """

    def told(self) -> str | None:
        """What the teller last remembered of what it has told; None before the first."""

    def events(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 100,
        kinds: Collection[EventKind] = (),
        wave: str | None = None,
        device: str | None = None,
        commit: str | None = None,
        newest_first: bool = False,
    ) -> Sequence[Event]:
        """Events with a number above `after` and below `before`; no kinds: all kinds."""

    def last_event(self) -> int:
        """The number of the newest event; 0 where there is none. Numbers of events that were pruned do not return."""

    def prune_events(self, epoch: int, before: datetime) -> int:
        """Drop events and rows of the health log that are older than an instant; returns how many."""

    def add_health(self, changes: Sequence[HealthChange]) -> None:
        """Record that devices' health changed; of a device the newest `MOST_HEALTH` rows stay."""

    def health_log(self, device: str, limit: int = 50) -> Sequence[HealthChange]:
        """The newest rows of a device, newest first."""

    def accepted_commits(self, *, before: int | None = None, limit: int = 100) -> Sequence[AcceptedCommit]:
        """Commits that came into force, newest first, with a number below `before`."""
