"""Adopting a running fleet: what counts as run in health, and what is left to be proven."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconciler.controller.adopt import adopt
from reconciler.model.desired import AppSpec, Desired, FleetSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.model.observed import DeviceObservation, RunningApp, Snapshot

NOW = datetime(2026, 1, 15, tzinfo=UTC)
D1, D2 = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def desired(**sites: Any) -> Desired:
    waves = [
        {"name": "lab", "sites": ["LAB"], "image": "v1", "apps": {"ingest": "2.7.0"}, "soak": "1h"},
        {"name": "canary", "sites": ["A"], "image": "v1", "apps": {"ingest": "2.7.0"}, "soak": "48h"},
        {"name": "all", "percent": 100, "image": "v1", "apps": {"ingest": "2.7.0"}, "soak": "24h"},
    ]
    made = {
        name: SiteSpec.model_validate(
            {"timezone": "UTC", "devices": [f"{name}-1"], "lab": name == "LAB", **sites.get(name, {})}
        )
        for name in ("LAB", "A", "B", "C")
    }
    return Desired(
        FleetSpec(),
        WavesSpec.model_validate({"waves": waves}),
        {"v1": ImageSpec()},
        {"ingest": AppSpec.model_validate({"repository": "ingest", "releases": {"2.7.0": D1, "2.8.0": D2}})},
        made,
    )


def seen(but: dict[str, dict[str, Any]] | None = None, **more: Any) -> Snapshot:
    devices = []
    for name in ("LAB-1", "A-1", "B-1", "C-1"):
        values: dict[str, Any] = {
            "image": "v1", "health": "ok", "last_seen": NOW, "apps": {"ingest": RunningApp(digest=D1)},
        }  # fmt: skip
        devices.append(DeviceObservation(name=name, **(values | (but or {}).get(name, {}))))
    return Snapshot(devices=tuple(devices), **more)


def proven(found: Any) -> set[tuple[str, str]]:
    return {(fact.wave, fact.key) for fact in found.facts.proofs}


def test_a_fleet_in_health_is_adopted_wave_by_wave_with_its_members() -> None:
    found = adopt(desired(), seen(), NOW)
    assert proven(found) == {(w, k) for w in ("lab", "canary", "all") for k in ("v1", "ingest@2.7.0")}
    assert found.facts.members["v1"] == {"lab": ("LAB",), "canary": ("A",), "all": ("B", "C")}
    assert "canary: v1 is adopted, with 1 devices of 1 sites" in found.lines


@pytest.mark.parametrize(
    "change, why",
    [
        ({"image": "v0"}, "does not run it"),
        ({"health": "critical"}, "is critical"),
        ({"health": "unknown"}, "is unknown"),
        ({"last_seen": NOW - timedelta(seconds=901)}, "does not report"),
        ({"last_seen": None}, "does not report"),
    ],
)
def test_one_device_that_is_not_there_holds_its_wave_and_the_later_ones(change: dict[str, Any], why: str) -> None:
    found = adopt(desired(), seen({"A-1": change}), NOW)
    assert ("lab", "v1") in proven(found)
    assert not {("canary", "v1"), ("all", "v1")} & proven(found)
    assert any(line.startswith("canary: v1 is not adopted: A-1") and why in line for line in found.lines)
    assert "all: v1 is not adopted: an earlier wave is not" in found.lines


def test_exactly_stale_after_still_reports_and_a_warning_is_health() -> None:
    found = adopt(desired(), seen({"A-1": {"last_seen": NOW - timedelta(seconds=900), "health": "warning"}}), NOW)
    assert ("all", "v1") in proven(found)


def test_an_app_is_judged_by_its_digest_and_apart_from_the_image() -> None:
    found = adopt(desired(), seen({"A-1": {"apps": {"ingest": RunningApp(digest=D2)}}}), NOW)
    assert ("all", "v1") in proven(found) and ("canary", "ingest@2.7.0") not in proven(found)


def test_suspended_and_pinned_devices_do_not_count() -> None:
    pin = {"pin": {"image": "v1", "why": "a try"}}
    found = adopt(desired(B={"suspended": True}), seen({"B-1": {"image": "v0"}}), NOW)
    assert ("all", "v1") in proven(found)
    found = adopt(desired(B=pin), seen({"B-1": {"health": "critical"}}), NOW)
    assert ("all", "v1") in proven(found)


def test_a_wave_whose_devices_are_all_pinned_proves_nothing() -> None:
    found = adopt(desired(A={"pin": {"image": "v1", "why": "a try"}}), seen(), NOW)
    assert ("canary", "v1") not in proven(found)


def test_what_is_proven_is_not_proven_again() -> None:
    known = seen(proofs=({"wave": "lab", "image": "v1", "at": NOW},))
    found = adopt(desired(), known, NOW)
    assert ("lab", "v1") not in proven(found) and ("canary", "v1") in proven(found)
    assert "lab: v1 is proven already" in found.lines


def test_tags_that_stand_where_they_should_are_taken_over() -> None:
    tags = {"ingest": {"lab": D1, "canary": D2, "stable": D1}}
    found = adopt(desired(), seen(tags=tags, tags_set={"ingest": {"stable": D1}}), NOW)
    assert found.tags_set == {"ingest": {"lab": D1}}
