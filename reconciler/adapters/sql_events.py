"""Rows of what happened: events, the health log, commits that came into force. A part of the SQL store (`ports_events.EventLog`).

Inherited by `adapters.sql.SqlStore`, whose transactions it joins. Events are numbered under the lock of a counter's row, so that
a reader who has seen a number has missed none below it, on databases with several writers too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from reconciler.adapters import sql_journal as journal
from reconciler.adapters import sql_observations as recorded
from reconciler.adapters.sql_engine import Database, chunked, upsert
from reconciler.adapters.sql_schema import commits, counters, events, health_log, plans
from reconciler.model.events import MOST_HEALTH, CheckSaid, Event, EventKind, HealthChange
from reconciler.ports_events import AcceptedCommit

_TOLD = "told"


class SqlEvents:
    """What of `SqlStore` keeps what happened."""

    _db: Database

    def add_events(self, epoch: int | None, events: Sequence[Event], told: str | None = None) -> tuple[Event, ...]:
        """Record events; returns those that are new, numbered. `told` replaces the teller's memory in the same transaction."""
        with self._db.write("recording what happened") as connection:
            if epoch is not None:
                journal.fence(connection, epoch)
            if told is not None:
                upsert(connection, plans, [{"name": _TOLD, "document": told}])
            return _add(connection, events)

    def told(self) -> str | None:
        """What the teller last remembered; None before the first."""
        with self._db.read("what was told") as connection:
            return connection.execute(select(plans.c.document).where(plans.c.name == _TOLD)).scalar_one_or_none()

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
        query = select(events).where(events.c.id > after)
        if before is not None:
            query = query.where(events.c.id < before)
        if kinds:
            query = query.where(events.c.kind.in_(sorted(kind.value for kind in kinds)))
        for column, wanted in ((events.c.wave, wave), (events.c.device, device), (events.c.commit_sha, commit)):
            if wanted is not None:
                query = query.where(column == wanted)
        query = query.order_by(events.c.id.desc() if newest_first else events.c.id).limit(limit)
        with self._db.read("what happened") as connection:
            return [_event(row) for row in connection.execute(query)]

    def last_event(self) -> int:
        """The number of the newest event; 0 where there is none."""
        with self._db.read("what happened") as connection:
            query = select(counters.c.value).where(counters.c.name == "event")
            return int(connection.execute(query).scalar_one())

    def prune_events(self, epoch: int, before: datetime) -> int:
        """Drop events and rows of the health log that are older; returns how many."""
        with self._db.write("pruning what happened long ago") as connection:
            journal.fence(connection, epoch)
            dropped = connection.execute(delete(events).where(events.c.at < before)).rowcount
            return int(dropped + connection.execute(delete(health_log).where(health_log.c.at < before)).rowcount)

    def add_health(self, changes: Sequence[HealthChange]) -> None:
        """Record that devices' health changed; of a device the newest rows stay."""
        if not changes:
            return
        with self._db.write("recording devices' health") as connection:
            connection.execute(insert(health_log), [_health_row(change) for change in changes])
            for device in sorted({change.device for change in changes}):
                ids = select(health_log.c.id).where(health_log.c.device == device).order_by(health_log.c.id.desc())
                last = connection.execute(ids.offset(MOST_HEALTH).limit(1)).scalar_one_or_none()
                if last is not None:
                    old = (health_log.c.device == device) & (health_log.c.id <= last)
                    connection.execute(delete(health_log).where(old))

    def health_log(self, device: str, limit: int = 50) -> Sequence[HealthChange]:
        """The newest rows of a device, newest first."""
        query = select(health_log).where(health_log.c.device == device).order_by(health_log.c.id.desc()).limit(limit)
        with self._db.read("a device's health") as connection:
            return [_health(row) for row in connection.execute(query)]

    def accepted_commits(self, *, before: int | None = None, limit: int = 100) -> Sequence[AcceptedCommit]:
        """Commits that came into force, newest first."""
        query = select(commits).order_by(commits.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(commits.c.id < before)
        with self._db.read("commits that were in force") as connection:
            return [AcceptedCommit(row.id, row.sha, row.accepted_at) for row in connection.execute(query)]


def _add(connection: Connection, found: Sequence[Event]) -> tuple[Event, ...]:
    """Events that are not on record, numbered under the counter's lock, in the order given."""
    wanted: dict[tuple[str, str], Event] = {}
    for event in found:
        wanted.setdefault((event.kind.value, event.key), event)
    if not wanted:
        return ()
    recorded.take(connection, "event", 0)
    for kind in sorted({kind for kind, _ in wanted}):
        for piece in chunked(sorted(key for of, key in wanted if of == kind)):
            query = select(events.c.key).where(events.c.kind == kind, events.c.key.in_(piece))
            for (key,) in connection.execute(query):
                del wanted[kind, key]
    if not wanted:
        return ()
    first = recorded.take(connection, "event", len(wanted)) - len(wanted) + 1
    rows = [{"id": number, **_row(event)} for number, event in enumerate(wanted.values(), first)]
    connection.execute(insert(events), rows)
    return tuple(numbered(event, number) for number, event in enumerate(wanted.values(), first))


def numbered(event: Event, number: int) -> Event:
    """The same event with its number."""
    values = (event.at, event.kind, event.key, event.commit, event.wave, event.site, event.device, event.release)
    return Event(number, *values, event.reason, event.message)


def _row(event: Event) -> dict[str, Any]:
    return {
        "at": event.at,
        "kind": event.kind.value,
        "key": event.key,
        "commit_sha": event.commit,
        "wave": event.wave,
        "site": event.site,
        "device": event.device,
        "release": event.release,
        "reason": event.reason,
        "message": event.message,
    }


def _event(row: Row[Any]) -> Event:
    return Event(
        id=row.id,
        at=row.at,
        kind=EventKind(row.kind),
        key=row.key,
        commit=row.commit_sha,
        wave=row.wave,
        site=row.site,
        device=row.device,
        release=row.release,
        reason=row.reason,
        message=row.message,
    )


def _health_row(change: HealthChange) -> dict[str, Any]:
    document = {
        "checks": [[check.name, check.status, check.message] for check in change.checks],
        "worse": list(change.worse),
    }
    return {
        "device": change.device,
        "at": change.at,
        "health": change.health,
        "release": change.release,
        "document": json.dumps(document, ensure_ascii=False),
    }


def _health(row: Row[Any]) -> HealthChange:
    document = json.loads(row.document)
    checks = tuple(CheckSaid(*said) for said in document["checks"])
    return HealthChange(row.device, row.at, row.health, row.release, checks, tuple(document["worse"]), row.id)
