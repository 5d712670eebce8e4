"""A device under systemd-nspawn: the golden root below a layer of its own, and a folder in place of the data partition.

For tests of what happens from systemd on; the boot loader, the kernel and the initrd are for virtual machines. Has its own
namespaces and no way out. Everything, mounts too, ends with `stop`, and with the test process however that ends.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tests.support.system import need

_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
# A boot's control groups are its own: one that is stopped twice must not wait for the one after it.
_BOOTS = itertools.count(1)
# The slot is only read. overlayfs wants the layer's two folders on one file system. Each device has control groups of its own:
# systemd-nspawn makes one of a fixed name below those that it is started in, and the systemd of one device would find another's
# processes among those of its own service.
_SCRIPT = """
set -e
for place in $5; do
  mkdir -p "$place"
  echo 0 >"$place/cgroup.procs"
done
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
exec systemd-nspawn --quiet --boot --directory="$2/root" --bind="$3:/data" --machine="$4" \
  --register=no --keep-unit --private-network --console=pipe --link-journal=no
"""


def _control_groups(name: str) -> list[Path]:
    """Where a device's processes are kept together: below where this process is, in the hierarchies that systemd uses."""
    found, number = [], next(_BOOTS)
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "name=systemd"):
            # One hierarchy (/sys/fs/cgroup), or the older way's two.
            for top in ("unified", ".") if not controllers else ("systemd",):
                place = Path("/sys/fs/cgroup", top, path.lstrip("/"))
                if (place / "cgroup.procs").exists():
                    found.append(place / f"edge-test-{os.getpid()}-{name}-{number}")
                    break
    return found


def _removed(group: Path) -> bool:
    """Whether a control group and those below it are gone."""
    with suppress(OSError):
        for folder, _, _ in os.walk(group, topdown=False):
            os.rmdir(folder)
    return not group.exists()


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Container:
    """One boot of a device. `slot` is its layer, made if it is absent, `data` what survives."""

    def __init__(self, root: Path, slot: Path, data: Path, name: str) -> None:
        need("systemd-nspawn", "systemd-container")
        for folder in ("upper", "work", "root"):
            (slot / folder).mkdir(parents=True, exist_ok=True)
        self._log: IO[bytes] = (slot / "console").open("wb")
        self.groups = _control_groups(name)
        # A process namespace around systemd-nspawn: when it is killed, what it started would live on.
        self._argv = ["setpriv", "--pdeathsig", "KILL", "--", "unshare", "--mount", "--propagation", "private"]
        self._argv += ["--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]
        self._argv += ["sh", "-c", _SCRIPT, "sh", str(root), str(slot), str(data), name]
        self._argv += [" ".join(map(str, self.groups))]
        self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        self._console = slot / "console"

    def first(self, within_s: float = 240) -> int:
        """Process id of the device's first process, once it is there."""
        end = time.monotonic() + within_s
        while time.monotonic() < end and self._process.poll() is None:
            # unshare → systemd-nspawn → the device's systemd, beside other children while it sets up.
            for nspawn in _children(self._process.pid):
                for pid in _children(nspawn):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                        return pid
            time.sleep(0.1)
        raise AssertionError(f"the device did not start: {self._console.read_text(errors='replace')[-2000:]}")

    def run(self, *argv: str, within_s: float = 240, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A command on the device, as root."""
        enter = ["nsenter", "-t", str(self.first()), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        return subprocess.run(
            [*enter, *argv],
            env=_ENVIRONMENT,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )

    def says(self, *argv: str, within_s: float = 240) -> str:
        """The output of a command that must succeed."""
        done = self.run(*argv, within_s=within_s)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait(self, within_s: float = 500) -> None:
        """Until systemd has started everything, and cloud-init has ended in peace."""
        end = time.monotonic() + within_s
        # Until the bus is there, systemctl can't even ask.
        while self.run("systemctl", "is-system-running").stdout.strip() in ("", "offline", "initializing"):
            assert time.monotonic() < end, self._console.read_text(errors="replace")[-2000:]
            time.sleep(0.2)
        self.run("systemctl", "is-system-running", "--wait", within_s=max(1, end - time.monotonic()))
        done = self.run("cloud-init", "status", "--wait", "--long", within_s=max(1, end - time.monotonic()))
        assert done.returncode == 0 and "status: done" in done.stdout, done.stdout + done.stderr

    def health(self) -> dict[str, tuple[str, str]]:
        """healthcheck.sh's checks: name → status, message."""
        document: dict[str, Any] = json.loads(self.run("/usr/local/bin/healthcheck.sh", "--json").stdout)
        return {check["name"]: (check["status"], check["message"]) for check in document["checks"]}

    def stop(self) -> None:
        """Pull the plug."""
        self._process.kill()
        self._process.wait(120)
        self._log.close()
        # systemd-nspawn and all below it die with it, an instant later: a group with somebody in it cannot be removed.
        end = time.monotonic() + 120
        while not all(_removed(group) for group in self.groups):
            assert time.monotonic() < end, "processes of the device are left"
            time.sleep(0.02)
