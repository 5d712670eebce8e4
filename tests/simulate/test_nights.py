"""Nights are the site's own, and say what a change of the clocks does to them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from reconciler.model.desired import Desired, FleetSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.simulate.nights import Night, nights_of
from reconciler.simulate.trace import Event, Kind


def _desired(**sites: dict[str, Any]) -> Desired:
    specs = {name: SiteSpec.model_validate({"devices": [f"{name}-1"], **site}) for name, site in sites.items()}
    waves = WavesSpec.model_validate({"waves": [{"name": "all", "percent": 100, "image": "v2", "soak": "1h"}]})
    return Desired(FleetSpec(), waves, {"v2": ImageSpec()}, {}, specs)


def _nights(desired: Desired, *told: tuple[str, datetime], key: str = "v2") -> tuple[Night, ...]:
    events = [Event(at, Kind.TOLD, "all", site, f"{site}-1", "v2", "promote") for site, at in told]
    return nights_of(desired, events, "all", key)


def test_sites_of_one_zone_share_a_night_and_others_do_not() -> None:
    desired = _desired(
        A={"timezone": "Europe/Berlin"}, B={"timezone": "Europe/Berlin"}, C={"timezone": "America/New_York"}
    )
    at, later = datetime(2026, 1, 16, 1, 0, tzinfo=UTC), datetime(2026, 1, 16, 7, 0, tzinfo=UTC)
    berlin, york = _nights(desired, ("A", at), ("B", at.replace(minute=20)), ("C", later))
    assert (berlin.date, berlin.sites, berlin.devices) == (date(2026, 1, 16), ("A", "B"), 2)
    assert (berlin.opens_at, berlin.closes_at) == (at, at.replace(hour=3))
    assert berlin.first_told_at == at and berlin.clocks is None
    assert (york.timezone, york.sites) == ("America/New_York", ("C",))


def test_a_night_over_midnight_has_the_date_of_its_evening() -> None:
    desired = _desired(A={"timezone": "Asia/Kathmandu", "window": {"start": "23:00", "end": "01:00"}})
    (night,) = _nights(desired, ("A", datetime(2026, 1, 15, 18, 30, tzinfo=UTC)))
    assert night.date == date(2026, 1, 15)
    assert night.opens_at == datetime(2026, 1, 15, 17, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "at", "says"),
    [
        ("Europe/Berlin", datetime(2026, 3, 29, 1, 10, tzinfo=UTC), "forward by 1h on 2026-03-29 in Europe/Berlin"),
        ("Europe/Berlin", datetime(2026, 10, 25, 1, 10, tzinfo=UTC), "back by 1h on 2026-10-25 in Europe/Berlin"),
        ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, 40, tzinfo=UTC), "back by 30m on 2026-04-05"),
    ],
)
def test_a_change_of_the_clocks_is_told(zone: str, at: datetime, says: str) -> None:
    (night,) = _nights(_desired(A={"timezone": zone}), ("A", at))
    assert night.clocks is not None and says in night.clocks
    assert night.to_dict()["clocks"] == night.clocks


def test_what_starts_outside_of_its_window_or_for_another_release_has_no_night() -> None:
    desired = _desired(A={"timezone": "UTC"})
    assert _nights(desired, ("A", datetime(2026, 1, 16, 12, 0, tzinfo=UTC))) == ()
    assert _nights(desired, ("A", datetime(2026, 1, 16, 2, 0, tzinfo=UTC)), key="v3") == ()
