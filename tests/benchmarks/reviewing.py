"""What a pull request's check costs: `reconciler validate` and `reconciler diff` of a one-line promotion, as whole processes.

Run by `python -m tests.benchmarks`, or alone: `python -m tests.benchmarks.reviewing`. No test depends on a time.
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

FLEET = Path(__file__).parents[2] / "fleet"
PATTERN = "SITE-2847"
AT = "2026-01-15T09:00:00Z"
ROUNDS = 3

Row = tuple[str, float, str, float, float]


def measure(sizes: tuple[tuple[int, float], ...] = ((52, 1.5), (10_000, 8.0))) -> Iterator[Row]:
    """(work, ours in s, the bar in words, its s, 1): the median of some rounds of both commands together."""
    with tempfile.TemporaryDirectory() as scratch:
        for sites, bar in sizes:
            folder = Path(scratch) / str(sites)
            make_repo(folder, sites)
            for output in ("markdown", "json"):
                took = median(sum(_times(folder, output)) for _ in range(ROUNDS))
                yield (
                    f"`validate` and `diff --output {output}` of a promotion, {sites:,} sites",
                    took,
                    f"{bar} s",
                    bar,
                    1.0,
                )


def make_repo(folder: Path, sites: int) -> None:
    """The example fleet, filled up to so many sites, in a commit; in the work tree every wave asks for v1.4.2."""
    shutil.copytree(FLEET, folder / "fleet")
    pattern = (FLEET / f"sites/{PATTERN}.yaml").read_text(encoding="utf-8")
    for number in range(sites - len(list((folder / "fleet/sites").iterdir()))):
        name = f"SITE-X{number:06d}"
        (folder / f"fleet/sites/{name}.yaml").write_text(pattern.replace(PATTERN, name), encoding="utf-8")
    _git(folder, "init", "-q", "-b", "main", ".")
    _git(folder, "add", "-A")
    _git(folder, "-c", "user.name=Bench", "-c", "user.email=bench@example", "commit", "-q", "-m", "The fleet")
    waves = folder / "fleet/waves.yaml"
    waves.write_text(waves.read_text(encoding="utf-8").replace("image: v1.4.1", "image: v1.4.2"), encoding="utf-8")


def _times(folder: Path, output: str) -> tuple[float, float]:
    program = str(Path(sys.executable).with_name("reconciler"))
    commands = ([program, "validate", "fleet"], [program, "diff", "HEAD", "--at", AT, "--output", output])
    first, second = (_once(command, folder) for command in commands)
    return first, second


def _once(command: list[str], folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    for row in measure():
        print(f"{row[0]}: {row[1]:.3f} s, bar {row[2]}")
