"""A small root of Debian trixie with systemd-sysupdate, which bookworm has not: an independent client of our artifacts.

Made once by mmdebstrap from this machine's own apt sources with the suite changed (20 s, 115 MB), and kept in `build/trixie/`
by what it was made from; never written to afterwards. What a run needs beside it is mounted over it, in a mount namespace that
ends with the run.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.system import need

_SUITE = "trixie"
_PACKAGES = "systemd-container,gpg"
_LEFT_OUT = ("doc", "locale", "man", "info", "zoneinfo")
_CACHE = Path(__file__).parents[2] / "build" / "trixie"
# What is mounted over the root, each made in it beforehand.
_DEFINITIONS, _TARGET, _KEYRING = "etc/sysupdate.d", "srv/edge", "etc/systemd/import-pubring.gpg"
_ENTER = """set -eu
root=$1 definitions=$2 target=$3 keyring=$4; shift 4
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$definitions" "$root/etc/sysupdate.d"
mount --bind "$target" "$root/srv/edge"
mount --bind "$keyring" "$root/etc/systemd/import-pubring.gpg"
exec chroot "$root" /usr/lib/systemd/systemd-sysupdate "$@"
"""


@dataclass(frozen=True, slots=True)
class Client:
    """A machine that asks systemd-sysupdate for updates: `definitions` are its transfers, `target` where they are put."""

    root: Path
    definitions: Path
    target: Path
    keyring: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """systemd-sysupdate with these words, on the host's network."""
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sysupdate"]
        places = (self.root, self.definitions, self.target, self.keyring)
        return subprocess.run(
            [*command, *map(str, places), *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )


def client(folder: Path, transfers: Mapping[str, str], keyring: bytes) -> Client:
    """A client below `folder` with these transfer definitions (name → text), that trusts the keys in `keyring`."""
    made = Client(trixie_root(), folder / "sysupdate.d", folder / "target", folder / "keyring.gpg")
    made.definitions.mkdir(parents=True)
    made.target.mkdir()
    made.keyring.write_bytes(keyring)
    for name, text in transfers.items():
        (made.definitions / f"{name}.transfer").write_text(text)
    return made


def trixie_root() -> Path:
    """The root's folder. Skips the test, naming what is missing, where it cannot be made; in CI it fails."""
    mmdebstrap = need("mmdebstrap")
    sources = _sources()
    key = hashlib.sha256(
        "\n".join((sources, _PACKAGES, *_LEFT_OUT, _DEFINITIONS, _TARGET, _KEYRING)).encode()
    ).hexdigest()
    root = _CACHE / key[:16]
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.is_dir():
            for old in _CACHE.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            _make(mmdebstrap, sources, root)
    return root


def _make(mmdebstrap: str, sources: str, root: Path) -> None:
    part = root.with_suffix(".part")
    listed = root.with_suffix(".sources")
    listed.write_text(sources)
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT]
    command = [mmdebstrap, "--variant=apt", "--mode=root", "--quiet", f"--include={_PACKAGES}", *excluded]
    done = subprocess.run(
        [*command, _SUITE, str(part), str(listed)], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        shutil.rmtree(part, ignore_errors=True)
        _missing(f"mmdebstrap made no root of {_SUITE} from this machine's apt sources: {done.stderr[-2000:]}")
    for name in (_DEFINITIONS, _TARGET):
        (part / name).mkdir(parents=True, exist_ok=True)
    (part / _KEYRING).touch()
    part.rename(root)


def _sources() -> str:
    """This machine's apt sources, of the suite that is wanted; only deb822, which is what Debian images have."""
    if os.geteuid() != 0:
        _missing("needs root: it mounts over a root of its own")
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if release.get("ID", "").strip('"') != "debian":
        _missing("needs a machine with Debian's apt sources")
    codename = release["VERSION_CODENAME"].strip('"')
    texts = [path.read_text() for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources"))]
    wanted = [re.sub(rf"\b{codename}\b", _SUITE, text) for text in texts if re.search(rf"\b{codename}\b", text)]
    if not wanted:
        _missing(f"needs apt sources of {codename} in /etc/apt/sources.list.d/*.sources")
    return "\n".join(wanted)


def _missing(what: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
