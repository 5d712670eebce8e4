"""Devices that are being updated when a merge comes: what becomes of them ahead of time is what the simulator then does.

The first case is the one that the property of `test_calendar` shrank: silent, told v2 minutes before, which nobody asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconciler.model.desired import AppSpec, Desired, FleetSpec, Freeze, ImageSpec, SiteSpec, WavesSpec
from reconciler.repo.load import with_config
from reconciler.simulate.forecast_devices import Devices, instant_of, seconds_of
from reconciler.simulate.start import Silent, settled, start_of
from reconciler.simulate.timings import timings
from reconciler.simulate.trace import Kind, Trace, calendar_of
from tests.simulate.fleets import APP, DIGESTS, Merge
from tests.simulate.test_calendar import check, forecasted, to_the_minute, to_the_second

NOON = datetime(2026, 3, 7, 15, 0, 3, tzinfo=UTC)
"""Ten in the morning in New York: the window is shut, and the night after the clocks go forward, over its beginning."""
IN_THE_WINDOW = datetime(2026, 1, 15, 7, 20, 17, tzinfo=UTC)
ITS_BEGINNING = datetime(2026, 1, 15, 7, 1, 0, tzinfo=UTC)
"""On a tick, and before this device's share of the spread."""
ITS_END = datetime(2026, 1, 15, 8, 50, 0, tzinfo=UTC)
"""What begins now is written after the window, and waits for the next one with its reboot."""
V1, V2 = {"image": "v1", "apps": {APP: "1.0.0"}}, {"image": "v2", "apps": {APP: "1.0.0"}}
NEW_APP = {"apps": {APP: "1.1.0"}}
DEVICE = "SITE-01-1"


@dataclass(frozen=True)
class Case:
    """Two sites with a device each, one of them told v2 five minutes before. Hours count from the merge."""

    at: datetime = NOON
    before: dict[str, Any] = field(default_factory=lambda: V1)
    after: dict[str, Any] = field(default_factory=lambda: V1 | NEW_APP)
    silent: bool = True
    freeze: tuple[float, float] | None = None
    seen: dict[str, Any] = field(default_factory=dict)

    def merge(self) -> Merge:
        freezes: tuple[Freeze, ...] = ()
        if self.freeze is not None:
            begin, end = (self.at + timedelta(hours=hours) for hours in self.freeze)
            freezes = (Freeze.model_validate({"from": begin, "to": end}),)
        fleet = FleetSpec.model_validate({"flashDuration": "20m", "onFailure": "hold"})
        names = ("SITE-01", "SITE-02")
        sites = {
            name: SiteSpec.model_validate({"timezone": "America/New_York", "devices": [f"{name}-1"]}) for name in names
        }
        before = Desired(
            fleet.model_copy(update={"freezes": freezes}),
            self._waves(self.before),
            {"v1": ImageSpec(), "v2": ImageSpec()},
            {APP: AppSpec(repository=APP, window="any", releases=DIGESTS)},
            sites,
            commit="a" * 40,
        )
        after = with_config(replace(before, waves=self._waves(self.after), commit="b" * 40), {})
        before = with_config(before, {})
        observed = settled(before, self.at)
        first, second = observed.devices
        marks = {"image": "v1", "inactive_slot": None, "updating_to": "v2"} | self.seen
        marks["updating_since"] = self.at - timedelta(minutes=5)
        if self.silent:
            marks["last_seen"] = self.at - timedelta(days=1)
        devices = (first.model_copy(update=marks), second)
        return Merge(before, after, observed.model_copy(update={"devices": devices}), self.at)

    @staticmethod
    def _waves(asked: dict[str, Any]) -> WavesSpec:
        wave = {"name": "all", "percent": 100, "soak": "0s"} | asked
        return WavesSpec.model_validate({"waves": [wave]})


def arrivals(trace: Trace) -> list[tuple[str, str | None]]:
    """When the device that was in flight arrived, and at what."""
    return [
        (f"{event.at:%m-%d %H:%M}", event.key)
        for event in trace.events
        if event.kind is Kind.ARRIVED and event.device == DEVICE
    ]


CASES = {
    "silent, nobody asks for it any more, frozen": Case(freeze=(0, 1)),
    "silent, nobody asks for it any more": Case(),
    "silent, nobody asks for it, and it counts as in flight": Case(after=V1 | NEW_APP | {"maxInFlight": "1"}),
    "silent, it was writing when it was last heard": Case(seen={"phase": "writing"}),
    "silent, asked for from now on": Case(after=V2),
    "silent, frozen for two nights": Case(after=V2, freeze=(-1, 40)),
    "silent, its wave is paused": Case(before=V2, after=V2 | NEW_APP | {"paused": True}),
    "heard, it waits for the window, nobody asks for it": Case(silent=False),
    "heard, it waits for the window, asked for from now on": Case(after=V2, silent=False),
    "heard, it waits for the window, its wave is paused": Case(before=V2, after=V2 | {"paused": True}, silent=False),
    "heard, it writes, nobody asks for it": Case(at=IN_THE_WINDOW, silent=False),
    "heard, it writes, a freeze": Case(at=IN_THE_WINDOW, before=V2, after=V2 | NEW_APP, silent=False, freeze=(-1, 30)),
    "heard, its turn in the window comes later": Case(at=ITS_BEGINNING, silent=False),
    "heard, the window ends while it writes": Case(at=ITS_END, before=V2, after=V2 | NEW_APP, silent=False),
    "silent, back in the window": Case(at=IN_THE_WINDOW),
    "silent, back in the window, asked for": Case(at=IN_THE_WINDOW, before=V2, after=V2 | NEW_APP),
    "heard, the other slot holds it": Case(before=V2, after=V2 | NEW_APP, silent=False, seen={"inactive_slot": "v2"}),
    "nothing runs": Case(before=V2, after=V2 | NEW_APP, silent=False, seen={"image": None, "image_since": None}),
}


@pytest.mark.slow
@pytest.mark.parametrize("silent", ["stay", pytest.param("return", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_becomes_of_a_device_in_flight_is_what_the_simulator_does_to_the_second(
    case: Case, silent: Silent
) -> None:
    ahead, played = check(case.merge(), silent)
    assert to_the_second(ahead) == to_the_second(played)


def test_a_device_that_comes_back_does_not_begin_what_nobody_asks_for_any_more() -> None:
    ahead = forecasted(CASES["silent, nobody asks for it any more, frozen"].merge(), "return")
    image, app = (to_the_minute(entry) for entry in calendar_of(ahead))
    assert (image["release"], image["told"], image["there"], image["arrived"]) == ("v1", None, None, 0)
    assert (app["release"], app["arrived"]) == (f"{APP}@1.1.0", 2)
    assert (DEVICE, "v2") not in {(event.device, event.key) for event in ahead.events}


def test_a_device_in_flight_outside_of_its_window_waits_for_it() -> None:
    # The clocks go from 01:59 to 03:00 that night: the window is the hour from 03:00 EDT (07:00 UTC).
    shut = Case(after=V2, silent=False)
    assert arrivals(forecasted(shut.merge())) == [("03-08 07:19", "v2")]
    is_open = Case(at=IN_THE_WINDOW, before=V2, after=V2 | NEW_APP, silent=False)
    assert arrivals(forecasted(is_open.merge()))[0] == ("01-15 07:35", "v2")


def test_a_word_that_comes_at_the_second_of_a_write_is_heard_before_it() -> None:
    merge = Case(at=IN_THE_WINDOW, seen={"inactive_slot": "v0"}).merge()
    start = start_of(merge.observed, merge.at, merge.before, silent="return")
    devices = Devices(merge.before, start.devices, timings(merge.before.fleet), seconds_of(merge.at))
    unit = devices.unit(DEVICE, "SITE-01")
    job = devices.goes_on(unit, start.devices[DEVICE], "v2", ("America/New_York", merge.before.fleet.window))
    assert job is not None and instant_of(job.begins) == start.devices[DEVICE].returns_at
    devices.stand_still(unit, seconds_of(merge.at), merge.before.fleet.report_every)
    assert (unit.job, unit.other) == (None, "v0")
