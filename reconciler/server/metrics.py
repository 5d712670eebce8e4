"""Prometheus metrics of one app: what is counted while serving, and what is known of fleet and loop when it is scraped.

The registry is the app's own, so that two apps in one process (and tests) do not meet. What there is stands in `metrics_table`.
Called by `server.app`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from reconciler import __version__
from reconciler.controller.board import Board
from reconciler.server import metrics_table as table
from reconciler.server.metrics_fleet import Fleet
from reconciler.server.metrics_loop import LoopState
from reconciler.server.options import Options

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SKEWS = (0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)
_BATCHES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SCRAPE, _REPORTS = "scrape", "reports"


class Metrics:
    """What is counted while serving."""

    def __init__(self, options: Options) -> None:
        registry = self.registry = CollectorRegistry()
        self._requests = table.REQUESTS.counter(registry)
        self._seconds = table.REQUEST_SECONDS.histogram(registry, _SECONDS)
        self._reports = table.REPORTS.counter(registry)
        self._clocks = table.CLOCK_SKEW.histogram(registry, _SKEWS)
        self._unsynchronised = table.UNSYNCHRONISED.counter(registry)
        self._batches = table.BATCH_SIZE.histogram(registry, _BATCHES)
        self._listening = table.STREAM_CLIENTS.gauge(registry)
        self._store = table.STORE_SECONDS.histogram(registry, _SECONDS)
        for outcome in ("taken", "late", "refused"):
            self._reports.labels(outcome)
        for operation in (_REPORTS, _SCRAPE):
            self._store.labels(operation)
        table.BUILD_INFO.gauge(registry).labels(__version__, platform.python_version()).set(1)
        registry.register(_Scraped(options, self))
        ProcessCollector(registry=registry)

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

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around a transaction that records reports."""
        with self._timed(_REPORTS):
            yield

    @contextmanager
    def scraping(self) -> Iterator[None]:
        """Around what a scrape reads from the store."""
        with self._timed(_SCRAPE):
            yield

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._store.labels(operation).observe(time.perf_counter() - started)

    def listening(self, clients: Callable[[], int]) -> None:
        """Who knows how many clients listen to the stream of events."""
        self._listening.set_function(lambda: float(clients()))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Scraped(Collector):
    """What is found out when it is asked for."""

    def __init__(self, options: Options, metrics: Metrics) -> None:
        boards = options.boards

        def latest() -> Board | None:
            return None if boards is None else boards.latest()

        self._metrics = metrics
        self._fleet = Fleet(latest, options.now)
        self._loop = LoopState(options.store, latest, options.pulse)
        self._notified = options.notified

    def describe(self) -> list[Metric]:
        """Nothing to read at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One pass."""
        yield from self._fleet.collect()
        yield from self._loop.collect()
        sent = CounterMetricFamily(
            table.NOTIFICATIONS.name, table.NOTIFICATIONS.says, labels=table.NOTIFICATIONS.labels
        )
        for of, count in self._notified().items():
            sent.add_metric(of, count)
        yield sent
        with self._metrics.scraping():
            stored = list(self._loop.stored())
        yield from stored
