"""Matching a plan against what a scenario expects: exhaustive, counted, and never greedy."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.desired import Desired, FleetSpec, SiteSpec, WaveSpec, WavesSpec
from reconciler.model.plan import Action, ActionKind, Facts, Hold, Plan, Reason, VerdictFact
from reconciler.repo.scenario import Expect, ExpectedAction
from reconciler.repo.scenario_run import assign, judge, match_actions

NOW = datetime(2026, 1, 15, 2, 30, tzinfo=UTC)


def entry(**keys: Any) -> ExpectedAction:
    return ExpectedAction.model_validate({key.rstrip("_"): value for key, value in keys.items()})


def flash(device: str, to: str = "v2", wave: str = "all") -> Action:
    return Action(ActionKind.FLASH, {"device": device, "wave": wave, "from": "v1", "to": to})


def a_plan(actions: tuple[Action, ...] = (), holds: tuple[Hold, ...] = (), facts: Facts | None = None) -> Plan:
    return Plan(NOW, None, actions, holds, (), facts or Facts())


def differences(expect: dict[str, Any], plan: Plan) -> list[str]:
    sites = {f"SITE-000{n}": SiteSpec(timezone="UTC", devices=(f"SITE-000{n}-1",)) for n in (1, 2)}
    wave = WaveSpec(name="all", percent=100, image="v2", soak=3600)
    desired = Desired(FleetSpec(), WavesSpec(waves=(wave,)), {}, {}, sites)
    return judge(Expect.model_validate(expect), plan, desired, lambda: {"SITE-0001": "canary", "SITE-0002": "all"})


def test_an_entry_with_few_keys_takes_no_action_from_a_stricter_one() -> None:
    entries = [entry(kind="flash"), entry(kind="flash", device="A")]
    assert match_actions(entries, [flash("A"), flash("B")]) == []
    assert match_actions(entries, [flash("B"), flash("A")]) == []
    assert match_actions(list(reversed(entries)), [flash("A"), flash("B")]) == []


def test_a_proposal_for_an_app_is_matched_by_its_release() -> None:
    proposal = Action(ActionKind.PROPOSE_REVERT, {"app": "video-ingest", "release": "2.8.0"})
    assert match_actions([entry(kind="propose-revert", app="video-ingest", release="2.8.0")], [proposal]) == []
    assert match_actions([entry(kind="propose-revert", release="2.7.0")], [proposal]) != []


def test_counts_are_exact() -> None:
    assert match_actions([entry(kind="flash", count="2")], [flash("A"), flash("B")]) == []
    short = match_actions([entry(kind="flash", count=3)], [flash("A"), flash("B")])
    assert short == ["expected 3 × {kind: flash}, found 2"]
    over = match_actions([entry(kind="flash", count=1)], [flash("A"), flash("B")])
    assert len(over) == 1
    assert over[0].startswith("unexpected action {kind: flash, device: B")
    assert over[0].endswith("fits it, but has its count already")


def test_a_difference_names_the_key_and_both_values() -> None:
    lines = match_actions([entry(kind="flash", device="A", to="v3")], [flash("A")])
    assert "nearest is {kind: flash, device: A, wave: all, from: v1, to: v2}, but to is v2, expected v3" in lines[0]
    assert lines[1].startswith("unexpected action {kind: flash, device: A")


def test_null_matches_only_null() -> None:
    provision = Action(ActionKind.FLASH, {"device": "A", "from": None, "to": "v2"})
    assert match_actions([entry(kind="flash", from_=None)], [provision]) == []
    assert match_actions([entry(kind="flash", from_=None)], [flash("A")]) != []


def test_no_actions_means_none() -> None:
    assert match_actions([], []) == []
    assert match_actions([], [flash("A")])[0].startswith("unexpected action")
    assert match_actions([entry(kind="build", image="v2")], []) == [
        "expected 1 × {kind: build, image: v2}, found 0; the plan has no action left"
    ]


@given(
    st.integers(0, 5).flatmap(
        lambda items: st.tuples(
            st.lists(st.lists(st.integers(0, 2), unique=True, max_size=3), min_size=items, max_size=items),
            st.lists(st.integers(0, 3), min_size=3, max_size=3),
        )
    )
)
def test_assignment_is_a_largest_one(case: tuple[list[list[int]], list[int]]) -> None:
    """Against every possible assignment, tried one by one."""
    fits, room = case
    taken = assign(fits, room)
    for item, chosen in enumerate(taken):
        assert chosen is None or chosen in fits[item]
    assert all(taken.count(slot) <= room[slot] for slot in range(3))
    best = max(
        sum(choice is not None for choice in choices)
        for choices in itertools.product(*([*entries, None] for entries in fits))
        if all(choices.count(slot) <= room[slot] for slot in range(3))
    )
    assert sum(chosen is not None for chosen in taken) == best


def test_a_hold_without_devices_covers_its_wave() -> None:
    plan = a_plan(holds=(Hold(Reason.SOAKING, "all", "v2"),))
    assert differences({"holds": [{"device": "SITE-0002-1"}]}, plan) == []
    assert len(differences({"holds": [{"device": "SITE-0001-1"}]}, plan)) == 1
    assert len(differences({"holds": [{"device": "SITE-0003-1"}]}, plan)) == 1


def test_a_hold_with_devices_covers_those_alone() -> None:
    plan = a_plan(holds=(Hold(Reason.OFFLINE, "all", "v2", devices=("SITE-0001-1",)),))
    assert differences({"holds": [{"device": "SITE-0001-1", "reason": "offline"}]}, plan) == []
    (line,) = differences({"holds": [{"device": "SITE-0002-1", "reason": "offline"}]}, plan)
    assert line.endswith("but SITE-0002-1 is not among its devices")
    assert differences({"holds": [{"devices": ["SITE-0001-1"]}]}, plan) == []
    assert len(differences({"holds": [{"devices": ["SITE-0001-1", "SITE-0002-1"]}]}, plan)) == 1


def test_instants_compare_as_instants() -> None:
    until = datetime(2026, 1, 16, 3, tzinfo=timezone(timedelta(hours=1)))
    plan = a_plan(holds=(Hold(Reason.OUTSIDE_WINDOW, "all", "v2", until=until),))
    assert differences({"holds": [{"until": "2026-01-16T02:00:00Z"}]}, plan) == []
    assert (
        differences({"holds": [{"until": "2026-01-16T02:00:00.000Z"}], "nextChangeAt": "2026-01-16T02:00:00Z"}, plan)
        == []
    )
    (line,) = differences({"holds": [{"until": "2026-01-16T02:00:01Z"}]}, plan)
    assert "until is 2026-01-16T02:00:00Z, expected 2026-01-16T02:00:01Z" in line


def test_no_holds_may_not_match() -> None:
    plan = a_plan(holds=(Hold(Reason.SOAKING, "all", "v2"),))
    assert differences({"noHolds": [{"reason": "frozen"}]}, plan) == []
    assert differences({"noHolds": [{"wave": "all"}]}, plan) == [
        "expected no hold {wave: all}, found {reason: soaking, wave: all, image: v2}"
    ]


@pytest.mark.parametrize(
    ("facts", "fine"),
    [
        ({"proofs": [{"wave": "canary"}]}, True),
        ({"proofs": [{"wave": "all"}]}, False),
        ({"failures": []}, True),
        ({"proofs": []}, False),
        ({"members": {"v2": {"canary": ["SITE-0001"]}}}, True),
        ({"members": {"v2": {"canary": ["SITE-0002"]}}}, False),
        ({"members": {}}, False),
        ({"closed": ["v1"]}, True),
        ({"closed": ["v3"]}, False),
        ({"surprises": []}, False),
    ],
)
def test_facts(facts: dict[str, Any], fine: bool) -> None:
    have = Facts(proofs=(VerdictFact("canary", "v2", NOW),), members={"v2": {"canary": ("SITE-0001",)}}, closed=("v1",))
    assert (differences({"facts": facts}, a_plan(facts=have)) == []) is fine


def test_next_change_may_be_expected_to_be_nothing() -> None:
    plan = a_plan(holds=(Hold(Reason.SOAKING, "all", "v2", until=NOW),))
    assert differences({"nextChangeAt": None}, a_plan()) == []
    assert differences({"nextChangeAt": None}, plan) == ["nextChangeAt is 2026-01-15T02:30:00Z, expected null"]


def test_an_unknown_wave_is_named() -> None:
    assert differences({"waves": {"tenth": {"state": "soaking"}}}, a_plan()) == [
        "expected wave 'tenth', but the plan has no waves"
    ]
