"""A device in a virtual machine: its install disk with seed and enrolment, and what can be seen of it from outside.

The install disk is `image disk`'s, of a derived first release (`releases`), with what `site render` and `device enrol` made. Only
the agent's times are set for an emulated machine.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from reconciler.image.disk import MIB, Disk, Partition, make_disk
from reconciler.image.disk_data import read_seed
from reconciler.image.disk_slot import open_source
from reconciler.image.enrolment import read_enrolment
from tests.vm import disks, releases
from tests.vm.machine import Machine
from tests.vm.office import Office
from tests.vm.releases import Change, File
from tests.vm.servers import wait_until

SLOT_BYTES = 1280 * MIB
DATA_BYTES = 1536 * MIB
BOOT_S = 900
"""Emulation on a machine that others use too; a quiet one needs a fifth of it."""
TIMING = {"settle_s": 150, "recheck_s": 5, "report_jitter": 0}
"""Services start slowly under emulation; nothing else is changed of the agent's times."""


BLOCK = 4096
_MEMORY = r"""
agent=$(systemctl show --value -p MainPID edge-agent.service)
while sleep 1; do
  sed -n 's/^VmHWM:/agent/p' /proc/$agent/status
  for unpacker in $(pgrep -x zstd); do sed -n 's/^VmHWM:/zstd/p' /proc/$unpacker/status; done
done
"""
SIGNATURE = b"# GRUB Environment Block\n"


class Guest:
    """The device `name` of a site, in a machine of its own."""

    def __init__(self, office: Office, site: str, first: Path, folder: Path) -> None:
        """`first`: the raw image of the release that it is installed with."""
        self.name, self.site, self._office, self._folder = f"{site}-1", site, office, folder
        folder.mkdir(parents=True)
        self._places: tuple[int, int] | None = None
        self.disk = self._install(first)
        self.machine = Machine(self.disk.path, folder / "vm", ports=office.ports)

    def _install(self, first: Path) -> Disk:
        office, seed, enrolment = self._office, self._folder / "seed", self._folder / "enrolment"
        config, fleet = str(office.controller.config), str(office.fleet)
        arguments = ["site", "render", self.site, "--device", self.name, "--fleet", fleet, "--output", str(seed)]
        office.controller.run(*arguments, "--secrets", str(office.folder / "secrets"))
        arguments = ["device", "enrol", self.name, "--fleet", fleet, "--config", config, "--out", str(enrolment)]
        office.controller.run(*arguments, "--server", f"http://127.0.0.1:{office.ports[0]}")
        disk = make_disk(
            open_source(first),
            self._folder / "disk.img",
            slot_size=SLOT_BYTES,
            data_size=DATA_BYTES,
            seed=read_seed(seed),
            enrolment=read_enrolment(enrolment).files,
        )
        settings = {**json.loads((enrolment / "agent.json").read_text()), "timing": TIMING}
        added = {
            "/edge/agent.json": File(json.dumps(settings).encode(), 0o600),
            # The fleet's images carry them; these are made before the office has its key.
            "/edge/keys/assignment.gpg": File(office.assignment.export([office.key])),
            "/edge/keys/assignment.fpr": File(f"{office.key}\n".encode()),
        }
        releases.edit(disk.path, Change(added), disk.layout.data.start)
        return disk

    def close(self) -> None:
        """Switch it off and remove its disk."""
        self.machine.close()
        self.disk.path.unlink(missing_ok=True)

    # ------------------------------------------------ from inside

    def out(self, script: str, timeout_s: float = 120) -> str:
        """What a script printed on the machine, run by root."""
        return self.machine.out(script, timeout_s)

    def booted(self) -> str:
        """The slot that runs."""
        return self.out("sed 's/.*edge.slot=\\([ab]\\).*/\\1/' /proc/cmdline")

    def state(self) -> dict[str, Any]:
        """The agent's own record."""
        found: dict[str, Any] = json.loads(self.out("cat /var/lib/edge-agent/agent/state.json"))
        return found

    def ring(self) -> None:
        """Have the agent call in now, as a person on the console or a doorbell does."""
        self.out("nohup edge-agent apply </dev/null >/dev/null 2>&1 &")

    def told(self, release: str) -> None:
        """Wait until the reconciler wants the device to go to a release, and have the agent hear of it at once."""

        def wanted() -> bool:
            seen = self._office.device(self.name)
            return seen is not None and seen.updating_to == release

        self._office.until(f"{self.name} is to run {release}", wanted, 300)
        self.ring()

    def watch_memory(self) -> None:
        """From now on until the next boot: the largest resident size of the agent, and of what it starts to unpack."""
        self.out(f"nohup bash -c {shlex.quote(_MEMORY)} </dev/null >/data/log/edge-test-memory 2>/dev/null &")

    def memory_peaks(self) -> dict[str, int]:
        """What `watch_memory` saw, in bytes, by program. What ends while it is looked at says nothing."""
        peaks: dict[str, int] = {}
        for line in self.out("sort -u /data/log/edge-test-memory").splitlines():
            name, kib, *_ = line.split()
            peaks[name] = max(peaks.get(name, 0), int(kib) << 10)
        return peaks

    # ------------------------------------------------ from outside

    def variables(self) -> tuple[dict[str, str], dict[str, str]]:
        """GRUB's variables as they are on the disk now: `grubenv`, and `grubenv.bak`.

        Read where they lie, which never changes: an agent writes them in place.
        """
        if self._places is None:
            self._places = self._find()
        with self.disk.path.open("rb") as file:
            return _variables(file, self._places[0]), _variables(file, self._places[1])

    def _find(self) -> tuple[int, int]:
        """Where the two files lie on the disk: the backup is the one without a trial."""
        found = {}
        esp = self.disk.layout.esp
        with self.disk.path.open("rb") as file:
            at = esp.start
            while at < esp.start + esp.size:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                if at >= esp.start + esp.size:
                    break
                file.seek(at)
                data = file.read(1 << 20)
                for match in re.finditer(re.escape(SIGNATURE), data):
                    variables = _variables(file, at + match.start())
                    if "edge_default" in variables:  # and not GRUB itself, which knows the line too
                        found["edge_trial" in variables] = at + match.start()
                at += 1 << 20
        assert len(found) == 2, f"the ESP holds {len(found)} kinds of GRUB's variables"
        return found[True], found[False]

    def _partition(self, slot: str) -> Partition:
        return self.disk.layout.root_a if slot == "a" else self.disk.layout.root_b

    def cut_when(self, what: str, condition: Callable[[], bool], timeout_s: float = BOOT_S) -> None:
        """Pull the plug the moment a condition holds."""
        wait_until(f"{self.name}: {what}", condition, timeout_s, self._tell, every_s=0.02)
        self.machine.cut()

    def _tell(self) -> str:
        return f"{self._office.tell()}\n{self.machine.tail()}"

    def filled(self, slot: str, samples: Sequence[int]) -> float:
        """What part of the blocks at `samples` (see `data_blocks`) a slot holds: 1.0 where none is zeros."""
        part = self._partition(slot)
        with self.disk.path.open("rb") as file:
            held = 0
            for at in samples:
                file.seek(part.start + at)
                held += any(file.read(BLOCK))
            return held / len(samples)

    def slot_digest(self, slot: str, size: int) -> str:
        """`sha256:…` of what a slot holds."""
        part = self._partition(slot)
        return "sha256:" + disks.digest_of(self.disk, part, size)

    def copy_disk(self, to: Path) -> None:
        """Keep the disk as it is; the machine must be off."""
        assert not self.machine.is_on()
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(self.disk.path), str(to)], check=True)


def data_blocks(raw: Path, count: int = 60) -> tuple[int, ...]:
    """Places of so many blocks of an image that hold something, spread over its data and in its order."""
    found, step = [], raw.stat().st_size // (4 * count) // BLOCK * BLOCK
    with raw.open("rb") as file:
        for at in range(0, raw.stat().st_size, step):
            file.seek(at)
            if any(file.read(BLOCK)):
                found.append(at)
    return tuple(found[:: max(1, len(found) // count)])


def _variables(file: BinaryIO, at: int) -> dict[str, str]:
    file.seek(at)
    return dict(re.findall(r"^(\w+)=(.*)$", file.read(1024).decode("ascii", "replace"), re.MULTILINE))
