"""Runs a scenario: plans what it gives and judges the plan against what it expects.

Decides whether a plan is as `expect` says, and says what differs. Pure: the planner is handed in, since `repo` knows
the model alone. Called by `reconciler test` and by the tests. Source: contract, "Scenario", and fine print 16.

Actions are matched as a whole, not entry by entry: an entry with few keys must not take the action that only it and a
stricter entry fit. It is a maximum bipartite matching in which an entry has room for `count` actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from reconciler.model.desired import Desired
from reconciler.model.observed import Snapshot
from reconciler.model.plan import Action, Hold, Plan
from reconciler.model.scalars import format_instant, parse_instant
from reconciler.repo.scenario import Expect, ExpectedAction, ExpectedHold

PlanFunction = Callable[[Desired, Snapshot, datetime], Plan]
WaveOfSite = Callable[[], Mapping[str, str]]
"""Site → its wave, computed when a hold without devices is first asked whether a device is in it."""

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario that was read and found valid: what to plan, and what must come of it."""

    path: str
    name: str
    desired: Desired
    snapshot: Snapshot
    now: datetime
    expect: Expect


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a scenario went. `failures` are sentences, empty where it passed."""

    scenario: Scenario
    plan: Plan
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Nothing differed."""
        return not self.failures


def run_scenario(
    scenario: Scenario, plan: PlanFunction, waves_of_sites: Callable[[Desired, Snapshot, datetime], Mapping[str, str]]
) -> Outcome:
    """Plan the scenario and judge the plan."""
    made = plan(scenario.desired, scenario.snapshot, scenario.now)
    cache: list[Mapping[str, str]] = []

    def wave_of_site() -> Mapping[str, str]:
        if not cache:
            cache.append(waves_of_sites(scenario.desired, scenario.snapshot, scenario.now))
        return cache[0]

    return Outcome(scenario, made, tuple(judge(scenario.expect, made, scenario.desired, wave_of_site)))


def judge(expect: Expect, plan: Plan, desired: Desired, wave_of_site: WaveOfSite) -> list[str]:
    """Every difference between a plan and what is expected of it, as sentences."""
    failures: list[str] = []
    if expect.actions is not None:
        failures += match_actions(expect.actions, plan.actions)
    site_of = {device: name for name, site in desired.sites.items() for device in site.devices}
    holds = _Holds(plan.holds, site_of, wave_of_site)
    failures += [line for entry in expect.holds if (line := holds.missing(entry))]
    failures += [line for entry in expect.no_holds if (line := holds.present(entry))]
    failures += _match_waves(expect.waves, plan)
    if expect.facts is not None:
        failures += _match_facts(expect.facts, plan.facts.to_dict())
    if "next_change_at" in expect.model_fields_set and expect.next_change_at != plan.next_change_at:
        failures.append(f"nextChangeAt is {_text(plan.next_change_at)}, expected {_text(expect.next_change_at)}")
    return failures


# ---------------------------------------------------------------- actions


def match_actions(entries: Sequence[ExpectedAction], actions: Sequence[Action]) -> list[str]:
    """Empty where every action has its one entry and every entry exactly `count` actions; else what has none."""
    wanted = [entry.wanted for entry in entries]
    found = [_plain(action.to_dict()) for action in actions]
    fits = [[n for n, want in enumerate(wanted) if _fits(want, have)] for have in found]
    taken = assign(fits, [entry.count for entry in entries])
    without = [found[n] for n, entry in enumerate(taken) if entry is None]
    failures = []
    for number, (entry, want) in enumerate(zip(entries, wanted, strict=True)):
        got = sum(1 for taker in taken if taker == number)
        if got != entry.count:
            failures.append(_lacking(entry, want, got, without or found))
    for have in without[:_SHOWN]:
        failures.append(f"unexpected action {_brief(have)}{_why_not(have, wanted)}")
    if len(without) > _SHOWN:
        failures.append(f"and {len(without) - _SHOWN} more unexpected actions")
    return failures


def assign(fits: Sequence[Sequence[int]], room: Sequence[int]) -> list[int | None]:
    """Give as many items as possible an entry that fits, no entry more than its room. `fits[i]` are item i's entries.

    Augmenting paths, searched breadth first: an item without a free entry makes another one move over.
    """
    taken: list[int | None] = [None] * len(fits)
    held: list[list[int]] = [[] for _ in room]
    for start in range(len(fits)):
        came_from: dict[int, int] = {}
        queue = [start]
        end = None
        for item in queue:
            for entry in fits[item]:
                if entry in came_from:
                    continue
                came_from[entry] = item
                if len(held[entry]) < room[entry]:
                    end = entry
                    break
                queue.extend(held[entry])
            if end is not None:
                break
        while end is not None:
            item = came_from[end]
            left = taken[item]
            if left is not None:
                held[left].remove(item)
            taken[item] = end
            held[end].append(item)
            end = left
    return taken


def _fits(want: Mapping[str, str | None], have: Mapping[str, str | None]) -> bool:
    return all(have.get(key) == value for key, value in want.items())


def _differences(want: Mapping[str, str | None], have: Mapping[str, str | None]) -> list[str]:
    return [
        f"{key} is {_text(have.get(key))}, expected {_text(value)}"
        for key, value in want.items()
        if have.get(key) != value
    ]


def _lacking(
    entry: ExpectedAction, want: Mapping[str, str | None], got: int, rest: Sequence[Mapping[str, str | None]]
) -> str:
    text = f"expected {entry.count} × {_brief(want)}, found {got}"
    near = min(
        rest, key=lambda have: (len(_differences(want, have)), have.get("kind") != want.get("kind")), default=None
    )
    if near is None:
        return text if got else f"{text}; the plan has no action left"
    differences = _differences(want, near)
    if not differences or len(differences) > max(1, len(want) - 1):
        return text
    return f"{text}; nearest is {_brief(near)}, but {', '.join(differences)}"


def _why_not(have: Mapping[str, str | None], wanted: Sequence[Mapping[str, str | None]]) -> str:
    near = min(wanted, key=lambda want: len(_differences(want, have)), default=None)
    if near is None:
        return ""
    differences = _differences(near, have)
    if not differences:
        return f"; {_brief(near)} fits it, but has its count already"
    return f"; {_brief(near)} does not fit: {', '.join(differences)}" if len(differences) < len(near) else ""


# ---------------------------------------------------------------- holds


@dataclass(frozen=True, slots=True)
class _Holds:
    holds: Sequence[Hold]
    site_of: Mapping[str, str]
    wave_of_site: WaveOfSite

    def missing(self, entry: ExpectedHold) -> str | None:
        """Why no hold matches the entry, or None."""
        ranked = sorted(
            ((self._differences(entry, hold), number) for number, hold in enumerate(self.holds)),
            key=lambda pair: (len(pair[0]), pair[1]),
        )
        if ranked and not ranked[0][0]:
            return None
        text = f"expected a hold {_entry_text(entry)}, found none"
        if not ranked:
            return f"{text}; the plan holds nothing"
        differences, number = ranked[0]
        return f"{text}; nearest is {_hold_text(self.holds[number])}, but {', '.join(differences)}"

    def present(self, entry: ExpectedHold) -> str | None:
        """A hold that matches though none may, or None."""
        for hold in self.holds:
            if not self._differences(entry, hold):
                return f"expected no hold {_entry_text(entry)}, found {_hold_text(hold)}"
        return None

    def _differences(self, entry: ExpectedHold, hold: Hold) -> list[str]:
        out = []
        for key in entry.model_fields_set - {"device", "devices", "message"}:
            want, have = getattr(entry, key), getattr(hold, key)
            if want != have:
                out.append(f"{key} is {_text(have)}, expected {_text(want)}")
        if entry.devices is not None and sorted(entry.devices) != sorted(hold.devices):
            out.append(f"devices are {list(hold.devices)}, expected {sorted(entry.devices)}")
        if entry.device is not None and not self._covers(hold, entry.device):
            out.append(f"{entry.device} is not among its devices")
        if entry.message is not None and entry.message not in hold.message:
            out.append(f"message is {hold.message!r}, expected {entry.message!r} in it")
        return sorted(out)

    def _covers(self, hold: Hold, device: str) -> bool:
        """Fine print 16: among its devices, or it has none and the device is in its wave."""
        if hold.devices:
            return device in hold.devices
        site = self.site_of.get(device)
        return hold.wave is not None and site is not None and self.wave_of_site().get(site) == hold.wave


def _hold_text(hold: Hold) -> str:
    shown = {key: value for key, value in hold.to_dict().items() if value not in (None, [], "") and key != "message"}
    return _brief(_plain(shown))


def _entry_text(entry: ExpectedHold) -> str:
    return _brief(
        {key: _text(getattr(entry, key)) for key in type(entry).model_fields if key in entry.model_fields_set}
    )


# ---------------------------------------------------------------- the rest


def _match_waves(wanted: Mapping[str, Mapping[str, Any]], plan: Plan) -> list[str]:
    have = {wave.name: wave.to_dict() for wave in plan.waves}
    failures = []
    for name, want in wanted.items():
        if name not in have:
            failures.append(f"expected wave {name!r}, but the plan has {', '.join(have) or 'no waves'}")
        elif differences := subset_differences(want, have[name]):
            failures.append(f"wave {name}: {', '.join(differences)}")
    return failures


def _match_facts(wanted: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
    failures = []
    for key, want in wanted.items():
        if key not in have:
            failures.append(f"expected facts {key!r}, but a plan's facts are {', '.join(have)}")
        elif not want:
            failures += [f"expected no facts {key}, found {have[key]}"] if have[key] else []
        elif isinstance(want, Mapping):
            failures += [f"facts: {line}" for line in subset_differences({key: want}, have)]
        else:
            failures += [
                f"expected a fact {key} {_brief(entry) if isinstance(entry, Mapping) else entry!r}, found {have[key]}"
                for entry in want
                if not any(not subset_differences({"": entry}, {"": fact}) for fact in have[key])
            ]
    return failures


def subset_differences(want: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
    """Where `have` lacks or contradicts a key of `want`; scalars compare as text, instants as instants."""
    out = []
    for key, value in want.items():
        actual = have.get(key)
        if isinstance(value, Mapping) and isinstance(actual, Mapping):
            out += [f"{key}.{line}" if key else line for line in subset_differences(value, actual)]
        elif not _same(value, actual):
            out.append(f"{key} is {_text(actual)}, expected {_text(value)}")
    return out


def _same(want: Any, have: Any) -> bool:
    if isinstance(want, Sequence) and not isinstance(want, str) and isinstance(have, Sequence):
        return len(want) == len(have) and all(_same(a, b) for a, b in zip(want, have, strict=True))
    if want is None or have is None:
        return want is have
    if _text(want) == _text(have):
        return True
    try:
        return parse_instant(want) == parse_instant(have)
    except ValueError:
        return False


def _plain(mapping: Mapping[str, Any]) -> dict[str, str | None]:
    return {key: None if value is None else str(value) for key, value in mapping.items()}


def _brief(mapping: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_text(value)}" for key, value in mapping.items()) + "}"


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, datetime):
        return format_instant(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return str(value)
