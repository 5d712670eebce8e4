"""Maintenance windows: local wall-clock times of a site → UTC intervals, exact across DST. Pure.

Decides when a window is open, whether a flash still fits, and when the next one begins. Zones come from the pinned `tzdata`
package, never from the machine. All instants here are int64 microseconds since the epoch, UTC. Design §4.5, contract fine
print 11: end ≤ start crosses midnight; a nonexistent start is the first valid instant; a repeated hour is one window
(first start, later end); days that touch are one; a window that DST removes is skipped.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import tzdata

I64 = npt.NDArray[np.int64]

SECOND = 1_000_000
DAY = 86_400 * SECOND
NEVER = np.iinfo(np.int64).max
NONE = np.iinfo(np.int64).min
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ZONE_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}$")
_HORIZON_DAYS = 9
_FIRST, _LAST = date(2, 1, 1), date(9998, 1, 1)
"""Local dates are looked for between these, so that no instant a document can hold leaves the calendar."""


def micros(instant: datetime) -> int:
    """An aware datetime → microseconds since the epoch."""
    delta = instant - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * SECOND + delta.microseconds


def instant(value: int) -> datetime:
    """Microseconds since the epoch → an aware datetime, UTC; the last there is for what lies beyond it."""
    return _EPOCH + timedelta(microseconds=min(max(int(value), _EARLIEST), _LATEST))


_EARLIEST, _LATEST = micros(datetime.min.replace(tzinfo=UTC)), micros(datetime.max.replace(tzinfo=UTC))


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """An IANA zone from the pinned package. ValueError: no such zone."""
    path = os.path.join(os.path.dirname(tzdata.__file__), "zoneinfo", *name.split("/"))
    if not _ZONE_NAME.match(name) or not os.path.isfile(path):
        raise ValueError(f"{name!r} is not an IANA time zone; write one as Europe/Berlin")
    with open(path, "rb") as file:
        return ZoneInfo.from_file(file, key=name)


def _to_utc(day: date, minutes: int, tz: ZoneInfo, *, later: bool) -> int:
    """A local time → UTC. In a gap: the first valid instant. Where it is repeated: the earlier, or `later`, of the two."""
    naive = datetime(day.year, day.month, day.day) + timedelta(minutes=minutes)  # noqa: DTZ001 - local on purpose
    local = naive.replace(tzinfo=tz, fold=1 if later else 0)
    utc = local.astimezone(UTC)
    if utc.astimezone(tz).replace(tzinfo=None) == naive:
        return micros(utc)
    # A gap: with fold=1 the text lands before the transition, with fold=0 after it; the transition is between the two.
    low = micros(naive.replace(tzinfo=tz, fold=1).astimezone(UTC)) // SECOND
    high = micros(naive.replace(tzinfo=tz, fold=0).astimezone(UTC)) // SECOND
    before = instant(low * SECOND).astimezone(tz).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if instant(middle * SECOND).astimezone(tz).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high * SECOND


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something of a given length may start now; if not, the next start, and whether the coming night has none."""

    can_start: bool
    until: int | None
    missing: bool = False


class Calendar:
    """The windows of one zone and one pair of local times."""

    def __init__(self, zone_name: str, start: int, end: int) -> None:
        self.zone_name, self.start, self.end = zone_name, start, end
        self._zone = zone(zone_name)
        self._nights: dict[date, tuple[int, int]] = {}
        self._memo: dict[int, tuple[int, int, Verdict]] = {}

    def night(self, day: date) -> tuple[int, int]:
        """The window that begins on a local date, as `[open, close)`; close ≤ open where DST removed it."""
        found = self._nights.get(day)
        if found is None:
            end = self.end if self.end > self.start else self.end + 1440
            opens = _to_utc(day, self.start, self._zone, later=False)
            found = self._nights[day] = (opens, _to_utc(day, end, self._zone, later=True))
        return found

    def _local_date(self, at: int) -> date:
        utc = instant(at)
        if not _FIRST < utc.date() < _LAST:
            return max(min(utc.date(), _LAST), _FIRST)
        return utc.astimezone(self._zone).date()

    def intervals(self, since: int, until: int) -> list[tuple[int, int]]:
        """Open intervals that touch `[since, until]`, joined where days touch, in order."""
        out: list[tuple[int, int]] = []
        day = self._local_date(since) - timedelta(days=2)
        last = self._local_date(until) + timedelta(days=1)
        while day <= last:
            opens, closes = self.night(day)
            day += timedelta(days=1)
            if closes <= opens:
                continue
            if out and opens <= out[-1][1]:
                out[-1] = (out[-1][0], max(closes, out[-1][1]))
            else:
                out.append((opens, closes))
        return [(opens, closes) for opens, closes in out if closes > since and opens <= until]

    def judge(self, now: int, length: int) -> Verdict:
        """May something of `length` microseconds start now?"""
        return self.judge_until(now, length)[0]

    def judge_until(self, now: int, length: int) -> tuple[Verdict, int]:
        """The verdict, and the instant until which it stands: the next at which the window opens, closes, or gets too short."""
        since, until, verdict = self._memo.get(length, (NEVER, NONE, Verdict(can_start=False, until=None)))
        if not since <= now < until:
            verdict, until = self._judge(now, length), self._edge(now, length)
            self._memo[length] = (now, until, verdict)
        return verdict, until

    def _judge(self, now: int, length: int) -> Verdict:
        spans = self.intervals(now, now + _HORIZON_DAYS * DAY)
        for opens, closes in spans:
            if opens <= now and now + length <= closes:
                return Verdict(can_start=True, until=None)
        until = next((opens for opens, closes in spans if opens > now and closes - opens >= length), None)
        return Verdict(can_start=False, until=until, missing=self._coming_is_missing(now, length))

    def _coming_is_missing(self, now: int, length: int) -> bool:
        day = self._local_date(now) - timedelta(days=1)
        for _ in range(_HORIZON_DAYS):
            opens, closes = self.night(day)
            if opens > now:
                return closes - opens < length
            day += timedelta(days=1)
        return True

    def _edge(self, now: int, length: int) -> int:
        spans = self.intervals(now, now + _HORIZON_DAYS * DAY)
        edges = [edge for opens, closes in spans for edge in (opens, closes - length + 1, closes)]
        # A night whose window is gone has an instant too: from it on, another night is the coming one.
        today = self._local_date(now)
        edges += [self.night(today + timedelta(days=day))[0] for day in range(-1, _HORIZON_DAYS)]
        return min((edge for edge in edges if edge > now), default=now + DAY)

    def when_open_for(self, since: int, length: int) -> int:
        """The instant at which the window will have been open for `length` since `since`; NEVER within a year."""
        left, begin = length, since
        # Most windows are open for long enough within days; a whole year of nights is looked at only where that is needed.
        for days in (4, 32, 370):
            until = since + days * DAY
            for opens, closes in self.intervals(begin, until):
                opens, closes = max(opens, begin), min(closes, until)
                if closes - opens >= left:
                    return opens + left
                left -= max(closes - opens, 0)
            begin = until
        return NEVER


@lru_cache(maxsize=65536)
def calendar(zone_name: str, start: int, end: int) -> Calendar:
    """The shared calendar of a zone and a window; nights are computed once."""
    return Calendar(zone_name, start, end)
