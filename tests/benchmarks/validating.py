"""What validating costs, a document: `reconciler validate` against check-jsonschema over the same 10,000 files, as whole processes.

Ours checks the schema and the meaning across files; the other one the schema alone, which is what one would use otherwise. Both
read all files in one process that is started once, so neither's start counts for more than it does. (Over 400 files
check-jsonschema seems half as fast again, since its start is spread over few.) Ours may fork: it is the time that somebody waits.
Run by `python -m tests.benchmarks`, or alone, a minute long: `python -m tests.benchmarks.validating`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
FLEET = ROOT / "fleet"
PATTERN = "SITE-2847"
ROUNDS = 5


def grow(to: Path, sites: int) -> Path:
    """A fleet repo with as many sites as wanted in all, made from the example: one file a site."""
    shutil.copytree(FLEET, to, ignore=shutil.ignore_patterns("tests", "edge-golden", "README.md"))
    pattern = (FLEET / f"sites/{PATTERN}.yaml").read_text(encoding="utf-8")
    have = len(list((to / "sites").iterdir()))
    for number in range(sites - have):
        name = f"EDGE-{number:06d}"
        (to / f"sites/{name}.yaml").write_text(pattern.replace(PATTERN, name), encoding="utf-8")
    return to


def measure(documents: int = 10_000) -> Iterator[tuple[str, float, str, float, float]]:
    """(work, ours in s a document, yardstick, its s a document, bar). Ours must be 50 times as fast: a ratio of 0.02."""
    bin_ = Path(sys.executable).parent
    schema = ROOT / "schemas/site.schema.json"
    with tempfile.TemporaryDirectory() as folder:
        fleet = grow(Path(folder) / "fleet", documents)
        ours = [str(bin_ / "reconciler"), "validate", str(fleet)]
        files = sorted(str(path) for path in (fleet / "sites").iterdir())
        theirs = [str(bin_ / "check-jsonschema"), "--schemafile", str(schema), *files]
        _timed(ours)
        before = [_timed(ours) for _ in range(ROUNDS)]
        second = _timed(theirs)
        after = [_timed(ours) for _ in range(ROUNDS)]
    # Theirs takes so long that a busy machine slows it evenly: ours is measured on both sides of it, and not at its best.
    first = median(before + after)
    work = f"validate, a document of {documents:,} (whole process)"
    yield work, first / documents, "check-jsonschema on the same", second / documents, 0.02


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in measure():
        print(row)
