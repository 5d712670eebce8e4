"""Builds that are killed, and builds whose disk is full: nothing is left, the error says what it was, the next one is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.image.test_builder import SETUP, recipe
from tests.support import golden
from tests.support.system import need

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]
# Builds what `golden` builds, elsewhere, and tells its stages. Arguments: the fleet, the work folder, the cache.
BUILD = """
import sys
from pathlib import Path
from tests.support.golden import COMMIT, COMMITTED_AT, RELEASE
from reconciler.image.builder import ImageBuilder
from reconciler.image.rootfs import DistributionRoot
from reconciler.repo.load import load_folder
fleet, work, cache = (Path(text) for text in sys.argv[1:])
spec = load_folder(fleet, scenarios=False).desired.images[RELEASE]
builder = ImageBuilder(work, work / "out", committed_at=lambda _: COMMITTED_AT, maker=lambda: DistributionRoot(cache, {}),
                       progress=lambda stage, _: print(stage, file=sys.stderr, flush=True))
print(builder.build(RELEASE, spec, fleet / "images/edge-golden", COMMIT).folder)
"""
# Builds a small recipe of type `files`. Arguments: the recipe, the work folder, the output folder.
SMALL = """
import sys
from pathlib import Path
from tests.image.test_builder import build
from tests.support.golden import COMMITTED_AT
from reconciler.image.builder import ImageBuilder
from reconciler.ports import PortError
source, work, out = (Path(text) for text in sys.argv[1:])
for _ in range(2):
    try:
        print(build(ImageBuilder(work, out, committed_at=lambda _: COMMITTED_AT), source).digest)
    except PortError as error:
        print(f"{type(error).__name__}: {error}")
    left = [*(work / "scratch").glob("v*"), *(out.glob("*") if out.is_dir() else ())]
    print(len(left))
    (source / "setup.sh").write_text((source / "setup.sh").read_text().partition("head ")[0])
"""


def left(mark: str) -> list[str]:
    """What runs or is mounted with a name in it."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if mark in line]
    for place in Path("/proc").glob("[0-9]*"):
        try:
            told = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
            running = (place / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            continue
        if mark.encode() in told and running and int(place.name) != os.getpid():
            found.append(told[:200].decode("utf-8", "replace"))
    return found


def start(work: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(golden.fleet()), str(work), str(golden.PLACE / "cache")],
        cwd=golden.TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_killed_build_leaves_nothing_running_and_the_next_one_is_the_same(tmp_path: Path) -> None:
    first = golden.artifact()
    work = tmp_path / "work"
    # While apt resolves, while setup.sh runs, while mke2fs writes.
    for stage, after_s in (("packages", 1.5), ("setup", 0.3), ("pack", 1.5)):
        build = start(work)
        assert build.stderr is not None and build.stdout is not None
        with build.stderr, build.stdout:
            assert stage in (line.strip() for line in build.stderr)
            time.sleep(after_s)
            os.killpg(build.pid, signal.SIGKILL)
            assert build.wait(20) == -signal.SIGKILL
        deadline = time.monotonic() + 10
        while (there := left(str(tmp_path))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert there == [], stage
    build = start(work)
    told, said = build.communicate(timeout=600)
    assert build.returncode == 0, said[-3000:]
    digests = [json.loads((folder / "manifest.json").read_bytes())["digest"] for folder in (first, Path(told.strip()))]
    assert digests[0] == digests[1]
    assert [path.name for path in (work / "scratch").iterdir()] == [f".{golden.RELEASE}.lock"]


@pytest.mark.parametrize(
    ("size_mib", "full", "stage"),
    [(70, "work", "setup"), (45, "work", "pack"), (25, "work", "artifact"), (25, "out", "artifact")],
)
def test_a_full_disk_is_said_to_be_full_and_leaves_nothing(
    tmp_path: Path, size_mib: int, full: str, stage: str
) -> None:
    if os.geteuid() != 0:
        pytest.fail("needs root, to mount a small disk")
    need("mke2fs", "e2fsprogs")
    source = recipe(tmp_path / "recipe", SETUP + f"head -c {size_mib}M /dev/urandom > $ROOT/large\n")
    for name in ("work", "out"):
        (tmp_path / name).mkdir()
    room = {"work": 64, "out": 16}[full]
    script = 'mount -t tmpfs -o "size=$1" none "$2" && shift 2 && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-ec", script, "-", f"{room}m", str(tmp_path / full)]
    argv += [sys.executable, "-c", SMALL, *(str(place) for place in (source, tmp_path / "work", tmp_path / "out"))]
    done = subprocess.run(argv, cwd=golden.TOP, capture_output=True, text=True, check=True, timeout=120)
    error, after, digest, made = done.stdout.splitlines()
    assert error.startswith(
        f"TransientError: stage '{stage}' of the build failed: no space left on the disk of {tmp_path / full}"
    )
    assert after == "0" and digest.startswith("sha256:") and made == "1"
