"""A device's health over time, as a drawing: stretches of the health log with their places. Pure. Called by `pages_devices`.

A stretch is told by its height as well as by its colour: the worse, the higher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from reconciler.controller.words import duration
from reconciler.model.events import HealthChange

WIDTH, HEIGHT = 1000.0, 48.0
_HEIGHTS = {"critical": 48.0, "warning": 32.0, "ok": 18.0}
_LOWEST = 8.0
_THINNEST = 2.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """A health from one instant to the next; places are in units of the drawing."""

    change: HealthChange
    until: datetime
    x: float
    width: float
    y: float
    height: float

    @property
    def lasted(self) -> str:
        """`2 h 5 min`."""
        return duration(max(0.0, (self.until - self.change.at).total_seconds()))


@dataclass(frozen=True, slots=True)
class Timeline:
    """Stretches, oldest first, from `since` until `until`, and the drawing in words."""

    stretches: tuple[Stretch, ...]
    since: datetime
    until: datetime
    said: str


def timeline(changes: Sequence[HealthChange], now: datetime) -> Timeline | None:
    """The drawing of a health log; None where it is empty."""
    if not changes:
        return None
    rows = sorted(changes, key=lambda change: (change.at, change.id or 0))
    since, until = rows[0].at, max(now, rows[-1].at + timedelta(seconds=1))
    span = (until - since).total_seconds()
    ends = [*(row.at for row in rows[1:]), until]
    stretches = []
    for change, end in zip(rows, ends, strict=True):
        x = (change.at - since).total_seconds() / span * WIDTH
        width = max(_THINNEST, (end - change.at).total_seconds() / span * WIDTH)
        height = _HEIGHTS.get(change.health, _LOWEST)
        x = min(x, WIDTH - width)
        stretches.append(Stretch(change, end, round(x, 2), round(width, 2), HEIGHT - height, height))
    last = stretches[-1]
    turned = sum(one.change.health == "critical" for one in stretches)
    said = f"Health over {duration(span)}: {last.change.health} for {last.lasted}"
    if turned:
        said += f"; critical {turned} {'time' if turned == 1 else 'times'}"
    return Timeline(tuple(stretches), since, until, said)
