"""setup.sh and sysprep.sh on the built image once more, in the builder's own sandbox: nothing changes."""

from __future__ import annotations

import os
import stat
import subprocess
from calendar import timegm
from collections.abc import Iterator
from pathlib import Path
from time import strptime

import pytest

from reconciler.image.sandbox import PLACE, Ground
from tests.support import golden
from tests.support.system import need

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(900)]
# The box shows the layer that a run writes above the image, so that what changed is what is in it.
OVERLAY = (
    'mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root" && shift 2 && exec "$@"'
)


class Again:
    """The image under a layer that takes what the scripts write."""

    def __init__(self, root: Path, folder: Path) -> None:
        need("bwrap", "bubblewrap")
        self.root, self.folder = root, folder
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        release = dict(line.split("=", 1) for line in (root / "etc/edge-release").read_text().splitlines())
        built_at = timegm(strptime(release["BUILT_AT"], "%Y-%m-%dT%H:%M:%SZ"))
        self.told = {
            "ROOT": "/",
            "SITE_ID": "golden",
            "RELEASE": release["RELEASE"],
            "SOURCE_DATE_EPOCH": str(built_at),
            "IMAGE_ID": (root / "usr/lib/edge/image-id").read_text().strip(),
        }

    def run(self, script: str, *arguments: str, **told: str) -> subprocess.CompletedProcess[str]:
        recipe = golden.fleet() / "images" / "edge-golden"
        boxed = Ground("root").boxed(
            self.folder / "root",
            [f"{PLACE}/recipe/{script}", *arguments],
            {**self.told, **told},
            {"recipe": recipe},
            change=True,
        )
        argv = ["unshare", "--mount", "sh", "-c", OVERLAY, "-", str(self.root), str(self.folder), *boxed]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)

    def changed(self) -> list[str]:
        """Paths of the layer whose kind, mode, owner or bytes differ from the image's."""
        upper = self.folder / "upper"
        return [
            str(path.relative_to(upper)) for path in upper.rglob("*") if look(path) != look(self.root / path.relative_to(upper))
        ]  # fmt: skip


def look(path: Path) -> object:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    what = b"" if stat.S_ISDIR(status.st_mode) else b"special"
    if stat.S_ISREG(status.st_mode):
        what = path.read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        what = os.readlink(path).encode()
    return status.st_mode, status.st_uid, status.st_gid, what


@pytest.fixture
def again(tmp_path: Path) -> Iterator[Again]:
    if os.geteuid() != 0:
        pytest.skip("needs root: an overlay over the image's own owners")
    yield Again(golden.root(), tmp_path)
    subprocess.run(["rm", "-rf", "--one-file-system", str(tmp_path / "upper"), str(tmp_path / "work")], check=True)


def test_setup_and_sysprep_once_more_change_nothing(again: Again) -> None:
    done = again.run("setup.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "packages are installed" in done.stdout and "setup: initrd of" in done.stdout
    assert "site steps suppressed" in done.stdout
    done = again.run("sysprep.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert again.changed() == []
    assert len(list((again.folder / "upper").rglob("*"))) > 50, "it wrote, and wrote the same"


def test_the_builders_check_knows_a_broken_image(again: Again) -> None:
    healthy = again.run("healthcheck.sh")
    assert healthy.returncode == 0, healthy.stdout
    assert "OK       ssh: no passwords" in healthy.stdout.splitlines()
    for place, breaks, says in (
        ("etc/ssh/sshd_config.d/50-edge.conf", "PasswordAuthentication yes\n", "CRITICAL ssh: sshd takes passwords"),
        ("boot/initrd.img", None, "CRITICAL boot: boot/initrd.img is missing or leads nowhere"),
    ):
        path = again.folder / "upper" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if breaks is None:
            path.symlink_to("initrd.img-of-another-kernel")
        else:
            path.write_text(breaks)
        done = again.run("healthcheck.sh")
        assert done.returncode == 2 and says in done.stdout.splitlines(), done.stdout
        path.unlink()
