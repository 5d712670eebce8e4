"""The tables of the store in memory, and the one transaction that may be open on them. Decides nothing.

Every write goes through `Book.put`, which remembers what it replaced: that undoes a transaction that fails, and hides an open
one from everybody else. Called by `memory_store` alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from reconciler.model.events import Event, HealthChange
from reconciler.model.observed import DeviceObservation, Proposal, Verdict
from reconciler.model.report_order import Boots
from reconciler.model.scalars import format_instant
from reconciler.ports import AssignmentRow, ConditionRow, Intent, TerminalError, TransientError
from reconciler.ports_events import AcceptedCommit

ABSENT: Any = object()


@dataclass(frozen=True, slots=True)
class Row:
    """A device: its observation, the report it came from (None: none yet), the memory of boots, and its change number."""

    observation: DeviceObservation
    boot_id: str | None = None
    sequence: int | None = None
    boots: Boots = ()
    change: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """An intent with its outcome."""

    intent: Intent
    outcome: str | None = None
    detail: str | None = None
    finished_at: datetime | None = None


@dataclass(slots=True)
class Book:
    """What is recorded: tables, and what undoes the transaction that is open. One process may hold it open many times."""

    devices: dict[str, Row] = field(default_factory=dict)
    verdicts: dict[int, tuple[str, Verdict]] = field(default_factory=dict)
    members: dict[tuple[str, str, str], None] = field(default_factory=dict)
    proposals: dict[str, datetime] = field(default_factory=dict)
    tags: dict[tuple[str, str], str | None] = field(default_factory=dict)
    assignments: dict[str, AssignmentRow] = field(default_factory=dict)
    conditions: dict[str, ConditionRow] = field(default_factory=dict)
    journal: dict[int, Entry] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)
    """Key of an open intent → its number."""
    tokens: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    events: dict[int, Event] = field(default_factory=dict)
    event_keys: dict[tuple[str, str], int] = field(default_factory=dict)
    """(kind, key) of every event → its number."""
    health: dict[str, tuple[HealthChange, ...]] = field(default_factory=dict)
    """The health log of each device, oldest first."""
    accepted: dict[int, AcceptedCommit] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)
    """Single values: epoch, serial, intent, verdict, event, health, accepted, plan, told, commit."""
    changes: list[tuple[int, str]] = field(default_factory=list)
    """(change number, device), rising; an entry is stale where the device has changed since."""
    last_change: int = 0
    writing: threading.RLock = field(default_factory=threading.RLock)
    reading: threading.RLock = field(default_factory=threading.RLock)
    writer: object = None
    """The handle and thread whose transaction is open."""
    undo: list[tuple[dict[Any, Any], Any, Any]] = field(default_factory=list)
    failed: bool = False
    parts: dict[int, Any] = field(default_factory=dict)
    """What was made of a table when it was read last, by the table's identity: facts are read often and change seldom."""

    def put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Write one entry; `ABSENT` removes it."""
        with self.reading:
            self.undo.append((table, key, table.get(key, ABSENT)))
            self._set(table, key, value)

    def _set(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        self.parts.pop(id(table), None)
        if value is ABSENT:
            table.pop(key, None)
        else:
            table[key] = value

    def turn_back(self) -> list[tuple[dict[Any, Any], Any, Any]]:
        """Take back what the open transaction wrote; returns what writes it again, in order."""
        again = []
        for table, key, old in reversed(self.undo):
            again.append((table, key, table.get(key, ABSENT)))
            self._set(table, key, old)
        self.undo = []
        return again[::-1]

    @contextmanager
    def write(self, me: object) -> Iterator[None]:
        """A transaction of `me`: all or nothing. Nested use joins the outer one. TerminalError: a part of it failed."""
        if self.writer == me:
            try:
                yield
            except BaseException:
                self.failed = True
                raise
            return
        with self.writing:
            if self.writer is not None:
                raise TransientError("the store is busy", needed_for="writing", remedy="end the open transaction first")
            self.writer, self.failed, self.undo = me, False, []
            try:
                yield
                if self.failed:
                    raise TerminalError(
                        "a part of this transaction failed, so nothing of it is kept",
                        needed_for="writing to the store",
                        remedy="let the error of the part end the transaction",
                    )
            except BaseException:
                with self.reading:
                    self.turn_back()
                    self.writer = None
                raise
            with self.reading:
                self.writer, self.undo = None, []
                if len(self.changes) > 2 * len(self.devices) + 1000:
                    self.changes = [(n, name) for n, name in self.changes if self.devices[name].change == n]

    @contextmanager
    def read(self, me: object) -> Iterator[None]:
        """What is committed, and what `me` has written since: nobody sees another's open transaction."""
        with self.reading:
            if self.writer is None or self.writer == me:
                yield
                return
            again = self.turn_back()
            try:
                yield
            finally:
                for table, key, value in again:
                    self.put(table, key, value)

    def part(self, table: dict[Any, Any], make: Callable[[], Any]) -> Any:
        """What `make` makes of a table: made again only after the table has changed."""
        if id(table) not in self.parts:
            self.parts[id(table)] = make()
        return self.parts[id(table)]


def known(row: Row | None) -> tuple[DeviceObservation, str, int] | None:
    """As `ports.Store.observation` gives it."""
    if row is None:
        return None
    return row.observation, row.boot_id or "", row.sequence if row.sequence is not None else -1


def report_of(device: DeviceObservation) -> tuple[str | None, int | None, Boots]:
    """The report that an observation of a snapshot came from, where it says."""
    boot = device.boot
    return (None, None, ()) if boot is None else (boot.id, boot.sequence, ((boot.id, boot.sequence),))


def split_key(key: str) -> dict[str, str]:
    """`v1.4.2` → image; `video-ingest@2.8.0` → app and release."""
    app, at_sign, release = key.partition("@")
    return {"app": app, "release": release} if at_sign else {"image": key}


def verdicts_of(table: Mapping[int, tuple[str, Verdict]]) -> tuple[tuple[Verdict, ...], tuple[Verdict, ...]]:
    """Proofs and failures, in the order in which they were recorded."""
    rows = [table[number] for number in sorted(table)]
    return tuple(v for kind, v in rows if kind == "proof"), tuple(v for kind, v in rows if kind == "failure")


def members_of(table: Mapping[tuple[str, str, str], None]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Release → wave → sites."""
    out: dict[str, dict[str, list[str]]] = {}
    for release, wave, site in sorted(table):
        out.setdefault(release, {}).setdefault(wave, []).append(site)
    return {release: {wave: tuple(sites) for wave, sites in waves.items()} for release, waves in out.items()}


def nested(table: Mapping[tuple[str, str], str | None]) -> dict[str, dict[str, str | None]]:
    """App → tag → digest."""
    out: dict[str, dict[str, str | None]] = {}
    for (app, tag), digest in sorted(table.items(), key=lambda item: item[0]):
        out.setdefault(app, {})[tag] = digest
    return out


def proposals_of(table: Mapping[str, datetime]) -> tuple[Proposal, ...]:
    """Reverts that were proposed, oldest first."""
    rows = sorted(table.items(), key=lambda item: (item[1], item[0]))
    return tuple(Proposal(at=at, **split_key(release)) for release, at in rows)


def shown(entry: Entry) -> Mapping[str, str | None]:
    """A journal row, for people."""
    intent = entry.intent
    return {
        "id": str(intent.id),
        "kind": intent.key.split(" ", 1)[0],
        "key": intent.key,
        "commit": intent.commit,
        "outcome": entry.outcome,
        "createdAt": format_instant(intent.created_at),
        "finishedAt": format_instant(entry.finished_at) if entry.finished_at else None,
        "notBefore": format_instant(intent.not_before) if intent.not_before else None,
        "attempts": str(intent.attempts),
        "detail": entry.detail,
        "error": intent.last_error,
    }
