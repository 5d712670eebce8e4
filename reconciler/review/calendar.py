"""When each wave starts, ends and proves what a merge asks of it: earliest and likely, in UTC and in nights of the sites. Pure.

*Earliest*: devices that are silent now answer at once. *Likely*: they stay silent. Both are the forecast's trace, told by
`trace.calendar_of`; nothing is computed here but where on the local clock an instant lies. Called by `review.make`. Source:
design §4.5; `simulate.forecast`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from reconciler.model.desired import Desired, Window
from reconciler.model.scalars import format_instant, format_time_of_day
from reconciler.planner.windows import Calendar, calendar, instant, zone
from reconciler.simulate.trace import Entry, Event, Exposure, Held, Kind, Trace, calendar_of, exposure

Place = tuple[str, str]
"""A wave, and a release's key."""


@dataclass(frozen=True, slots=True)
class Local:
    """The nights of one wave's devices in one zone: local dates on which their windows open, first and last arrival there."""

    zone: str
    devices: int
    nights: tuple[date, ...]
    first_at: datetime
    last_at: datetime

    def to_dict(self) -> dict[str, Any]:
        """For JSON: instants with the zone's offset."""
        tz = zone(self.zone)
        return {
            "zone": self.zone,
            "devices": self.devices,
            "nights": [night.isoformat() for night in self.nights],
            "firstArrival": self.first_at.astimezone(tz).isoformat(),
            "lastArrival": self.last_at.astimezone(tz).isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Known:
    """What stands before a forecast begins, of the places that a merge concerns."""

    proven: Mapping[Place, datetime] = field(default_factory=dict)
    """Gates that passed before the merge, and when."""
    apart: Mapping[Place, int] = field(default_factory=dict)
    """Places that no gate is asked of, since the wave itself asks for another release (a pin, a rescue): how many devices move."""
    back: frozenset[Place] = frozenset()
    """Places that devices go back to: they or their wave ran the release before."""
    other: tuple[str, ...] = ()
    """Apps' releases whose digest is another after the merge: what passed before were other bytes."""
    running: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    """Devices that run the release already."""


@dataclass(frozen=True, slots=True)
class Run:
    """One forecast, as far as a review tells it."""

    ended_at: datetime
    entries: Mapping[Place, Entry]
    local: Mapping[Place, tuple[Local, ...]]
    exposure: Exposure
    gated: bool
    """Whether any gate has still to pass."""
    finished_at: datetime | None
    """When the last of these gates has passed; None where one never does, or there is none."""
    arrived_at: datetime | None
    """When the last device is where the merge wants it; None where one never is."""


@dataclass(frozen=True, slots=True)
class ClockChange:
    """A night in which a zone's clocks change while the rollout runs, and what is left of a window then."""

    zone: str
    night: date
    before: str
    after: str
    window: str
    minutes: int
    usual: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "zone": self.zone,
            "night": self.night.isoformat(),
            "offsetBefore": self.before,
            "offsetAfter": self.after,
            "window": self.window,
            "minutes": self.minutes,
            "usualMinutes": self.usual,
        }


def run_of(trace: Trace, desired: Desired, places: frozenset[Place], known: Known | None = None) -> Run:
    """What a trace says about the waves and releases of a merge."""
    known = known or Known()
    asked = [*trace.asked, *((wave, key, devices) for (wave, key), devices in sorted(known.apart.items()))]
    entries = {(entry.wave, entry.key): entry for entry in calendar_of(replace(trace, asked=asked))}
    before = {place: at for place, at in known.proven.items() if place in entries and entries[place].proven_at is None}
    chosen = {place: entry for place, entry in entries.items() if place in places and entry.devices}
    gates = [entry.proven_at for place, entry in chosen.items() if place not in before and place not in known.apart]
    return Run(
        trace.ended_at,
        entries | {place: replace(entries[place], proven_at=at) for place, at in before.items()},
        _local(trace.events, desired, places),
        _exposure(trace, places, known, before),
        bool(gates),
        _last(gates),
        _last(
            [_there(entry, place in before) for place, entry in chosen.items() if _waited_for(entry, place in before)]
        ),
    )


def _exposure(trace: Trace, places: frozenset[Place], known: Known, before: Mapping[Place, datetime]) -> Exposure:
    """Devices that run an unproven release already count from the start; who goes back runs what is known, and never counts."""
    safe = {place for place in before.keys() | known.back if place[1] not in known.other}
    keys = {key for _, key in places}
    return exposure(trace.events, keys, safe=safe, running=known.running, since=trace.started_at)


def _waited_for(entry: Entry, before: bool) -> bool:
    return entry.arrived > 0 or not (before or entry.proven_at is not None)


def _there(entry: Entry, before: bool) -> datetime | None:
    """When the last of a wave's devices arrived; None while one that the wave waits for has not."""
    return entry.last_arrived_at if before or entry.proven_at is not None or entry.arrived >= entry.devices else None


def _last(instants: Sequence[datetime | None]) -> datetime | None:
    known = [at for at in instants if at is not None]
    return max(known) if known and len(known) == len(instants) else None


def _local(events: Iterable[Event], desired: Desired, places: frozenset[Place]) -> dict[Place, tuple[Local, ...]]:
    found: dict[tuple[Place, str], dict[str, tuple[datetime, date]]] = {}
    for event in events:
        if event.kind is not Kind.ARRIVED or event.wave is None or event.key is None or event.device is None:
            continue
        place = (event.wave, event.key)
        spec = desired.sites.get(event.site or "")
        if place in places and spec is not None:
            night = night_of(event.at, spec.timezone, spec.window or desired.fleet.window)
            found.setdefault((place, spec.timezone), {}).setdefault(event.device, (event.at, night))
    out: dict[Place, list[Local]] = {}
    for (place, name), devices in sorted(found.items()):
        at = [when for when, _ in devices.values()]
        nights = tuple(sorted({night for _, night in devices.values()}))
        out.setdefault(place, []).append(Local(name, len(devices), nights, min(at), max(at)))
    return {place: tuple(sorted(several, key=lambda one: (-one.devices, one.zone))) for place, several in out.items()}


def night_of(at: datetime, name: str, window: Window) -> date:
    """The local date on which the window opens that an instant lies in, or follows."""
    local = at.astimezone(zone(name)).replace(tzinfo=None)
    return (local - timedelta(minutes=window.start)).date()


def clock_changes(desired: Desired, sites: Iterable[str], since: datetime, until: datetime) -> tuple[ClockChange, ...]:
    """Nights between two instants in which a window of these sites is longer or shorter than usual, or the clocks change in it."""
    shapes: set[tuple[str, int, int]] = set()
    for site in sites:
        spec = desired.sites[site]
        window = spec.window or desired.fleet.window
        shapes.add((spec.timezone, window.start, window.end))
    out = [change for shape in sorted(shapes) for change in _changes(calendar(*shape), since, until)]
    return tuple(sorted(out, key=lambda change: (change.night, change.zone, change.window)))


def _changes(windows: Calendar, since: datetime, until: datetime) -> Iterator[ClockChange]:
    tz = zone(windows.zone_name)
    day, last = since.astimezone(tz).date() - timedelta(days=1), until.astimezone(tz).date() + timedelta(days=1)
    usual = (windows.end - windows.start) % 1440 or 1440
    while day <= last:
        noon, next_noon = (datetime(at.year, at.month, at.day, 12, tzinfo=UTC) for at in (day - timedelta(days=1), day))
        before, after = noon.astimezone(tz), next_noon.astimezone(tz)
        if before.utcoffset() != after.utcoffset() and since <= next_noon and noon <= until:
            opens, closes = windows.night(day)
            span = f"{format_time_of_day(windows.start)}–{format_time_of_day(windows.end)}"
            minutes = max(0, round((instant(closes) - instant(opens)).total_seconds() / 60))
            yield ClockChange(windows.zone_name, day, offset(before), offset(after), span, minutes, usual)
        day += timedelta(days=1)


def offset(at: datetime) -> str:
    """`UTC+02:00`."""
    seconds = int((at.utcoffset() or timedelta()).total_seconds())
    sign = "-" if seconds < 0 else "+"
    return f"UTC{sign}{abs(seconds) // 3600:02d}:{abs(seconds) % 3600 // 60:02d}"


def never(run: Run, places: Iterable[Place], known: Known) -> list[tuple[Place, tuple[Held, ...]]]:
    """Waves that never prove what the merge asks of them, and what held them at the end of the forecast."""
    out = []
    for place in places:
        entry = run.entries.get(place)
        if place not in known.apart and entry is not None and entry.proven_at is None and (entry.devices or entry.held):
            out.append((place, entry.held))
    return out


def entry_dict(run: Run, place: Place) -> dict[str, Any] | None:
    """One entry of a run for JSON, with its local nights."""
    entry = run.entries.get(place)
    if entry is None:
        return None
    out = entry.to_dict()
    for name in ("wave", "release"):
        out.pop(name)
    return {**out, "local": [local.to_dict() for local in run.local.get(place, ())]}


def exposure_dict(most: Exposure) -> dict[str, Any]:
    """For JSON."""
    return {"devices": most.devices, "at": format_instant(most.at) if most.at is not None else None}


def in_order(run: Run, places: frozenset[Place]) -> Sequence[Place]:
    """The places of a merge in the order of the waves."""
    return [place for place in run.entries if place in places]
