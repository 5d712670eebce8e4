"""A trace in lines: one for what a wave does in a night, the calendar as columns, and the summary around them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from reconciler.simulate.faults import Faults
from reconciler.simulate.summary import faults_in_words, spoken
from reconciler.simulate.timeline import lines, table
from reconciler.simulate.trace import Entry, Event, Held, Kind

AT = datetime(2026, 3, 10, 22, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def told(hours: float, device: str, kind: Kind = Kind.TOLD, detail: str = "promote") -> Event:
    return Event(AT + hours * HOUR, kind, "half", "SITE-1", device, "v2", detail)


def test_a_wave_is_a_line_a_night_and_not_one_a_device() -> None:
    night = [told(hour, f"SITE-1-{number}") for number, hour in enumerate((0, 1, 1.5, 4))]
    next_night = [told(24, "SITE-1-9")]
    assert lines([*night, *next_night]) == [
        "Tue 10 Mar 22:00  wave half: 4 devices start v2 until Wed 02:00: SITE-1-0, SITE-1-1, SITE-1-2 and 1 more",
        "Wed 11 Mar 22:00  wave half: 1 device starts v2: SITE-1-9",
    ]


def test_why_a_device_starts_is_said_where_it_is_no_promotion() -> None:
    found = lines([told(0, "a", detail="rescue"), told(1, "b"), told(2, "c", Kind.ATTEMPT_FAILED, "")])
    assert found == [
        "Tue 10 Mar 22:00  wave half: 1 device starts v2 (rescue): a",
        "Tue 10 Mar 23:00  wave half: 1 device starts v2: b",
        "Wed 11 Mar 00:00  wave half: 1 device failed an attempt of v2: c",
    ]


def test_lines_are_in_order_of_time_whatever_they_gather() -> None:
    events = [told(0, "a"), Event(AT + HOUR, Kind.PROVEN, "lab", key="v2"), told(2, "b"), told(1, "c", Kind.SILENT)]
    assert [line.partition("  ")[2][:9] for line in lines(events)] == ["wave half", "wave lab:"]


def test_the_calendar_says_how_each_wave_ended() -> None:
    held = (Held("offline", "wave 'c': SITE-1-1 is silent; look at it", None),)
    entries = [
        Entry("a", "v2", 3, AT, AT + HOUR, AT + 2 * HOUR, None, 3),
        Entry("b", "v2", 3, AT, AT + HOUR, AT + HOUR, AT + 2 * HOUR, 2),
        Entry("c", "v2", 1, None, None, None, None, 0, held),
        Entry("d", "v2", 1, AT, None, None, None, 0),
    ]
    assert [line.split()[2:] for line in table(entries)][1:] == [
        ["3", "Tue", "10", "Mar", "22:00", "Tue", "10", "Mar", "23:00", "proven", "Wed", "11", "Mar", "00:00"],
        [
            "2",
            "of",
            "3",
            "Tue",
            "10",
            "Mar",
            "22:00",
            "Tue",
            "10",
            "Mar",
            "23:00",
            "gate",
            "failed",
            "Wed",
            "11",
            "Mar",
            "00:00",
        ],
        ["0", "of", "1", "-", "-", "offline:", "SITE-1-1", "is", "silent"],
        ["0", "of", "1", "Tue", "10", "Mar", "22:00", "-", "under", "way"],
    ]


def test_faults_and_lengths_are_said_in_words() -> None:
    assert faults_in_words(Faults()) == "none"
    faults = Faults(fail=0.025, crashes=1, power=0.5, bad_from_s=108_000, bad=frozenset({"v2"}), herd=True, until=AT)
    assert faults_in_words(faults) == (
        "2.5% of updates fail, 0.5 power cuts a device and day, 1 kill of the controller a day, v2 turns bad 30h after it "
        "runs, all report in step, and call in at 02:00, until Tue 10 Mar 22:00"
    )
    assert [spoken(timedelta(minutes=m)) for m in (5, 60, 61, 1440, 1501)] == [
        "5 min",
        "1 h 0 min",
        "1 h 1 min",
        "1 d",
        "1 d 1 h",
    ]
