"""The page of the controller itself, through the real app: last tick, conditions, keys, open actions, who listens."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from reconciler.controller.pulse import Pulse
from reconciler.ports import ConditionRow, PublicKey, TransientError
from tests.server.pages import Reader, reading
from tests.server.service import NOW


@pytest.fixture
def pulse() -> Pulse:
    return Pulse()


@pytest.fixture
def reader(tmp_path: Path, pulse: Pulse) -> Iterator[Reader]:
    counts = {("ops", "delivered"): 2, ("ops", "failed"): 0}
    with reading(tmp_path, pulse=pulse, notified=lambda: counts) as found:
        yield found


def test_it_is_linked_from_every_page_also_before_anything_is_planned(reader: Reader) -> None:
    for path in ("/", "/devices", "/controller"):
        assert "/controller" in reader.get(path).links
    reader.api.stage.tick(*reader.api.stage.everybody())
    assert "/controller" in reader.get("/devices/none", status=404).links
    page = reader.get("/controller")
    assert page.heading == "The controller itself" and page.root.words().count("The controller itself") >= 2


def test_the_last_tick_is_told_with_its_failures(reader: Reader, pulse: Pulse) -> None:
    reader.api.stage.tick(*reader.api.stage.everybody())
    assert "none has ended well since the process began" in reader.get("/controller").of("loop")
    with pulse.tick():
        pass
    with pytest.raises(ValueError, match="no"), pulse.tick():
        raise ValueError("no")
    said = reader.get("/controller").of("loop")
    assert "Last tick ended " in said and "2 since the process began" in said and "1 failure" in said
    assert "c1 in force" in said and "● answers" in said
    with pulse.tick():
        assert "one has been going on for 0 s" in reader.get("/controller").of("loop")


def test_conditions_are_all_there_and_what_is_wrong_leads(reader: Reader) -> None:
    stage = reader.api.stage
    stage.conditions = (
        ConditionRow("GitReady", "False", "Unreachable", "no <b>route</b>", NOW - timedelta(hours=2)),
        ConditionRow("Progressing", "False", "Idle", "nothing to do", NOW),
        ConditionRow("Stalled", "False", "NothingStalled", "", NOW),
    )
    stage.tick(*stage.everybody())
    page = reader.get("/controller")
    assert page.of("ready") == "△ Ready, but 1 condition is not as it should be: GitReady."
    assert "◆ False" in page.of("condition-GitReady") and "no <b>route</b>" in page.of("condition-GitReady")
    assert "2 h ago" in page.of("condition-GitReady")
    assert "● False" in page.of("condition-Stalled") and "□ False" in page.of("condition-Progressing")


def test_keys_are_told_with_their_end(reader: Reader, pulse: Pulse) -> None:
    reader.api.stage.tick(*reader.api.stage.everybody())
    assert "Nobody has looked at the keys yet" in reader.get("/controller").of("keys")
    ends = {"A": 400, "B": 12, "C": -1}
    found = [("release", PublicKey(name * 40, "us", NOW + timedelta(days=days))) for name, days in ends.items()]
    pulse.looked(3, found)
    page = reader.get("/controller")
    rows = [row for row in page.rows() if row.startswith("releases")]
    assert [row.split()[1][0] for row in rows] == ["C", "B", "A"], "the first to end first"
    assert (
        "◆ ended 2026-01-14" in rows[0] and "△ 2026-01-27" in rows[1] and "in 12 d" in rows[1] and "● 2027-" in rows[2]
    )
    assert "3 assignments of devices in flight are about to expire" in page.of("keys")
    pulse.looked(0, [("assignment", PublicKey("D" * 40, "us", None))])
    assert "No key that signs releases or assignments has an end." in reader.get("/controller").of("keys")


def test_who_is_told_is_counted(reader: Reader) -> None:
    reader.api.stage.tick(*reader.api.stage.everybody())
    said = reader.get("/controller").of("told")
    assert "0 listeners to the stream of events" in said and "ops: 2 delivered" in said and "failed" not in said


def test_it_says_what_it_waits_for_as_readyz_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with reading(tmp_path, not_ready=lambda: ("a commit in force",)) as reader:
        reader.api.stage.tick(*reader.api.stage.everybody())
        assert reader.get("/controller").of("ready") == "◆ Not ready: it waits for a commit in force."
        assert reader.api.client.get("/readyz").json()["waitsFor"] == ["a commit in force"]

        def away() -> None:
            raise TransientError("the disk is full")

        monkeypatch.setattr(reader.app.store, "open_intents", away)
        page = reader.get("/controller")
        assert "it waits for the store does not answer" not in page.of("ready") and "◆ does not answer" in page.of(
            "loop"
        )
        assert "Not known now" in page.of("actions")
