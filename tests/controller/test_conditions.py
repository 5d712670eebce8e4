"""Conditions: what counts as a change, and what the status may never say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconciler.controller.conditions import Conditions, Finding, StatusFault, Type, check_status
from reconciler.model.observed import DeviceObservation
from reconciler.model.plan import Action, ActionKind
from reconciler.ports import ConditionRow, Intent

T0 = datetime(2026, 1, 15, tzinfo=UTC)
LATER = T0 + timedelta(hours=1)


def made(lines: list[dict[str, Any]]) -> Conditions:
    return Conditions((), T0, lambda event, **fields: lines.append({"event": event, **fields}))


def test_at_first_nothing_is_known() -> None:
    conditions = made([])
    assert [row.type for row in conditions.rows()] == [kind.value for kind in Type]
    assert {(row.status, row.reason) for row in conditions.rows()} == {("Unknown", "NotYetKnown")}


def test_a_change_of_status_or_reason_is_logged_once_and_dates_the_condition() -> None:
    lines: list[dict[str, Any]] = []
    conditions = made(lines)
    conditions.set(Finding(Type.GIT_READY, False, "Unreachable", "no route"), LATER)
    conditions.set(Finding(Type.GIT_READY, False, "Unreachable", "no route, still"), LATER + timedelta(hours=1))
    row = conditions.rows()[0]
    assert (row.status, row.reason, row.since, row.message) == ("False", "Unreachable", LATER, "no route, still")
    assert len(lines) == 1 and lines[0]["before"] == "Unknown"
    conditions.set(Finding(Type.GIT_READY, False, "Refused", "x"), LATER + timedelta(hours=2))
    assert len(lines) == 2 and not conditions.is_true(Type.GIT_READY)


def test_a_restart_keeps_since_when_and_forgets_types_that_are_no_more() -> None:
    row = ConditionRow("GitReady", "True", "UpToDate", "", T0)
    conditions = Conditions((row, ConditionRow("Older", "True", "X", "", T0)), LATER, print)
    conditions.set(Finding(Type.GIT_READY, True, "UpToDate", "still"), LATER)
    assert conditions.rows()[0].since == T0
    assert len(conditions.rows()) == len(Type)


def test_a_long_message_is_cut() -> None:
    conditions = made([])
    conditions.set(Finding(Type.STALLED, True, "NeedsAttention", "x" * 5000), T0)
    assert max(len(row.message) for row in conditions.rows()) == 1000


def rows(**changes: tuple[str, str, str]) -> list[ConditionRow]:
    good = {kind.value: ("True", "Fine", "fine") for kind in Type} | {"Stalled": ("False", "NothingStalled", "")}
    return [ConditionRow(kind, *values, T0) for kind, values in (good | changes).items()]


def intent(number: int, key: str) -> Intent:
    return Intent(number, key, Action(ActionKind.BUILD, {"image": "v1"}), "a" * 40, T0)


def check(**changes: Any) -> None:
    given: dict[str, Any] = {
        "conditions": rows(), "now": T0, "commit": "a" * 40, "open_intents": (), "stalled": {}, "devices": (),
    }  # fmt: skip
    given |= changes
    check_status(given.pop("conditions"), **given)


def test_a_status_without_contradictions_passes() -> None:
    check()


@pytest.mark.parametrize(
    "number, changes",
    [
        (1, {"conditions": rows()[1:]}),
        (1, {"conditions": [*rows(), rows()[0]]}),
        (2, {"conditions": rows(GitReady=("Maybe", "Fine", ""))}),
        (2, {"conditions": rows(GitReady=("True", "two words", ""))}),
        (3, {"now": T0 - timedelta(seconds=1)}),
        (4, {"conditions": rows(StoresReady=("False", "NotAnswering", ""))}),
        (5, {"commit": None}),
        (6, {"stalled": {"build image=v1": "no"}}),
        (6, {"conditions": rows(Stalled=("True", "NeedsAttention", "x"))}),
        (7, {"open_intents": (intent(1, "build image=v1"), intent(2, "build image=v1"))}),
        (9, {"devices": (DeviceObservation(name="D", updating_to="v1"),)}),
        (9, {"devices": (DeviceObservation(name="D", updating_since=T0),)}),
        (10, {"devices": (DeviceObservation(name="D", restarting_since=T0),)}),
    ],
)
def test_each_contradiction_is_found_by_its_number(number: int, changes: dict[str, Any]) -> None:
    with pytest.raises(StatusFault, match=rf"(^|; ){number}: "):
        check(**changes)


def test_a_stalled_action_is_not_open() -> None:
    stalled = {"build image=v1": "no"}
    with pytest.raises(StatusFault, match="8: "):
        check(
            conditions=rows(Stalled=("True", "NeedsAttention", "x")),
            stalled=stalled,
            open_intents=(intent(1, "build image=v1"),),
        )
