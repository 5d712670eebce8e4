"""Rows of observations: folded reports in, marks of a tick merged in, facts applied. Called by `adapters.sql`.

A report replaces the observation; a tick only adds its marks (`model.amend`). Whoever folds a report reads and writes in one
`Store.transaction`, and so keeps the marks that a tick has just set. Source: design §5, §6; contract, "Observed snapshot".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Row, or_, select, update

from reconciler.adapters.sql_engine import chunked, upsert
from reconciler.adapters.sql_schema import counters, observations
from reconciler.model.amend import amendments, forgotten
from reconciler.model.observed import DeviceObservation
from reconciler.model.plan import Facts
from reconciler.model.report_order import Boots, from_json, newer, to_json
from reconciler.ports import Changes, TerminalError


@dataclass(frozen=True, slots=True)
class Recorded:
    """A row: the observation, the report it came from (None: no report yet), and the memory of boots."""

    observation: DeviceObservation
    boot_id: str | None = None
    sequence: int | None = None
    boots: Boots = ()


def to_document(observation: DeviceObservation) -> str:
    """The contract's JSON of one device, without what is at its default."""
    return observation.model_dump_json(by_alias=True, exclude_defaults=True)


def from_document(device: str, document: str) -> DeviceObservation:
    """Back from the row. TerminalError: the row is damaged."""
    try:
        return DeviceObservation.model_validate_json(document)
    except ValidationError as error:
        raise TerminalError(
            f"the observation of {device!r} cannot be read ({error.error_count()} problems)",
            needed_for="knowing what the device runs",
            remedy="restore the store from a backup, or delete that row: the device's next report writes it anew",
        ) from None


def read(connection: Connection, devices: Sequence[str]) -> dict[str, Recorded]:
    """Rows of these devices, locked until the transaction ends where the database locks rows."""
    found: dict[str, Recorded] = {}
    for piece in chunked(sorted(set(devices))):
        query = select(observations).where(observations.c.device.in_(piece)).order_by(observations.c.device)
        for row in connection.execute(query.with_for_update()):
            found[row.device] = _recorded(row)
    return found


def _recorded(row: Row[Any]) -> Recorded:
    try:
        boots = from_json(row.boots)
    except (ValueError, TypeError):
        boots = ()  # Worth less than the observation: without it the next report counts as newer.
    return Recorded(from_document(row.device, row.document), row.boot_id, row.sequence, boots)


def write(connection: Connection, rows: Mapping[str, Recorded]) -> int:
    """Replace rows, each under a change number of its own; returns the last number given out."""
    last = take(connection, "change", len(rows))
    number = last - len(rows)
    values = []
    for device in sorted(rows):
        number += 1
        row = rows[device]
        values.append(
            {
                "device": device,
                "document": to_document(row.observation),
                "boot_id": row.boot_id,
                "sequence": row.sequence,
                "boots": to_json(row.boots),
                "change": number,
            }
        )
    upsert(connection, observations, values)
    return last


def take(connection: Connection, counter: str, count: int) -> int:
    """Add `count` to a counter and return its new value; with 0, its value."""
    statement = (
        update(counters).where(counters.c.name == counter).values(value=counters.c.value + count)
        .returning(counters.c.value)
    )  # fmt: skip
    return int(connection.execute(statement).scalar_one())


def observe(
    connection: Connection, folded: Sequence[DeviceObservation], sequences: Mapping[str, tuple[str, int]]
) -> int:
    """Record folded reports. One whose boot id and sequence are not newer is dropped; one without them is written as
    it is."""
    current = read(connection, [observation.name for observation in folded])
    changed: dict[str, Recorded] = {}
    for observation in folded:
        device = observation.name
        before = changed.get(device) or current.get(device)
        if device not in sequences:
            changed[device] = replace(before or Recorded(observation), observation=observation)
            continue
        boot_id, sequence = sequences[device]
        boots = newer(before.boots if before else (), boot_id, sequence)
        if boots is not None:
            changed[device] = Recorded(observation, boot_id, sequence, boots)
    return write(connection, changed)


def changes_since(connection: Connection, cursor: int, limit: int | None = None) -> Changes:
    """Observations with a higher change number, in the order of the changes; the first `limit` of them."""
    query = (
        select(observations.c.device, observations.c.document, observations.c.change)
        .where(observations.c.change > cursor)
        .order_by(observations.c.change)
        .limit(limit)
    )
    devices = []
    for device, document, change in connection.execute(query):
        devices.append(from_document(device, document))
        cursor = change
    return Changes(cursor, tuple(devices))


def everything(connection: Connection) -> tuple[DeviceObservation, ...]:
    """Every observation, by name."""
    query = select(observations.c.device, observations.c.document).order_by(observations.c.device)
    return tuple(from_document(device, document) for device, document in connection.execute(query))


def last_change(connection: Connection) -> int:
    """The number of the last change of any device."""
    query = select(counters.c.value).where(counters.c.name == "change")
    return int(connection.execute(query).scalar_one())


def documents(connection: Connection, at_once: int = 1000) -> Iterator[str]:
    """Every observation as its JSON, by name, `at_once` rows in memory."""
    query = select(observations.c.document).order_by(observations.c.device)
    for (document,) in connection.execution_options(yield_per=at_once).execute(query):
        yield document


def apply(connection: Connection, patches: Iterable[DeviceObservation], facts: Facts) -> None:
    """Time-outs, rescues and marks, then what closed releases leave behind. Rows that stay equal are not written."""
    steps = amendments(patches, facts)
    closed = frozenset(facts.closed)
    touched = [*(device for device, _ in steps), *_holding(connection, closed)]
    before = read(connection, touched)
    blank = {device: Recorded(DeviceObservation(name=device)) for device in touched}
    start = blank | before
    after = dict(start)
    for device, step in steps:
        after[device] = replace(after[device], observation=step(after[device].observation))
    if closed:
        for device, row in after.items():
            after[device] = replace(row, observation=forgotten(row.observation, closed))
    write(connection, {device: row for device, row in after.items() if row != start[device]})


def _holding(connection: Connection, closed: frozenset[str]) -> list[str]:
    """Devices whose document names a closed release as a key. A coarse search: what it finds is looked at again."""
    if not closed:
        return []
    column = observations.c.document
    query = select(observations.c.device).where(
        or_(*(column.contains(f'"{key}":', autoescape=True) for key in sorted(closed)))
    )
    return [device for (device,) in connection.execute(query)]
