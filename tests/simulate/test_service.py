"""The controller's end of an exchange: what is recorded, answered and refused, and what is told of it."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from reconciler.agent.transport import TransportError
from reconciler.model.observed import DeviceObservation
from reconciler.ports import AssignmentRow
from reconciler.protocol.assignment import Assignment, ImageTarget
from reconciler.protocol.bundle import prove, seal
from reconciler.protocol.exchange import Answer
from reconciler.protocol.report import Report, Slot
from reconciler.simulate.memory_ports import image_digest
from reconciler.simulate.memory_store import MemoryStore
from reconciler.simulate.service import Service
from reconciler.simulate.signing import SimulatedSigner, verify
from tests.adapters.store_contract import decision
from tests.adapters.test_images import NOW

NAME = "SITE-1-1"
CONFIG = "sha256:" + "c" * 64


def report(sequence: int, **changes: Any) -> Report:
    base = Report(
        device=NAME,
        site="SITE-1",
        boot_id="boot",
        sequence=sequence,
        slots={"a": Slot("v1", image_digest("v1"), True), "b": Slot()},
        image="v1",
        health="ok",
    )
    return dataclasses.replace(base, **changes)


class Place:
    """A service over an empty store, and what it told."""

    def __init__(self) -> None:
        self.store, self.heard = MemoryStore(), []  # type: ignore[var-annotated]
        config = {NAME: CONFIG}
        self.service = Service(self.store, lambda: (60, 900), config.get, lambda *told: self.heard.append(told))

    def assign(self) -> Assignment:
        image = ImageTarget("v2", image_digest("v2"), "edge-golden-v2-20260115")
        epoch = self.store.begin_epoch()
        told = Assignment(NAME, (epoch, 7), NOW, NOW + timedelta(days=1), image=image)
        (bundle,) = seal([told.to_bytes()], epoch, NOW, SimulatedSigner().sign_root)
        row = AssignmentRow(
            NAME, epoch, 7, bundle.document, bundle.proof, bundle.index, bundle.root_document, bundle.signature,
            told.expires_at,
        )  # fmt: skip
        self.store.record(epoch, decision(assignments=(row,)))
        return told


@pytest.fixture
def place() -> Place:
    return Place()


def test_a_report_is_recorded_told_and_answered(place: Place) -> None:
    answer = Answer.from_bytes(place.service.exchange(NAME, report(1).to_bytes(), NOW))
    assert (answer.bundle, answer.report_every_s, answer.server_time) == (None, 60, NOW)
    found = place.store.observation(NAME)
    assert found is not None and found[1:] == ("boot", 1)
    assert place.heard == [(None, found[0], NOW)]
    later = NOW + timedelta(seconds=60)
    place.service.exchange(NAME, report(2, health="critical").to_bytes(), later)
    before, after, at = place.heard[1]
    assert before is found[0] and isinstance(after, DeviceObservation) and (after.health, at) == ("critical", later)
    place.service.exchange(NAME, report(2).to_bytes(), later)
    assert len(place.heard) == place.service.reports == 2


def test_a_newer_assignment_comes_with_the_addresses_of_what_is_lacking(place: Place) -> None:
    told = place.assign()
    answer = place.service.answer(report(1), NOW)
    assert answer.bundle is not None and Assignment.from_bytes(answer.bundle.document) == told
    keyring = SimulatedSigner().keyring
    prove(answer.bundle, lambda data, sign: verify(data, sign, keyring.data, keyring.fingerprints, NOW))  # type: ignore[arg-type]
    assert answer.sources == {"image": ("https://reconciler.invalid/v1/artifacts/edge-golden-v2-20260115/",)}
    heard = place.service.answer(report(2, serial=told.serial), NOW)
    assert heard.bundle is None and heard.sources
    slots = {"a": Slot("v1", image_digest("v1"), True), "b": Slot("v2", image_digest("v2"), True)}
    assert place.service.answer(report(3, serial=told.serial, slots=slots), NOW).sources == {}
    assert place.service.answer(report(4), NOW + timedelta(days=1)).bundle is None


def test_what_is_no_report_of_the_device_is_refused_and_changes_nothing(place: Place) -> None:
    for body, status in (
        (b"{", 400),
        (report(1, device="SITE-2-1").to_bytes(), 403),
        (report(1, config="no digest").to_bytes(), 400),
    ):
        with pytest.raises(TransportError) as caught:
            place.service.exchange(NAME, body, NOW)
        assert caught.value.status == status
    assert place.store.snapshot().devices == () and place.heard == []


def test_nobody_answers_while_it_is_down(place: Place) -> None:
    place.service.up = False
    for ask in (
        lambda: place.service.exchange(NAME, report(1).to_bytes(), NOW),
        lambda: place.service.config(NAME, NOW),
    ):
        with pytest.raises(TransportError) as caught:
            ask()
        assert caught.value.status == 503
    assert place.store.snapshot().devices == ()


def test_a_configuration_carries_its_digest(place: Place) -> None:
    assert place.service.config(NAME, NOW).digest == CONFIG
    with pytest.raises(TransportError, match="names no device"):
        place.service.config("SITE-9-1", NOW)
