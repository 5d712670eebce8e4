"""What validating costs, a document: `reconciler validate` against check-jsonschema on the same files, both as whole processes.

Ours checks the schema and the meaning across files; the other one the schema alone, which is what one would use otherwise. Run by
`python -m tests.benchmarks`, or alone: `python -m tests.benchmarks.validating`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLEET = ROOT / "fleet"
PATTERN = "SITE-2847"


def grow(to: Path, sites: int) -> Path:
    """A fleet repo with as many sites as wanted in all, made from the example: one file a site."""
    shutil.copytree(FLEET, to, ignore=shutil.ignore_patterns("tests", "edge-golden", "README.md"))
    pattern = (FLEET / f"sites/{PATTERN}.yaml").read_text(encoding="utf-8")
    have = len(list((to / "sites").iterdir()))
    for number in range(sites - have):
        name = f"EDGE-{number:06d}"
        (to / f"sites/{name}.yaml").write_text(pattern.replace(PATTERN, name), encoding="utf-8")
    return to


def measure(ours: int = 10_000, theirs: int = 400) -> Iterator[tuple[str, float, str, float, float]]:
    """(work, ours in s a document, yardstick, its s a document, bar). Ours must be 50 times as fast: a ratio of 0.02."""
    bin_ = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        large, small = grow(Path(folder) / "large", ours), grow(Path(folder) / "small", theirs)
        first = _timed([str(bin_ / "reconciler"), "validate", str(large)]) / ours
        schema = ROOT / "schemas/site.schema.json"
        files = sorted(str(path) for path in (small / "sites").iterdir())
        second = _timed([str(bin_ / "check-jsonschema"), "--schemafile", str(schema), *files]) / len(files)
    yield f"validate, a document of {ours:,} (whole process)", first, "check-jsonschema on the same", second, 0.02


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in measure():
        print(row)
