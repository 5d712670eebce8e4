"""What happened in virtual time: one line an event, and the calendar that follows from the lines. Pure.

The simulator and the forecast write the same trace; whatever is shown or compared (calendar, blast radius, timeline, picture)
is made from it, so that the two can be held to each other. Source: design §4 and §6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from reconciler.model.scalars import format_instant


class Kind(StrEnum):
    """What an event is. `key` is a release: `v1.4.2`, or `video-ingest@2.8.0`."""

    MERGED = "merged"
    """A commit came into force (`detail`: its hash)."""
    REFUSED = "refused"
    """A commit was not taken (`detail`: why)."""
    BUILT = "built"
    SIGNED = "signed"
    PUBLISHED = "published"
    RETAGGED = "retagged"
    """A tag was moved (`detail`: the tag)."""
    TOLD = "told"
    """The controller decided that a device starts: flash, restart or configure (`detail`: why, or the action's kind)."""
    ARRIVED = "arrived"
    """The controller first saw the device run `key` (image: marked good; app: running)."""
    LEFT = "left"
    """The controller first saw the device not run `key` any more."""
    TAKEN = "taken"
    """A wave took a site for a release."""
    PROVEN = "proven"
    """A wave's gate passed for a release."""
    STOPPED = "stopped"
    """A wave's gate failed: the release is stopped everywhere."""
    TIMED_OUT = "timed-out"
    ATTEMPT_FAILED = "attempt-failed"
    PROPOSED = "proposed"
    """A revert was proposed."""
    SILENT = "silent"
    HEARD = "heard"
    CRITICAL = "critical"
    WELL = "well"
    STATE = "state"
    """A wave's state for a release changed (`detail`: the state, and what holds it, as `waiting: wave-waits`)."""
    FAULT = "fault"
    """Something that the simulator did to the world (`detail`)."""
    QUIET = "quiet"
    """Nothing is wanted any more, or nothing will change by itself."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event. What does not apply is None."""

    at: datetime
    kind: Kind
    wave: str | None = None
    site: str | None = None
    device: str | None = None
    key: str | None = None
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For the JSON timeline."""
        out: dict[str, Any] = {"at": format_instant(self.at), "kind": self.kind.value}
        for name in ("wave", "site", "device"):
            if (value := getattr(self, name)) is not None:
                out[name] = value
        if self.key is not None:
            out["release"] = self.key
        return out | ({"detail": self.detail} if self.detail else {})


@dataclass(frozen=True, slots=True)
class Held:
    """Why a wave had not finished with a release when the trace ended, as the planner's hold says it."""

    reason: str
    message: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One wave and one release in the calendar. Counts are of devices."""

    wave: str
    key: str
    devices: int
    first_told_at: datetime | None
    last_arrived_at: datetime | None
    proven_at: datetime | None
    stopped_at: datetime | None
    arrived: int
    held: tuple[Held, ...] = ()
    """Of an entry that never ended: what stood in its way at the end."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "wave": self.wave,
            "release": self.key,
            "devices": self.devices,
            "firstToldAt": _text(self.first_told_at),
            "lastArrivedAt": _text(self.last_arrived_at),
            "provenAt": _text(self.proven_at),
            "stoppedAt": _text(self.stopped_at),
            "arrived": self.arrived,
            "held": [
                {"reason": held.reason, "message": held.message, "until": _text(held.until)} for held in self.held
            ],
        }


@dataclass(frozen=True, slots=True)
class Trace:
    """A run in virtual time: its events in order, and what stood at its end."""

    started_at: datetime
    ended_at: datetime
    events: Sequence[Event]
    asked: Sequence[tuple[str, str, int]]
    """(wave, key, devices) of what the last commit in force asks for, in the waves' order; images before apps."""
    held: Mapping[tuple[str, str], tuple[Held, ...]] = field(default_factory=dict)
    """(wave, key) → what held it at the end."""


def calendar_of(trace: Trace) -> tuple[Entry, ...]:
    """When each wave starts, ends and proves each release that is asked for."""
    told: dict[tuple[str, str], datetime] = {}
    arrived: dict[tuple[str, str], dict[str, datetime]] = {}
    proven: dict[tuple[str, str], datetime] = {}
    stopped: dict[tuple[str, str], datetime] = {}
    for event in trace.events:
        if event.wave is None or event.key is None:
            continue
        place = (event.wave, event.key)
        if event.kind is Kind.TOLD:
            told.setdefault(place, event.at)
        elif event.kind is Kind.ARRIVED and event.device is not None:
            arrived.setdefault(place, {}).setdefault(event.device, event.at)
        elif event.kind is Kind.PROVEN:
            proven.setdefault(place, event.at)
        elif event.kind is Kind.STOPPED:
            stopped.setdefault(place, event.at)
    out = []
    for wave, key, devices in trace.asked:
        there = arrived.get((wave, key), {})
        out.append(
            Entry(
                wave,
                key,
                devices,
                told.get((wave, key)),
                max(there.values(), default=None),
                proven.get((wave, key)),
                stopped.get((wave, key)),
                len(there),
                trace.held.get((wave, key), ()),
            )
        )
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Exposure:
    """The most devices at any instant that run, or are being moved to, a release that their own wave has not proven."""

    devices: int
    at: datetime | None


_BACK = ("rollback", "rescue")


def exposure(
    events: Iterable[Event],
    keys: Iterable[str],
    *,
    safe: Iterable[tuple[str, str]] = (),
    running: Mapping[tuple[str, str], Iterable[str]] | None = None,
    since: datetime | None = None,
) -> Exposure:
    """Over all instants, of some releases. A device counts from the word to start until its wave proves it, or it leaves; one that
    is on two such releases (an image and an app) is one device.

    Who goes back (TOLD as `rollback` or `rescue`) goes to a release that is known, and does not count. What stood at `since`,
    when the events began: `safe` are the places, (wave, key), that have a proof on record, or need none; `running` are the
    devices that ran a release in a wave already.
    """
    wanted = frozenset(keys)
    proven: set[tuple[str | None, str]] = set(safe)
    on: dict[tuple[str | None, str], set[str]] = {
        place: set(devices) for place, devices in (running or {}).items() if place[1] in wanted and place not in proven
    }
    times = Counter(device for devices in on.values() for device in devices)
    most, when = len(times), since if times else None
    for event in events:
        if event.key not in wanted or event.key is None:
            continue
        place = (event.wave, event.key)
        members = on.setdefault(place, set())
        before = len(members)
        if place in proven:
            continue
        if event.kind is Kind.PROVEN or (event.kind is Kind.TOLD and event.detail in _BACK):
            proven.add(place)
            _less(times, members)
        elif event.kind in (Kind.TOLD, Kind.ARRIVED) and event.device is not None:
            members.add(event.device)
            times[event.device] += len(members) - before
        elif event.kind in (Kind.LEFT, Kind.ATTEMPT_FAILED, Kind.TIMED_OUT) and event.device is not None:
            members.discard(event.device)
            _less(times, [event.device] if len(members) < before else [])
        if len(times) > most:
            most, when = len(times), event.at
    return Exposure(most, when)


def _less(times: Counter[str], devices: Iterable[str]) -> None:
    """Each of these is on one release fewer; who is on none is not counted."""
    for device in devices:
        times[device] -= 1
        if not times[device]:
            del times[device]


def _text(at: datetime | None) -> str | None:
    return format_instant(at) if at is not None else None
