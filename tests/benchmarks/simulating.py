"""What simulating costs: six weeks of a rollout as a whole process, and simulated fleet-days a second of CPU, faults on.

Run by `python -m tests.benchmarks`, or alone: `python -m tests.benchmarks.simulating`. No test depends on a time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reconciler.repo.folder import folder_entries
from reconciler.simulate.course import Course, Merge
from reconciler.simulate.faults import Faults
from reconciler.simulate.run import simulate
from tests.benchmarks.validating import grow

FLEET = Path(__file__).parents[2] / "fleet"
AT = datetime(2026, 3, 10, 12, tzinfo=UTC)
KEPT = ("LAB-0001", "SITE-1033", "SITE-2847")
WEEKS = timedelta(weeks=6)


def measure(
    sites: tuple[tuple[int, float], ...] = ((52, 3.0), (10_000, 90.0)),
) -> Iterator[tuple[str, float, str, float, float]]:
    """(work, ours, yardstick, its figure, bar); a rollout's yardstick is the limit in seconds itself."""
    program = str(Path(sys.executable).with_name("reconciler"))
    with tempfile.TemporaryDirectory() as folder:
        for number, limit in sites:
            fleet = FLEET if number == 52 else grow(Path(folder) / str(number), number)
            command = [
                program,
                "simulate",
                "--fleet",
                str(fleet),
                "--promote",
                "v1.4.2",
                "--for",
                "42d",
                "--at",
                "2026-03-10T12:00:00Z",
            ]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            yield (
                f"simulate six weeks of a rollout, {number:,} sites (process)",
                time.perf_counter() - start,
                f"{limit:g} s",
                limit,
                1.0,
            )
    days = 60
    start = time.process_time()
    first = simulate(course(days))
    took = time.process_time() - start
    assert first.devices == 20 and not first.violations, first.violations[:3]
    assert first.trace == simulate(course(days)).trace, "the same seed gave another trace"
    yield "a simulated fleet-day, 20 devices, faults on (CPU seconds)", took / days, "0.1 s", 0.1, 1.0


def course(days: int, seed: int = 7) -> Course:
    """Twenty devices of the example fleet through promotions, with everything going wrong a little, for so many days."""
    found = folder_entries(FLEET, scenarios=False)
    files, devices = {}, 0
    for entry in sorted(found.entries, key=lambda entry: (Path(entry.path).stem not in KEPT, entry.path)):
        data = found.read(entry.blob)
        if entry.path.startswith("sites/"):
            number = data.count(Path(entry.path).stem.encode() + b"-")
            if devices + number > 20:
                continue
            devices += number
        files[entry.path] = data
    promoted = files["waves.yaml"].replace(b"image: v1.4.1", b"image: v1.4.2")
    app = promoted.replace(b"video-ingest: 2.7.0", b"video-ingest: 2.8.0")
    merges = (
        Merge(AT + timedelta(hours=1), {"waves.yaml": promoted}, "Promote v1.4.2"),
        Merge(AT + timedelta(days=20), {"waves.yaml": app}, "Promote video-ingest 2.8.0"),
        Merge(AT + timedelta(days=40), {"waves.yaml": files["waves.yaml"]}, "Revert both"),
    )
    faults = Faults(
        fail=0.02, offline=0.05, power=0.05, late=0.02, doubled=0.02, replayed=0.02, crashes=0.2,
        down=((AT + timedelta(days=3, hours=8), AT + timedelta(days=3, hours=20)),), until=AT + timedelta(days=days),
    )  # fmt: skip
    return Course(files, AT, merges, faults=faults, seed=seed, limit=timedelta(days=days), to_the_end=True)


if __name__ == "__main__":
    for row in measure(((52, 3.0),)):
        print(row)
