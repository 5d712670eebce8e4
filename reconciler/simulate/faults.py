"""What goes wrong in a simulated fleet, and when: drawn once from a seed, the same for every run with it. Pure.

A fault is something that the world does: an attempt fails, a line is down, a release turns bad after hours, the controller is
away, reports come late, twice or in another order, an old answer is sent again, the power goes. Called by `run`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

OUTAGE_S = 4 * 3600
"""How long a line is down on average."""
MOST_OUTAGE_S = 48 * 3600
POWER_OFF_S = 300
"""How long a device is without power."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How much goes wrong. Shares are in [0, 1]; nothing does by default."""

    fail: float = 0.0
    """Of update attempts: the new slot does not boot, its health is worse at the trial, or the disk fails."""
    offline: float = 0.0
    """Of the time of every device: its line is down."""
    power: float = 0.0
    """Power cuts a device and day."""
    late: float = 0.0
    """Of reports: they arrive late, behind ones that were sent after them."""
    doubled: float = 0.0
    """Of reports: they arrive twice."""
    replayed: float = 0.0
    """Of answers: an old one is sent in their place."""
    bad_from_s: int | None = None
    """The releases in `bad` turn critical after they have run for this long, on every device."""
    bad: frozenset[str] = frozenset()
    herd: bool = False
    """Every device reports at the same second."""
    down: tuple[tuple[datetime, datetime], ...] = ()
    """When the controller is away."""
    crashes: float = 0.0
    """Restarts of the controller a day, at any instant."""
    until: datetime | None = None
    """Faults end here: what is not back is brought back."""

    @property
    def any(self) -> bool:
        """Whether anything goes wrong at all."""
        return self != Faults(until=self.until)

    @property
    def on_the_line(self) -> bool:
        """Whether single reports or answers are touched."""
        return bool(self.late or self.doubled or self.replayed)


@dataclass(frozen=True, slots=True)
class Draws:
    """The seed's answers: each question has its own stream, so that one more device changes nothing for the others."""

    seed: int
    faults: Faults
    _memo: dict[str, random.Random] = field(default_factory=dict, compare=False)

    def stream(self, *names: str) -> random.Random:
        """The random source of one question."""
        name = " ".join((str(self.seed), *names))
        if name not in self._memo:
            self._memo[name] = random.Random(name)  # noqa: S311 - reproducible on purpose
        return self._memo[name]

    def attempt(self, device: str, release: str) -> str | None:
        """How the next update attempt fails: `boot`, `health` or `disk`; None: it does not."""
        if not self.faults.fail:
            return None
        draw = self.stream("attempt", device, release)
        return draw.choice(("boot", "health", "disk")) if draw.random() < self.faults.fail else None

    def outages(self, device: str, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
        """When a device's line is down, in whole seconds, in order; the last may begin before `end` and is cut there."""
        share = min(self.faults.offline, 0.95)
        if not share:
            return
        draw, at = self.stream("outages", device), start
        up_s = OUTAGE_S * (1 - share) / share
        while True:
            begin = at + timedelta(seconds=1 + int(draw.expovariate(1 / up_s)))
            if begin >= end:
                return
            length = 60 + int(min(draw.expovariate(1 / OUTAGE_S), MOST_OUTAGE_S))
            at = min(begin + timedelta(seconds=length), end)
            yield begin, at

    def instants(self, what: str, a_day: float, start: datetime, end: datetime) -> Iterator[datetime]:
        """Instants of something that happens so often a day, in whole seconds, in order."""
        if not a_day:
            return
        draw, at = self.stream(what), start
        while True:
            at += timedelta(seconds=1 + int(draw.expovariate(a_day / 86400)))
            if at >= end:
                return
            yield at
