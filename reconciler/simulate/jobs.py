"""Long work in virtual time: a build takes its half hour, and its effect is there when that has passed, not before.

Stands where `controller.jobs.Jobs` stands. One job at a time, oldest first; the work itself is done in the instant in which the job
ends. A kill drops the object, and with it what was under way. Decides nothing: durations are those of `timings`. Called by the
loop through its executor, and by the simulator, which asks when the next job ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from reconciler.controller.jobs import Finished, run
from reconciler.model.plan import ActionKind
from reconciler.ports import Intent
from reconciler.simulate import timings

DURATIONS_S: Mapping[ActionKind, int] = {
    ActionKind.BUILD: timings.BUILD_S,
    ActionKind.SIGN: timings.SIGN_S,
    ActionKind.PUBLISH: timings.PUBLISH_S,
}
"""Kinds that are not named take no time: the tick's next spin sees their effect."""


class VirtualJobs:
    """Work that ends when its time has come. `now` is the virtual clock."""

    def __init__(self, now: Callable[[], datetime], durations_s: Mapping[ActionKind, int] = DURATIONS_S) -> None:
        self._now, self._durations = now, durations_s
        self._waiting: deque[tuple[Intent, Callable[[], str], datetime]] = deque()
        self._held: set[int] = set()
        self._free_at: datetime | None = None

    def submit(self, intent: Intent, work: Callable[[], str]) -> None:
        """Start the work when its turn comes. An intent that waits, runs or is not collected yet is not taken twice."""
        if intent.id in self._held:
            return
        self._held.add(intent.id)
        now = self._now()
        starts = now if self._free_at is None else max(now, self._free_at)
        self._free_at = starts + timedelta(seconds=self._durations.get(intent.action.kind, 0))
        self._waiting.append((intent, work, self._free_at))

    def collect(self) -> list[Finished]:
        """What has finished since the last call."""
        now, out = self._now(), []
        while self._waiting and self._waiting[0][2] <= now:
            intent, work, _ = self._waiting.popleft()
            self._held.discard(intent.id)
            out.append(run(intent, work))
        return out

    def holds(self, intent: Intent) -> bool:
        """Whether the intent waits, runs, or is not collected yet."""
        return intent.id in self._held

    @property
    def busy(self) -> bool:
        """Whether anything waits, runs, or is not collected yet."""
        return bool(self._held)

    def next_at(self) -> datetime | None:
        """When the next job ends; None where there is none."""
        return self._waiting[0][2] if self._waiting else None
