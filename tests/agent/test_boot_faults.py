"""A life that begins badly on a device with partitions: records lost, flags that nobody can read, a default that does not
load. The device reports what is so, does nothing that it should not, and never reboots for ever."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from reconciler.agent.hardware import BootFlags, ImageVersion
from reconciler.agent.machine import State
from reconciler.protocol.report import Slot
from tests.agent.conftest import Releases
from tests.agent.firmware import ENVIRONMENT, FOLDER, environment
from tests.agent.world import START, Office, Site

pytestmark = pytest.mark.system


def take_away(site: Site) -> Path:
    """The ESP's variables cannot be read."""
    path = site.root / "esp" / FOLDER / ENVIRONMENT
    path.unlink()
    path.mkdir()
    return path


def give_back(path: Path, data: bytes) -> None:
    path.rmdir()
    path.write_bytes(data)


def codes(office: Office) -> list[str]:
    return [item.code for item in office.last().refusals]


def test_a_new_device_says_nothing_before_it_knows_what_it_runs(site: Site, office: Office, releases: Releases) -> None:
    (site.root / "agent" / "slots.json").unlink()
    office.assign(releases.v1)
    site.settle(START + timedelta(minutes=5))
    assert {(item.image, item.slots["b"].digest) for item in office.reports} == {("v1", releases.v1.digest)}
    assert site.hardware.slots() == {"a": Slot(), "b": Slot("v1", releases.v1.digest, True)}
    # It runs what it is assigned: nothing was fetched.
    assert {path for _, path, _ in office.requests} == {"/v1/exchange"}
    assert site.hardware.version() == ImageVersion("v1")


def test_a_record_lost_in_the_middle_of_a_trial_costs_nothing(site: Site, office: Office, releases: Releases) -> None:
    office.assign(releases.v2)
    while site.device.agent.work.state is not State.REBOOTING:
        site.step()
    (site.root / "agent" / "slots.json").write_bytes(b"\0" * 300)
    site.settle(START + timedelta(minutes=5))
    report = office.last()
    assert (report.image, report.attempts, report.refusals) == ("v2", {}, ())
    assert report.slots == {"a": Slot("v2", releases.v2.digest, True), "b": Slot()}
    assert site.hardware.flags() == BootFlags("a")


def test_a_slot_that_cannot_be_recognised_is_told_and_an_update_heals_it(
    site: Site, office: Office, releases: Releases
) -> None:
    (site.root / "agent" / "slots.json").unlink()
    (site.root / "run" / "slot").unlink()
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=5))
    first = office.reports[0]
    assert (first.image, first.slots["b"], [item.code for item in first.refusals]) == (None, Slot(), ["device-fault"])
    assert (office.last().image, office.last().previous) == ("v2", "v1")


def test_flags_that_nobody_can_read_are_reported_and_hold_everything_up(
    site: Site, office: Office, releases: Releases
) -> None:
    path = take_away(site)
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=10))
    assert office.last().image == "v1"
    assert codes(office) == ["device-fault"]
    assert "grubenv cannot be read" in office.last().refusals[0].reason
    assert not any("artifacts" in name for _, name, _ in office.requests)
    assert len(office.reports) < 20
    give_back(path, environment("b"))
    site.settle(START + timedelta(minutes=20))
    assert (office.last().image, office.last().refusals) == ("v2", ())


def test_a_trial_whose_flags_nobody_can_read_is_not_told_as_a_success(
    site: Site, office: Office, releases: Releases
) -> None:
    office.assign(releases.v2)
    while not site.device.agent.leaving:
        site.device.agent.step(site.now)
    site.device.power_cycle()
    path = take_away(site)
    office.reports.clear()
    site.settle(START + timedelta(minutes=10))
    assert {(item.image, item.phase) for item in office.reports} == {("v2", "trial")}
    assert codes(office) == ["device-fault"]
    give_back(path, environment("b", "a", "0"))
    site.settle(START + timedelta(minutes=20))
    assert (office.last().image, office.last().phase, office.last().attempts) == ("v2", "idle", {})
    assert office.last().slots["a"].good


def test_a_default_that_does_not_load_gives_way_to_the_slot_that_was_good(
    site: Site, office: Office, releases: Releases
) -> None:
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=5))
    assert (office.last().booted, site.hardware.flags()) == ("a", BootFlags("a"))
    with open(site.root / "slot-a.img", "r+b") as file:
        file.write(bytes(4096))
    site.device.power_cycle()
    boots = {site.hardware.boot_id()}
    office.reports.clear()
    office.assign(releases.v1)
    site.settle(START + timedelta(minutes=20))
    boots.add(site.hardware.boot_id())
    assert len(boots) == 1
    report = office.last()
    assert (report.booted, report.image, report.slots["b"].good) == ("b", "v1", True)
    assert site.hardware.flags() == BootFlags("b")
    assert "slot a boots by default and could not be loaded" in report.refusals[0].reason
    assert site.hardware.version() == ImageVersion("v1", "v2")
    # What does not load is not trusted, whatever is recorded of it: it is written anew.
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=30))
    assert (office.last().image, office.last().attempts) == ("v2", {})


def test_a_last_resort_that_was_never_good_runs_on_and_is_not_called_good(
    site: Site, office: Office, releases: Releases
) -> None:
    """The trial was found worse, and meanwhile the slot before has died: there is no other."""
    office.assign(releases.bad)
    while site.device.agent.work.state is not State.RETURNING:
        office.now = max(office.now, site.step())
    with open(site.root / "slot-b.img", "r+b") as file:
        file.write(bytes(4096))
    site.device.power_cycle()
    boot = site.hardware.boot_id()
    site.settle(office.now + timedelta(minutes=30))
    assert site.hardware.boot_id() == boot
    report = office.last()
    assert (report.booted, report.image, report.health, report.attempts) == ("a", "v3", "critical", {"v3": 1})
    assert not report.slots["a"].good
    assert "device-fault" in codes(office)
    assert site.hardware.flags() == BootFlags("b")


def test_a_stray_trial_is_left_as_before(site: Site, office: Office, releases: Releases) -> None:
    office.assign(releases.bad)
    while site.device.agent.work.state is not State.RETURNING:
        office.now = max(office.now, site.step())
    site.device = site.new_device()
    site.settle(office.now + timedelta(minutes=5))
    assert (site.hardware.booted(), office.last().image, office.last().attempts) == ("b", "v1", {"v3": 1})
