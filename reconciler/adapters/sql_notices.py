"""How far each target of notifications was told, and what is on its way there, in SQL. Implements `controller.notify.Notices`.

Made by `adapters.sql.SqlStore`, over its database and its transactions. Every write carries the epoch: a controller that is not in
office any more sends nothing, since an attempt is written down before it is made. Decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, func, insert, select, update

from reconciler.adapters import sql_journal as journal
from reconciler.adapters import sql_observations as recorded
from reconciler.adapters.sql_engine import Database
from reconciler.adapters.sql_schema import deliveries, notice_targets
from reconciler.model.events import EventKind
from reconciler.model.notices import Batch, Delivery, Outcome


class SqlNotices:
    """Deliveries over the store's database. Safe for use by many threads."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def open(self, epoch: int, targets: Sequence[str]) -> None:
        """These are the targets from now on. One that is new begins with the next event; one that is gone is forgotten, with
        what was on its way to it."""
        with self._db.write("preparing notifications") as connection:
            journal.fence(connection, epoch)
            known = set(connection.execute(select(notice_targets.c.name)).scalars())
            gone = sorted(known - set(targets))
            connection.execute(delete(deliveries).where(deliveries.c.target.in_(gone)))
            connection.execute(delete(notice_targets).where(notice_targets.c.name.in_(gone)))
            last = recorded.take(connection, "event", 0)
            new = [{"name": name, "event": last} for name in targets if name not in known]
            if new:
                connection.execute(insert(notice_targets), new)

    def told(self, target: str) -> int:
        """The number of the last event that the target was told of, or does not ask for."""
        with self._db.read("notifications") as connection:
            query = select(notice_targets.c.event).where(notice_targets.c.name == target)
            return int(connection.execute(query).scalar_one())

    def plan(self, epoch: int, target: str, told: int, deliver: Sequence[Delivery]) -> None:
        """Record deliveries, new ones and (by their number) ones that grew, with the last event that is in them."""
        with self._db.write("planning notifications") as connection:
            journal.fence(connection, epoch)
            new = [_row(item) for item in deliver if item.id is None]
            if new:
                connection.execute(insert(deliveries), new)
            for item in deliver:
                if item.id is not None:
                    connection.execute(update(deliveries).where(_unsent(item.id)).values(_row(item)))
            mine = notice_targets.c.name == target
            connection.execute(update(notice_targets).where(mine).values(event=told))

    def waiting(self, target: str, limit: int) -> Sequence[Delivery]:
        """What the target has not taken, in the order in which it is told."""
        query = select(deliveries).where(deliveries.c.target == target, deliveries.c.outcome.is_(None))
        with self._db.read("notifications") as connection:
            rows = connection.execute(query.order_by(deliveries.c.ready_at, deliveries.c.id).limit(limit))
            return [_delivery(row) for row in rows]

    def counts(self, target: str, since: datetime) -> Mapping[EventKind, int]:
        """How many events of each kind were put into deliveries to the target after an instant."""
        mine = (deliveries.c.target == target) & (deliveries.c.created_at > since)
        query = select(deliveries.c.kind, func.sum(deliveries.c.count)).where(mine).group_by(deliveries.c.kind)
        with self._db.read("notifications") as connection:
            return {EventKind(kind): int(count) for kind, count in connection.execute(query)}

    def attempt(self, epoch: int, number: int) -> None:
        """Record that a delivery is about to be sent."""
        with self._db.write("sending a notification") as connection:
            journal.fence(connection, epoch)
            values = {"attempts": deliveries.c.attempts + 1}
            connection.execute(update(deliveries).where(_unsent(number)).values(values))

    def failed(self, epoch: int, number: int, error: str, *, refused: bool, not_before: datetime | None) -> None:
        """Record that a delivery was not taken, and when its target asked to be called again."""
        with self._db.write("recording a notification") as connection:
            journal.fence(connection, epoch)
            values = {"refusals": deliveries.c.refusals + int(refused), "error": error, "not_before": not_before}
            connection.execute(update(deliveries).where(_unsent(number)).values(values))

    def finish(self, epoch: int, number: int, outcome: Outcome, error: str, at: datetime) -> None:
        """Record that a delivery was taken, or given up."""
        with self._db.write("recording a notification") as connection:
            journal.fence(connection, epoch)
            values = {"outcome": outcome.value, "error": error or None, "finished_at": at}
            connection.execute(update(deliveries).where(_unsent(number)).values(values))

    def prune(self, epoch: int, before: datetime) -> int:
        """Drop deliveries that ended before an instant; returns how many."""
        with self._db.write("pruning notifications") as connection:
            journal.fence(connection, epoch)
            return int(connection.execute(delete(deliveries).where(deliveries.c.finished_at < before)).rowcount)


def _unsent(number: int) -> ColumnElement[bool]:
    """The row of a delivery that has not ended: what ended stays as it is."""
    return (deliveries.c.id == number) & deliveries.c.outcome.is_(None)


def _row(item: Delivery) -> dict[str, Any]:
    return {
        "target": item.target,
        "message_id": item.message_id,
        "kind": item.batch.kind.value,
        "count": item.batch.count,
        "document": json.dumps(item.batch.to_dict(), ensure_ascii=False),
        "created_at": item.created_at,
        "ready_at": item.ready_at,
        "attempts": item.attempts,
        "refusals": item.refusals,
        "not_before": item.not_before,
    }


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        target=row.target,
        message_id=row.message_id,
        batch=Batch.from_dict(json.loads(row.document)),
        created_at=row.created_at,
        ready_at=row.ready_at,
        attempts=row.attempts,
        refusals=row.refusals,
        not_before=row.not_before,
    )
