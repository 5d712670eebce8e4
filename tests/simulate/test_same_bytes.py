"""The same course and seed give the same trace, byte for byte, in this process and in another; another seed gives another."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from reconciler.simulate.faults import Faults
from reconciler.simulate.run import simulate
from tests.simulate.courses import ZONES, SmallFleet, later

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

FAULTS = Faults(fail=0.2, offline=0.05, power=0.5, late=0.1, doubled=0.1, replayed=0.1, crashes=1, until=later(20))
ROOT = Path(__file__).parents[2]


@cache
def trace_of(seed: int) -> str:
    """Digest of a run's timeline, of its end and of what the oracle says."""
    play = SmallFleet(sites=4, two=(2,), zones=ZONES).play(faults=FAULTS, days=2)
    run = simulate(replace(play.course, seed=seed))
    text = json.dumps([event.to_dict() for event in run.trace.events]) + str(run.trace.asked) + str(run.violations)
    return hashlib.sha256(f"{text} {run.ticks} {run.exchanges} {run.trace.held}".encode()).hexdigest()


def test_another_process_with_other_hashes_gives_the_same_bytes_and_another_seed_others() -> None:
    program = "from tests.simulate.test_same_bytes import trace_of; print(trace_of(1))"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    made = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert made.stdout.strip() == trace_of(1)
    assert trace_of(1) != trace_of(2)


def test_the_same_process_gives_the_same_bytes_again() -> None:
    first = trace_of(1)
    trace_of.cache_clear()
    assert trace_of(1) == first
