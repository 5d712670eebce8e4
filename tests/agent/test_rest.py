"""An agent that has nothing to do: what its reports leave in memory, and that it is let go."""

from __future__ import annotations

import gc
import os
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler

import pytest

from reconciler.agent import child
from reconciler.agent.loop import TIDY_EVERY_S, Tidy
from tests.agent.world import START, Office, Site
from tests.support.processes import wait_until

REPORTS = 48
MAX_BYTES = 24
"""A report may leave so much, which is less than any object: containers grow by more than they hold."""


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start(8)
    yield
    tracemalloc.stop()


def _held() -> int:
    """Bytes that the agent's code has allocated, itself or by what it calls, and that are not freed."""
    # What ends conversations that take too long is told to stop with each of them, and then stops in its own time.
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(60)
    gc.collect()
    # Where methods were found lately, with the names that they were looked up by: 4096 at most, which takes days.
    sys._clear_type_cache()
    found = tracemalloc.take_snapshot()
    ours = tracemalloc.Filter(True, "*/reconciler/agent/*", all_frames=True)
    return sum(trace.size for trace in found.filter_traces([ours]).traces)


def _rest(site: Site, office: Office, reports: int) -> None:
    """So many reports, one a minute; beside each it asks a program something, as the container runtime is asked."""
    for _ in range(reports):
        site.settle(office.now + timedelta(minutes=1))
        child.at_once(child.play(["true"], 60))
    office.reports.clear()


@pytest.mark.system
def test_reports_leave_nothing_in_memory(traced: None, site: Site, office: Office) -> None:
    def end(request: BaseHTTPRequestHandler) -> bool:
        # Some connections are kept, some are not.
        request.close_connection = len(office.reports) % 3 == 0
        return False

    office.before = end
    office.now = START
    _rest(site, office, 6)
    files, before = len(os.listdir("/proc/self/fd")), _held()
    _rest(site, office, REPORTS)
    grown = _held() - before
    assert site.device.agent.reached
    assert grown < REPORTS * MAX_BYTES
    # The office's ends of closed connections are here too, and close in their own time.
    wait_until(lambda: abs(len(os.listdir("/proc/self/fd")) - files) <= 2)
    assert not [
        item for item in threading.enumerate() if isinstance(item, threading.Timer) and not item.finished.is_set()
    ]


@pytest.mark.slow
def test_what_python_keeps_for_later_is_let_go_at_first_and_every_hour() -> None:
    runs: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            runs.append(1)

    tidy, counts = Tidy(), []
    gc.collect()
    gc.callbacks.append(note)
    try:
        for count_s in (50.0, 51.0, 50 + TIDY_EVERY_S - 1, 50 + TIDY_EVERY_S, 51 + TIDY_EVERY_S):
            tidy.at(count_s)
            counts.append(len(runs))
    finally:
        gc.callbacks.remove(note)
    assert counts == [1, 1, 1, 2, 2]
