"""The rules of the rollout once more, written apart from the planner: what the oracle holds the real thing to. Pure.

Plain and slow where the planner is fast, and from the contract's text, not from the planner's code: who is in which wave, when
a window is open, which device may go where. Called by `oracle` alone. Source: design §4, contract fine print 6, 8, 10 and 11.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from reconciler.model.desired import Desired, WaveSpec
from reconciler.model.scalars import Budget

MINUTE = timedelta(minutes=1)


def waves_of(desired: Desired) -> dict[str, str]:
    """Site → wave, where nothing is on record: listed sites first, percentages filled up in draw order."""
    waves, counted = desired.waves.waves, [name for name, site in desired.sites.items() if not site.lab]
    listed = {site: wave.name for wave in waves for site in wave.sites or ()}
    out = dict(listed)
    order = sorted(counted, key=lambda name: hashlib.sha256(f"{desired.waves.order}/{name}".encode()).hexdigest())
    for wave in waves:
        if wave.percent is None:
            continue
        goal = len(counted)
        if wave.percent < 100:
            goal = min(max(1, math.ceil(wave.percent * len(counted) / 100)), len(counted) - 1)
        earlier = {name for name in counted if out.get(name) in _names_until(desired, wave.name)}
        for name in order:
            if len(earlier) >= goal:
                break
            if name not in out:
                out[name] = wave.name
                earlier.add(name)
    return out


def _names_until(desired: Desired, wave: str) -> set[str]:
    names = [spec.name for spec in desired.waves.waves]
    return set(names[: names.index(wave) + 1])


def same_draw(before: Desired, after: Desired) -> bool:
    """Whether two commits put every site into the same wave, so that no record of who was taken can matter."""
    return waves_of(before) == waves_of(after)


def is_open(desired: Desired, site: str, at: datetime) -> bool:
    """Whether a site's maintenance window is open, half-open, DST as the contract says."""
    spec = desired.sites[site]
    window = spec.window or desired.fleet.window
    zone = ZoneInfo(spec.timezone)
    day = at.astimezone(zone).date()
    spans = [_night(zone, day + timedelta(days=number), window.start, window.end) for number in (-2, -1, 0, 1)]
    return any(opens <= at < closes for opens, closes in spans)


@lru_cache(maxsize=4096)
def _night(zone: ZoneInfo, day: date, start: int, end: int) -> tuple[datetime, datetime]:
    closes = end if end > start else end + 1440
    return _instants(zone, day, start)[0], _instants(zone, day, closes)[-1]


def _instants(zone: ZoneInfo, day: date, minutes: int) -> list[datetime]:
    """The instants at which a wall clock shows a local time; of a time that is skipped, the first after the gap."""
    wall = datetime(day.year, day.month, day.day) + timedelta(minutes=minutes)  # noqa: DTZ001 - local on purpose
    found = [wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
    real = sorted({at for at in found if at.astimezone(zone).replace(tzinfo=None) == wall})
    if real:
        return real
    at = max(found)
    while (at - MINUTE).astimezone(zone).replace(tzinfo=None) > wall:
        at -= MINUTE
    return [at]


def allows(budget: Budget, number: int, of: int) -> bool:
    """Whether an allowance covers so many devices of so many."""
    return number <= budget.count if budget.count is not None else number * 100 <= (budget.percent or 0) * of


def slots(wave: WaveSpec, able: int) -> int:
    """How many devices of a wave may be in flight. `able` are its devices that are neither suspended nor pinned."""
    budget = wave.max_in_flight
    return budget.count if budget.count is not None else max(1, math.floor((budget.percent or 0) * able / 100))


def pinned(desired: Desired, site: str, device: str) -> str | None:
    """The release that a device is pinned to."""
    pin = desired.sites[site].pin
    return pin.image if pin is not None and (pin.devices is None or device in pin.devices) else None


def asks(desired: Desired, wave: str | None) -> Mapping[str, str]:
    """Subject (`image`, or an app) → release that a wave asks for."""
    spec = next((spec for spec in desired.waves.waves if spec.name == wave), None)
    if spec is None:
        return {}
    return ({"image": spec.image} if spec.image is not None else {}) | dict(spec.apps)


def may_remove(removed: int, of: int, message: str) -> bool:
    """Whether a commit may drop so many sites: 5 in a hundred at once, more where a line of its message confirms how many."""
    said = [line.partition(":")[2].strip() for line in message.splitlines()[1:] if _CONFIRMS.match(line)]
    return removed * 100 <= 5 * of or said == [str(removed)]


_CONFIRMS = re.compile(r"\s*confirm-removed-sites\s*:", re.IGNORECASE)


def is_frozen(desired: Desired, at: datetime) -> bool:
    """Whether a freeze holds."""
    return any(freeze.from_ <= at < freeze.to for freeze in desired.fleet.freezes)
