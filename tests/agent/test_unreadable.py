"""What a device remembers cannot be read: it reports all the same and says why, concludes nothing, begins nothing, and goes on
by itself once somebody has mended it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from reconciler.agent.disk import Disk
from reconciler.agent.machine import State
from reconciler.agent.state import MAX_COUNT, StateError, StateFile
from reconciler.protocol.report import Slot
from tests.agent.conftest import Releases
from tests.agent.world import START, Office, Site

pytestmark = pytest.mark.system


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


def asked(office: Office) -> set[str]:
    return {path for _, path, _ in office.requests}


def folder_for(path: Path) -> bytes:
    """A folder in the place of a file; what the file held."""
    data = path.read_bytes()
    path.unlink()
    path.mkdir()
    return data


def restore(path: Path, data: bytes) -> None:
    if path.is_dir():
        path.rmdir()
    path.write_bytes(data)


# ------------------------------------------------------------ the records of the slots


@pytest.mark.parametrize("is_new_life", [False, True])
def test_records_of_slots_that_cannot_be_read_silence_nobody_and_start_nothing(
    is_new_life: bool, site: Site, office: Office, releases: Releases
) -> None:
    site.settle(START + minutes(3))
    path = site.root / "agent" / "slots.json"
    data, before = folder_for(path), len(office.reports)
    if is_new_life:
        site.device.power_cycle()
    # A waived window is obeyed by a device on which nothing runs: this one must not take itself for one.
    office.assign(releases.v2, window_waived=True)
    office.requests.clear()
    site.settle(START + minutes(10))
    said = office.reports[before:]
    assert len(said) >= 5 and asked(office) == {"/v1/exchange"}
    # That it runs v1 stands elsewhere; which bytes the slots hold does not.
    assert {(item.image, item.slots["a"], item.slots["b"]) for item in said} == {("v1", Slot(), Slot())}
    (refusal,) = office.last().refusals
    assert refusal.code == "device-fault"
    assert "slots.json cannot be read: Is a directory" in refusal.reason and "move it away" in refusal.reason
    assert site.hardware.flags().trial is None
    restore(path, data)
    site.settle(START + minutes(20))
    assert (office.last().image, office.last().refusals) == ("v2", ())


@pytest.mark.parametrize("damage", [b"", b"\0" * 300, b'{"b": {"release": "v1"}}'])
def test_a_record_lost_while_the_device_runs_is_found_out_again_before_anything_is_told(
    damage: bytes, site: Site, office: Office, releases: Releases
) -> None:
    site.settle(START + minutes(3))
    (site.root / "agent" / "slots.json").write_bytes(damage)
    office.assign(releases.v1, window_waived=True)
    site.device.call_in()
    site.settle(START + minutes(6))
    assert {item.slots["b"].digest for item in office.reports} == {releases.v1.digest}
    assert asked(office) == {"/v1/exchange"}, "it runs what it is assigned"
    assert site.hardware.slots()["b"] == Slot("v1", releases.v1.digest, True)


def test_records_unreadable_in_the_middle_of_a_trial_make_no_success_of_it(
    site: Site, office: Office, releases: Releases
) -> None:
    office.assign(releases.v2)
    while not site.device.agent.leaving:
        site.device.agent.step(site.now)
    site.device.power_cycle()
    data = folder_for(site.root / "agent" / "slots.json")
    office.reports.clear()
    site.settle(START + minutes(5))
    assert {item.phase for item in office.reports} == {"trial"}
    restore(site.root / "agent" / "slots.json", data)
    site.settle(START + minutes(10))
    assert (office.last().image, office.last().phase, office.last().refusals) == ("v2", "idle", ())


# ------------------------------------------------------------ the agent's memory


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(b"{"), "is damaged"),
        (folder_for, "cannot be read: Is a directory"),
        (lambda path: path.write_text(path.read_text().replace('"attempts":[]', '"attempts":[["v2",-1]]')), "-1"),
    ],
)
def test_a_memory_that_cannot_be_read_is_told_and_no_assignment_is_accepted(
    damage: Callable[[Path], object], says: str, site: Site, office: Office, releases: Releases
) -> None:
    office.assign(releases.v1)
    site.settle(START + minutes(3))
    path, before = site.root / "agent" / "state.json", office.last()
    assert before.serial == (1, 1)
    data = path.read_bytes()
    site.device.end()
    damage(path)
    spoiled = None if path.is_dir() else path.read_bytes()
    # Signed, for this device, in time: only its serial may be below the last accepted, which nobody knows.
    office.assign(releases.v2)
    office.requests.clear()
    heard = len(office.reports)
    for life in range(2):
        site.settle(START + minutes(8 + 5 * life))
        site.device.end()
    said = office.reports[heard:]
    assert len(said) >= 8 and asked(office) == {"/v1/exchange"}
    assert {(item.image, item.serial, item.phase) for item in said} == {("v1", None, "idle")}
    numbers = [before.sequence, *(item.sequence for item in said)]
    assert numbers == sorted(set(numbers)), "the server takes a lower number for a late report"
    (refusal,) = office.last().refusals
    assert refusal.code == "device-fault" and says in refusal.reason
    assert "no assignment is accepted" in refusal.reason and refusal.reason.endswith("whatever its serial")
    assert site.hardware.booted() == "b" and site.hardware.slots()["a"] == Slot()
    assert path.is_dir() if spoiled is None else path.read_bytes() == spoiled, "it is left for a person"
    # Mended, it goes on from there, in the same life.
    site.settle(START + minutes(15))
    restore(path, data)
    site.settle(START + minutes(25))
    assert (office.last().image, office.last().serial, office.last().refusals) == ("v2", (1, 2), ())
    assert office.last().sequence > said[-1].sequence
    last = office.last().sequence
    site.device.end()
    site.settle(START + minutes(27))
    assert office.last().sequence > last


def test_with_the_memory_mended_the_serial_holds_again(site: Site, office: Office, releases: Releases) -> None:
    older = office.assign(releases.v2)
    bundle = office.bundle
    office.assign(releases.v1)
    site.settle(START + minutes(3))
    path = site.root / "agent" / "state.json"
    data = path.read_bytes()
    site.device.end()
    path.write_bytes(b"torn")
    office.bundle = bundle
    site.settle(START + minutes(6))
    restore(path, data)
    site.settle(START + minutes(10))
    assert [(item.code, item.serial) for item in office.last().refusals] == [("serial-old", older.serial)]
    assert office.last().image == "v1"


def test_a_trial_without_a_memory_is_not_told_as_a_success_and_is_not_left(
    site: Site, office: Office, releases: Releases
) -> None:
    office.assign(releases.v2)
    while not site.device.agent.leaving:
        site.device.agent.step(site.now)
    site.device.power_cycle()
    path = site.root / "agent" / "state.json"
    data, boot = path.read_bytes(), site.hardware.boot_id()
    path.write_bytes(b"torn")
    office.reports.clear()
    site.settle(START + minutes(5))
    assert {(item.booted, item.phase) for item in office.reports} == {("a", "trial")}
    assert (site.hardware.boot_id(), site.hardware.flags().default) == (boot, "b")
    restore(path, data)
    site.settle(START + minutes(10))
    assert (office.last().image, office.last().phase, office.last().attempts) == ("v2", "idle", {})


@pytest.mark.parametrize("count", [-1, MAX_COUNT + 1, 1 << 50, True, 1.5, "3", None])
def test_a_count_of_attempts_that_nobody_can_have_made_is_damage(count: object, tmp_path: Path) -> None:
    value = {"version": 1, "attempts": [["v2", count]], "sequenceReserved": 5}
    (tmp_path / "state.json").write_text(json.dumps(value))
    with pytest.raises(StateError, match=r"`attempts` of 'v2' is .*, not a count from 0 to 1000000"):
        StateFile(tmp_path / "state.json", Disk()).load()


@pytest.mark.parametrize(
    "change",
    [
        {"failedUnder": [["v2", [-1, 5]]]},
        {"failedUnder": [["v2", [1, "5"]]]},
        {"attempts": [["", 1]]},
        {"attempts": [[5, 1]]},
        {"attempts": [["v" * 300, 1]]},
        {"sequenceReserved": (1 << 52) + 1},
    ],
)
def test_other_values_out_of_bounds_are_damage_too(change: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"version": 1, "sequenceReserved": 5, **change}))
    with pytest.raises(StateError, match="is damaged"):
        StateFile(tmp_path / "state.json", Disk()).load()


def test_what_else_is_so_is_told_though_one_part_of_it_cannot_be_read(
    site: Site, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.settle(START + minutes(1))
    heard = len(office.reports)

    def no() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(site.hardware, "version", no)
    site.settle(START + minutes(5))
    assert len(office.reports) > heard + 1
    assert (office.last().image, office.last().previous) == ("v1", None)
    assert [item.code for item in office.last().refusals] == ["device-fault"]
    monkeypatch.undo()
    site.settle(START + minutes(8))
    assert office.last().refusals == () and site.device.agent.work.state is State.IDLE
