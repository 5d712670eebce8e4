"""A fleet always holds old agents: the documents of release 1.0, as files that never change, are read and written
alike."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reconciler.protocol.assignment import AppTarget, Assignment, AssignmentError, ImageTarget
from reconciler.protocol.canonical import dump
from reconciler.protocol.report import Check, Refusal, Report, Slot

FOLDER = Path(__file__).parent / "previous"
ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def test_the_report_of_agent_1_0_says_what_it_said() -> None:
    data = (FOLDER / "report-1.0.json").read_bytes()
    report = Report.from_bytes(data)
    assert report == Report(
        device="SITE-2847-1",
        site="SITE-2847",
        boot_id="6f1c1f0e-8a55-4c7e-9f0a-0d6f5b1c2a3b",
        sequence=42,
        serial=(3, 7),
        booted="b",
        slots={"a": Slot("v1.4.0", ONE, True), "b": Slot("v1.4.1", TWO, True)},
        image="v1.4.1",
        previous="v1.4.0",
        health="warning",
        checks=(Check("disk", "warning", "/ is 86 % full"), Check("docker", "ok", "docker.service is active")),
        checks_before=(Check("disk", "ok", "/ is 80 % full"),),
        config=ONE,
        apps={"video-ingest": TWO},
        attempts={"v1.4.2": 1, "video-ingest@2.8.0": 2},
        refusals=(
            Refusal("serial-old", "serial 3.6 is lower than the last accepted, 3.7", (3, 6)),
            Refusal("not-fetched", "images.example:443 cannot be reached"),
        ),
        agent="1.0",
    )
    assert set(json.loads(data)) <= set(json.loads(report.to_bytes())), "a key was removed: an old controller needs it"


def test_the_assignment_for_agent_1_0_says_what_it_said() -> None:
    data = (FOLDER / "assignment-1.0.json").read_bytes()
    assignment = Assignment.from_bytes(data)

    def at(day: int, hour: int, minute: int = 0) -> datetime:
        return datetime(2026, 1, day, hour, minute, tzinfo=UTC)

    assert assignment == Assignment(
        device="SITE-2847-1",
        serial=(3, 8),
        issued_at=at(15, 1, 30),
        expires_at=at(16, 1, 30),
        image=ImageTarget("v1.4.2", ONE, "edge-golden-v1.4.2-20260110"),
        apps={"video-ingest": AppTarget("video-ingest", "canary", TWO, "2.8.0")},
        config=ONE,
        window=((at(15, 1), at(15, 3)), (at(16, 1), at(16, 3))),
    )
    assert set(json.loads(data)) <= set(json.loads(assignment.to_bytes())), "a key was removed: old agents need it"


def test_a_report_of_a_newer_agent_is_read_for_what_is_known() -> None:
    value = json.loads((FOLDER / "report-1.0.json").read_bytes())
    value |= {"fanSpeed": 0.5, "nested": {"a": [1, {"b": None}]}}
    value["slots"]["a"]["wear"] = 3
    value["checks"][0]["since"] = "2026"
    newer = Report.from_bytes(json.dumps(value, indent=1).encode())
    assert newer == Report.from_bytes((FOLDER / "report-1.0.json").read_bytes())


def test_an_assignment_of_a_newer_controller_is_followed_unless_it_says_that_it_must_be_understood() -> None:
    value = json.loads((FOLDER / "assignment-1.0.json").read_bytes())
    value["bandwidth"] = 5
    assert Assignment.from_bytes(dump(value)) == Assignment.from_bytes((FOLDER / "assignment-1.0.json").read_bytes())
    assert Assignment.from_bytes(dump({**value, "critical": ["window"]})).critical == ("window",)
    with pytest.raises(AssignmentError, match="'bandwidth' must be understood"):
        Assignment.from_bytes(dump({**value, "critical": ["bandwidth"]}))
    with pytest.raises(AssignmentError, match="must be understood"):
        Assignment.from_bytes(dump({**value, "critical": [7]}))


@pytest.mark.parametrize("kind", ["report", "assignment"])
def test_another_protocol_is_named_and_refused(kind: str) -> None:
    value = json.loads((FOLDER / f"{kind}-1.0.json").read_bytes())
    parse = Report.from_bytes if kind == "report" else Assignment.from_bytes
    with pytest.raises(Exception, match="`protocol` is 2; this end speaks 1"):
        parse(dump({**value, "protocol": 2}))
