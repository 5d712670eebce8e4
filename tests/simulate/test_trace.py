"""The blast radius: who counts, from when, until when."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from reconciler.simulate.trace import Event, Kind, exposure

START = datetime(2026, 1, 15, 1, 0, tzinfo=UTC)
NEW, APP = "v2", "video-ingest@2.8.0"


def event(minute: int, kind: Kind, device: str | None = None, key: str = NEW, wave: str = "canary") -> Event:
    return Event(START + timedelta(minutes=minute), kind, wave, None, device, key)


def test_a_device_counts_from_the_word_until_its_wave_has_proven_the_release() -> None:
    told = [event(1, Kind.TOLD, "A"), event(2, Kind.TOLD, "B"), event(3, Kind.ARRIVED, "A")]
    found = exposure([*told, event(4, Kind.PROVEN), event(5, Kind.TOLD, "C")], [NEW])
    assert (found.devices, found.at) == (2, START + timedelta(minutes=2))


def test_another_wave_s_proof_does_not_end_it_and_leaving_does() -> None:
    events = [
        event(1, Kind.TOLD, "A"),
        event(2, Kind.PROVEN, wave="lab"),
        event(3, Kind.TOLD, "B"),
        event(4, Kind.LEFT, "A"),
    ]
    assert exposure([*events, event(5, Kind.TOLD, "C")], [NEW]).devices == 2
    assert exposure([*events[:3], event(5, Kind.TOLD, "C")], [NEW]).devices == 3


def test_an_attempt_that_failed_or_timed_out_exposes_nobody_any_more() -> None:
    for kind in (Kind.ATTEMPT_FAILED, Kind.TIMED_OUT):
        assert exposure([event(1, Kind.TOLD, "A"), event(2, kind, "A"), event(3, Kind.TOLD, "B")], [NEW]).devices == 1


def test_one_device_on_an_unproven_image_and_app_is_one() -> None:
    events = [
        event(1, Kind.TOLD, "A"),
        event(2, Kind.TOLD, "A", APP),
        event(3, Kind.LEFT, "A"),
        event(4, Kind.TOLD, "B"),
    ]
    assert exposure(events, [NEW, APP]).devices == 2
    assert exposure(events, [APP]).devices == 1


def test_who_goes_back_goes_to_what_is_known() -> None:
    back = replace(event(1, Kind.TOLD, "A"), detail="rollback")
    assert exposure([back, event(2, Kind.ARRIVED, "A")], [NEW]).devices == 0
    assert exposure([replace(back, detail="promote"), event(2, Kind.ARRIVED, "A")], [NEW]).devices == 1


def test_what_stood_before_counts_unless_it_is_proven_or_known() -> None:
    place = ("canary", NEW)
    found = exposure([event(1, Kind.TOLD, "B")], [NEW], running={place: ["A"]}, since=START)
    assert (found.devices, found.at) == (2, START + timedelta(minutes=1))
    stood = exposure([], [NEW], running={place: ["A"], ("canary", "v1"): ["B"]}, since=START)
    assert (stood.devices, stood.at) == (1, START)
    assert exposure([event(1, Kind.TOLD, "B")], [NEW], safe=[place], running={place: ["A"]}, since=START).devices == 0
