"""The local nights in which devices start, for whoever reads a calendar: a site's own dates, and changes of clocks. Pure.

Reads a trace and the windows of its sites; decides nothing. Called by `review` and by pictures of a run. Source: design §4.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from reconciler.model.desired import Desired, SiteSpec
from reconciler.model.scalars import format_instant
from reconciler.planner.windows import calendar, instant, micros, zone
from reconciler.simulate.trace import Event, Kind


@dataclass(frozen=True, slots=True)
class Night:
    """One window in which devices of some sites start. Sites share a night that share zone, window and date."""

    timezone: str
    date: date
    """The local date on which the window opens."""
    opens_at: datetime
    closes_at: datetime
    sites: tuple[str, ...]
    devices: int
    first_told_at: datetime
    clocks: str | None = None
    """What a change of the clocks does to this window; None where there is none."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "timezone": self.timezone,
            "date": self.date.isoformat(),
            "opensAt": format_instant(self.opens_at),
            "closesAt": format_instant(self.closes_at),
            "sites": list(self.sites),
            "devices": self.devices,
            "firstToldAt": format_instant(self.first_told_at),
            "clocks": self.clocks,
        }


def nights_of(desired: Desired, events: Iterable[Event], wave: str, key: str) -> tuple[Night, ...]:
    """The nights of one entry of the calendar, by their beginning. What starts outside of a window (a waiver, an app that may
    restart at any time) has none and is left out."""
    found: dict[tuple[str, date, datetime, datetime], list[Event]] = {}
    for event in events:
        spec = desired.sites.get(event.site or "")
        if event.kind is not Kind.TOLD or (event.wave, event.key) != (wave, key) or spec is None:
            continue
        night = night_of(desired, spec, event.at)
        if night is not None:
            found.setdefault((spec.timezone, *night), []).append(event)
    nights = [
        Night(
            timezone,
            day,
            opens,
            closes,
            tuple(sorted({event.site for event in told if event.site is not None})),
            len({event.device for event in told}),
            min(event.at for event in told),
            clocks_of(timezone, opens, closes),
        )
        for (timezone, day, opens, closes), told in found.items()
    ]
    return tuple(sorted(nights, key=lambda night: (night.opens_at, night.timezone, night.closes_at)))


def night_of(desired: Desired, spec: SiteSpec, at: datetime) -> tuple[date, datetime, datetime] | None:
    """The window of a site that is open at an instant: its local date, and when it opens and closes. None: none is open.

    Of windows that touch, day for day, it is the one of the day.
    """
    window = spec.window or desired.fleet.window
    nights = calendar(spec.timezone, window.start, window.end)
    today = at.astimezone(zone(spec.timezone)).date()
    for day in (today, today - timedelta(days=1)):
        opens, closes = nights.night(day)
        if opens <= micros(at) < closes:
            return day, instant(opens), instant(closes)
    return None


def clocks_of(timezone: str, opens: datetime, closes: datetime) -> str | None:
    """A sentence about the change of clocks that falls on the day of a window, from the midnight before it to its end."""
    tz = zone(timezone)
    local = opens.astimezone(tz)
    since = local.replace(hour=0, minute=0, second=0, microsecond=0)
    begin, end = since.astimezone(opens.tzinfo), closes.astimezone(tz)
    before, after = begin.astimezone(tz).utcoffset(), end.utcoffset()
    if before is None or after is None or before == after:
        return None
    moved = after - before
    how = "forward" if moved > timedelta(0) else "back"
    at = _change(timezone, begin, closes)
    long = _clock(closes - opens)
    return (
        f"clocks go {how} by {_clock(abs(moved))} on {at.astimezone(tz).date().isoformat()} in {timezone} "
        f"({format_instant(at)}); the window of that night is {long} long"
    )


def _change(timezone: str, low: datetime, high: datetime) -> datetime:
    """The first second at which the offset differs from the one at `low`."""
    tz = zone(timezone)
    before = low.astimezone(tz).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=int((high - low).total_seconds()) // 2)
        low, high = (middle, high) if middle.astimezone(tz).utcoffset() == before else (low, middle)
    return high


def _clock(length: timedelta) -> str:
    """`1h`, `30m`, `1h 30m`."""
    minutes = int(length.total_seconds()) // 60
    hours, minutes = divmod(minutes, 60)
    return " ".join(text for text in (f"{hours}h" if hours else "", f"{minutes}m" if minutes else "") if text) or "0m"
