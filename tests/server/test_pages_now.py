"""The front page and the pages of waves, through the real app: what a person reads there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from reconciler.model.events import CheckSaid, Event, EventKind, HealthChange
from reconciler.ports import ConditionRow, TransientError
from tests.controller.staging import observed
from tests.server.pages import Reader, reading
from tests.server.service import NOW
from tests.server.test_api import filled


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A fleet with a device that failed, one that is silent, and history."""
    with reading(tmp_path_factory.mktemp("now")) as reader:
        filled(reader.api)
        yield reader


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Reader]:
    with reading(tmp_path) as reader:
        yield reader


def test_the_first_sentences_say_what_needs_a_person(full: Reader) -> None:
    page = full.get("/")
    assert page.heading == "Now"
    lead = page.of("lead")
    assert "1 condition of the controller is not as it should be: GitReady." in lead
    assert "v1.4.2 is stopped in every wave: wave lab failed on it." in lead
    assert "1 device is flagged: it failed on its release, and nobody has acknowledged that." in lead
    assert "Wave lab soaks video 1.0.0 until" in lead
    assert "no route" in page.of("conditions") and "GitReady: Unreachable" in page.of("conditions")


def test_who_is_in_trouble_is_said_with_cause_and_next_step(full: Reader) -> None:
    page = full.get("/")
    assert "△ 2 devices are in trouble: 1 failed on its release, 1 silent." in page.of("lead")
    said = page.of("trouble")
    assert said.startswith("In trouble: 2 devices ◆ failed S0-1 wave lab: camera is critical. What to do")
    assert "○ silent S3-2 wave all, silent for 1 d" in said
    assert "What to do: 1 other device of its site answers: look at this device, its power and its cable" in said


def test_a_warning_says_its_check_also_while_the_device_is_held(fresh: Reader) -> None:
    stage, names = fresh.api.stage, [f"S{site}-{number}" for site in (1, 2, 3) for number in (1, 2)]
    devices = {device.name: device for device in stage.everybody()}
    for name in names:
        devices[name] = observed(name, health="warning", health_since=NOW - timedelta(hours=9))
        checks = (CheckSaid("disk", "warning", "/data is <91> % full"),)
        stage.store.add_health([HealthChange(name, NOW - timedelta(hours=9), "warning", "v1.4.1", checks)])
    stage.store.observe(list(devices.values()), sequences={})
    stage.tick(*devices.values())
    page = fresh.get("/")
    said = page.of("trouble")
    assert said.startswith("In trouble: 6 devices △ warning S1-1 wave canary: disk: /data is <91> % full What to do:")
    assert "a warning counts as good, and stops no rollout" in said and "And 3 more warning." in said
    assert "/devices?health=warning" in page.links
    assert len(fresh.get("/devices?health=warning").rows()) == 6
    held = fresh.get("/devices/S1-1")
    assert "■ held" in held.heading and "△ disk /data is <91> % full" in held.of("checks")
    assert held.of("step").startswith("Mend what its check says")
    lines = ["  health of S1-1: warning since 2026-01-14T16:30:00Z", "    disk: warning: /data is <91> % full"]
    assert fresh.api.get("/v1/explain/S1-1")["text"][-2:] == lines
    assert fresh.api.get("/v1/explain/S1")["text"][-4:-2] == lines
    assert (
        "health of S1-1: warning" in held.text and "disk: warning: /data is <91> % full" in fresh.get("/sites/S1").text
    )
    assert "trouble" in page.ids and "checks" not in fresh.get("/devices/S0-1").ids


def test_without_the_store_trouble_is_still_named(full: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_args: object, **_more: object) -> None:
        raise TransientError("the store does not answer")

    monkeypatch.setattr(full.app.options.store, "health_log", down)
    assert "◆ failed S0-1 wave lab on its release. What to do" in full.get("/").of("trouble")


def test_waves_have_a_row_each_with_progress_and_state(full: Reader) -> None:
    page = full.get("/")
    lab = page.of("wave-lab")
    assert "v1.4.2" in lab and "◆ failed" in lab and "2 of 2 on it" in lab
    assert page.find("wave-lab", "svg")["aria-label"] == "2 of 2 on it, 1 healthy, 1 failed"
    assert "soak ends in 10 min" in page.of("wave-lab-video")
    assert "■ waiting" in page.of("wave-canary")


def test_the_words_are_explained_where_they_are_used(full: Reader) -> None:
    for path in ("/", "/waves/lab"):
        said = full.get(path).of("words")
        assert all(f" {word} " in said for word in ("Soak", "Gate", "Proof", "Held", "Waiting", "Silent")), said


def test_holds_are_said_in_plain_words_and_lead_to_their_devices(full: Reader) -> None:
    page = full.get("/")
    assert "too many devices failed: the release is stopped" in page.of("holds")
    assert "/devices?wave=canary&state=held" in page.links


def test_what_comes_next_is_said_with_its_instant(full: Reader) -> None:
    text = full.get("/").text
    assert "2026-01-15 01:40 UTC in 10 min the soak of wave lab on video 1.0.0 ends" in text


def test_the_last_events_are_there_with_links(full: Reader) -> None:
    page = full.get("/")
    assert "wave opened" in page.text and "/devices/S0-1" in page.links and "/waves/lab" in page.links


def test_a_wave_says_why(full: Reader) -> None:
    page = full.get("/waves/canary")
    assert page.heading == "Wave canary"
    assert "release v1.4.2 is stopped in every wave" in page.text
    assert "What would change it merge a revert" in page.text
    assert "/devices/S0-1" in page.links and "/waves/lab" in page.links
    assert full.get("/waves/none", status=404).heading == "No such wave"


def test_before_the_first_tick_pages_say_so(fresh: Reader) -> None:
    assert fresh.get("/").heading == "Nothing is planned yet"
    assert "has just started" in fresh.get("/waves/lab").text


def test_without_a_fleet_the_page_says_what_is_lacking(fresh: Reader) -> None:
    from reconciler.planner.live import Live

    rows = (ConditionRow("FleetValid", "False", "Invalid", "sites/A.yaml:3: no such wave", NOW),)
    fresh.api.stage.boards.publish(None, None, Live(), rows, ("f" * 40, "it has 2 errors"), NOW)
    page = fresh.get("/")
    assert "No fleet yet" in page.text and "sites/A.yaml:3: no such wave" in page.text
    assert "The branch's head ffffffffffff is not acted on." in page.of("lead") and "it has 2 errors" in page.text
    assert "no commit of the fleet repo to act on" in fresh.get("/waves/lab").text


def test_a_controller_that_cannot_plan_yet_says_what_stood_before(fresh: Reader) -> None:
    from reconciler.planner import plan
    from reconciler.planner.live import Live
    from tests.controller.staging import SHARED

    stage, store = fresh.api.stage, fresh.api.stage.store
    seen = SHARED.model_copy(update={"devices": tuple(stage.everybody()), "at": NOW})
    store.save_plan(store.begin_epoch(), plan(stage.desired, seen, NOW - timedelta(hours=3)).to_json())
    rows = (ConditionRow("StoresReady", "False", "Unreachable", "the image store does not answer", NOW),)
    stage.boards.publish(None, None, Live(), rows, None, NOW)
    page = fresh.get("/")
    assert "No fleet yet" not in page.text and "the image store does not answer" in page.text
    assert "Waves and holds are as of 2026-01-14 22:30 UTC (3 h ago), from its last plan" in page.of("as-of")
    assert "v1.4.2" in page.of("wave-lab") and "an earlier wave comes first" in page.of("holds")
    assert "Every device" not in page.text and "tonight-title" not in page.ids
    assert "when it last planned" in fresh.get("/devices").text and "no commit" not in fresh.get("/sites").text
    said = fresh.api.get("/v1/waves")
    assert (said["asOf"], said["at"], said["commit"]) == ("2026-01-14T22:30:00Z", "2026-01-15T01:30:00Z", "c1")
    assert {"wave-waits", "outside-window"} <= {hold["reason"] for hold in fresh.api.get("/v1/holds")["holds"]}
    for path in ("/v1/devices", "/v1/devices/S0-1", "/v1/sites"):
        assert fresh.api.refusal(path)[0] == 503
    stage.tick(*stage.everybody())
    assert fresh.api.get("/v1/waves")["asOf"] is None and "as-of" not in fresh.get("/").ids


def test_a_fleet_at_rest_says_that_all_is_well(fresh: Reader) -> None:
    from tests.controller.staging import desired

    fresh.api.stage.desired = desired(canary="v1.4.1")
    fresh.api.stage.now += timedelta(days=40)
    fresh.api.stage.tick(
        *[device.model_copy(update={"last_seen": fresh.api.stage.now}) for device in fresh.api.stage.everybody()]
    )
    page = fresh.get("/")
    assert "Every device that answers runs what git asks for." in page.of("lead")
    assert "Nothing is held." in page.text and not {"conditions", "trouble"} & page.ids.keys()


def test_a_fleet_whose_devices_were_never_enrolled_says_so(fresh: Reader) -> None:
    fresh.api.stage.tick()
    page = fresh.get("/")
    assert "□ 8 devices have never reported: enrol them, or take them out of git." in page.of("lead")
    assert "/devices?state=never-seen" in page.links and len(fresh.get("/devices?state=never-seen").rows()) == 8
    # Of all waves that wait for the same, not of the largest.
    assert "Nothing moves: 8 devices are held, silent: offered when the device reports." in page.of("lead")
    assert "no report in the last" in page.of("holds") and "no report for more than" not in page.text
    said = fresh.get("/devices/S0-1").text
    assert "S0-1 is not known to be on video 1.0.0" in said and "S0-1 is on video" not in said


def test_what_nobody_has_looked_at_yet_leads_to_no_page_of_the_book(fresh: Reader) -> None:
    from reconciler.controller.conditions import Conditions
    from reconciler.planner.live import Live

    rows = Conditions((), NOW, lambda *_args, **_more: None).rows()
    fresh.api.stage.boards.publish(None, None, Live(), rows, None, NOW)
    said = fresh.get("/").of("conditions")
    assert "StoresReady NotYetKnown, for 0 s looked at once a commit is in force" in said
    assert "What to do" not in said


def test_windows_that_open_are_counted(fresh: Reader) -> None:
    fresh.api.stage.tick(*fresh.api.stage.everybody())
    page = fresh.get("/")
    assert (
        "2026-01-15 02:00 UTC in 30 min a maintenance window opens for 2 devices: wave lab may begin v1.4.2"
        in page.text
    )
    # What the plan says is shown with instants as pages write them.
    assert "of it is left until 2026-01-15 02:00 UTC" in page.of("holds") and "T02:00:00Z" not in page.text
    lead = "Wave lab moves to v1.4.2: 0 of 2 devices on it, and nothing is in flight: for 2 devices the maintenance"
    assert f"■ {lead} window is closed, until 2026-01-15 02:00 UTC." in page.of("lead")


def test_what_is_in_flight_is_said(fresh: Reader) -> None:
    now = NOW + timedelta(minutes=40)
    fresh.api.stage.now = now
    fresh.api.stage.tick(*[device.model_copy(update={"last_seen": now}) for device in fresh.api.stage.everybody()])
    fresh.api.stage.tick(observed("S0-1", last_seen=now, updating_to="v1.4.2", updating_since=now))
    page = fresh.get("/")
    assert "▶ Wave lab moves to v1.4.2: 0 of 2 devices on it, 1 in flight." in page.of("lead")
    assert "being updated" in page.of("holds") and "Nothing is due by the clock" in page.text


def test_a_store_that_does_not_answer_leaves_what_is_known(fresh: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(fresh.api)

    def down(*_args: object, **_more: object) -> None:
        raise TransientError("the store does not answer")

    monkeypatch.setattr(fresh.app.options.store, "events", down)
    monkeypatch.setattr(fresh.app.options.access, "acknowledgements", down)
    page = fresh.get("/")
    assert "The store does not answer now" in page.text and "v1.4.2 is stopped" in page.text
    assert "flagged: it failed on its release." in page.of("lead")
    monkeypatch.setattr(fresh.api.stage.store, "observed", down)
    page = fresh.get("/waves/lab", status=503)
    assert "The controller's last word is of 2026-01-15 01:30 UTC" in page.text


def test_hostile_words_are_only_words(fresh: Reader) -> None:
    bad = "<script>alert(1)</script>\x1b[31m"
    fresh.api.stage.conditions = (ConditionRow("GitReady", "False", "Unreachable", bad, NOW),)
    fresh.api.stage.refused = ("f" * 40, bad)
    fresh.api.stage.tick(observed("S0-1"))
    page = fresh.get("/")
    assert page.html.count("&lt;script&gt;alert(1)") >= 2
    assert "<script>alert" not in page.html and "\x1b" not in page.html


def test_older_events_are_a_click_away(fresh: Reader) -> None:
    fresh.api.stage.tick(*fresh.api.stage.everybody())
    told = [
        Event(
            None, NOW - timedelta(hours=hours), EventKind.WAVE_OPENED, str(hours), wave="lab", message=f"event {hours}"
        )
        for hours in range(9, 0, -1)
    ]
    fresh.app.store.add_events(None, told)
    page = fresh.get("/")
    assert "3 events before" in page.of("events-before")
    assert [f"event {hours}" in page.of("events-before") for hours in (6, 7, 8, 9)] == [False, True, True, True]
