"""Recordings: what is written is what is read; and replayed, a policy decides what it decided, or what it would have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from reconciler.model.desired import Desired
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.repo.problem import InvalidInput
from reconciler.simulate.course import Course, Run
from reconciler.simulate.faults import Faults
from reconciler.simulate.recording import Line, Recording, Writer, read
from reconciler.simulate.replay import Replay, replay
from reconciler.simulate.replay_text import as_json, as_text
from reconciler.simulate.run import Simulation
from reconciler.simulate.trace import Kind
from tests.review.repos import AT, waves
from tests.simulate.rollouts import course, desired_of

MINUTE = timedelta(minutes=1)
CALM = Faults()
STORMY = Faults(fail=0.2, offline=0.1, late=0.05, doubled=0.05, crashes=1, until=AT + timedelta(days=2))


def recorded(played: Course) -> tuple[Run, list[bytes]]:
    simulation = Simulation(played)
    recording = Recording(simulation)
    return simulation.run([recording.look]), recording.lines


@pytest.fixture(scope="module")
def calm() -> tuple[Run, list[bytes]]:
    return recorded(course())


def policy(text: str) -> Desired:
    return desired_of({**course().files, "waves.yaml": text.encode()})


def lines_of(lines: Sequence[bytes], tmp_path: Path) -> Iterator[Line]:
    path = tmp_path / "recording.jsonl"
    path.write_bytes(b"".join(lines))
    return read(path)


def replayed(lines: Sequence[bytes], text: str, tmp_path: Path) -> Replay:
    return replay(policy(text), lines_of(lines, tmp_path))


# ---------------------------------------------------------------- under the policy of the time


def test_under_the_same_policy_it_decides_what_was_decided(calm: tuple[Run, list[bytes]], tmp_path: Path) -> None:
    run, lines = calm
    found = replayed(lines, waves("v1.4.2"), tmp_path)
    assert found.held == ()
    told = [(e.at, e.device, e.key) for e in run.trace.events if e.kind is Kind.TOLD]
    assert sorted((e.at, e.device, e.key) for e in found.decided.events if e.kind is Kind.TOLD) == sorted(told)
    for kind in (Kind.PROVEN, Kind.STOPPED):
        assert [(e.at, e.wave) for e in found.decided.events if e.kind is kind] == [
            (e.at, e.wave) for e in run.trace.events if e.kind is kind
        ]
    for ours, theirs in found.rows:
        assert (ours.first_told_at, ours.proven_at) == (theirs.first_told_at, theirs.proven_at)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_so_it_does_when_much_goes_wrong(seed: int, tmp_path: Path) -> None:
    """Silence, failed attempts and restarts of the controller: verdicts are those of the time, but for what a tick saw late."""
    run, lines = recorded(course(faults=STORMY, seed=seed))
    found = replayed(lines, waves("v1.4.2"), tmp_path)
    for kind in (Kind.PROVEN, Kind.STOPPED):
        then = {(e.wave, e.key): e.at for e in run.trace.events if e.kind is kind}
        now = {(e.wave, e.key): e.at for e in found.decided.events if e.kind is kind}
        assert now.keys() == then.keys()
        assert all(abs(now[place] - then[place]) <= MINUTE for place in now), (now, then)
    assert found.held == ()


@pytest.mark.slow
def test_a_recording_of_whole_snapshots_is_as_good(calm: tuple[Run, list[bytes]], tmp_path: Path) -> None:
    """As a timer writes them: each line whole, a minute apart."""
    run, lines = calm
    devices: dict[str, DeviceObservation] = {}
    parts: dict[str, object] = {}
    whole, pending = [], list(lines_of(lines, tmp_path))
    at = pending[0].at
    while at <= run.trace.ended_at + 10 * MINUTE:
        while pending and pending[0].at <= at:
            snapshot = pending.pop(0).snapshot
            devices |= {device.name: device for device in snapshot.devices}
            parts |= {name: getattr(snapshot, name) for name in snapshot.model_fields_set - {"devices", "at"}}
        seen = [device.model_copy(update={"last_seen": at}) for device in devices.values()]
        made = Snapshot().model_copy(update={**parts, "devices": tuple(seen), "at": at})
        whole.append(made.model_dump_json(by_alias=True, exclude_defaults=True).encode() + b"\n")
        at += 5 * MINUTE
    found = replayed(whole, waves("v1.4.2"), tmp_path)
    proofs = {e.wave: e.at for e in found.decided.events if e.kind is Kind.PROVEN and e.key == "v1.4.2"}
    then = {e.wave: e.at for e in run.trace.events if e.kind is Kind.PROVEN and e.key == "v1.4.2"}
    assert proofs.keys() == then.keys()
    assert all(abs(proofs[wave] - then[wave]) <= 6 * MINUTE for wave in then), (proofs, then)


# ---------------------------------------------------------------- under another


def test_a_longer_soak_would_have_held_later_waves(calm: tuple[Run, list[bytes]], tmp_path: Path) -> None:
    run, lines = calm
    text = waves("v1.4.2").replace("soak: 24h", "soak: 30h")
    found = replayed(lines, text, tmp_path)
    then = {(e.wave, e.key): e.at for e in run.trace.events if e.kind is Kind.PROVEN}
    now = {(e.wave, e.key): e.at for e in found.decided.events if e.kind is Kind.PROVEN}
    assert now["canary", "v1.4.2"] - then["canary", "v1.4.2"] == timedelta(hours=6)
    assert {held.reason for held in found.held} == {"soaking"}
    assert {held.device for held in found.held} == {"SITE-2-1", "SITE-4-1"}
    told = as_text(found, "t")
    assert "2 devices were started that this policy would not have started by then" in told
    assert "open-loop" in told
    assert json.loads(as_json(found, "t"))["held"][0]["reason"] == "soaking"


def test_a_policy_that_wants_something_else_says_what(calm: tuple[Run, list[bytes]], tmp_path: Path) -> None:
    found = replayed(calm[1], waves("v1.4.1"), tmp_path)
    assert len(found.held) == 8
    assert {held.key for held in found.held} == {"v1.4.2"}


def test_a_failure_that_this_policy_tolerates_does_not_stop_it(tmp_path: Path) -> None:
    bad = Faults(bad_from_s=3 * 3600, bad=frozenset({"v1.4.2"}))
    _, lines = recorded(course(faults=bad))
    strict, lax = waves("v1.4.2"), waves("v1.4.2").replace("soak: 1h", "soak: 1h\n      maxFailed: 100%", 1)
    assert any(e.kind is Kind.STOPPED for e in replayed(lines, strict, tmp_path).decided.events)
    assert not any(
        e.kind is Kind.STOPPED and e.wave == "lab" for e in replayed(lines, lax, tmp_path).decided.events
    )  # fmt: skip


def test_time_outs_of_this_policy_are_its_own(tmp_path: Path) -> None:
    """A device that went on writing for two hours: one policy gives it up after one, the other waits."""
    seen = DeviceObservation(
        name="LAB-1-1", site="LAB-1", image="v1.4.1", image_since=AT, health="ok", health_since=AT, last_seen=AT,
    )  # fmt: skip
    doing = seen.model_copy(update={"updating_to": "v1.4.2", "updating_since": AT + MINUTE})
    writer, shared = Writer(), Snapshot.model_validate({"artifacts": {"v1.4.2": "published"}})
    lines = []
    for minute, device in enumerate([seen, *[doing] * 200]):
        at = AT + minute * MINUTE
        lines.append(writer.line(at, [device.model_copy(update={"last_seen": at})], shared) or b"")
    lines.append(b'{"at":"%s"}\n' % (AT + 200 * MINUTE).strftime("%Y-%m-%dT%H:%M:%SZ").encode())
    files = course().files
    late = {**files, "fleet.yaml": files["fleet.yaml"] + b"  updateTimeout: 1h\n  bootTimeout: 30m\n"}
    found = {}
    for name, fleet in (("one", late), ("default", files)):
        desired = desired_of({**fleet, "waves.yaml": waves("v1.4.2").encode()})
        found[name] = replay(desired, lines_of(lines, tmp_path))
    times = {name: [e.at for e in r.decided.events if e.kind is Kind.TIMED_OUT] for name, r in found.items()}
    assert times["one"] == [AT + timedelta(minutes=61)]
    assert times["default"] == [AT + timedelta(minutes=121)]


# ---------------------------------------------------------------- the file


def test_what_is_written_is_news_alone(calm: tuple[Run, list[bytes]], tmp_path: Path) -> None:
    lines = list(lines_of(calm[1], tmp_path))
    assert len(lines[0].snapshot.devices) == 8
    assert all(len(line.snapshot.devices) <= 5 for line in lines[1:])
    assert len(lines) < 60
    assert [line.at for line in lines] == sorted(line.at for line in lines)


def test_a_silent_device_is_told_once_and_again_when_it_is_back() -> None:
    writer = Writer()
    device = DeviceObservation(name="a-1", last_seen=AT)
    other = DeviceObservation(name="b-1", last_seen=AT)

    def names(at: datetime, *devices: DeviceObservation) -> list[str]:
        line = writer.line(at, devices, Snapshot())
        return [] if line is None else [each["name"] for each in json.loads(line)["devices"]]

    def seen(device: DeviceObservation, minutes: int) -> DeviceObservation:
        return device.model_copy(update={"last_seen": AT + minutes * MINUTE})

    assert names(AT, device, other) == ["a-1", "b-1"]
    assert names(AT + MINUTE, device, seen(other, 1)) == ["a-1"], "one was not heard of again"
    assert names(AT + 2 * MINUTE, device, seen(other, 2)) == [], "that was said"
    assert names(AT + 3 * MINUTE, seen(device, 3), seen(other, 3)) == ["a-1"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "1:1: holds no snapshot"),
        ('{"devices": []}\n', "1:1: the snapshot has no `at`"),
        ('{"at": "2026-01-15T09:00:00Z"}\n\n{"at": "2026-01-15T08:00:00Z"}\n', "3:1: its `at` is before"),
        ('{"at": "2026-01-15T09:00:00Z"}\n{"at": "2026-01-15T09:01:00Z", "devices": 7}\n', "2:43: "),
        ('{"at": "2026-01-15T09:00:00Z"}\n{"at"\n', "2:"),
    ],
)
def test_a_line_that_is_no_snapshot_is_named_with_its_place(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        list(read(path))
    assert f"{path}:{says}" in str(caught.value)
