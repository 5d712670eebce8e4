"""Metrics: what a scrape says of fleet, waves and loop; how many series there can be; what a scrape costs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reconciler.controller.pulse import Pulse
from reconciler.model.plan import Reason
from reconciler.ports import ConditionRow, PublicKey, TransientError
from reconciler.server import metrics_table as table
from reconciler.server.metrics import Metrics
from reconciler.server.options import Options
from tests.controller.harness import T0, Bench
from tests.controller.harness import waves as waves_of
from tests.controller.staging import APP, Stage, desired, observed
from tests.support.system import need

Series = Mapping[tuple[str, str], float]


def metrics_of(stage: Stage, **more: Any) -> Metrics:
    """Metrics over a planner and its boards, without a loop around them."""
    return Metrics(Options(stage.store, lambda: stage.now, None, boards=stage.boards, **more))  # type: ignore[arg-type]


def series(metrics: Metrics) -> Series:
    """(name, labels' values with commas) → value."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        of = next((one for one in table.FAMILIES if one.name.removesuffix("_total") == family.name), None)
        for sample in family.samples:
            order = of.labels if of is not None else ()
            values = [sample.labels[name] for name in order] + [v for k, v in sample.labels.items() if k not in order]
            found[(sample.name.removeprefix("reconciler_"), ",".join(values))] = sample.value
    return found


def in_motion() -> Stage:
    """A lab wave of which one device failed on v1.4.2, and a fleet with every sort of trouble."""
    stage = Stage()
    sick = T0 - timedelta(hours=1)
    devices = {device.name: device for device in stage.everybody(S0_1="v1.4.2")}
    devices["S0-2"] = observed("S0-2", "v1.4.2", health="critical", health_since=sick, health_before_update="ok")
    devices["S1-1"] = observed("S1-1", updating_to="v1.4.2", updating_since=T0)
    devices["S2-2"] = observed("S2-2", last_seen=T0 - timedelta(days=1))
    devices["S3-1"] = observed("S3-1", "v9.9.9", health="warning", last_seen=T0 - timedelta(minutes=3))
    del devices["S3-2"]
    stage.tick(*devices.values())
    return stage


def test_a_scrape_says_how_the_fleet_is() -> None:
    seen = series(metrics_of(in_motion()))
    states = {of: value for (name, of), value in seen.items() if name == "state_devices"}
    assert states == {
        "failed": 1,
        "critical": 0,
        "silent": 1,
        "never-seen": 1,
        "updating": 1,
        "held": 2,
        "warning": 0,
        "good": 2,
    }
    healths = {of: value for (name, of), value in seen.items() if name == "health_devices"}
    assert healths == {"unknown": 1, "ok": 5, "warning": 1, "critical": 1}
    releases = {of: value for (name, of), value in seen.items() if name == "release_devices"}
    assert releases == {
        "image,v1.4.1": 4,
        "image,v1.4.2": 2,
        "image,other": 1,
        "image,none": 1,
        "video,1.0.0": 7,
        "video,other": 0,
        "video,none": 1,
    }
    ages = {of: value for (name, of), value in seen.items() if name == "report_age_devices" and value}
    assert ages == {"under 2 minutes": 5, "2 to 5 minutes": 1, "over 1 day": 1, "never": 1}


def test_a_scrape_says_where_each_wave_stands() -> None:
    seen = series(metrics_of(in_motion()))
    assert [seen["wave_devices", wave] for wave in ("lab", "canary", "all")] == [2, 2, 4]
    assert [seen["wave_sites", wave] for wave in ("lab", "canary", "all")] == [1, 1, 2]
    assert [seen["wave_flagged_devices", wave] for wave in ("lab", "canary", "all")] == [1, 0, 0]
    assert [seen["wave_offline_devices", wave] for wave in ("lab", "canary", "all")] == [0, 0, 2]
    assert seen["wave_in_flight_devices", "canary"] == 1
    assert seen["flagged_devices", ""] == 1
    assert seen["wave_on_release_devices", "lab,image"] == 2
    assert seen["wave_failed_devices", "lab,image"] == 1
    assert seen["wave_on_release_devices", "all,video"] == 3
    assert seen["wave_state", "lab,image,failed"] == 1
    states = [value for (name, of), value in seen.items() if name == "wave_state" and of.startswith("lab,image,")]
    assert sum(states) == 1, "a wave is in one state"
    assert seen["holds", "gate-failed"] >= 1
    assert seen["hold_devices", "gate-failed"] == sum(
        one.count
        for one in in_motion().boards.latest().holds
        if one.hold.reason is Reason.GATE_FAILED  # type: ignore[union-attr]
    )
    assert seen["hold_devices", "frozen"] == 0, "what is not there is nought, and not missing"


def test_a_soak_has_an_end_while_it_runs() -> None:
    stage = Stage()
    since = T0 - timedelta(minutes=10)
    lab = [observed(name, "v1.4.2", image_since=since, health_since=since) for name in ("S0-1", "S0-2")]
    stage.tick(*stage.everybody()[2:], *lab)
    seen = series(metrics_of(stage))
    assert seen["wave_state", "lab,image,soaking"] == 1
    assert seen["wave_soak_end_timestamp_seconds", "lab,image"] == (since + timedelta(hours=1)).timestamp()
    assert ("wave_soak_end_timestamp_seconds", "canary,image") not in seen


def test_ages_go_on_while_nothing_else_changes() -> None:
    stage = Stage()
    stage.tick(*stage.everybody())
    metrics = metrics_of(stage)
    assert series(metrics)["report_age_devices", "under 2 minutes"] == 8
    stage.now += timedelta(seconds=119)
    assert series(metrics)["report_age_devices", "under 2 minutes"] == 8
    stage.now += timedelta(seconds=1)
    assert series(metrics)["report_age_devices", "2 to 5 minutes"] == 8, "two minutes are not under two"
    stage.now += timedelta(days=2)
    assert series(metrics)["report_age_devices", "over 1 day"] == 8


def test_what_changed_is_in_the_next_scrape() -> None:
    stage = Stage()
    stage.tick(*stage.everybody())
    metrics = metrics_of(stage)
    assert series(metrics)["health_devices", "critical"] == 0
    stage.tick(observed("S2-1", health="critical", health_since=T0))
    assert series(metrics)["health_devices", "critical"] == 1
    stage.conditions = (ConditionRow("GitReady", "False", "Unreachable", "no route", T0),)
    stage.tick()
    seen = series(metrics)
    assert (seen["condition", "GitReady,False"], seen["condition", "GitReady,True"]) == (1, 0)
    assert seen["condition", "Stalled,Unknown"] == 1, "nobody has found out yet"
    assert seen["head_refused", ""] == 0
    stage.boards.publish(None, None, stage.live, (), ("f" * 40, "bad"), stage.now)
    assert series(metrics)["head_refused", ""] == 1


def test_a_fleet_at_rest_is_not_counted_again() -> None:
    stage = Stage()
    stage.tick(*stage.everybody())
    metrics = metrics_of(stage)
    before = series(metrics)
    stage.now += timedelta(seconds=30)
    again = stage.tick(*(device.model_copy(update={"last_seen": stage.now}) for device in stage.everybody()))
    assert series(metrics)["state_devices", "held"] == before["state_devices", "held"]
    assert "states" not in vars(again), "the states of all devices were worked out for a board that says the same"
    other = stage.tick(observed("S2-1", health="warning"))
    assert series(metrics)["health_devices", "warning"] == 1 and "states" in vars(other)


def test_releases_beyond_a_number_are_others() -> None:
    fleet = desired(40)
    images = {f"v1.3.{number}": fleet.images["v1.4.1"] for number in range(60)}
    object.__setattr__(fleet, "images", {**fleet.images, **images})
    stage = Stage(fleet)
    names = [name for spec in fleet.sites.values() for name in spec.devices]
    stage.tick(*(observed(name, f"v1.3.{number % 60}") for number, name in enumerate(names)))
    found = {of: value for (name, of), value in series(metrics_of(stage)).items() if name == "release_devices"}
    images_found = {of: value for of, value in found.items() if of.startswith("image,")}
    assert len(images_found) <= table.MOST_RELEASES + 2 + 2, "and those that waves ask for, and `other`, and `none`"
    assert sum(images_found.values()) == len(names) == 80
    assert images_found["image,v1.3.0"] == 2 and images_found["image,other"] == 80 - 20 * 2
    assert images_found["image,v1.4.2"] == 0, "a wave asks for it"


def test_the_number_of_series_does_not_grow_with_the_fleet() -> None:
    counts = []
    for sites in (4, 60):
        stage = Stage(desired(sites))
        stage.tick(*stage.everybody())
        metrics = metrics_of(stage, pulse=Pulse())
        counts.append(len(metrics.text().decode().splitlines()))
        text = metrics.text().decode()
        assert not re.search(r"\bS\d+(-\d)?\b", text), "a device or a site is named"
        assert "c1" not in re.findall(r'"([^"]*)"', text), "a commit is named"
    assert counts[0] == counts[1]
    assert counts[0] < 700


def test_a_store_that_does_not_answer_is_a_metric() -> None:
    stage = in_motion()
    metrics = metrics_of(stage)
    assert series(metrics)["store_up", ""] == 1

    def broken() -> None:
        raise TransientError("the store does not answer")

    stage.store.open_intents = broken  # type: ignore[assignment,method-assign]
    seen = series(metrics)
    assert seen["store_up", ""] == 0
    assert ("open_actions", "flash") not in seen, "nobody knows"
    assert seen["wave_devices", "lab"] == 2, "what the loop left is still known"
    assert seen["store_seconds_count", "scrape"] == 1, "the scrape before; this one is in the next"


@pytest.mark.slow
def test_the_loop_says_how_it_is(tmp_path: Path) -> None:
    """On real parts: git, SQLite, folders."""
    bench = Bench(tmp_path)
    options = Options(bench.store, bench.clock.now, None, boards=bench.parts.boards, pulse=bench.parts.pulse)  # type: ignore[arg-type]
    metrics = Metrics(options)
    assert ("last_tick_timestamp_seconds", "") not in series(metrics)
    bench.run_fleet()
    seen = series(metrics)
    assert seen["tick_seconds_count", ""] == seen["tick_seconds_bucket", "+Inf"] > 2
    assert seen["tick_seconds_sum", ""] > 0
    assert seen["tick_failures_total", ""] == 0 < seen["last_tick_timestamp_seconds", ""]
    assert seen["commit_in_force_timestamp_seconds", ""] == T0.timestamp()
    assert seen["condition", "FleetValid,True"] == 1 and seen["head_refused", ""] == 0
    assert seen["open_actions", "flash"] == 0 == seen["open_action_attempts", "build"]
    bench.builder.fail = TransientError("the disk is full")
    bench.repo.commit("Raise", {"images/v1.4.3.yaml": bench.files()["images/v1.4.2.yaml"].replace("v1.4.2", "v1.4.3"),  # type: ignore[union-attr, arg-type]
                                "waves.yaml": waves_of(lab={"image": "v1.4.3"})})  # fmt: skip
    bench.poll()
    for _ in range(3):
        bench.poll()
    seen = series(metrics)
    assert seen["open_actions", "build"] == 1 and seen["open_action_attempts", "build"] >= 2
    assert seen["open_action_oldest_timestamp_seconds", "build"] >= T0.timestamp()
    bench.repo.commit("Break", {"waves.yaml": "not: waves\n"})
    bench.poll()
    seen = series(metrics)
    assert seen["head_refused", ""] == 1 and seen["condition", "FleetValid,False"] == 1


def test_keys_and_assignments_that_expire_are_told() -> None:
    pulse = Pulse()
    metrics = metrics_of(in_motion(), pulse=pulse)
    assert not any(name.startswith(("key_", "assignments_")) for name, _ in series(metrics)), "nobody has looked yet"
    pulse.looked(3, [("release", PublicKey("A" * 40, "us", T0)), ("assignment", PublicKey("B" * 40, "us", None))])
    seen = series(metrics)
    assert seen["key_expiry_timestamp_seconds", "release," + "A" * 40] == T0.timestamp()
    assert seen["assignments_expiring", ""] == 3
    assert len([1 for name, _ in seen if name == "key_expiry_timestamp_seconds"]) == 1


def test_who_listens_and_what_was_told_is_counted() -> None:
    counts = {("ops", "delivered"): 2, ("ops", "failed"): 1, ("ops", "given-up"): 0}
    metrics, clients = metrics_of(in_motion(), notified=lambda: counts), [3]
    metrics.listening(lambda: len(clients))
    seen = series(metrics)
    assert (seen["event_stream_clients", ""], seen["notifications_total", "ops,delivered"]) == (1, 2)
    assert seen["notifications_total", "ops,failed"] == 1
    clients.clear()
    assert series(metrics)["event_stream_clients", ""] == 0


def test_the_table_is_what_is_scraped() -> None:
    text = metrics_of(in_motion(), pulse=Pulse()).text().decode()
    scraped = {
        name: kind
        for name, kind in re.findall(r"^# TYPE (reconciler_\S+) (\S+)$", text, re.MULTILINE)
        if not name.endswith("_created")
    }
    assert scraped == {family.name: family.kind.value for family in table.FAMILIES}
    assert {label for family in table.FAMILIES for label in family.labels} == set(table.LABELS)
    assert "process_resident_memory_bytes" in text and "reconciler_build_info{" in text
    assert APP["1.0.0"] not in text, "a digest is named"


@pytest.mark.system
def test_promtool_finds_nothing_to_complain_of() -> None:
    promtool = need("promtool", "prometheus")
    metrics = metrics_of(in_motion(), pulse=Pulse())
    metrics.request("/v1/plan", "GET", 200, 0.01)
    run = subprocess.run([promtool, "check", "metrics"], input=metrics.text(), capture_output=True, check=False)
    said = (run.stdout + run.stderr).decode().strip()
    assert (run.returncode, said) == (0, "")
