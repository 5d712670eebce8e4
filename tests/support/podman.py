"""Apps that really run: small images with a static busybox, a container runtime without a daemon, and units without systemd.

`running_podman` makes the command `podman` with all its data in one folder. `Units` stands for systemd at one seam, `systemctl`: it
runs the real unit file's own commands (`pull-app`, `run-app`), with its environment files, its condition and its restarts.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.registry import OCI_MANIFEST, SmallImage, _descriptor, digest_of
from tests.support.system import need

RECIPE = Path(__file__).parents[2] / "fleet" / "images" / "edge-golden"
RUNS = "trap exit TERM; echo running $(cat /version); while :; do sleep 1 & wait; done"
ENDS = "echo ends; sleep 0.3; exit 3"

_CONF = """[containers]
# Where tests run, a container may be allowed no more than its parent, or no cgroup of its own.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
cgroups = "disabled"
pids_limit = 0
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
"""
# crun takes no machine on which both versions of cgroups are mounted; a mount namespace shows it one.
_WRAPPER = """#!/bin/sh
export CONTAINERS_CONF={folder}/containers.conf
set -- podman --root {folder}/storage --runroot {folder}/run --tmpdir {folder}/tmp --storage-driver vfs --runtime crun "$@"
if [ "$(id -u)" -eq 0 ] && [ -d /sys/fs/cgroup/unified ]; then
  exec unshare --mount --propagation private sh -c \\
    'umount --recursive --lazy /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"' sh "$@"
fi
exec "$@"
"""


def app_image(version: str, architecture: str = "amd64", command: str = RUNS, bytes_more: int = 0) -> SmallImage:
    """An image of one layer that runs `command` in a shell. Its digest follows from the arguments and this machine's busybox."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as layer:

        def add(name: str, content: bytes, mode: int = 0o644) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            layer.addfile(entry, io.BytesIO(content))

        add("bin/busybox", Path(need("busybox", "busybox-static")).read_bytes(), 0o755)
        for name in ("sh", "sleep", "cat"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(entry)
        for name in ("tmp", "data", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(entry)
        add("etc/edge/cameras", b"")
        add("version", version.encode())
        add("more", os.urandom(bytes_more))
    packed = gzip.compress(tar.getvalue(), 1, mtime=0)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/sh", "-c", command], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar.getvalue())]},
    }
    data = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor("application/vnd.oci.image.config.v1+json", data),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
    }
    return SmallImage(json.dumps(manifest, indent=3).encode(), data, packed)


@contextmanager
def running_podman() -> Iterator[Path]:
    """The command `podman` (with crun) with images and containers of its own; all are gone afterwards.

    RECONCILER_RUNTIME names another command instead, `docker` for one, to hold it to the same tests.
    """
    folder = Path(tempfile.mkdtemp(prefix="pod-"))  # podman takes a path of 50 characters at most
    wrapper = folder / "podman"
    if other := os.environ.get("RECONCILER_RUNTIME"):
        wrapper = folder / Path(other).name
        wrapper.symlink_to(other)
    else:
        need("podman")
        need("crun")
        (folder / "containers.conf").write_text(_CONF)
        wrapper.write_text(_WRAPPER.format(folder=shlex.quote(str(folder))))
        wrapper.chmod(0o755)
    try:
        yield wrapper
    finally:
        # Another runtime may be somebody's own: only what these tests make is removed.
        for kind in ("ps --all --quiet --filter label=edge.app", "images --quiet --filter reference=*/*/video-ingest"):
            listed = subprocess.run(
                [wrapper, *kind.split()], capture_output=True, text=True, check=False
            ).stdout.split()
            remove = ["rm", "--force"] if kind.startswith("ps") else ["rmi", "--force"]
            if listed:
                subprocess.run([wrapper, *remove, *dict.fromkeys(listed)], capture_output=True, check=False)
        _end_processes_of(folder)
        # A rootless storage holds files of other users.
        if not other and os.getuid() != 0:
            subprocess.run(["podman", "unshare", "rm", "-rf", folder / "storage"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _end_processes_of(folder: Path) -> None:
    """What a `podman run` that was killed half-way has left behind: nobody else names this folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if os.fsencode(folder) + b"/" in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)


class Units:
    """The device's systemd, for the app's unit alone. `root` holds the device's `etc`, `usr/lib/edge` and `var/lib`."""

    def __init__(self, root: Path, folder: Path, *, name: str = "video-ingest", restart_s: float | None = None) -> None:
        """`systemctl` is made in `folder`. `restart_s` is how long a unit waits before it is started again; as in its file
        unless given."""
        self.root, self.name, self.log = root, name, folder / "journal"
        self._unit = _parse(RECIPE / "rootfs/etc/systemd/system" / f"{name}.service")
        self._restart_s = float(self._unit["RestartSec"][0]) if restart_s is None else restart_s
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted, self.state, self.starts = False, "inactive", 0
        self._lock, self._over = threading.RLock(), threading.Event()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(folder / "s"))
        self._server.listen()
        self.systemctl = folder / "systemctl"
        self.systemctl.write_text(
            "#!/usr/bin/env python3\nimport socket, sys\ns = socket.socket(socket.AF_UNIX)\n"
            f's.connect({str(folder / "s")!r})\ns.sendall("\\t".join(sys.argv[1:]).encode())\ns.shutdown(1)\n'
            'status, _, text = s.makefile().read().partition("\\n")\nsys.stdout.write(text)\nsys.exit(int(status))\n'
        )
        self.systemctl.chmod(0o755)
        self._threads = [threading.Thread(target=task, daemon=True) for task in (self._serve, self._supervise)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """As a power cut: nothing is stopped, nothing is started again."""
        self._over.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(60)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    # ------------------------------------------------------------

    def _serve(self) -> None:
        while not self._over.is_set():
            try:
                connection = self._server.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            words = connection.makefile().read().split("\t")
            status, text = 0, ""
            if words[0] == "show":
                condition = "yes" if self._condition() else "no"
                text = f"ActiveState={self.state}\nSubState=-\nResult=exit-code\nConditionResult={condition}\n"
            elif words[0] == "is-active":
                status, text = (0 if self.state == "active" else 3), f"{self.state}\n"
            elif "--no-block" in words:
                threading.Thread(target=self._do, args=(words[0],), daemon=True).start()
            else:
                status = self._do(words[0])
            with suppress(OSError):
                connection.sendall(f"{status}\n{text}".encode())

    def _do(self, verb: str) -> int:
        with self._lock:
            if verb in ("stop", "restart"):
                self._wanted = False
                self._stop()
            if verb in ("start", "restart"):
                self._wanted = self._condition()
                if self._wanted and self.state != "active":
                    return self._start()
            return 0

    def _start(self) -> int:
        self.starts += 1
        self.state = "activating"
        environment = self._environment()
        for command in self._unit["ExecStartPre"]:
            if self._call(command, environment) != 0 and not command.startswith("-"):
                self.state = "activating"  # auto-restart
                return 1
        with self.log.open("ab") as log:
            argv = self._argv(self._unit["ExecStart"][0], environment)
            self._process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.state = "active"
        return 0

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._call(self._unit["ExecStop"][0], self._environment())
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            self._process.kill()
            self._process.wait()
        self.state = "inactive"

    def _supervise(self) -> None:
        while not self._over.wait(0.05):
            with self._lock:
                ended = self._process is None or self._process.poll() is not None
                if ended and self.state in ("active", "activating"):
                    self.state = "activating" if self._wanted else "failed"
                waits = self._wanted and ended and self.state == "activating"
            if waits and not self._over.wait(self._restart_s):
                with self._lock:
                    if self._wanted and self.state == "activating" and not self._over.is_set():
                        self._start()

    def _condition(self) -> bool:
        return all(self._at(path).exists() for path in self._unit.get("ConditionPathExists", []))

    def _call(self, command: str, environment: Mapping[str, str]) -> int:
        with self.log.open("ab") as log:
            done = subprocess.run(
                self._argv(command, environment), env=environment, stdout=log, stderr=log, check=False, timeout=240
            )
        return done.returncode

    def _argv(self, command: str, environment: Mapping[str, str]) -> list[str]:
        words = []
        for word in shlex.split(command.lstrip("-")):
            for name in ("CONTAINER_RUNTIME",):
                word = word.replace(f"${{{name}}}", environment[name])
            words.append(str(RECIPE / "rootfs" / word[1:]) if word.startswith("/usr/local/") else word)
        return words

    def _environment(self) -> dict[str, str]:
        found = {
            "PATH": os.environ["PATH"],
            "CAMERAS": str(self._at("/etc/edge/cameras")),
            "DATA": str(self._at(f"/var/lib/{self.name}")),
            "CREDENTIALS": str(self._at("/var/lib/edge-agent/docker")),
        }
        for words in self._unit["Environment"]:
            found |= dict(word.partition("=")[::2] for word in shlex.split(words))
        for file in self._unit["EnvironmentFile"]:
            path = self._at(file.lstrip("-"))
            if not path.exists() and file.startswith("-"):
                continue
            found |= dict(
                line.partition("=")[::2] for line in path.read_text().splitlines() if line and not line.startswith("#")
            )
        return found

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")


def _parse(file: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in file.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found
