"""What loading costs, from a real git repo: as a ratio to libyaml's own loader on the same bytes, and to a cold load.

Run by `python -m tests.benchmarks`, or alone: `python -m tests.benchmarks.loading`. No test depends on a time.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import yaml

from reconciler.adapters.git_source import GitMirror
from reconciler.repo.load import load_changed, load_tree

FLEET = Path(__file__).parents[2] / "fleet"
PATTERN = "SITE-2847"
T = TypeVar("T")


class Row(NamedTuple):
    """One line of the bench: seconds of our work and of the yardstick, and the most that their ratio may be."""

    work: str
    ours_s: float
    yardstick: str
    yardstick_s: float
    bar: float


def measure(scratch: Path, changed: int = 10_000, sites: int = 100_000) -> Iterator[Row]:
    """The two figures about loading. Takes a minute or two at full size."""
    mirror, heads = _repo(scratch, changed)
    previous = load_tree(mirror.files(heads[0]), mirror.blob)
    difference = mirror.changed(heads[0], heads[1])
    result, ours = _timed(lambda: load_changed(previous, difference, mirror.blob))
    assert result.desired is not None and len(difference) == changed, result.problems[:3]
    bytes_of_sites = [mirror.blob(entry.blob) for entry in difference.values() if entry is not None]
    _, yardstick = _timed(lambda: [yaml.load(data, yaml.CSafeLoader) for data in bytes_of_sites])
    yield Row(
        f"load and validate {changed:,} changed site files from git", ours, "CSafeLoader, same bytes", yardstick, 3.0
    )

    mirror, heads = _repo(scratch / "large", sites)
    previous, cold = _timed(lambda: load_tree(mirror.files(heads[0]), mirror.blob))
    result, warm = _timed(lambda: load_changed(previous, mirror.changed(heads[1], heads[2]), mirror.blob))
    assert result.desired is not None, result.problems[:3]
    yield Row(f"reload after one changed file of {sites:,}", warm, "the cold load", cold, 0.01)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    done = work()
    return done, time.perf_counter() - start


def _repo(scratch: Path, sites: int) -> tuple[GitMirror, list[str]]:
    """A repo of three commits: `sites` sites; all of them changed; one of them changed again. And a mirror of it."""
    origin = scratch / "origin.git"
    origin.mkdir(parents=True)
    _git(origin, "init", "-q", "--bare", "--initial-branch=main", ".")
    pattern = (FLEET / f"sites/{PATTERN}.yaml").read_text(encoding="utf-8")
    others = {path.relative_to(FLEET).as_posix(): path.read_bytes() for path in _others()}
    names = [f"SITE-{number:06d}" for number in range(sites)]

    def documents(more: str, of: list[str]) -> dict[str, bytes]:
        return {f"sites/{name}.yaml": pattern.replace(PATTERN, name).encode() + more.encode() for name in of}

    stream = bytearray()
    for number, files in enumerate(
        (
            {**others, **documents("", names)},
            documents("# changed\n", names),
            documents("  suspended: true\n", names[-1:]),
        )
    ):
        stream += b"commit refs/heads/main\ncommitter Bench <bench@example> %d +0000\n" % (1_700_000_000 + number)
        stream += b"data 5\nbench\n"
        for path, data in files.items():
            stream += b"M 100644 inline %s\ndata %d\n%s\n" % (path.encode(), len(data), data)
    subprocess.run(["git", "-C", str(origin), "fast-import", "--quiet"], input=bytes(stream), check=True)
    heads = _git(origin, "rev-list", "--reverse", "main").split()
    mirror = GitMirror(scratch / "mirror", str(origin), "main")
    mirror.refresh()
    return mirror, heads


def _others() -> list[Path]:
    """The example fleet without its sites and scenarios; its waves list sites, so those come along."""
    listed = {"LAB-0001", *_listed()}
    found = [path for path in FLEET.rglob("*.yaml") if path.parent.name in ("", "apps", "images", FLEET.name)]
    return [*found, *(FLEET / f"sites/{name}.yaml" for name in sorted(listed))]


def _listed() -> set[str]:
    waves = yaml.safe_load((FLEET / "waves.yaml").read_text(encoding="utf-8"))["spec"]["waves"]
    return {site for wave in waves for site in wave.get("sites", ())}


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(Path(folder)):
            ratio = row.ours_s / row.yardstick_s
            print(
                f"{row.work}: {row.ours_s:.3f} s, {row.yardstick} {row.yardstick_s:.3f} s, ratio {ratio:.4f}, bar {row.bar}"
            )
