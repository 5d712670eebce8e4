"""A trace for people: one line for what a wave did in one night, not one for each device. Pure; called by the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from reconciler.simulate.trace import Entry, Event, Kind

_PAUSE = timedelta(hours=6)
"""Devices of one wave that start within so long of each other are one line."""
_BURSTS = {
    Kind.TOLD: "start",
    Kind.ARRIVED: "arrive",
    Kind.ATTEMPT_FAILED: "fail an attempt",
    Kind.TIMED_OUT: "time out",
}
_MOST_NAMES = 3


@dataclass(slots=True)
class _Burst:
    event: Event
    last: datetime
    devices: set[str] = field(default_factory=set)

    def line(self) -> tuple[datetime, str]:
        names = sorted(self.devices)
        who = ", ".join(names[:_MOST_NAMES]) + (
            f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        )
        until = "" if self.last == self.event.at else f" until {self.last:%a %H:%M}"
        count = f"{len(names)} device{'s' if len(names) != 1 else ''}"
        why = (
            f" ({self.event.detail})"
            if self.event.kind is Kind.TOLD and self.event.detail not in ("", "promote")
            else ""
        )
        what = (
            f"wave {self.event.wave}: {count} {_verb(self.event.kind, len(names))} {self.event.key}{why}{until}: {who}"
        )
        return self.event.at, what


def _verb(kind: Kind, number: int) -> str:
    words = {Kind.TOLD: ("starts", "start"), Kind.ARRIVED: ("runs", "run")}.get(kind)
    if words is None:
        words = (
            ("failed an attempt of", "failed attempts of")
            if kind is Kind.ATTEMPT_FAILED
            else ("timed out on", "timed out on")
        )
    return words[number != 1]


def lines(events: Iterable[Event]) -> list[str]:
    """The timeline: instant (UTC) and sentence, in order of time."""
    told = sorted(_told(events), key=lambda pair: pair[0])
    return [f"{at:%a %d %b %H:%M}  {text}" for at, text in told]


def _told(events: Iterable[Event]) -> Iterator[tuple[datetime, str]]:
    bursts: dict[tuple[Kind, str | None, str | None, str], _Burst] = {}
    for event in events:
        if event.kind in _BURSTS and event.device is not None:
            place = (event.kind, event.wave, event.key, event.detail if event.kind is Kind.TOLD else "")
            burst = bursts.get(place)
            if burst is not None and event.at - burst.last <= _PAUSE:
                burst.last = event.at
                burst.devices.add(event.device)
                continue
            if burst is not None:
                yield burst.line()
            bursts[place] = _Burst(event, event.at, {event.device})
        elif (text := _sentence(event)) is not None:
            yield event.at, text
    yield from (burst.line() for burst in bursts.values())


def _sentence(event: Event) -> str | None:
    """What is worth a line of its own; silence and single checks of devices are not."""
    about = f"wave {event.wave}: " if event.wave else ""
    match event.kind:
        case Kind.MERGED:
            return f"merged: {event.detail}"
        case Kind.REFUSED:
            return f"refused: {event.detail}"
        case Kind.BUILT | Kind.SIGNED | Kind.PUBLISHED:
            return f"{event.key} {event.kind.value}"
        case Kind.RETAGGED:
            return f"tag {event.detail} is {event.key}"
        case Kind.PROVEN:
            return f"{about}{event.key} proven"
        case Kind.STOPPED:
            return f"{about}gate failed: {event.key} is stopped in every wave"
        case Kind.PROPOSED:
            return f"a revert of {event.key} is proposed"
        case Kind.FAULT:
            return event.detail
        case Kind.QUIET:
            return "quiet: nothing more happens by itself"
        case _:
            return None


def table(calendar: Iterable[Entry]) -> list[str]:
    """The calendar as columns: wave, release, devices, first start, last arrival, proof, and what held it at the end."""
    head = ("wave", "release", "devices", "first start", "last arrival", "outcome")
    rows = [
        (
            entry.wave,
            entry.key,
            f"{entry.arrived} of {entry.devices}" if entry.arrived != entry.devices else str(entry.devices),
            when(entry.first_told_at),
            when(entry.last_arrived_at),
            _outcome(entry),
        )
        for entry in calendar
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def _outcome(entry: Entry) -> str:
    if entry.stopped_at is not None:
        return f"gate failed {when(entry.stopped_at)}"
    if entry.proven_at is not None:
        return f"proven {when(entry.proven_at)}"
    if entry.held:
        message = entry.held[0].message.removeprefix(f"wave {entry.wave!r}: ").partition(";")[0]
        return f"{entry.held[0].reason}: {message}"
    return "nothing to do" if not entry.first_told_at else "under way"


def when(at: datetime | None) -> str:
    """An instant as the timeline has it, UTC."""
    return f"{at:%a %d %b %H:%M}" if at is not None else "-"
