"""A settled fleet wants nothing; and a start makes something whole of whatever was observed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings

from reconciler.model.desired import Desired, FleetSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.model.observed import DeviceObservation, Health, RunningApp, Snapshot
from reconciler.planner import plan
from reconciler.simulate.forecast import forecast
from reconciler.simulate.start import Doing, Ill, first_report_at, settled, start_of
from reconciler.simulate.trace import Kind
from tests.simulate.fleets import Merge, merges

AT = datetime(2026, 3, 2, 12, 0, 3, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@settings(max_examples=20, deadline=None)
@given(merges(healthy=True))
def test_of_a_settled_fleet_nothing_is_wanted(merge: Merge) -> None:
    made = plan(merge.before, merge.observed, merge.at)
    assert made.actions == () and not any(made.facts.to_dict().values())
    kinds = [event.kind for event in forecast(merge.before, merge.observed, merge.at).events]
    assert kinds == [Kind.MERGED, Kind.QUIET]


@settings(max_examples=5, deadline=None)
@given(merges(healthy=True))
def test_a_snapshot_that_lay_about_makes_nobody_silent(merge: Merge) -> None:
    later = merge.at + 5 * HOUR
    start = start_of(merge.observed, later, merge.before)
    assert not any(device.silent for device in start.devices.values())
    assert all(device.last_seen and later - device.last_seen <= 7 * MINUTE for device in start.observed.devices)


@pytest.mark.parametrize(
    ("health_since", "image_since", "before", "app_since", "ill"),
    [
        (AT - MINUTE, AT - HOUR, None, None, Ill.IMAGE),
        (AT - MINUTE, AT - HOUR, None, AT - 30 * MINUTE, Ill.APP),
        (AT - MINUTE, AT - HOUR, Health.CRITICAL, None, Ill.DEVICE),
        (AT - 2 * HOUR, AT - HOUR, None, AT - 30 * MINUTE, Ill.DEVICE),
        (None, AT - HOUR, None, None, Ill.DEVICE),
    ],
)
def test_criticality_goes_with_what_changed_last_before_it(
    health_since: datetime | None,
    image_since: datetime,
    before: Health | None,
    app_since: datetime | None,
    ill: Ill,
) -> None:
    apps = {} if app_since is None else {"video": RunningApp(digest="sha256:" + "1" * 64, since=app_since)}
    seen = DeviceObservation(
        name="D-1", image="v1", image_since=image_since, health=Health.CRITICAL, health_since=health_since,
        health_before_update=before, last_seen=AT, apps=apps,
    )  # fmt: skip
    assert start_of(Snapshot(devices=(seen,)), AT, _desired()).devices["D-1"].ill is ill


def test_odd_snapshots_have_a_start() -> None:
    stranger = DeviceObservation(name="X-1", image="nobody knows", last_seen=AT, health=Health.UNKNOWN)
    twice = [DeviceObservation(name="X-2", image=image, last_seen=AT) for image in ("v1", "v2")]
    busy = DeviceObservation(name="X-3", image="v1", updating_to="v2", updating_since=AT, last_seen=AT)
    start = start_of(Snapshot(devices=(stranger, *twice, busy)), AT, _desired())
    assert start.devices["SITE-01-1"].silent and start.devices["SITE-01-1"].booted is None
    assert (start.devices["X-1"].booted, start.devices["X-1"].health) == ("nobody knows", Health.OK)
    assert start.devices["X-2"].silent
    assert [device.conflict for device in start.observed.devices if device.name == "X-2"] == [True]
    assert (start.devices["X-3"].doing, start.devices["X-3"].target) == (Doing.UPDATING, "v2")


def test_reports_fall_on_a_chain_of_their_own() -> None:
    first = first_report_at("SITE-01-1", 60, AT)
    assert timedelta(0) <= first - AT < MINUTE
    assert first_report_at("SITE-01-1", 60, first) == first
    assert first_report_at("SITE-01-1", 60, first + timedelta(seconds=1)) == first + MINUTE


def _desired() -> Desired:
    waves = WavesSpec.model_validate({"waves": [{"name": "all", "percent": 100, "image": "v1", "soak": "1h"}]})
    site = SiteSpec(timezone="UTC", devices=("SITE-01-1",))
    desired = Desired(FleetSpec(), waves, {"v1": ImageSpec(), "v2": ImageSpec()}, {}, {"SITE-01": site})
    assert settled(desired, AT).devices[0].image == "v1"
    return desired
