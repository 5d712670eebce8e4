"""Properties of the planner, over small random fleets. What may be flashed is judged by `tests.planner.oracle`."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.model.desired import Desired
from reconciler.model.observed import DeviceObservation, Proposal, RunningApp, Snapshot, Verdict
from reconciler.model.plan import ActionKind, Plan
from reconciler.planner import plan
from tests.planner.fleets import Case, cases
from tests.planner.oracle import Oracle

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "60"))
"""A deeper search: PROPERTY_EXAMPLES=5000 pytest tests/planner/test_properties.py"""
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


def planned(case: Case) -> Plan:
    return plan(case.desired, case.snapshot, case.now)


def shuffled(mapping: Any, chance: random.Random) -> dict[Any, Any]:
    items = list(mapping.items())
    chance.shuffle(items)
    return {key: shuffled(value, chance) if isinstance(value, dict) else value for key, value in items}


@many
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_never_matters(case: Case, chance: random.Random) -> None:
    def mixed(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(chance.sample(values, len(values)))

    waves, fleet = case.desired.waves, case.desired.fleet
    lists = [
        wave if wave.sites is None else wave.model_copy(update={"sites": mixed(wave.sites)}) for wave in waves.waves
    ]
    sites = shuffled(case.desired.sites, chance)
    desired = replace(
        case.desired,
        fleet=fleet.model_copy(update={"freezes": mixed(fleet.freezes)}),
        waves=waves.model_copy(update={"waves": tuple(lists)}),
        sites={name: spec.model_copy(update={"devices": mixed(spec.devices)}) for name, spec in sites.items()},
        images=shuffled(case.desired.images, chance),
        config=shuffled(case.desired.config, chance),
    )
    seen = case.snapshot
    members = {
        release: {wave: mixed(tuple(sites)) for wave, sites in shuffled(waves, chance).items()}
        for release, waves in shuffled(seen.members, chance).items()
    }
    snapshot = seen.model_copy(
        update={
            "devices": mixed(seen.devices),
            "artifacts": shuffled(seen.artifacts, chance),
            "tags": shuffled(seen.tags, chance),
            "tags_set": shuffled(seen.tags_set, chance),
            "proofs": mixed(seen.proofs),
            "failures": mixed(seen.failures),
            "proposals": mixed(seen.proposals),
            "members": members,
        }
    )
    assert plan(desired, snapshot, case.now).to_json() == planned(case).to_json()


@many
@given(cases())
def test_the_same_input_gives_the_same_bytes(case: Case) -> None:
    """Also after a journey through JSON, as a snapshot on disk makes it."""
    before = case.snapshot.model_dump_json(by_alias=True)
    again = Snapshot.model_validate_json(before)
    assert plan(case.desired, again, case.now).to_json() == planned(case).to_json() == planned(case).to_json()
    assert case.snapshot.model_dump_json(by_alias=True) == before


@many
@given(cases())
def test_no_plan_breaks_a_rule(case: Case) -> None:
    """No flash outside wave, window or budget or of what is not published; nobody is forgotten; and the plan is in order."""
    made = planned(case)
    oracle = Oracle(case, made)
    told = [line for action in made.actions if action.kind is ActionKind.FLASH for line in oracle.faults(action)]
    assert told == []
    assert oracle.overspent() == []
    assert oracle.undecided() == []
    order = [kind.value for kind in ActionKind]
    keys = [(order.index(action.kind), action.fields.get("device") or "") for action in made.actions]
    assert keys == sorted(keys)
    assert list(made.holds) == sorted(made.holds, key=lambda hold: hold.sort_key)
    untils = [hold.until for hold in made.holds if hold.until is not None]
    assert made.next_change_at == (min(untils) if untils else None)
    assert all(until > case.now for until in untils)


# ---------------------------------------------------------------- worse never helps


def worse(device: DeviceObservation, how: str, release: str, case: Case) -> DeviceObservation:
    """The device, worse for `release` as of now. What it did before is left as it was.

    `critical`: critical on the release for exactly `criticalFor`, so it fails now. `attempts`: it has just used up its
    attempts. `silent`: its last report is just too old. Each begins now, since a tolerated device makes a soak start no
    earlier than that; a device that had been worse for as long as the soak would rightly be tolerated.
    """
    fleet, update = case.desired.fleet, {}
    if how == "critical":
        since = case.now - timedelta(seconds=fleet.critical_for)
        update = {"health": "critical", "health_since": since, "health_before_update": "ok", "checks_worse": ("all",)}
    elif how == "attempts":
        update = {"failed_attempts": {**device.failed_attempts, release: 100}, "attempt_failed_at": case.now}
    else:
        update = {"last_seen": case.now - timedelta(seconds=fleet.stale_after + 1)}
    return type(device).model_validate({**device.model_dump(), **update})


@settings(many, max_examples=2 * EXAMPLES)
@given(cases(one_device=True, full_budget=True), st.data())
def test_making_a_device_worse_adds_no_flash_of_the_release_elsewhere(case: Case, data: st.DataObject) -> None:
    """With budgets at 100% and one device a site: a slot that it frees would rightly go to the next."""
    seen = {device.name: device for device in case.snapshot.devices if device.last_seen == case.now}
    if not seen:
        return
    name = data.draw(st.sampled_from(sorted(seen)), label="device")
    how = data.draw(st.sampled_from(["critical", "attempts", "silent"]), label="how")
    device = seen[name]
    oracle = Oracle(case, planned(case))
    number = oracle.wave_of.get(oracle.site_of[name])
    release = device.image if how == "critical" else oracle.waves[number].image if number is not None else None
    if release is None or oracle.pin(name) is not None:
        return
    others = tuple(other for other in case.snapshot.devices if other.name != name)
    snapshot = case.snapshot.model_copy(update={"devices": (*others, worse(device, how, release, case))})

    def flashes(made: Plan) -> set[str | None]:
        kinds = (action for action in made.actions if action.kind is ActionKind.FLASH)
        return {action.fields["device"] for action in kinds if action.fields["to"] == release} - {name}

    before, after = flashes(planned(case)), flashes(plan(case.desired, snapshot, case.now))
    assert after <= before, f"{name} {how} for {release} adds {sorted(map(str, after - before))}"


# ---------------------------------------------------------------- applied plans are quiet


def applied(case: Case, made: Plan) -> Case:
    """What the recorder and the world make of a plan at once: facts on record, stores moved on, devices in flight."""
    seen, now = case.snapshot, case.now
    devices = {device.name: device for device in seen.devices}
    artifacts, tags = dict(seen.artifacts), {app: dict(of) for app, of in seen.tags.items()}
    tags_set, proposals = {app: dict(of) for app, of in seen.tags_set.items()}, list(seen.proposals)

    def change(name: str, **update: Any) -> None:
        devices[name] = devices[name].model_copy(update=update)

    for fact in made.facts.timeouts:
        attempts = Counter(devices[fact.device].failed_attempts) + Counter({fact.key: 1})
        marks = ("updating_to", "updating_since", "rebooting_since")
        if "@" in fact.key or fact.key == "restart":  # "restart": of an app that no wave asks for any more
            marks = ("restarting_since", "restarting_app")
        none: dict[str, Any] = dict.fromkeys(marks)
        change(fact.device, failed_attempts=dict(attempts), attempt_failed_at=now, **none)
    for rescue in made.facts.rescues:
        change(rescue.device, rescued_from={**devices[rescue.device].rescued_from, rescue.key: rescue.at})
    for action in made.actions:
        get = {key: str(value) for key, value in action.fields.items()}
        if action.kind is ActionKind.FLASH:
            change(get["device"], updating_to=get["to"], updating_since=now)
        elif action.kind is ActionKind.RESTART:
            change(get["device"], restarting_since=now, restarting_app=get["app"])
        elif action.kind is ActionKind.CONFIGURE:
            change(get["device"], config=get["config"])
        elif action.kind is ActionKind.RETAG:
            tags.setdefault(get["app"], {})[get["tag"]] = get["to"]
            tags_set.setdefault(get["app"], {})[get["tag"]] = get["to"]
        elif action.kind is ActionKind.PROPOSE_REVERT:
            key = {"image": action.fields["image"]} if action.fields.get("image") else None
            key = key or {"app": get["app"], "release": get.get("release", get.get("to", ""))}
            proposals.append(Proposal.model_validate({**key, "at": now}))
        else:
            state = {"build": "built", "sign": "signed", "publish": "published"}[action.kind.value]
            artifact = artifacts[get["image"]]
            artifacts[get["image"]] = type(artifact).model_validate({"state": state})
    snapshot = seen.model_copy(
        update={"devices": tuple(devices.values()), "artifacts": artifacts, "tags": tags, "tags_set": tags_set}
        | recorded(seen, made)
        | {"proposals": tuple(p for p in proposals if p.key not in made.facts.closed)}
    )
    return replace(case, snapshot=snapshot)


def recorded(seen: Snapshot, made: Plan) -> dict[str, Any]:
    """Verdicts and members after a plan's facts were recorded. A site has one wave a release: the last that took it."""
    closed = made.facts.closed

    def verdicts(old: tuple[Verdict, ...], new: Any) -> tuple[Verdict, ...]:
        kept = [verdict.model_copy(update={"closed": verdict.closed or verdict.key in closed}) for verdict in old]
        return (*kept, *(Verdict.model_validate(fact.to_dict()) for fact in new))

    members: dict[str, dict[str, tuple[str, ...]]] = {}
    for release in {*seen.members, *made.facts.members}:
        place = {site: wave for wave, sites in seen.members.get(release, {}).items() for site in sites}
        place |= {site: wave for wave, sites in made.facts.members.get(release, {}).items() for site in sites}
        members[release] = {wave: tuple(s for s in sorted(place) if place[s] == wave) for wave in set(place.values())}
    return {
        "proofs": verdicts(seen.proofs, made.facts.proofs),
        "failures": verdicts(seen.failures, made.facts.failures),
        "members": {release: waves for release, waves in members.items() if release not in closed},
    }


@many
@given(cases())
def test_planning_after_applying_becomes_quiet_and_repeats_nothing(case: Case) -> None:
    """At one instant: no action twice, no fact established twice, and after a few rounds nothing is left to do."""
    done: set[str] = set()
    facts: set[tuple[Any, ...]] = set()
    for _ in range(12):
        made = planned(case)
        keys = {action.key for action in made.actions}
        assert len(keys) == len(made.actions)
        assert not keys & done
        done |= keys
        new = {(kind, fact.wave, fact.key) for kind in ("proofs", "failures") for fact in getattr(made.facts, kind)}
        new |= {
            ("members", release, wave, site)
            for release, waves in made.facts.members.items()
            for wave, sites in waves.items()
            for site in sites
        }
        new |= {("rescues", fact.device, fact.key) for fact in made.facts.rescues}
        assert not new & facts
        facts |= new
        if not made.actions:
            return
        case = applied(case, made)
    raise AssertionError(f"still acting: {sorted(keys)}")


def arrived(case: Case) -> Case:
    """A while later: every update in flight has ended well, every restart runs what its tag says."""
    later = case.now + timedelta(minutes=10)
    desired: Desired = case.desired
    devices = []
    for device in case.snapshot.devices:
        update: dict[str, Any] = {"last_seen": later, "conflict": False}
        if device.updating_to is not None:
            update |= {
                "image": device.updating_to,
                "image_since": later,
                "previous_image": device.image,
                "inactive_slot": device.image,
                "health": "ok",
                "health_since": later,
                "health_before_update": "ok",
                "updating_to": None,
                "updating_since": None,
                "rebooting_since": None,
            }
        if device.restarting_since is not None:
            oracle = Oracle(case, planned(case))
            number = oracle.wave_of.get(oracle.site_of[device.name])
            tag = desired.tag_of(number) if number is not None else ""
            digest = case.snapshot.tags.get("video-ingest", {}).get(tag)
            update |= {"restarting_since": None, "restarting_app": None}
            if digest is not None:
                update["apps"] = {"video-ingest": RunningApp(digest=digest, since=later)}
        devices.append(device.model_copy(update=update))
    return replace(case, now=later, snapshot=case.snapshot.model_copy(update={"devices": tuple(devices)}))


@settings(many, max_examples=EXAMPLES // 2)
@given(cases())
def test_a_flash_that_ended_well_is_not_wanted_again(case: Case) -> None:
    """A device that arrived is not flashed to where it came from, unless that is its target or its rescue."""
    for _ in range(3):
        made = planned(case)
        moved = {a.fields["device"]: a.fields["to"] for a in made.actions if a.kind is ActionKind.FLASH}
        case = arrived(applied(case, made))
        again = {a.fields["device"]: a.fields["to"] for a in planned(case).actions if a.kind is ActionKind.FLASH}
        assert not {name for name, to in moved.items() if again.get(name) == to}
