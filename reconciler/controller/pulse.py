"""What the loop says of its own work, for monitors: how long ticks take, which fail, what is about to expire. Numbers alone.

The loop's thread writes, any thread reads. Decides nothing and is kept nowhere: a new process begins at nought. Durations and the
instant of the last tick are real time, also where the loop's own time is stepped: they are the process's. Called by the loop and
the chronicle; read by the metrics, and by whoever says that the loop goes on.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from reconciler.ports import PublicKey

BOUNDS_S: tuple[float, ...] = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the groups in which ticks are counted by how long they took; those above the last are counted in all."""


@dataclass(frozen=True, slots=True)
class Ticks:
    """Ticks since the process began: `counts` has one number a bound, of ticks that took no longer (not cumulative), and one
    for the rest. `took_s` is their sum. `last_at` is the end of the last that did not fail, as Unix time; None before that."""

    counts: tuple[int, ...]
    took_s: float
    failures: int
    last_at: float | None


@dataclass(frozen=True, slots=True)
class Expiring:
    """What the last look found. `keys` are what signs, by purpose and fingerprint, with the instant from which nothing that it
    signs counts; `assignments` how many of devices in flight are about to expire. None: nobody has looked yet."""

    keys: tuple[tuple[str, str, datetime], ...] | None = None
    assignments: int | None = None


class Pulse:
    """Counts ticks, and keeps what was last found."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._took_s, self._failures = 0.0, 0
        self._last_at: float | None = None
        self._began_at: float | None = None
        self._expiring = Expiring()

    @property
    def busy_s(self) -> float:
        """For how long the tick under way has gone on; 0 where none is."""
        began = self._began_at
        return 0.0 if began is None else time.perf_counter() - began

    @contextmanager
    def tick(self) -> Iterator[None]:
        """Around one pass of the loop. One that raises is a failure; how long it took counts all the same."""
        started, failed = time.perf_counter(), True
        self._began_at = started
        try:
            yield
            failed = False
        finally:
            took = time.perf_counter() - started
            self._began_at = None
            with self._lock:
                self._counts[bisect_left(BOUNDS_S, took)] += 1
                self._took_s += took
                self._failures += failed
                if not failed:
                    self._last_at = time.time()

    def looked(self, assignments: int, keys: Sequence[tuple[str, PublicKey]] | None) -> None:
        """What the chronicle found about to expire. `keys` None: they could not be looked at; what was known of them stays."""
        found = self._expiring.keys
        if keys is not None:
            found = tuple(
                (purpose, key.fingerprint, key.expires_at) for purpose, key in keys if key.expires_at is not None
            )
        self._expiring = Expiring(found, assignments)

    def ticks(self) -> Ticks:
        """The ticks so far."""
        with self._lock:
            return Ticks(tuple(self._counts), self._took_s, self._failures, self._last_at)

    @property
    def expiring(self) -> Expiring:
        """What is about to expire."""
        return self._expiring
