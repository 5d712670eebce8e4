"""IANA time zones as the pinned `tzdata` package knows them, and the hours that each loses in spring.

Decides whether a zone's name exists and how much of a daily window is left in its worst night; never asks the machine's own
zones and never the clock. Used by the checks of fleet documents. Source: contract, fine print 11.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from zoneinfo import ZoneInfo

import tzdata

# Not through importlib.resources: loading that costs a short command 10 ms.
_PACKAGE = Path(tzdata.__file__).parent
# Zones change by rules that repeat every year, or (Morocco) are written down years ahead; no clock is needed to find them.
_YEARS = range(2025, 2038)
_DAY = 1440


@lru_cache(maxsize=1)
def zone_names() -> frozenset[str]:
    """Every name in the pinned package, as `Europe/Berlin`."""
    return frozenset((_PACKAGE / "zones").read_text(encoding="utf-8").split())


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    with (_PACKAGE / "zoneinfo" / name).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


@lru_cache(maxsize=1024)
def lost_hours(name: str) -> tuple[tuple[int, int, str], ...]:
    """Local times that do not exist on some nights: (first, after the last) in minutes since midnight, and a day it happens."""
    zone = _zone(name)

    def offset(at: datetime) -> timedelta:
        return at.astimezone(zone).utcoffset() or timedelta()

    found: dict[tuple[int, int], str] = {}
    points = _points()
    offsets = [offset(point) for point in points]
    for low, high, before, after in zip(points, points[1:], offsets, offsets[1:], strict=False):
        if after > before:
            _gap(low, high, before, after, offset, found)
    return tuple((first, last, day) for (first, last), day in sorted(found.items()))


@lru_cache(maxsize=1)
def _points() -> tuple[datetime, ...]:
    """Instants half a month apart: no zone goes forward and back again between two of them."""
    months = [datetime(year, month, 1, tzinfo=UTC) for year in _YEARS for month in range(1, 13)]
    ends = [*months[1:], datetime(_YEARS[-1] + 1, 1, 1, tzinfo=UTC)]
    return (
        *tuple(at for low, high in zip(months, ends, strict=True) for at in (low, low + (high - low) / 2)),
        ends[-1],
    )


def _gap(  # type: ignore[no-untyped-def]
    low: datetime, high: datetime, before: timedelta, after: timedelta, offset, found: dict[tuple[int, int], str]
) -> None:
    """The forward change between two instants: halve until it is found to the minute."""
    while high - low > timedelta(minutes=1):
        middle = low + timedelta(minutes=(high - low) // timedelta(minutes=2))
        if offset(middle) == before:
            low = middle
        else:
            high = middle
    local = (high + before).replace(tzinfo=None)
    first = local.hour * 60 + local.minute
    found.setdefault((first, first + int((after - before).total_seconds() // 60)), local.date().isoformat())


def least_left(name: str, start: int, end: int) -> tuple[int, str] | None:
    """Minutes left of the daily window [start, end) in the night that loses most of it, and that day; None if none does.

    `start` and `end` are minutes since local midnight; `end` before `start` crosses midnight.
    """
    if end <= start:
        end += _DAY
    worst: tuple[int, str] | None = None
    for first, last, day in lost_hours(name):
        lost = sum(max(0, min(end, last + shift) - max(start, first + shift)) for shift in (0, _DAY))
        if lost and (worst is None or end - start - lost < worst[0]):
            worst = (end - start - lost, day)
    return worst
