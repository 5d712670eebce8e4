"""A device with two partitions on a bench: the real hardware over files and folders, and a firmware that is played.

ROOT/slot-a.img slot-b.img          the partitions
ROOT/esp/EFI/edge/                  the ESP
ROOT/run/cmdline boot_id storage    what kernel and initrd say
ROOT/run/slot -> …                  the booted slot's files, without the layer over them
ROOT/layers/a layers/b              what runs: the slot's files, and what was changed of them
ROOT/etc -> layers/…/etc
ROOT/agent cidata apps              the data partition
ROOT/faults/NAME                    makes a check worse, as of DirectoryHardware
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from reconciler.agent import slotroot
from reconciler.agent.disk import Disk
from reconciler.agent.grub import GrubLoader
from reconciler.agent.hardware import Clock, HardwareError
from reconciler.agent.partitioned import PartitionedHardware, Places
from reconciler.agent.partitions import FileSlots
from reconciler.agent.seed import Seed
from reconciler.protocol.canonical import is_digest, is_name
from reconciler.protocol.report import MAX_CHECKS, Check
from tests.agent.firmware import armed, choose, default_of, new_esp


class LinkedApps:
    """`partitioned.Apps` as folders and links: what runs is played."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk = folder, disk

    def running(self) -> Mapping[str, str]:
        found = {}
        for path in sorted(self._folder.glob("*/running")):
            digest = f"sha256:{os.readlink(path)}"
            if is_digest(digest):
                found[path.parent.name] = digest
        return found

    def folder(self, app: str) -> Path:
        if not is_name(app):
            raise HardwareError(f"{app!r} is not an app's name")
        return self._disk.folder(self._folder / app)

    def run(self, app: str, digest: str | None) -> None:
        folder, before = self.folder(app), self.running().get(app)
        if digest == before:
            return
        if digest is None:
            self._disk.remove(folder / "running")
            return
        wanted = digest.removeprefix("sha256:")
        if not (folder / wanted).is_dir():
            raise HardwareError(f"release {digest} of {app} is not on the device")
        self._disk.link(wanted, folder / "running")
        keep = {wanted, "running", (before or "").removeprefix("sha256:")}
        for old in sorted(folder.iterdir()):
            if old.name not in keep:
                self._disk.remove(old)


class BenchHardware(PartitionedHardware):
    """The real hardware, with a `boot` of its own. New: two empty slots, of which a boots by default."""

    def __init__(
        self,
        root: Path,
        *,
        slot_bytes: int = 1 << 20,
        cache: Path | None = None,
        default: str = "a",
        image: bytes | None = None,
        disk: Disk | None = None,
    ) -> None:
        """With `image`, it is in slot `default` of a new device, as `image disk` puts it there: nothing is recorded of it.
        `cache` holds unpacked images."""
        self.root, self._cache = root, cache or root / "run" / "images"
        self._checked: tuple[object, tuple[Check, ...]] | None = None
        self._parts = disk or Disk(), slot_bytes
        if not (root / "esp").exists():
            for name in ("run", "layers/a/etc", "layers/b/etc", "agent", "faults", "keys"):
                (root / name).mkdir(parents=True, exist_ok=True)
            (root / "agent" / "keys").symlink_to("../keys")
            new_esp(root / "esp", default)
            for slot in ("a", "b"):
                self.slot_file(slot).write_bytes(b"")
                os.truncate(self.slot_file(slot), slot_bytes)
            if image is not None:
                with open(self.slot_file(default), "r+b") as file:
                    file.write(image)
        self.boot()

    def slot_file(self, slot: str) -> Path:
        return self.root / f"slot-{slot}.img"

    def boot(self) -> str:
        """From power on to the agent's start. Returns the slot."""
        trial = armed(self.root / "esp")
        slot = choose(self.root / "esp", lambda name: slotroot.is_bootable(self.slot_file(name)))
        # A bench without an image runs all the same.
        slot = slot or default_of(self.root / "esp")
        run = self.root / "run"
        for name in ("slot", "live"):
            (run / name).unlink(missing_ok=True)
        if slotroot.is_bootable(self.slot_file(slot)):
            digest = hashlib.sha256(self.slot_file(slot).read_bytes()).hexdigest()
            # What only looks like a file system has no files.
            with suppress(OSError):
                self._stack(slot, slotroot.unpack(self.slot_file(slot), digest, self._cache))
        (run / "live").symlink_to(f"../layers/{slot}")
        tried = " edge.trial=1" if slot == trial else ""
        (run / "cmdline").write_text(f"BOOT_IMAGE=x root=PARTLABEL=root-{slot} ro edge.slot={slot} panic=5{tried}\n")
        (run / "boot_id").write_text(f"{uuid.uuid4()}\n")
        if not (run / "storage").exists():
            (run / "storage").write_text(f"slot={slot}\ndata=/dev/sda4\n")
        places = Places(
            run / "cmdline", run / "boot_id", run / "slot", run / "storage", run / "live", self.root / "agent"
        )
        disk, room = self._parts
        super().__init__(
            places,
            FileSlots(self.slot_file("a"), self.slot_file("b"), room),
            GrubLoader(self.root / "esp", disk, check=lambda _esp: None),
            Seed(self.root / "cidata", disk),
            LinkedApps(self.root / "apps", disk),
            clock=lambda: Clock(True, 0.0),
            disk=disk,
            restart=lambda: None,
        )
        return slot

    def _stack(self, slot: str, files: Path) -> None:
        """The layer over a slot is emptied under another image."""
        (self.root / "run" / "slot").symlink_to(files)
        layer, marker = self.root / "layers" / slot, self.root / "layers" / f"{slot}.image"
        if not marker.exists() or marker.read_text() != files.name:
            shutil.rmtree(layer)
            shutil.copytree(files, layer, symlinks=True)
            (layer / "etc").mkdir(exist_ok=True)
            marker.write_text(files.name)
        (self.root / "etc").unlink(missing_ok=True)
        (self.root / "etc").symlink_to(f"layers/{slot}/etc")

    def healthcheck(self) -> tuple[Check, ...]:
        faults = self._faults()
        key = (self.boot_id(), self.config_digest(), dict(self.apps()), faults)
        if self._checked is None or self._checked[0] != key:
            names = {check.name for check in faults}
            others = (check for check in super().healthcheck() if check.name not in names)
            self._checked = key, (*faults, *others)[:MAX_CHECKS]
        return self._checked[1]

    def _faults(self) -> tuple[Check, ...]:
        found = []
        with suppress(OSError):
            for path in sorted((self.root / "faults").iterdir()):
                word, _, message = path.read_text().partition(" ")
                found.append(Check(path.name, word or "critical", message))
        return tuple(found)
