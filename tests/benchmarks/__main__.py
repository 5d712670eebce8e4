"""`make bench`: work, ours, yardstick, ratio, bar; a row at a time. Exits 0 whatever the figures are: they are to be read."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks import (
    flagging,
    idling,
    imaging,
    loading,
    planning,
    reverting,
    reviewing,
    simulating,
    starting,
    ticking,
    validating,
    watching,
)

Row = tuple[str, float, str, float, float]
MEMORY = "from tests.benchmarks.planning import memory; print(memory())"


def rows() -> Iterator[Row]:
    """Every figure, the cheap ones first."""
    yield from starting.measure()
    yield from reviewing.measure()
    yield from validating.measure()
    yield from planning.measure()
    peak = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True).stdout
    yield "peak memory of a plan, 1,000,000 devices (GiB)", float(peak), "1 GiB", 1.0, 1.0
    yield from ticking.measure()
    yield from watching.measure()
    yield from flagging.measure()
    with tempfile.TemporaryDirectory() as folder:
        for row in loading.measure(Path(folder)):
            yield tuple(row)
    yield from simulating.measure()
    yield from idling.measure()
    yield from reverting.measure()
    yield from imaging.measure()


def main() -> None:
    """Print the table."""
    print(f"{'work':<68} {'ours':>10} {'yardstick':>10} {'ratio':>8} {'bar':>6}  against")
    for work, ours, yardstick, theirs, bar in rows():
        ratio = ours / theirs
        met = "" if ratio <= bar else "  NOT MET"
        print(f"{work:<68} {ours:>10.4f} {theirs:>10.4f} {ratio:>8.4f} {bar:>6.2f}  {yardstick}{met}", flush=True)


if __name__ == "__main__":
    main()
