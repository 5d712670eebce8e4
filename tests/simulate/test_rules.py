"""The rules written once more: each against the contract's own words, and then against the planner on random fleets."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.desired import Desired, FleetSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.model.scalars import Budget, parse_budget
from reconciler.planner.roster import Roster, membership
from reconciler.planner.windows import calendar, micros
from reconciler.simulate import rules

MINUTE = timedelta(minutes=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def fleet(waves: list[dict[str, Any]], sites: dict[str, dict[str, Any]], order: str = "heron", **spec: Any) -> Desired:
    made = {
        name: SiteSpec.model_validate({"timezone": "UTC", "devices": [f"{name}-1"]} | site)
        for name, site in sites.items()
    }
    asked = [{"image": "v1", "soak": "1h"} | wave for wave in waves]
    of = WavesSpec.model_validate({"order": order, "waves": asked})
    return Desired(FleetSpec.model_validate(spec), of, {"v1": ImageSpec()}, {}, made)


def one_site(zone: str, start: str = "02:00", end: str = "04:00") -> Desired:
    return fleet([{"name": "all", "percent": 100}], {"S": {"timezone": zone, "window": {"start": start, "end": end}}})


# ---------------------------------------------------------------- windows (design §4.5, fine print 11)


@pytest.mark.parametrize(
    ("zone", "start", "end", "opens", "closes"),
    [
        ("Europe/Berlin", "02:00", "04:00", "2026-01-15T01:00", "2026-01-15T03:00"),
        # The start does not exist: the first valid instant is 03:00 summer time.
        ("Europe/Berlin", "02:00", "04:00", "2026-03-29T01:00", "2026-03-29T02:00"),
        # The hour from 02:00 is there twice, and is one window: first start, later end.
        ("Europe/Berlin", "02:00", "04:00", "2026-10-25T00:00", "2026-10-25T03:00"),
        ("Europe/Berlin", "01:00", "02:30", "2026-10-24T23:00", "2026-10-25T01:30"),
        ("Australia/Lord_Howe", "02:00", "04:00", "2026-10-03T15:30", "2026-10-03T17:00"),
        ("Asia/Kathmandu", "02:00", "04:00", "2026-01-15T20:15", "2026-01-15T22:15"),
        ("UTC", "23:00", "01:30", "2026-01-15T23:00", "2026-01-16T01:30"),
        ("America/New_York", "22:00", "24:00", "2026-01-16T03:00", "2026-01-16T05:00"),
    ],
)
def test_a_window_is_half_open_in_local_time(zone: str, start: str, end: str, opens: str, closes: str) -> None:
    desired = one_site(zone, start, end)
    for instant, is_open in (
        (at(opens) - MINUTE, False),
        (at(opens), True),
        (at(closes) - MINUTE, True),
        (at(closes), False),
    ):
        assert rules.is_open(desired, "S", instant) is is_open, instant


def test_a_window_that_the_clock_skips_is_none_that_night() -> None:
    desired = one_site("America/New_York", "02:00", "03:00")
    night = at("2026-03-08T05:00")
    assert not any(rules.is_open(desired, "S", night + number * MINUTE) for number in range(300))


def test_the_fleets_window_holds_where_the_site_has_none() -> None:
    desired = fleet([{"name": "all", "percent": 100}], {"S": {}}, window={"start": "05:00", "end": "06:00"})
    assert rules.is_open(desired, "S", at("2026-01-15T05:00")) and not rules.is_open(
        desired, "S", at("2026-01-15T02:00")
    )


# ---------------------------------------------------------------- membership (design §4.2, fine print 8)


def drawn(order: str, names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{order}/{name}".encode()).hexdigest())


def test_a_percentage_rounds_up_over_all_sites_that_are_no_lab_and_listed_ones_count() -> None:
    names = [f"S{number}" for number in range(7)]
    sites: dict[str, dict[str, Any]] = {name: {} for name in names} | {"LAB": {"lab": True}}
    waves: list[dict[str, Any]] = [
        {"name": "lab", "sites": ["LAB"]},
        {"name": "first", "sites": ["S0"]},
        {"name": "some", "percent": 33},  # 2.31 of 7: 3, the listed one among them
        {"name": "all", "percent": 100},
    ]
    found = rules.waves_of(fleet(waves, sites))
    order = [name for name in drawn("heron", names) if name != "S0"]
    assert found == {"LAB": "lab", "S0": "first"} | dict.fromkeys(order[:2], "some") | dict.fromkeys(order[2:], "all")


def test_below_100_one_site_at_least_is_left_out_and_one_at_least_is_taken() -> None:
    for percent, taken in ((1, 1), (99, 2), (100, 3)):
        waves: list[dict[str, Any]] = [{"name": "some", "percent": percent}]
        assert len(rules.waves_of(fleet(waves, {name: {} for name in "ABC"}))) == taken


def test_another_word_draws_others() -> None:
    sites: dict[str, dict[str, Any]] = {f"S{number}": {} for number in range(20)}
    waves: list[dict[str, Any]] = [{"name": "some", "percent": 50}, {"name": "all", "percent": 100}]
    assert not rules.same_draw(fleet(waves, sites), fleet(waves, sites, "crane"))


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("text", "number", "of", "allowed"),
    [
        ("0", 0, 3, True),
        ("0", 1, 3, False),
        ("33%", 1, 3, False),
        ("34%", 1, 3, True),
        ("2", 2, 2, True),
        ("50%", 2, 3, False),
    ],
)
def test_an_allowance_is_exceeded_by_strictly_more(text: str, number: int, of: int, *, allowed: bool) -> None:
    assert rules.allows(parse_budget(text), number, of) is allowed


@pytest.mark.parametrize(("removed", "of", "message", "may"), [
    (1, 20, "x", True),
    (2, 20, "x", False),
    (2, 20, "x\n\nConfirm-Removed-Sites: 2", True),
    (2, 20, "x\n  confirm-removed-sites : 2\n", True),
    (2, 20, "x\n\nConfirm-Removed-Sites: 3", False),
    (2, 20, "Confirm-Removed-Sites: 2", False),
])  # fmt: skip
def test_many_sites_go_only_where_the_message_confirms_how_many(
    removed: int, of: int, message: str, *, may: bool
) -> None:
    assert rules.may_remove(removed, of, message) is may


def test_a_freeze_is_half_open() -> None:
    freeze = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "why": "fair"}
    desired = fleet([{"name": "all", "percent": 100}], {"S": {}}, freezes=[freeze])
    assert rules.is_frozen(desired, at("2026-01-01T00:00")) and not rules.is_frozen(desired, at("2026-01-02T00:00"))


# ---------------------------------------------------------------- and the planner says the same

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia", "UTC")
HOUR = st.integers(0, 23)


@given(
    st.sampled_from(ZONES), HOUR, st.sampled_from([0, 30]), HOUR, st.integers(0, 366 * 24 * 4)
)  # fmt: skip
def test_the_planner_opens_windows_at_the_same_instants(
    zone: str, begin: int, half: int, end: int, quarter: int
) -> None:
    start, close = begin * 60 + half, end * 60
    if start == close:
        close += 30
    desired = one_site(zone, f"{start // 60:02d}:{start % 60:02d}", f"{close // 60:02d}:{close % 60:02d}")
    instant = at("2026-01-01T00:00") + timedelta(minutes=15 * quarter)
    spans = calendar(zone, start, close).intervals(micros(instant), micros(instant) + 1)
    assert rules.is_open(desired, "S", instant) is any(a <= micros(instant) < b for a, b in spans)


@given(
    st.integers(1, 30),
    st.lists(st.integers(1, 99), max_size=3, unique=True),
    st.integers(0, 3),
    st.integers(0, 3),
    st.text("ab", max_size=3),
)
def test_the_planner_draws_the_same_members(
    count: int, percents: list[int], listed: int, labs: int, order: str
) -> None:
    names = [f"S{number:02d}" for number in range(count)]
    sites: dict[str, dict[str, Any]] = {name: {"lab": number < min(labs, count)} for number, name in enumerate(names)}
    waves: list[dict[str, Any]] = [{"name": "first", "sites": names[:listed]}] if listed else []
    waves += [{"name": f"to-{percent}", "percent": percent} for percent in sorted(percents)]
    waves.append({"name": "all", "percent": 100})
    desired = fleet(waves, sites, order)
    roster = Roster(desired)
    placed = membership(roster, {})
    theirs = {
        name: roster.waves[wave].spec.name
        for name, wave in zip(roster.site_names, placed.tolist(), strict=True)
        if wave >= 0
    }
    assert rules.waves_of(desired) == theirs


@given(
    st.one_of(st.integers(0, 50).map(lambda n: Budget(count=n)), st.integers(0, 100).map(lambda n: Budget(percent=n))),
    st.integers(0, 500),
    st.integers(0, 500),
)
def test_the_planner_counts_budgets_alike(budget: Budget, number: int, of: int) -> None:
    assert rules.allows(budget, number, of) is not budget.exceeded_by(number, of)
    wave = fleet([{"name": "all", "percent": 100, "maxInFlight": str(budget)}], {"S": {}}).waves.waves[0]
    assert rules.slots(wave, of) == budget.slots(of)
