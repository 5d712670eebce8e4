"""The debian-12 image twice: the same bytes from another folder, another user, another umask, and without the cached root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import golden
from tests.support.system import need

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]
# Builds what `golden` builds, elsewhere. Arguments: the fleet, the work folder, the cache.
BUILD = """
import sys
from pathlib import Path
from tests.support.golden import COMMIT, COMMITTED_AT, RELEASE
from reconciler.image.builder import ImageBuilder
from reconciler.image.rootfs import DistributionRoot
from reconciler.repo.load import load_folder
fleet, work, cache = (Path(text) for text in sys.argv[1:])
spec = load_folder(fleet, scenarios=False).desired.images[RELEASE]
builder = ImageBuilder(work, work / "out", committed_at=lambda _: COMMITTED_AT, maker=lambda: DistributionRoot(cache, {}))
print(builder.build(RELEASE, spec, fleet / "images/edge-golden", COMMIT).folder)
"""
# As a user who is in no file of this machine: passwd and the subordinate ids are seen by this build alone.
AS_USER = """
set -eu
fleet=$1 work=$2 cache=$3 python=$4 folder=$5
for file in passwd subuid subgid; do cp "/etc/$file" "$folder/$file"; done
echo "edge-builder:x:64123:64123::$work:/bin/sh" >>"$folder/passwd"
echo "edge-builder:2000000000:65536" >>"$folder/subuid"
echo "edge-builder:2000000000:65536" >>"$folder/subgid"
for file in passwd subuid subgid; do mount --bind "$folder/$file" "/etc/$file"; done
mkdir "$folder/python"
mount --bind "$6" "$folder/python"
umask 077
exec setpriv --reuid 64123 --regid 64123 --clear-groups --inh-caps=-all \\
  "$folder/venv/bin/$python" -I -c "$7" "$fleet" "$work" "$cache"
"""


def environment(place: Path, program: Path) -> None:
    """This virtual environment with its interpreter in a place that another user reaches (`place`/python, bound there)."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (site,) = (Path(path) for path in sys.path if path.startswith(sys.prefix) and path.endswith("site-packages"))
    (place / "venv/bin").mkdir(parents=True)
    (place / "venv/lib" / version).mkdir(parents=True)
    (place / "venv/lib" / version / "site-packages").symlink_to(site)
    (place / "venv/bin" / program.name).symlink_to(place / "python/bin" / program.name)
    (place / "venv/pyvenv.cfg").write_text(f"home = {place}/python/bin\ninclude-system-site-packages = false\n")


def test_a_second_build_by_a_user_without_privilege_is_bit_identical(tmp_path: Path) -> None:
    need("newuidmap", "uidmap")
    if os.geteuid() != 0:
        pytest.fail("needs root, to become another user")
    first = golden.artifact()
    # What others may reach: pytest's own folder is closed to them.
    place = Path("/var/tmp") / f"edge-rebuild-{os.getpid()}"
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    try:
        shutil.copytree(golden.fleet(), place / "fleet")
        (place / "cache").mkdir()
        shutil.copytree(golden.PLACE / "cache/debs", place / "cache/debs")
        (place / "work").mkdir()
        subprocess.run(["chown", "-R", "64123:64123", str(place / "cache"), str(place / "work")], check=True)
        subprocess.run(["chmod", "-R", "a+rX", str(place / "fleet")], check=True)
        program = Path(sys.executable).resolve()
        environment(place, program)
        argv = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            AS_USER,
            "-",
            *(str(place / name) for name in ("fleet", "work", "cache")),
        ]
        done = subprocess.run(
            [
                *argv,
                program.name,
                str(place),
                str(program.parents[1]),
                f"import sys; sys.path.insert(0, {str(golden.TOP)!r})\n{BUILD}",
            ],
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=2000,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        second = Path(done.stdout.strip())
        names = sorted(path.name for path in first.iterdir())
        assert sorted(path.name for path in second.iterdir()) == names
        digests = [json.loads((folder / "manifest.json").read_bytes())["digest"] for folder in (first, second)]
        assert digests[0] == digests[1]
        for name in names:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(place)], check=False)


def test_a_rebuild_with_nothing_changed_asks_nobody() -> None:
    golden.artifact()
    began = time.monotonic()
    subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "tests.support.golden"], cwd=golden.TOP, check=True, timeout=60
    )
    # The first build takes minutes.
    assert time.monotonic() - began < 10
