"""A line that loses, doubles, delays, reorders and replays: the controller hears it so, and the real agent is not misled."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import pytest

from reconciler.agent.transport import NotFound, TransportError
from reconciler.protocol.bundle import seal
from reconciler.protocol.exchange import Answer
from reconciler.protocol.signature import Refused
from reconciler.simulate.network import Far, Link, Noise
from reconciler.simulate.signing import SimulatedSigner, verify
from tests.simulate.machines import EVERY_S, START, Desk, Instant, image, world

NAME = "SITE-1-1"


class Echo(Desk):
    """Answers a report with its own bytes and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[datetime, bytes]] = []

    def exchange(self, device: str, report: bytes, now: datetime) -> bytes:
        self.got.append((now, report))
        return report + b"/" + str(len(self.got)).encode()


def line(noise: Noise | None, seed: int = 1) -> tuple[Link, Echo, Instant]:
    echo, clock = Echo(), Instant()
    link = Link(NAME, Far(echo, clock))
    if noise is not None:
        link.disturb(noise, random.Random(seed))
    return link, echo, clock


def test_a_clean_line_brings_the_answer_to_what_was_sent() -> None:
    link, echo, _ = line(None)
    assert link.exchange(b"one") == b"one/1"
    assert echo.got == [(START, b"one")]
    assert link.is_clean


def test_a_line_that_is_down_carries_nothing() -> None:
    link, echo, _ = line(None)
    link.is_up = False
    with pytest.raises(TransportError, match="line is down"):
        link.exchange(b"one")
    with pytest.raises(TransportError, match="line is down"):
        link.config()
    assert echo.got == []
    assert not link.is_reaching


def test_what_is_lost_is_lost_on_the_way_there_or_back() -> None:
    link, echo, _ = line(Noise(lost=1.0))
    said = set()
    for number in range(40):
        with pytest.raises(TransportError) as caught:
            link.exchange(str(number).encode())
        said.add(str(caught.value))
    assert said == {"the report was lost", "the answer was lost"}
    assert 5 < len(echo.got) < 35


def test_a_late_report_arrives_after_one_that_was_sent_later() -> None:
    link, echo, clock = line(Noise(late=1.0, late_s=100))
    with pytest.raises(TransportError, match="no answer came in time"):
        link.exchange(b"early")
    arrives = link.late[0][0]
    assert START < arrives <= START + timedelta(seconds=100)
    link.disturb(None, random.Random(1))
    assert link.exchange(b"later") == b"later/1"
    clock.at = arrives - timedelta(seconds=1)
    link.deliver(clock.at)
    assert len(echo.got) == 1
    clock.at = arrives
    link.deliver(clock.at)
    assert echo.got[1] == (arrives, b"early")
    assert link.late == []


def test_a_doubled_report_is_heard_twice_and_answered_by_the_second() -> None:
    link, echo, _ = line(Noise(doubled=1.0))
    assert link.exchange(b"one") == b"one/2"
    assert [report for _, report in echo.got] == [b"one", b"one"]


def test_a_replay_brings_an_old_answer_and_says_that_it_is_not_clean() -> None:
    link, echo, _ = line(None)
    link.disturb(None, random.Random(1))
    assert link.exchange(b"one") == b"one/1"
    link.disturb(Noise(replayed=1.0), random.Random(1))
    assert link.exchange(b"two") == b"one/1"
    assert not link.is_clean
    assert len(echo.got) == 2


def test_the_same_seed_disturbs_alike() -> None:
    def said(seed: int) -> list[str]:
        link, _, _ = line(Noise(0.3, 0.3, 0.3, 0.3), seed)
        out = []
        for number in range(50):
            try:
                out.append(link.exchange(str(number).encode()).decode())
            except TransportError as error:
                out.append(str(error))
        return out

    assert said(3) == said(3)
    assert said(3) != said(4)


def test_a_simulated_line_has_no_files() -> None:
    link, _, _ = line(None)
    with pytest.raises(NotFound):
        link.read("https://x.invalid/SHA256SUMS", 10)
    with pytest.raises(NotFound):
        link.stream("https://x.invalid/image", 0, 10)


# ------------------------------------------------------------ what the agent makes of it


def test_a_replayed_assignment_is_refused_and_the_one_in_force_stands() -> None:
    one = world()
    device = one.device()
    device.link.disturb(None, random.Random(1))
    one.tell(START + timedelta(seconds=100), image=image("v2"), window_waived=True)
    one.play(START + timedelta(hours=1))
    # The answers so far are kept on the line; those without an assignment push the older ones out.
    assert one.desk.last().image == "v2"
    one.tell(START + timedelta(hours=2), image=image("v1"), window_waived=True)
    one.play(START + timedelta(hours=3))
    assert (one.desk.last().image, one.desk.last().serial) == ("v1", (1, 2))
    old = one.desk.bundles[NAME]
    one.tell(START + timedelta(hours=4))
    one.play(START + timedelta(hours=5))
    assert one.desk.last().serial == (1, 3)
    link = device.link
    assert link._answers is not None
    link._answers.clear()
    link._answers.append(Answer(old, {"image": ("https://x.invalid/",)}, EVERY_S, START).to_bytes())
    link.disturb(Noise(replayed=1.0), random.Random(2))
    one.machines.ring([NAME], one.clock.at + timedelta(seconds=1))
    one.play(one.clock.at + timedelta(minutes=5))
    report = one.desk.last()
    assert (report.serial, report.image) == ((1, 3), "v1")
    assert [(refusal.code, refusal.serial) for refusal in report.refusals] == [("serial-old", (1, 2))]
    assert not device.is_parked
    link.disturb(None, random.Random(3))
    one.play(one.clock.at + timedelta(minutes=5))
    assert device.is_parked


def test_a_noisy_line_only_slows_a_device_down() -> None:
    for seed in range(12):
        one = world(2)
        for number, device in enumerate(one.machines.devices.values()):
            device.link.disturb(Noise(0.2, 0.2, 0.2, 0.2), random.Random(seed * 10 + number))
        for name in one.machines.devices:
            one.tell(one.clock.at + timedelta(seconds=5), name, image=image("v2"), window_waived=True)
        one.play(START + timedelta(hours=5))
        serials = [event[2] for event in one.seen.of("accepted")]
        assert len(serials) == len(set(serials)) == 2
        for device in one.machines.devices.values():
            assert device.hardware.version().current == "v2", seed
            assert device.hardware.memory.attempts == {}


# ------------------------------------------------------------ signatures


def test_a_signature_holds_for_its_bytes_and_its_key_alone() -> None:
    signer, other = SimulatedSigner("one"), SimulatedSigner("two")
    data = b"a root document"
    signature, ring = signer.sign_root(data), signer.keyring
    assert verify(data, signature, ring.data, ring.fingerprints, START).primary == signer.fingerprint
    for bad, code in (
        ((b"another", signature, ring.data, ring.fingerprints), "signature-bad"),
        ((data, signature[:-1] + b"x", ring.data, ring.fingerprints), "signature-bad"),
        ((data, b"", ring.data, ring.fingerprints), "signature-malformed"),
        ((data, other.sign_root(data), ring.data, ring.fingerprints), "signature-foreign"),
        ((data, signature, other.keyring.data, ring.fingerprints), "signature-foreign"),
        ((data, signature, ring.data, other.keyring.fingerprints), "signature-foreign"),
    ):
        with pytest.raises(Refused) as caught:
            verify(*bad, START)
        assert caught.value.code == code


def test_an_assignment_by_another_key_is_refused() -> None:
    one = world()
    assignment = one.desk.assign(NAME, START, image=image("v2"), window_waived=True)
    forged = seal([assignment.to_bytes()], 1, START, SimulatedSigner("forger").sign_root)[0]
    one.desk.bundles[NAME] = forged
    one.play(START + timedelta(minutes=3))
    assert one.seen.of("accepted") == []
    assert [refusal.code for refusal in one.desk.last().refusals] == ["signature-foreign"]
