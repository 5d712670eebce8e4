"""What happened, in memory: events, the health log, commits that came into force. A part of the store in memory.

Inherited by `memory_store.MemoryStore`, whose transactions it joins. Keeps the contract of `ports_events.EventLog`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime

from reconciler.model.events import MOST_HEALTH, Event, EventKind, HealthChange
from reconciler.ports_events import AcceptedCommit
from reconciler.simulate.memory_book import ABSENT, Book


class MemoryEvents:
    """What of `MemoryStore` keeps what happened."""

    book: Book

    def _write(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    def _read(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    def _fence(self, epoch: int) -> None:
        raise NotImplementedError

    def _next(self, word: str, count: int = 1) -> int:
        raise NotImplementedError

    def add_events(self, epoch: int | None, events: Sequence[Event], told: str | None = None) -> tuple[Event, ...]:
        """Record events; returns those that are new, numbered. `told` replaces the teller's memory in the same transaction."""
        book, new = self.book, []
        with self._write():
            if epoch is not None:
                self._fence(epoch)
            if told is not None:
                book.put(book.words, "told", told)
            for event in events:
                identity = (event.kind.value, event.key)
                if identity not in book.event_keys:
                    numbered = replace(event, id=self._next("event"))
                    book.put(book.event_keys, identity, numbered.id)
                    book.put(book.events, numbered.id, numbered)
                    new.append(numbered)
        return tuple(new)

    def told(self) -> str | None:
        """What the teller last remembered; None before the first."""
        with self._read():
            found: str | None = self.book.words.get("told")
            return found

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
        """Events with a number above `after` and below `before`."""
        found: list[Event] = []
        with self._read():
            for number in sorted(self.book.events, reverse=newest_first):
                event = self.book.events[number]
                if number <= after or (before is not None and number >= before) or (kinds and event.kind not in kinds):
                    continue
                pairs = ((event.wave, wave), (event.device, device), (event.commit, commit))
                if all(wanted is None or has == wanted for has, wanted in pairs):
                    found.append(event)
        return found[:limit]

    def last_event(self) -> int:
        """The number of the newest event; 0 where there is none."""
        with self._read():
            return int(self.book.words.get("event", 0))

    def prune_events(self, epoch: int, before: datetime) -> int:
        """Drop events and rows of the health log that are older; returns how many."""
        book, dropped = self.book, 0
        with self._write():
            self._fence(epoch)
            for event in [event for event in book.events.values() if event.at < before]:
                book.put(book.events, event.id, ABSENT)
                book.put(book.event_keys, (event.kind.value, event.key), ABSENT)
                dropped += 1
            for device, rows in list(book.health.items()):
                kept = tuple(row for row in rows if row.at >= before)
                dropped += len(rows) - len(kept)
                if len(kept) < len(rows):
                    book.put(book.health, device, kept or ABSENT)
        return dropped

    def add_health(self, changes: Sequence[HealthChange]) -> None:
        """Record that devices' health changed; of a device the newest rows stay."""
        if not changes:
            return
        with self._write():
            for change in changes:
                rows = (*self.book.health.get(change.device, ()), replace(change, id=self._next("health")))
                self.book.put(self.book.health, change.device, rows[-MOST_HEALTH:])

    def health_log(self, device: str, limit: int = 50) -> Sequence[HealthChange]:
        """The newest rows of a device, newest first."""
        with self._read():
            return self.book.health.get(device, ())[::-1][:limit]

    def accepted_commits(self, *, before: int | None = None, limit: int = 100) -> Sequence[AcceptedCommit]:
        """Commits that came into force, newest first."""
        with self._read():
            rows = [row for row in self.book.accepted.values() if before is None or row.number < before]
            return sorted(rows, key=lambda row: -row.number)[:limit]

    def _put_commit(self, sha: str, at: datetime) -> None:
        """A commit comes into force; the one in force already is not written again."""
        book = self.book
        if book.words.get("commit") != sha:
            number = self._next("accepted")
            book.put(book.accepted, number, AcceptedCommit(number, sha, at))
        book.put(book.words, "commit", sha)
