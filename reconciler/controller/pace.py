"""When to ask again: polls with jitter, and delays that grow. Pure, given instants and a draw from a random source."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays in seconds: the first one, doubled at every failure up to `most`, and up to half of jitter on top."""

    first_s: float
    most_s: float

    def delay_s(self, failures: int, draw: float, asked_s: float | None = None) -> float:
        """The delay after so many failures (1: the first). `draw` is in [0, 1); `asked_s` is the other system's wish."""
        grown = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return max(grown * (1 + draw / 2), asked_s or 0.0)


@dataclass(slots=True)
class Poll:
    """Something that is read again and again: regularly while it answers, ever more slowly while it does not."""

    interval_s: float
    backoff: Backoff
    due_at: datetime | None = None
    failures: int = 0

    def is_due(self, now: datetime) -> bool:
        """Whether to ask now; the first time always."""
        return self.due_at is None or now >= self.due_at

    def answered(self, now: datetime, draw: float) -> None:
        """It answered: next time after the interval, ±10 %, so that many controllers do not ask together."""
        self.failures = 0
        self.due_at = now + timedelta(seconds=self.interval_s * (0.9 + 0.2 * draw))

    def failed(self, now: datetime, draw: float, asked_s: float | None = None) -> None:
        """It did not: next time after a growing delay."""
        self.failures += 1
        self.due_at = now + timedelta(seconds=self.backoff.delay_s(self.failures, draw, asked_s))

    def now(self) -> None:
        """Ask at the next chance, whatever the interval says."""
        self.due_at = None
