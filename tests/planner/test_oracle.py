"""The oracle of the property tests can say no: a plan made for one input is judged against another."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from reconciler.model.plan import ActionKind
from reconciler.planner import plan
from reconciler.repo.scenario_read import read_scenario
from tests.planner.fleets import Case
from tests.planner.oracle import Oracle

TEXT = """\
apiVersion: fleet/v1
kind: Scenario
metadata: {name: a wave after its proven canary}
spec:
  sites: [{name: SITE-0001}, {name: SITE-0002, devices: [SITE-0002-1, SITE-0002-2]}, {name: SITE-0003}]
  documents:
    - kind: Fleet
      metadata: {name: fleet}
      spec: FLEET
    - {kind: Image, metadata: {name: v2}, spec: IMAGE}
    - kind: Waves
      metadata: {name: waves}
      spec:
        waves:
          - {name: canary, sites: [SITE-0001], image: v2, soak: 48h}
          - {name: all, percent: 100, image: v2, soak: 24h, maxInFlight: BUDGET}
  now: 2026-01-15T02:30:00Z
  observed:
    artifacts: {v1: published, v2: STATE}
    defaults: {image: v1, imageSince: 2026-01-01T00:00:00Z, health: ok, healthSince: 2026-01-01T00:00:00Z, lastSeen: now}
    devices:
      SITE-0001-1: {image: v2, imageSince: SINCE, healthSince: SINCE, health: HEALTH}
      SITE-0003-1: {EXTRA}
    failures: FAILURES
  expect: {holds: []}
"""
SOUND = {
    "FLEET": "{}",
    "IMAGE": "{}",
    "BUDGET": "100%",
    "STATE": "published",
    "SINCE": "2026-01-10T02:00:00Z",
    "HEALTH": "ok",
    "EXTRA": "health: ok",
    "FAILURES": "[]",
}


def case_of(**changes: str) -> Case:
    text = TEXT
    for word, value in {**SOUND, **changes}.items():
        text = text.replace(word, value)
    scenario, _ = read_scenario("a.yaml", text.encode())
    return Case(scenario.desired, scenario.snapshot, scenario.now)


def told(case: Case) -> str:
    """What the oracle says of the plan for the sound case, had it been made for `case`."""
    sound = case_of()
    made = plan(sound.desired, sound.snapshot, sound.now)
    assert [action.kind for action in made.actions] == [ActionKind.FLASH] * 2
    oracle = Oracle(case, made)
    faults = [line for action in made.actions for line in oracle.faults(action)]
    return "\n".join((*faults, *oracle.overspent(), *oracle.undecided()))


def test_a_sound_plan_is_accepted() -> None:
    assert told(case_of()) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"STATE": "built"}, "is not published"),
        ({"IMAGE": "{withdrawn: leaks}"}, "is withdrawn"),
        ({"FLEET": "{paused: true}"}, "is paused"),
        ({"FLEET": "{freezes: [{from: 2026-01-15T00:00:00Z, to: 2026-01-16T00:00:00Z}]}"}, "is frozen"),
        ({"FLEET": "{flashDuration: 91m}"}, "the window is closed"),
        ({"SINCE": "2026-01-13T02:30:01Z"}, "SITE-0001-1 still soaks"),
        ({"HEALTH": "critical"}, "nothing to judge"),
        ({"BUDGET": "1"}, "wave all starts 2"),
        ({"EXTRA": "lastSeen: 2026-01-15T02:14:59Z"}, "does not report"),
        ({"EXTRA": "image: v2"}, "runs it already"),
        ({"EXTRA": "inactiveSlot: v2"}, "method does not fit the slot"),
        ({"EXTRA": "image: v9"}, "runs an image git does not know"),
        ({"EXTRA": "failedAttempts: {v2: 3}"}, "attempts are used up"),
        ({"EXTRA": "updatingTo: v2, updatingSince: 2026-01-15T02:20:00Z"}, "is in progress"),
        ({"EXTRA": "conflict: true"}, "two devices claim the name"),
        ({"FAILURES": "[{wave: all, image: v2, at: 2026-01-15T00:00:00Z}]"}, "failed in wave all"),
    ],
)
def test_an_unsound_plan_is_refused(changes: dict[str, str], words: str) -> None:
    assert words in told(case_of(**changes))


def test_a_device_without_a_word_is_noticed() -> None:
    sound = case_of()
    made = plan(sound.desired, sound.snapshot, sound.now)
    silent = replace(made, actions=(), holds=())
    assert len(Oracle(sound, silent).undecided()) == 3


def test_a_second_device_of_a_site_is_noticed() -> None:
    sound = case_of()
    made = plan(sound.desired, sound.snapshot, sound.now)
    first = next(action for action in made.actions if action.fields["site"] == "SITE-0002")
    other = {"SITE-0002-1": "SITE-0002-2", "SITE-0002-2": "SITE-0002-1"}[str(first.fields["device"])]
    second = replace(first, fields={**first.fields, "device": other})
    assert Oracle(sound, replace(made, actions=(*made.actions, second))).overspent() == ["site SITE-0002 starts 2"]
    assert Oracle(sound, replace(made, actions=(*made.actions, first))).overspent()[0] == "two actions on one device"


def test_the_window_is_read_from_the_wall() -> None:
    late = replace(case_of(), now=datetime(2026, 1, 15, 3, 41, tzinfo=UTC))
    seen = tuple(device.model_copy(update={"last_seen": late.now}) for device in late.snapshot.devices)
    late = replace(late, snapshot=late.snapshot.model_copy(update={"devices": seen}))
    assert "the window is closed" in told(late)
    assert "the window is closed" not in told(replace(late, now=late.now - timedelta(minutes=1)))
