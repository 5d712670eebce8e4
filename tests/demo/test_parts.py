"""Parts of the followed demo by themselves: the pace of a device, its wear, the log's tail, and the chronicle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reconciler.agent.agent import Identity
from reconciler.agent.device import Device
from reconciler.agent.directory import DirectoryHardware
from reconciler.demo.chronicle import Chronicle, Tail
from reconciler.demo.pace import PacedSupply
from reconciler.demo.summary import Line
from reconciler.demo.wear import Wear
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.protocol.assignment import ImageTarget
from reconciler.repo.load import load_folder
from reconciler.simulate.trace import Kind

FLEET = Path(__file__).resolve().parents[2] / "fleet"
T0 = datetime(2026, 1, 12, 15, tzinfo=UTC)
DIGEST = "sha256:" + "1" * 64


class Clock:
    def __init__(self) -> None:
        self.at = T0

    def now(self) -> datetime:
        return self.at


class Done:
    """A supply whose work is done at once; remembers when."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.ended = clock, list[datetime]()

    def write_image(self, image: ImageTarget, slot: str) -> Iterator[float]:
        self.ended.append(self.clock.at)
        yield 0.0

    def fetch_image(self, image: ImageTarget, sources: Sequence[str], now: datetime) -> Iterator[float]:
        self.ended.append(self.clock.at)
        yield 0.0


def test_work_is_done_when_its_time_has_passed_however_often_it_is_looked_at() -> None:
    clock = Clock()
    inner = Done(clock)
    paced = PacedSupply(inner, clock.now, fetch_s=lambda release: {"v1.4.2": 288}[release], write_s=660)  # type: ignore[arg-type]
    image = ImageTarget("v1.4.2", DIGEST, "edge-golden-v1.4.2-20260112")
    for job, seconds in ((paced.write_image(image, "b"), 660), (paced.fetch_image(image, (), T0), 288)):
        clock.at = T0
        assert next(job) == seconds
        clock.at += timedelta(seconds=100)
        assert next(job) == seconds - 100
        clock.at += timedelta(seconds=seconds - 100)
        assert list(job) == [0.0]
    assert inner.ended == [T0 + timedelta(seconds=660), T0 + timedelta(seconds=288)]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    hardware = DirectoryHardware(tmp_path / "device", site="SITE-1", cache=tmp_path / "unpacked")
    made = Device(Identity("SITE-1-1", "SITE-1"), hardware, transport=None)  # type: ignore[arg-type]
    assert made.booting
    made.call_in()
    assert not made.booting
    return made


def image_with(device: Device, check: str) -> None:
    """The running image's checks, as they lie unpacked."""
    hardware = device.hardware
    (hardware.root / "slots.json").write_text(
        f'{{"{hardware.booted()}": {{"release": "v1.4.3", "digest": "{DIGEST}", "good": true}}}}'
    )
    checks = hardware.root.parent / "unpacked" / DIGEST.removeprefix("sha256:") / "usr/local/lib/edge/health.d"
    checks.mkdir(parents=True)
    (checks / "decoder").write_text(check)


def test_a_check_that_asks_is_told_each_hour_since_the_boot(device: Device) -> None:
    image_with(device, 'read -r _ hours _ <"$EDGE_DEVICE_ROOT/faults/decoding"')
    wear, devices, file = Wear({"SITE-1-1": 6}), {"SITE-1-1": device}, device.hardware.root / "faults/decoding"
    assert wear.pass_on(devices, ["SITE-1-1"], T0) == []
    assert file.read_text() == "ok 0 hours, 6 cameras\n" and wear.next_at() == T0 + timedelta(hours=1)
    assert wear.pass_on(devices, [], T0 + timedelta(minutes=59)) == []
    assert wear.pass_on(devices, [], T0 + timedelta(hours=1)) == ["SITE-1-1"]
    assert file.read_text() == "ok 1 hours, 6 cameras\n"
    device.hardware.boot()
    assert wear.pass_on(devices, ["SITE-1-1"], T0 + timedelta(hours=1, minutes=30)) == []
    assert file.read_text() == "ok 0 hours, 6 cameras\n" and wear.next_at() == T0 + timedelta(hours=2, minutes=30)


def test_an_image_whose_checks_do_not_ask_is_told_nothing(device: Device) -> None:
    image_with(device, "echo fine")
    wear = Wear({"SITE-1-1": 6})
    assert wear.pass_on({"SITE-1-1": device}, ["SITE-1-1"], T0) == [] and wear.next_at() is None
    assert not (device.hardware.root / "faults/decoding").exists()


def test_a_line_of_the_log_is_read_once_and_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{"at": "2026-01-12T15:00:00Z", "event": "proof", "wave": "lab"}\nTraceback\n{"at": "2026-')
    tail = Tail(log)
    assert [(line.at, line.event, dict(line.fields)) for line in tail.read()] == [(T0, "proof", {"wave": "lab"})]
    with open(log, "a") as file:
        file.write('01-12T16:00:00Z", "event": "stopped"}\n')
    assert [line.event for line in tail.read()] == ["stopped"] and list(tail.read()) == []


def test_a_chronicle_tells_what_a_forecast_tells() -> None:
    desired = load_folder(FLEET, scenarios=False).desired
    assert desired is not None
    before = Snapshot(
        at=T0,
        devices=tuple(DeviceObservation(name=n, image="v1.4.1") for s in desired.sites.values() for n in s.devices),
    )
    story = Chronicle(replace(desired, commit="c" * 40), before, T0)

    def hour(number: int) -> datetime:
        return T0 + timedelta(hours=number)

    told = Line(hour(1), "action", {"action": "flash device=LAB-0001-1 to=v1.4.2", "why": "promote"})
    assert [(e.kind, e.wave, e.device, e.key) for e in story.hear(told)] == [(Kind.TOLD, "lab", "LAB-0001-1", "v1.4.2")]
    there = DeviceObservation(name="LAB-0001-1", image="v1.4.2", image_since=hour(2))
    assert [(e.at, e.kind, e.key) for e in story.look(there)] == [
        (hour(2), Kind.LEFT, "v1.4.1"),
        (hour(2), Kind.ARRIVED, "v1.4.2"),
    ]
    assert list(story.look(there)) == []
    proof = Line(hour(3), "proof", {"wave": "lab", "release": "v1.4.2"})
    assert [event.kind for event in story.hear(proof)] == [Kind.PROVEN]
    plan = {
        "at": "2026-01-12T18:00:00Z",
        "commit": "c" * 40,
        "waves": [{"name": "lab", "image": "v1.4.2", "state": "complete", "devices": 1}],
    }
    assert [event.detail for event, _ in story.states(plan)] == ["complete"] and list(story.states(plan)) == []
    assert list(story.states({**plan, "commit": "d" * 40})) == [], "a plan of another commit"
    entries = story.calendar(plan)
    assert [(e.wave, e.key, e.first_told_at, e.last_arrived_at, e.proven_at) for e in entries] == [
        ("lab", "v1.4.2", hour(1), hour(2), hour(3))
    ]
    most = story.exposure(entries)
    assert (most.devices, most.at) == (1, hour(1))
