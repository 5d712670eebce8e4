"""Why a window holds a device: its local times, how much is left, when the next opens, what daylight saving does. Pure.

Called by `explain_device`. The instants are the plan's own (`ground.Nights`, through `render.until_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, timedelta

from reconciler.model.plan import Reason
from reconciler.model.scalars import format_duration, format_instant
from reconciler.planner.explain_values import Change, Link, elapsed
from reconciler.planner.explain_view import View
from reconciler.planner.render import until_of
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.planner.windows import NEVER, SECOND, Calendar, instant, zone


def clock(minutes: int) -> str:
    """Minutes since midnight → `02:00`."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def local(micros: int, zone_name: str) -> str:
    """`2026-01-16 02:00 CET`: an instant as the site's clock shows it."""
    there = instant(micros).astimezone(zone(zone_name))
    return f"{there:%Y-%m-%d %H:%M} {there.tzname() or zone_name}"


def window_links(view: View, number: int, reason: Reason, rows: Sequence[int], depth: int) -> list[Link]:
    """One link for devices that wait for a window. Where their sites' windows differ, one a calendar."""
    by_calendar: dict[int, list[int]] = {}
    for row in rows:
        by_calendar.setdefault(int(view.roster.calendar_of[row]), []).append(row)
    found = [_link(view, number, reason, code, some, depth) for code, some in by_calendar.items()]
    return sorted(found, key=lambda link: (link.until is None, link.until or instant(0), link.name))


def _link(view: View, number: int, reason: Reason, code: int, rows: list[int], depth: int) -> Link:
    calendar = view.roster.calendars[code]
    until = until_of(view.state, number, reason, view.wave(rows[0]), code)
    hours = f"{clock(calendar.start)} to {clock(calendar.end)} {calendar.zone_name}"
    here = local(view.now, calendar.zone_name)[11:]
    need = view.roster.flash_length if number == IMAGE_TRACK else SECOND
    statement = _left(view, calendar, need, hours)
    if reason is Reason.NO_WINDOW:
        statement = f"without a window in the coming night ({hours}): {_missing(view.now, calendar, need)}"
    elif statement is None:
        statement = f"outside the window {hours}, it is {here} there"
    if until == NEVER:
        change = Change("make the window long enough for a flash", None, view.window_ask(rows[0]))
        return view.link(rows, reason.value, statement, depth=depth, changes=[change], ask=view.window_ask(rows[0]))
    opens = f"the window opens at {format_instant(instant(until))} ({local(until, calendar.zone_name)})"
    opens += _saving(view.now, until, calendar)
    return view.link(
        rows,
        reason.value,
        statement,
        depth=depth,
        until=until,
        changes=[Change(opens, instant(until))],
        ask=view.window_ask(rows[0]),
    )


def _left(view: View, calendar: Calendar, need: int, hours: str) -> str | None:
    """Where the window is open and a flash does not fit any more."""
    for opens, closes in calendar.intervals(view.now, view.now):
        if opens <= view.now < closes:
            flash = format_duration(need // SECOND)
            return f"with {elapsed(closes - view.now)} left of the window {hours}, where a flash needs {flash}"
    return None


def _missing(now: int, calendar: Calendar, need: int) -> str:
    """Why the coming night has no window."""
    day = instant(now).astimezone(zone(calendar.zone_name)).date() - timedelta(days=1)
    for _ in range(9):
        opens, closes = calendar.night(day)
        if opens > now:
            if closes <= opens:
                return f"daylight saving removes the one of {day.isoformat()}"
            flash = format_duration(need // SECOND)
            return f"the one of {day.isoformat()} has {elapsed(closes - opens)}, and a flash needs {flash}"
        day += timedelta(days=1)
    return "daylight saving removes it"


def _saving(now: int, until: int, calendar: Calendar) -> str:
    """What to know when the clock changes between now and then, or during that night."""
    place = zone(calendar.zone_name)
    before = instant(now).astimezone(UTC).astimezone(place).utcoffset() or timedelta()
    spans = calendar.intervals(until, until)
    closes = spans[0][1] if spans else until
    after = instant(closes).astimezone(place).utcoffset() or timedelta()
    if before == after:
        return ""
    step = int((after - before).total_seconds()) // 60
    return f", after the clocks there go {'forward' if step > 0 else 'back'} by {elapsed(abs(step) * 60 * SECOND)}"
