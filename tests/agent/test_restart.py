"""What becomes of an app's restart when the app ends by itself, or the agent does, between its start and its judgement."""

from __future__ import annotations

from datetime import timedelta

import pytest

from reconciler.agent.machine import State
from tests.agent.world import START, Office, Site

pytestmark = pytest.mark.system


def test_an_app_that_ends_after_it_was_started_is_taken_back_and_counted(site: Site, office: Office) -> None:
    first, second = office.push_app(b"one" * 1000), office.push_app(b"two" * 1000, version="2.9.0")
    office.assign(apps={"video-ingest": first})
    site.settle(START + timedelta(minutes=2))
    office.assign(apps={"video-ingest": second})
    site.device.call_in()
    for _ in range(100):
        if site.hardware.apps()["video-ingest"] == second.digest:
            break
        site.step()
    site.hardware.run_app("video-ingest", None)  # as a container that has ended
    site.settle(START + timedelta(minutes=6))
    report = office.last()
    assert report.apps == {"video-ingest": first.digest}
    assert report.attempts == {"video-ingest@2.9.0": 1}
    assert "video-ingest does not run any more" in [item.reason.partition(": ")[2] for item in report.refusals]


def test_a_restart_that_another_life_began_is_finished_by_the_next_and_what_ran_before_is_still_known(
    site: Site, office: Office
) -> None:
    first, second = office.push_app(b"one" * 1000), office.push_app(b"two" * 1000, version="2.9.0")
    office.assign(apps={"video-ingest": first})
    site.settle(START + timedelta(minutes=2))
    office.assign(apps={"video-ingest": second})
    site.device.call_in()
    for _ in range(100):
        intent = site.device.agent.notes.memory.intent
        if intent is not None and intent.digest == second.digest:
            break
        site.step()
    # The power goes when the release is deployed and nothing runs yet.
    site.hardware.run_app("video-ingest", None)
    site.device.power_cycle()
    assert site.hardware.apps() == {}
    site.step()
    assert site.device.agent.work.state is State.RESTARTING
    kept = site.device.agent.notes.memory.intent
    assert kept is not None
    assert (kept.digest, kept.before) == (second.digest, first.digest)
    site.settle(START + timedelta(minutes=6))
    assert office.last().apps == {"video-ingest": second.digest}
    assert (office.last().attempts, office.last().refusals) == ({}, ())
