"""What a scrape says of the loop: its ticks, its conditions, the commit in force, open actions, and what is about to expire.

Reads the loop's pulse, the newest board, and the store for what only the store knows. Decides nothing. A store that does not answer
is itself a metric, not a failed scrape. Called by `server.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from reconciler.controller.board import Board
from reconciler.controller.conditions import Type
from reconciler.controller.pulse import BOUNDS_S, Pulse
from reconciler.model.plan import ActionKind
from reconciler.ports import Intent, PortError, Store
from reconciler.server import metrics_table as table


class LoopState:
    """Families of the loop. Called from any thread. `pulse` None: no loop runs in this process."""

    def __init__(self, store: Store, latest: Callable[[], Board | None], pulse: Pulse | None) -> None:
        self._store, self._latest, self._pulse = store, latest, pulse

    def collect(self) -> Iterator[Metric]:
        """One scrape, without the store."""
        yield from _ticks(self._pulse)
        yield from _status(self._latest())
        yield from _expiring(self._pulse)

    def stored(self) -> Iterator[Metric]:
        """What the store alone knows, and whether it answered."""
        up, commit = table.STORE_UP.family(), table.COMMIT_AT.family()
        intents: Sequence[Intent] | None = None
        try:
            intents = self._store.open_intents()
            for row in self._store.accepted_commits(limit=1):
                commit.add_metric([], row.at.timestamp())
        except PortError:
            intents = None
        up.add_metric([], int(intents is not None))
        yield up
        yield commit
        yield from _actions(intents)


def _ticks(pulse: Pulse | None) -> Iterator[Metric]:
    took = HistogramMetricFamily(table.TICK_SECONDS.name, table.TICK_SECONDS.says)
    failures = CounterMetricFamily(table.TICK_FAILURES.name, table.TICK_FAILURES.says)
    last = table.LAST_TICK.family()
    if pulse is not None:
        ticks = pulse.ticks()
        bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
        sums = [float(sum(ticks.counts[: number + 1])) for number in range(len(ticks.counts))]
        took.add_metric([], list(zip(bounds, sums, strict=True)), ticks.took_s)
        failures.add_metric([], ticks.failures)
        if ticks.last_at is not None:
            last.add_metric([], ticks.last_at)
    yield from (took, failures, last)


def _status(board: Board | None) -> Iterator[Metric]:
    conditions, refused = table.CONDITION.family(), table.HEAD_REFUSED.family()
    if board is not None:
        said = {row.type: row.status for row in board.conditions}
        for kind in Type:
            for status in table.STATUSES:
                conditions.add_metric([kind.value, status], int(said.get(kind.value, "Unknown") == status))
        refused.add_metric([], int(board.refused is not None))
    yield from (conditions, refused)


def _expiring(pulse: Pulse | None) -> Iterator[Metric]:
    keys, assignments = table.KEY_EXPIRY.family(), table.ASSIGNMENTS_EXPIRING.family()
    if pulse is not None:
        found = pulse.expiring
        for purpose, fingerprint, at in sorted(found.keys or ()):
            keys.add_metric([purpose, fingerprint], at.timestamp())
        if found.assignments is not None:
            assignments.add_metric([], found.assignments)
    yield from (keys, assignments)


def _actions(intents: Sequence[Intent] | None) -> Iterator[Metric]:
    count, attempts, oldest = table.OPEN_ACTIONS.family(), table.ACTION_ATTEMPTS.family(), table.ACTION_OLDEST.family()
    for kind in ActionKind if intents is not None else ():
        of = [intent for intent in intents or () if intent.action.kind is kind]
        count.add_metric([kind.value], len(of))
        attempts.add_metric([kind.value], max((intent.attempts for intent in of), default=0))
        if of:
            oldest.add_metric([kind.value], min(intent.created_at for intent in of).timestamp())
    yield from (count, attempts, oldest)
