"""Windows in zones that make it hard: gaps, repeated hours, skipped days, half hours, days that touch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.planner.windows import NEVER, SECOND, calendar, instant, micros, zone

HOUR = 3600 * SECOND
FLASH = 20 * 60 * SECOND


def at(text: str) -> int:
    return micros(datetime.fromisoformat(text + "+00:00"))


def spans(zone_name: str, start: int, end: int, since: str, until: str) -> list[tuple[str, str]]:
    found = calendar(zone_name, start, end).intervals(at(since), at(until))
    return [(f"{instant(opens):%m-%dT%H:%M}", f"{instant(closes):%m-%dT%H:%M}") for opens, closes in found]


@pytest.mark.parametrize(
    ("zone_name", "start", "end", "since", "until", "expected"),
    [
        # Spring forward: 02:00 to 03:00 does not exist, so the window opens at 03:00 EDT.
        ("America/New_York", 120, 240, "2026-03-08T00:00", "2026-03-08T12:00", [("03-08T07:00", "03-08T08:00")]),
        # An end in the gap is the first valid instant after it.
        ("America/New_York", 60, 150, "2026-03-08T00:00", "2026-03-08T12:00", [("03-08T06:00", "03-08T07:00")]),
        # A window inside the gap is gone for that night.
        ("America/New_York", 135, 165, "2026-03-08T00:00", "2026-03-08T12:00", []),
        # Fall back: the repeated hour is one window, and a repeated end is the later one.
        ("Europe/Berlin", 120, 240, "2026-10-24T20:00", "2026-10-25T12:00", [("10-25T00:00", "10-25T03:00")]),
        ("Europe/Berlin", 60, 150, "2026-10-24T20:00", "2026-10-25T12:00", [("10-24T23:00", "10-25T01:30")]),
        # Half an hour of daylight saving.
        ("Australia/Lord_Howe", 120, 240, "2026-10-03T08:00", "2026-10-04T08:00", [("10-03T15:30", "10-03T17:00")]),
        ("Australia/Lord_Howe", 60, 120, "2026-04-04T08:00", "2026-04-05T08:00", [("04-04T14:00", "04-04T15:30")]),
        # A quarter of an hour off.
        ("Asia/Kathmandu", 120, 240, "2026-01-14T12:00", "2026-01-15T12:00", [("01-14T20:15", "01-14T22:15")]),
        # The 30th of December 2011 never came.
        (
            "Pacific/Apia",
            120,
            240,
            "2011-12-29T00:00",
            "2011-12-31T00:00",
            [("12-29T12:00", "12-29T14:00"), ("12-30T12:00", "12-30T14:00")],
        ),
        # Crossing midnight, and days that touch.
        ("UTC", 1380, 60, "2026-01-15T12:00", "2026-01-16T12:00", [("01-15T23:00", "01-16T01:00")]),
        ("UTC", 720, 719, "2026-01-15T12:30", "2026-01-15T13:00", [("01-15T12:00", "01-16T11:59")]),
    ],
)
def test_intervals(
    zone_name: str, start: int, end: int, since: str, until: str, expected: list[tuple[str, str]]
) -> None:
    assert spans(zone_name, start, end, since, until) == expected


def test_a_whole_day_never_closes() -> None:
    always = calendar("Europe/Berlin", 0, 1440)
    for hour in range(48):
        assert always.judge(at("2026-03-28T00:00") + hour * HOUR, FLASH).can_start


def test_a_flash_must_end_inside() -> None:
    night = calendar("UTC", 120, 240)
    assert night.judge(at("2026-01-15T03:40"), FLASH).can_start
    late = night.judge(at("2026-01-15T03:40") + 1, FLASH)
    assert not late.can_start and late.until == at("2026-01-16T02:00")
    assert not night.judge(at("2026-01-15T02:00") - 1, FLASH).can_start
    assert night.judge(at("2026-01-15T02:00"), FLASH).can_start


def test_a_night_without_a_window_says_so_until_its_hour_has_passed() -> None:
    gone = calendar("America/New_York", 135, 165)
    before, after = gone.judge(at("2026-03-08T01:00"), FLASH), gone.judge(at("2026-03-08T07:00"), FLASH)
    assert before.missing and before.until == at("2026-03-09T06:15")
    assert not after.missing and after.until == at("2026-03-09T06:15")


def test_a_verdict_stands_until_its_edge() -> None:
    night = calendar("UTC", 120, 240)
    verdict, until = night.judge_until(at("2026-01-15T02:10"), FLASH)
    assert verdict.can_start and until == at("2026-01-15T03:40") + 1
    assert night.judge_until(at("2026-01-15T01:00"), FLASH)[1] == at("2026-01-15T02:00")


def test_open_time_runs_only_while_the_window_is_open() -> None:
    night = calendar("UTC", 120, 240)
    assert night.when_open_for(at("2026-01-15T03:00"), 2 * HOUR) == at("2026-01-16T03:00")
    assert night.when_open_for(at("2026-01-15T02:00"), 2 * HOUR) == at("2026-01-15T04:00")
    assert night.when_open_for(at("2026-01-15T12:00"), HOUR) == at("2026-01-16T03:00")
    assert night.when_open_for(at("2026-01-15T12:00"), 24 * 365 * 2 * HOUR) == NEVER


@pytest.mark.parametrize(
    "name", ["", "Europe", "Europe/Nowhere", "../etc/passwd", "/etc/passwd", "Europe/../UTC", "-x"]
)
def test_no_zone(name: str) -> None:
    with pytest.raises(ValueError, match="is not an IANA time zone"):
        zone(name)


@settings(deadline=None)
@given(
    st.sampled_from(["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu"]),
    st.integers(0, 1439),
    st.integers(1, 1440),
    st.datetimes(datetime(2025, 1, 1), datetime(2027, 12, 31)),
)
def test_a_window_is_open_exactly_where_local_time_says(name: str, start: int, end: int, when: datetime) -> None:
    """Away from the nights of a change, the window is what a wall clock shows."""
    if start == end:
        return
    now, tz = when.replace(tzinfo=UTC), zone(name)
    days = [now + timedelta(days=day) for day in (-2, -1, 0, 1, 2)]
    if len({day.astimezone(tz).utcoffset() for day in days}) != 1:
        return
    local = now.astimezone(tz)
    minutes = local.hour * 60 + local.minute
    inside = start <= minutes < end if end > start else minutes >= start or minutes < end
    found = calendar(name, start, end).intervals(micros(now), micros(now))
    assert any(opens <= micros(now) < closes for opens, closes in found) == inside


@pytest.mark.parametrize("year", ["0001-01-01T00:00:00", "9999-12-31T23:59:59"])
@pytest.mark.parametrize("zone_name", ["Pacific/Kiritimati", "America/Adak"])
def test_no_instant_that_can_be_written_leaves_the_calendar(year: str, zone_name: str) -> None:
    found = calendar(zone_name, 120, 240)
    found.judge_until(at(year), FLASH)
    assert found.when_open_for(at(year), HOUR) > at("0001-01-01T00:00:00")
    assert instant(at(year) + 400 * 366 * 24 * HOUR).tzinfo is UTC
