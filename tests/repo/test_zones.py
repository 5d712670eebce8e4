"""Nights that lose an hour, by zone and window: the pinned zones, not the machine's."""

from __future__ import annotations

import pytest

from reconciler.repo.near import did_you_mean, nearest_name
from reconciler.repo.zones import least_left, lost_hours, zone_names


@pytest.mark.parametrize(
    ("zone", "start", "end", "left"),
    [
        ("Europe/Berlin", 120, 240, 60),
        ("Europe/Berlin", 120, 180, 0),
        ("Europe/Berlin", 130, 170, 0),
        ("Europe/Berlin", 60, 120, None),
        ("Europe/Berlin", 180, 240, None),
        ("America/New_York", 120, 180, 0),
        ("Europe/Berlin", 23 * 60, 150, 180),
        ("Australia/Lord_Howe", 120, 150, 0),
        ("Australia/Lord_Howe", 120, 180, 30),
        ("America/Phoenix", 120, 180, None),
        ("Asia/Kathmandu", 120, 180, None),
        ("UTC", 0, 1440, None),
        ("Africa/Cairo", 0, 60, 0),
        ("America/Havana", 0, 60, 0),
    ],
)
def test_what_is_left_of_the_worst_night(zone: str, start: int, end: int, left: int | None) -> None:
    worst = least_left(zone, start, end)
    assert (worst[0] if worst else None) == left


def test_every_zone_has_its_lost_hours() -> None:
    assert {"Europe/Berlin", "America/New_York", "UTC", "Pacific/Apia"} <= zone_names()
    assert lost_hours("Europe/Berlin")[0][:2] == (120, 180)


def test_names_are_guessed_from_few_and_from_many() -> None:
    many = [f"SITE-{number:06d}" for number in range(50_000)]
    assert nearest_name("SITE-04231", many) is not None
    assert nearest_name("site-004231", many) == "SITE-004231"
    assert nearest_name("x" * 10_000, many) is None
    assert nearest_name("staleafter", ["staleAfter", "reportEvery"]) == "staleAfter"
    assert nearest_name("stale_after", ["staleAfter", "reportEvery"]) == "staleAfter"
    assert did_you_mean("canary", ["canary"]) == ""
    assert did_you_mean("zzz", ["canary"]) == ""
    assert nearest_name("!!", ["a"]) is None
