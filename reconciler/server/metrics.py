"""Prometheus metrics of one app: requests, reports, and where the rollout stands. Bounded: no label names a device.

The registry is the app's own, so that two apps in one process (and tests) do not meet. What is known of waves and
conditions is read from the store when it is scraped. Called by `server.app`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from reconciler.model.plan import ActionKind
from reconciler.ports import PortError, Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SKEWS = (0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)
_BATCHES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_COUNTS = ("devices", "onRelease", "healthy", "failed", "offline", "inFlight")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """What is counted while serving."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "reconciler_http_requests", "Requests answered", ("route", "method", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "reconciler_http_request_seconds",
            "Time to answer, by route",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._reports = Counter(
            "reconciler_reports", "Reports, by what came of them", ("outcome",), registry=self.registry
        )
        self._clocks = Histogram(
            "reconciler_device_clock_skew_seconds",
            "How far the clock of a device was off, either way, when it reported",
            buckets=_SKEWS,
            registry=self.registry,
        )
        self._unsynchronised = Counter(
            "reconciler_reports_unsynchronised",
            "Reports of devices whose time service does not say that their clock is right",
            registry=self.registry,
        )
        self._batches = Histogram(
            "reconciler_report_batch_size", "Reports in one transaction", buckets=_BATCHES, registry=self.registry
        )
        for outcome in ("taken", "late", "refused"):
            self._reports.labels(outcome)
        self.registry.register(_Rollout(store))

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request was answered."""
        # The method is the caller's word: what is none of HTTP's own would grow the series.
        method = method if method in _METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def report(self, outcome: str) -> None:
        """One report was `taken`, `late` or `refused`."""
        self._reports.labels(outcome).inc()

    def clock(self, ahead_s: float, *, synchronised: bool) -> None:
        """The clock of a device that reported."""
        self._clocks.observe(abs(ahead_s))
        if not synchronised:
            self._unsynchronised.inc()

    def batch(self, size: int) -> None:
        """A transaction recorded this many reports."""
        self._batches.observe(size)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Rollout(Collector):
    """Waves, holds, conditions and open actions, as the store has them at the scrape."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> list[Metric]:
        """Nothing to read at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One pass. A store that does not answer is itself a metric, not a failed scrape."""
        up = GaugeMetricFamily("reconciler_store_up", "Whether the store answered this scrape")
        try:
            plan = json.loads(self._store.last_plan() or "{}")
            conditions = self._store.conditions()
            open_kinds = [intent.action.kind for intent in self._store.open_intents()]
        except PortError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        waves = GaugeMetricFamily("reconciler_wave_devices", "Devices of a wave, by state", labels=("wave", "state"))
        for wave in plan.get("waves", []):
            for key in _COUNTS:
                waves.add_metric([wave["name"], key], wave.get(key, 0))
        yield waves
        holds = GaugeMetricFamily("reconciler_holds", "Holds of the last plan, by reason", labels=("reason",))
        reasons = [hold["reason"] for hold in plan.get("holds", [])]
        for reason in sorted(set(reasons)):
            holds.add_metric([reason], reasons.count(reason))
        yield holds
        intents = GaugeMetricFamily("reconciler_open_actions", "Actions without an outcome", labels=("kind",))
        for kind in ActionKind:
            intents.add_metric([kind.value], open_kinds.count(kind))
        yield intents
        states = GaugeMetricFamily("reconciler_condition", "1 where a condition is True", labels=("type",))
        for condition in conditions:
            states.add_metric([condition.type], 1 if condition.status == "True" else 0)
        yield states
