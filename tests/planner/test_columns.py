"""Columns say what the snapshot says, and say the same when another roster takes them over."""

from __future__ import annotations

from typing import Any

import numpy as np

from reconciler.planner.columns import Columns
from reconciler.planner.roster import Roster
from reconciler.planner.sets import difference, distinct, union
from reconciler.planner.windows import NONE
from tests.planner.recorded import World


def spoken(columns: Columns) -> dict[str, dict[str, Any]]:
    """Every row by the name of its device, codes turned back into what they stand for."""
    roster, out = columns.roster, {}
    releases: list[str | None] = [*columns.release_names, None]
    digests = {code: digest for digest, code in columns.digest_code.items()}
    apps = [{code: digest for digest, code in table.items()} for table in columns.app_digest_code]
    for row, name in enumerate(roster.device_names):
        said: dict[str, Any] = {
            key: releases[getattr(columns, key)[row]] for key in ("image", "previous", "inactive", "updating_to")
        }
        said["config"] = digests.get(int(columns.config[row]))
        for key in ("health", "health_before", "worse", "conflict"):
            said[key] = getattr(columns, key)[row].item()
        for key in ("image", "health", "updating", "rebooting", "restarting", "configuring"):
            said[f"{key}_since"] = int(getattr(columns, f"{key}_since")[row])
        said |= {"last_seen": int(columns.last_seen[row]), "attempt": int(columns.attempt_failed_at[row])}
        app = int(columns.restarting_app[row])
        said["restarting_app"] = roster.apps[app].name if app >= 0 else None
        for number, facts in enumerate(roster.apps):
            said[facts.name] = (
                apps[number].get(int(columns.app_digest[number][row])),
                int(columns.app_since[number][row]),
            )
        said["failed"], said["rescued"] = columns.failed.get(row, {}), columns.rescued.get(row, {})
        out[name] = said
    return out


def test_another_roster_takes_over_what_is_known() -> None:
    differs = 0
    for seed in range(0, 60, 2):
        world, other = World(seed), World(seed + 1)
        desired, next_one = world.desired(), other.desired()
        snapshot = world.snapshot(desired)
        unique = {device.name: device for device in snapshot.devices}
        snapshot = snapshot.model_copy(update={"devices": tuple(unique.values())})
        old, new = Roster(desired), Roster(next_one)
        moved = spoken(Columns.bind(old, snapshot).moved_to(new))
        known = set(old.row_of)
        kept = tuple(device for device in snapshot.devices if device.name in known)
        bound = spoken(Columns.bind(new, snapshot.model_copy(update={"devices": kept})))
        assert moved == bound
        differs += moved != spoken(Columns(new))
    assert differs > 20


def test_a_device_that_git_does_not_name_is_unmanaged_and_never_a_row() -> None:
    world = World(3)
    desired = world.desired()
    snapshot = world.snapshot(desired)
    stranger = snapshot.devices[0].model_copy(update={"name": "GONE-1"})
    columns = Columns.bind(Roster(desired), snapshot.model_copy(update={"devices": (*snapshot.devices, stranger)}))
    assert columns.unmanaged == {"GONE-1"}


def test_where_two_waves_took_a_site_the_earlier_has_it() -> None:
    world = World(4)
    roster = Roster(world.desired())
    columns = Columns(roster)
    first, last = roster.waves[0].spec.name, roster.waves[-1].spec.name
    site = roster.site_names[0]
    columns.add_members("v2", {last: [site, "NOWHERE"], "no-such-wave": [site]})
    assert columns.members["v2"][0] == len(roster.waves) - 1
    assert (columns.members["v2"][1:] == -1).all()
    columns.add_members("v2", {first: [site]})
    assert columns.members["v2"][0] == 0
    columns.add_members("v1", {last: [site], first: [site]})
    assert columns.members["v1"][0] == 0


def test_a_row_is_replaced_as_a_whole() -> None:
    world = World(5)
    desired = world.desired()
    snapshot = world.snapshot(desired)
    roster = Roster(desired)
    columns = Columns.bind(roster, snapshot)
    for device in snapshot.devices:
        if device.name in roster.row_of:
            bare = type(device).model_validate({"name": device.name})
            columns.put(roster.row_of[device.name], bare)
    empty = spoken(Columns(roster))
    assert spoken(columns) == empty
    assert all(said["last_seen"] == NONE for said in empty.values())


def test_sorted_sets() -> None:
    a, b = np.array([3, 1, 3], np.int64), np.array([2, 3], np.int64)
    assert distinct(a).tolist() == [1, 3]
    assert distinct(np.zeros(0, np.int64)).tolist() == []
    assert union(a, b).tolist() == [1, 2, 3]
    assert union().tolist() == []
    assert difference(distinct(a), b).tolist() == [1, 2]
    assert difference(b, b).tolist() == []
    assert difference(np.zeros(0, np.int64), b).tolist() == [2, 3]
    assert difference(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []
