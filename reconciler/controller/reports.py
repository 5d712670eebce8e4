"""What a report and its answer are, without the service around them: recording a batch, and what a device is answered. No clock.

The HTTP service and the simulator both call this, so that a device is answered alike by both. What a report means is the fold's
to decide (`observe`), what a device shall do is the loop's; neither is touched here. Source: design §5, "Protocol".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from reconciler.controller.health import changed_health
from reconciler.controller.observe import fold
from reconciler.model.events import HealthChange
from reconciler.model.observed import DeviceObservation
from reconciler.ports import AssignmentRow, Store
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.bundle import Bundle, Root
from reconciler.protocol.exchange import Answer
from reconciler.protocol.report import Report


@dataclass(frozen=True, slots=True)
class Received:
    """A report and the recorder's own instant of its receipt."""

    report: Report
    at: datetime


@dataclass(frozen=True, slots=True)
class Recorded:
    """What came of a report: whether it was taken (a late or doubled one is not), and the device's assignment."""

    taken: bool
    assignment: AssignmentRow | None


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a device fetches what its assignment names: addresses by kind (`image`, `registry`), and a short-lived token for
    the registry. Never stored, never logged: presigned addresses are credentials for as long as they hold."""

    addresses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    registry_token: str | None = field(default=None, repr=False)


def record(store: Store, batch: Sequence[Received], stale_after_s: float) -> list[Recorded | Exception]:
    """Fold and record reports in one transaction. A report that does not fit the model fails alone, as a ValueError."""
    devices = sorted({received.report.device for received in batch})
    outcomes: list[bool | ValueError] = []
    with store.transaction():
        current: dict[str, DeviceObservation] = {name: row[0] for name, row in store.observed(devices).items()}
        assignments = store.assignments(devices)
        folded: dict[str, DeviceObservation] = {}
        sequences: dict[str, tuple[str, int]] = {}
        health: list[HealthChange] = []
        for received in batch:
            report = received.report
            before = current.get(report.device)
            row = assignments.get(report.device)
            told = None if row is None else (row.epoch, row.n)
            try:
                after = fold(before, report, received.at, stale_after_s, told)
            except ValueError as error:
                outcomes.append(error)
                continue
            taken = after is not before
            outcomes.append(taken)
            if taken:
                current[report.device] = folded[report.device] = after
                change = changed_health(before, after, report, received.at)
                if change is not None:
                    health.append(change)
                # A rival's report changes what is known, but the recorded order is that of the present boot.
                if after.boot is not None and after.boot.id == report.boot_id:
                    sequences[report.device] = (report.boot_id, report.sequence)
        store.observe(list(folded.values()), sequences=sequences)
        store.add_health(health)
    return [
        outcome if isinstance(outcome, ValueError) else Recorded(outcome, assignments.get(received.report.device))
        for received, outcome in zip(batch, outcomes, strict=True)
    ]


@lru_cache(maxsize=64)
def _leaves(root_document: bytes) -> int:
    """How many assignments a root covers. A tick's devices share the root, so it is parsed once."""
    return Root.from_bytes(root_document).count


def bundle_of(row: AssignmentRow) -> Bundle:
    """A stored assignment as the device receives it. Malformed: its root is none."""
    return Bundle(row.document, row.index, _leaves(row.root), row.proof, row.root, row.signature)


def wants_sources(report: Report, assignment: Assignment) -> bool:
    """Whether the device still has something to fetch: an image that no good slot holds, or an app that it does not
    run."""
    image = assignment.image
    held = {slot.digest for slot in report.slots.values() if slot.good}
    if image is not None and image.digest not in held:
        return True
    return any(report.apps.get(name) != app.digest for name, app in assignment.apps.items())


def plain_answer(report_every_s: int, now: datetime) -> Answer:
    """The answer that holds nothing new."""
    return Answer(report_every_s=max(1, report_every_s), server_time=now)


def answer_to(
    report: Report,
    row: AssignmentRow | None,
    now: datetime,
    report_every_s: int,
    sources: Callable[[Assignment], Sources],
) -> Answer:
    """What a device is answered: its assignment where that is newer than the one it has, and where to fetch what it lacks.

    Malformed: the assignment on record is none. What `sources` raises (PortError) passes through: the caller falls back to
    `plain_answer`, since the report was taken, and the device asks again.
    """
    plain = plain_answer(report_every_s, now)
    # An expired assignment would be refused by the device: the loop issues the next one.
    if row is None or row.expires_at <= now:
        return plain
    newer = report.serial is None or (row.epoch, row.n) > report.serial
    assignment = Assignment.from_bytes(row.document)
    found = sources(assignment) if wants_sources(report, assignment) else Sources()
    return Answer(
        bundle=bundle_of(row) if newer else None,
        sources={kind: tuple(addresses) for kind, addresses in found.addresses.items()},
        report_every_s=plain.report_every_s,
        server_time=now,
        registry_token=found.registry_token,
    )
