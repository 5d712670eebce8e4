"""A device of a fleet in a container: the golden image's systemd and agent, and its two slots as files in its data folder.

A container has no boot loader: the agent's hardware is `directory`, and the agent plays the boot, by the flags that it would
write for a real one. Everything else is as on a device: enrolment, seed, the unit with its sandbox and watchdog, and
the way to the office (`loopback`). Pulling the plug kills every process at once; what was written stays written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.fleet.container import Container
from tests.vm.loopback import Loopback
from tests.vm.nspawn_memory import children
from tests.vm.office import Office

SLOT_BYTES = 256 << 20
TIMING = {"settle_s": 3, "recheck_s": 1, "slice_s": 1, "spread_s": 0, "report_jitter": 0}
"""For a machine that many devices share, and soaks of seconds; nothing else is changed of the agent's settings."""
# What has nothing to do with the agent, and costs a fleet on one machine most of its memory.
ABSENT = (
    "containerd.service",
    "docker.service",
    "docker.socket",
    "fail2ban.service",
    "prometheus-node-exporter.service",
)
# What a site's seed starts, without the container's image that it would pull.
APP = "[Service]\nExecStart=sleep infinity\n"
UNIT = "edge-agent.service"


class Device:
    """The device `name` of a site. Its folder holds the container's own layer (`slot`), and what outlives a boot (`data`)."""

    def __init__(self, office: Office, site: str, name: str, root: Path, folder: Path) -> None:
        """`root`: the golden image's root, which is only read."""
        self.name, self.site, self._office, self._root, self._folder = name, site, office, root, folder
        self.data = folder / "data"
        self.home = self.data / "edge" / "device"
        """The device as the agent's hardware sees it."""
        self._container: Container | None = None
        self._loopback: Loopback | None = None

    # ------------------------------------------------ an installer's work

    def install(self, release: str, digest: str, raw: Path) -> None:
        """Give it its seed, its enrolment, and a release in slot a: the file `raw`."""
        for name in ("log", "docker", "edge", "ssh", "video-ingest"):
            (self.data / name).mkdir(parents=True)
        self.data.chmod(0o755)
        self._folder.chmod(0o755)
        (self.home / "run").mkdir(parents=True)
        self._enrol()
        shutil.copyfile(raw, self.home / "slot-a.img")
        held = {"release": release, "digest": digest, "good": True, "size": raw.stat().st_size}
        (self.home / "slots.json").write_text(json.dumps({"a": held}))
        (self.home / "etc").mkdir()
        (self.home / "etc/edge-image-version").write_text(f"current={release}\nprevious=\n")
        units = self._folder / "slot/upper/etc/systemd/system"
        units.mkdir(parents=True)
        for name in ABSENT:
            (units / name).symlink_to("/dev/null")
        (units / "video-ingest.service").write_text(APP)
        for made in (units, *units.parents):
            if made == self._folder:
                break
            made.chmod(0o755)

    def _enrol(self) -> None:
        office, seed, enrolment = self._office, self.data / "cidata", self._folder / "enrolment"
        fleet, config = str(office.fleet), str(office.controller.config)
        arguments = ["site", "render", self.site, "--device", self.name, "--fleet", fleet, "--output", str(seed)]
        office.controller.run(*arguments, "--secrets", str(office.folder / "secrets"))
        arguments = ["device", "enrol", self.name, "--fleet", fleet, "--config", config, "--out", str(enrolment)]
        office.controller.run(*arguments, "--server", f"http://127.0.0.1:{office.ports[0]}")
        shutil.copytree(seed, self.home / "cidata", symlinks=True)
        settings = json.loads((enrolment / "agent.json").read_text())
        settings |= {"hardware": "directory", "root": "/var/lib/edge-agent/device", "slotBytes": SLOT_BYTES}
        settings["timing"] = TIMING
        shutil.copyfile(enrolment / "token", self.data / "edge/token")
        (self.data / "edge/agent.json").write_text(json.dumps(settings))
        for path in (self.data / "edge/token", self.data / "edge/agent.json"):
            path.chmod(0o600)

    # ------------------------------------------------ power

    @property
    def container(self) -> Container:
        """The present boot."""
        assert self._container is not None, f"{self.name} is off"
        return self._container

    def start(self) -> None:
        """Switch it on. What says which slot runs is gone, as it is from memory: the agent plays the boot loader first."""
        assert self._container is None, f"{self.name} is on"
        (self.home / "run/boot.json").unlink(missing_ok=True)
        self._container = Container(self._root, self._folder / "slot", self.data, self.name.lower())
        self._loopback = Loopback(self._container.first(), [port for port in self._office.ports if port])

    def cut(self) -> None:
        """Pull the plug. One that is off stays off."""
        container, self._container = self._container, None
        loopback, self._loopback = self._loopback, None
        if container is not None:
            container.stop()
        if loopback is not None:
            loopback.close()

    # ------------------------------------------------ what can be seen

    def unit(self) -> dict[str, str]:
        """The agent's unit, as the device's systemd knows it; empty until somebody can be asked."""
        names = "Type,ActiveState,SubState,NRestarts,MainPID,WatchdogTimestampMonotonic,WatchdogUSec,StatusText,Result"
        told = self.container.run("systemctl", "show", UNIT, f"--property={names}").stdout
        return dict(line.split("=", 1) for line in told.splitlines())

    def slots(self) -> dict[str, dict[str, Any]]:
        """The records of its slots."""
        found: dict[str, dict[str, Any]] = json.loads((self.home / "slots.json").read_text())
        return found

    def booted(self) -> tuple[str, float]:
        """The slot that runs, and since when (`time.time`)."""
        file = self.home / "run/boot.json"
        return json.loads(file.read_text())["slot"], file.stat().st_mtime

    def version(self) -> list[str]:
        """The two lines of its /etc/edge-image-version."""
        return (self.home / "etc/edge-image-version").read_text().split()

    def written(self, slot: str) -> int:
        """How many bytes of a slot's file are there."""
        try:
            return (self.home / f"slot-{slot}.img").stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def journal(self, lines: int = 30) -> str:
        """What the agent has said last, for a message."""
        if self._container is None:
            return f"{self.name} is off"
        return self.container.run("journalctl", "--no-pager", "-n", str(lines), "-u", UNIT).stdout

    def agent(self) -> int:
        """Process id of its agent, on this machine."""
        # A child of the device's systemd: what the agent starts has its command line, too, for an instant.
        found = [pid for pid in children(self.container.first()) if b"edge-agent.pyz\0run" in _command(pid)]
        assert len(found) == 1, f"{self.name} has {len(found)} agents\n{self.journal()}"
        return found[0]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
