"""Small random fleets with a commit to merge, for what runs in virtual time: odd zones, budgets, soaks, freezes, pins, ill devices.

`merges` draws both sides of a commit and what was observed when it came. Settled fleets first; then a few devices are spoiled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from reconciler.model.desired import AppSpec, Desired, FleetSpec, Freeze, ImageSpec, SiteSpec, WavesSpec
from reconciler.model.observed import DeviceObservation, Health, Snapshot
from reconciler.repo.load import with_config
from reconciler.simulate.start import settled

ZONES = ("America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia")
STARTS = (
    datetime(2026, 3, 7, 15, 0, 3, tzinfo=UTC),  # the clocks go forward in New York the night after
    datetime(2026, 3, 28, 9, 30, 41, tzinfo=UTC),  # and in Berlin
    datetime(2026, 4, 4, 2, 10, 0, tzinfo=UTC),  # they go back on Lord Howe, by half an hour
    datetime(2026, 10, 24, 23, 59, 58, tzinfo=UTC),  # and in Berlin
    datetime(2026, 1, 15, 1, 30, 0, tzinfo=UTC),
    datetime(2026, 1, 15, 7, 5, 17, tzinfo=UTC),
)
APP = "video-ingest"
DIGESTS = {"1.0.0": "sha256:" + "1" * 64, "1.1.0": "sha256:" + "2" * 64}
WINDOWS = (None, None, None, {"start": "23:30", "end": "01:00"}, {"start": "00:00", "end": "24:00"})
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Merge:
    """A commit that comes into force at `at`, what was in force before, and what was observed then."""

    before: Desired
    after: Desired
    observed: Snapshot
    at: datetime


SITE = st.fixed_dictionaries(
    {
        "timezone": st.sampled_from(ZONES),
        "devices": st.integers(1, 2),
        "window": st.sampled_from(WINDOWS),
        "suspended": st.sampled_from([False] * 9 + [True]),
        "pin": st.sampled_from([None] * 11 + ["v1", "v2"]),
        "uplink": st.sampled_from([None, None, "2Mbit", "400kbit"]),
    }
)
BUDGET = st.sampled_from(["0", "0", "1", "34%"])
WAVE = st.fixed_dictionaries(
    {
        "soak": st.sampled_from(["0s", "1h", "26h", "48h"]),
        "maxFailed": BUDGET,
        "maxOffline": BUDGET,
        "maxInFlight": st.sampled_from(["100%", "100%", "1", "50%"]),
    }
)
COMMITS = (
    "promote",
    "promote",
    "promote-all",
    "promote-all",
    "revert",
    "app",
    "app-revert",
    "config",
    "both",
    "new-site",
)
SPOIL = ("silent", "critical-image", "critical-device", "critical-app", "short", "warning", "never", "updating")


def _sites(drawn: list[dict[str, Any]]) -> dict[str, SiteSpec]:
    out = {}
    for number, site in enumerate(drawn, 1):
        name = f"SITE-{number:02d}"
        spec: dict[str, Any] = {key: site[key] for key in ("timezone", "window", "uplink")}
        # The first site takes part: a canary that cannot be judged does not load.
        spec["suspended"] = site["suspended"] and number > 1
        spec["devices"] = [f"{name}-{n}" for n in range(1, site["devices"] + 1)]
        if site["pin"] is not None and number > 1:
            spec["pin"] = {"image": site["pin"], "devices": spec["devices"][:1], "why": "trial"}
        out[name] = SiteSpec.model_validate(spec)
    return out


@st.composite
def _waves(draw: st.DrawFn, names: list[str]) -> list[dict[str, Any]]:
    count = draw(st.integers(1, 5))
    waves: list[dict[str, Any]] = []
    if count > 1:
        waves.append({"name": "canary", "sites": names[: draw(st.integers(1, 2))]})
    percents = sorted(draw(st.sets(st.sampled_from([20, 40, 60, 80]), min_size=max(count - 2, 0), max_size=3)))
    waves += [{"name": f"to-{percent}", "percent": percent} for percent in percents[: max(count - 2, 0)]]
    waves.append({"name": "all", "percent": 100})
    return [wave | draw(WAVE) for wave in waves]


@st.composite
def merges(draw: st.DrawFn, *, healthy: bool = False) -> Merge:
    """A merge; where `healthy`, of a fleet in which every device reports and is well."""
    sites = _sites(draw(st.lists(SITE, min_size=2, max_size=12)))
    at = draw(st.sampled_from(STARTS))
    fleet = {
        "onFailure": draw(st.sampled_from(["hold", "rollback"])),
        "rollback": {"ignoreWindow": draw(st.sampled_from(["true", "all", "false"]))},
        "flashDuration": draw(st.sampled_from(["20m", "20m", "50m"])),
        "reportEvery": draw(st.sampled_from(["60s", "60s", "7m"])),
    }
    spec = FleetSpec.model_validate(fleet)
    if draw(st.integers(0, 4)) == 0:
        begin = at + timedelta(hours=draw(st.integers(-3, 60)))
        until = begin + timedelta(hours=draw(st.integers(1, 40)))
        spec = spec.model_copy(update={"freezes": (Freeze.model_validate({"from": begin, "to": until}),)})
    commit = draw(st.sampled_from(COMMITS))
    waves = draw(_waves(sorted(sites)))
    images = {"v1": ImageSpec(), "v2": ImageSpec(recipe="v2" if draw(st.booleans()) else None)}
    app = AppSpec(repository=APP, window=draw(st.sampled_from(["any", "site"])), releases=DIGESTS)
    high, low = ("v2", "v1") if commit == "revert" else ("v1", "v2")
    app_high, app_low = ("1.1.0", "1.0.0") if commit == "app-revert" else ("1.0.0", "1.1.0")
    with_app = commit in ("app", "app-revert", "both") or draw(st.booleans())
    raised = len(waves) if commit != "promote" else draw(st.integers(1, len(waves)))
    first, second = [], []
    for number, wave in enumerate(waves):
        old = {"image": high} | ({"apps": {APP: app_high}} if with_app else {})
        new = dict(old)
        if number < raised and commit in ("promote", "promote-all", "revert", "both"):
            new["image"] = low
        if commit in ("app", "app-revert", "both"):
            new["apps"] = {APP: app_low}
        first.append(wave | old)
        second.append(wave | new)
    before = Desired(spec, WavesSpec.model_validate({"waves": first}), images, {APP: app}, sites, commit="a" * 40)
    after = replace(before, waves=WavesSpec.model_validate({"waves": second}), commit="b" * 40)
    if commit == "config":
        name = sorted(sites)[draw(st.integers(0, len(sites) - 1))]
        changed = sites[name].model_copy(update={"ntp": ("time.example.org",)})
        after = replace(after, sites={**sites, name: changed})
    if commit == "new-site":
        drawn = {"timezone": draw(st.sampled_from(ZONES)), "devices": ["SITE-99-1"]}
        after = replace(after, sites={**sites, "SITE-99": SiteSpec.model_validate(drawn)})
    before, after = with_config(before, {}), with_config(after, {})
    observed = settled(before, at)
    if not healthy:
        observed = draw(_spoiled(observed, at))
    return Merge(before, after, observed, at)


@st.composite
def _spoiled(draw: st.DrawFn, observed: Snapshot, at: datetime) -> Snapshot:
    """The same fleet, where a few devices are silent, ill, or in the middle of something."""
    devices = list(observed.devices)
    for number, how in draw(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(SPOIL)), max_size=3)):
        index = number % len(devices)
        devices[index] = _spoil(devices[index], how, at)
    return observed.model_copy(update={"devices": tuple(devices)})


def _spoil(device: DeviceObservation, how: str, at: datetime) -> DeviceObservation:
    critical = {"health": Health.CRITICAL, "health_since": at - timedelta(minutes=3)}
    changes: dict[str, dict[str, Any]] = {
        "silent": {"last_seen": at - DAY},
        "critical-image": critical | {"image_since": at - timedelta(hours=1)},
        "critical-device": critical | {"health_before_update": Health.CRITICAL},
        "critical-app": critical
        | {
            "apps": {
                app: running.model_copy(update={"since": at - timedelta(minutes=9)})
                for app, running in device.apps.items()
            }
        },
        "short": {"image_since": None, "health_since": None, "health": Health.UNKNOWN, "config": None},
        "warning": {"health": Health.WARNING},
        "never": {"image": None, "image_since": None, "last_seen": None, "health": Health.UNKNOWN, "apps": {}},
        "updating": {"updating_to": "v2", "updating_since": at - timedelta(minutes=5)},
    }
    return device.model_copy(update=changes[how])
