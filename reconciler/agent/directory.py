"""A device as a folder: the first implementation of the hardware port, for tests, the demo, and a try on a laptop.

Python 3.10, standard library only. Two slot files, boot flags that a simulated boot loader obeys,
`/etc/edge-image-version`, the CIDATA seed and the apps, all below one root. What it runs is real: the healthcheck is
the booted image's own script, taken out of its file system, and keys are the image's own. Only the boot loader and
the restart of a process are played.

    ROOT/slot-a.img slot-b.img slots.json   the slots, and what is recorded of them
    ROOT/boot/flags.json                    default slot; trial slot and tries left
    ROOT/run/boot.json                      what runs: slot and boot id (written by `boot`, as if by the kernel)
    ROOT/etc/edge-image-version             current=… previous=…
    ROOT/cidata/                            site configuration in force, and the one before (`seed`), 0700
    ROOT/apps/NAME/running -> …             the app's release that runs; `previous` beside it
    ROOT/keys/                              keys from enrolment, for an image that carries none
    ROOT/faults/NAME                        makes check NAME `critical` (or the word the file begins with)
    ROOT/agent/                             the agent's own
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from reconciler.agent import healthcheck, keys, slotfile, slotroot
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import BootFlags, Clock, HardwareError, ImageVersion
from reconciler.agent.judge import Keyring
from reconciler.agent.seed import Seed
from reconciler.protocol.canonical import clip, dump, is_digest, is_name, is_text
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.report import MAX_CHECKS, Check, Slot

DEFAULT_SLOT_BYTES = 4 * 1024**3
CHUNK = 1024 * 1024
KEYS_IN_IMAGE = keys.IN_IMAGE
HEALTHCHECK_IN_IMAGE = "usr/local/bin/healthcheck.sh"


class DirectoryHardware:
    """`hardware.Hardware` below `root`, which is made if it is absent, and booted if nothing runs."""

    def __init__(
        self,
        root: Path,
        *,
        site: str = "",
        slot_bytes: int = DEFAULT_SLOT_BYTES,
        cache: Path | None = None,
        healthcheck_always: bool = True,
        healthcheck_timeout_s: float = 60.0,
        disk: Disk | None = None,
    ) -> None:
        """`cache` holds unpacked images and may be shared. With `healthcheck_always` off, the script runs again only
        when slot, configuration, apps or faults have changed."""
        self.root = root
        self.disk = disk or Disk()
        self._site, self._room, self._always = site, slot_bytes, healthcheck_always
        self._timeout_s = healthcheck_timeout_s
        self._cache = cache or root / "run" / "images"
        self._checked: tuple[object, tuple[Check, ...]] | None = None
        self.seed = Seed(root / "cidata", self.disk)
        for name in ("boot", "run", "etc", "apps", "agent", "keys", "faults"):
            self.disk.folder(root / name, 0o700 if name in ("agent", "keys") else 0o755)
        if not (root / "run" / "boot.json").exists():
            self.boot()

    # ------------------------------------------------------------ booting

    def begin(self) -> None:
        """Its files are whole at every instant."""

    def recognise(self) -> Iterator[float] | None:
        """A folder without records is a bare device."""
        return None

    def boot(self) -> str:
        """What firmware, boot loader and kernel do: choose a slot by the flags and run it. Returns the slot."""
        flags = self.flags()
        slot = flags.default
        if flags.trial is not None and flags.tries > 0:
            # The try is spent before the kernel starts: power may go at any instant of it.
            self._write_flags(BootFlags(flags.default, flags.trial, flags.tries - 1))
            if slotroot.is_bootable(self._slot_file(flags.trial)):
                slot = flags.trial
        self._prune_images()
        value = {"slot": slot, "bootId": os.urandom(16).hex()}
        self.disk.replace(self.root / "run" / "boot.json", dump(value))
        return slot

    def _prune_images(self) -> None:
        """Unpacked images that no slot holds any more; a shared cache is left to whoever shares it."""
        if self._cache != self.root / "run" / "images" or not self._cache.is_dir():
            return
        try:
            held = {(slot.digest or "").replace("sha256:", "") for slot in self.slots().values()}
        except HardwareError:
            # What nobody can tell is kept.
            return
        for path in self._cache.iterdir():
            if path.name not in held:
                import shutil

                shutil.rmtree(path, ignore_errors=True)

    def boot_id(self) -> str:
        return str(self._read("run/boot.json").get("bootId", ""))

    def booted(self) -> str:
        slot = self._read("run/boot.json").get("slot")
        return slot if slot in ("a", "b") else "a"

    def flags(self) -> BootFlags:
        value = self._read("boot/flags.json")
        default = value.get("default") if value.get("default") in ("a", "b") else "a"
        trial = value.get("trial") if value.get("trial") in ("a", "b") else None
        tries = value.get("tries")
        return BootFlags(str(default), trial, tries if isinstance(tries, int) and trial else 0)

    def passed_over(self) -> bool:
        """Its boot loader boots the default, whatever it holds."""
        return False

    def arm(self, slot: str) -> None:
        self._write_flags(BootFlags(self.flags().default, slot, 1))

    def disarm(self) -> None:
        flags = self.flags()
        if flags.trial is not None:
            self._write_flags(BootFlags(flags.default))

    def mark_good(self, slot: str) -> None:
        # The flags first: a slot that is default and not yet recorded as good is finished at the next boot; one
        # recorded as good and not default would count as a fall-back.
        if self.flags() != BootFlags(slot):
            self._write_flags(BootFlags(slot))
        held = self.slots()[slot]
        if not held.good:
            self._record(slot, Slot(held.release, held.digest, True), self.slot_size(slot))

    def reboot(self) -> None:
        """Nothing to do: whoever runs the agent sees that it asked, and calls `boot`."""
        self.disk.on_step("reboot")

    def _write_flags(self, flags: BootFlags) -> None:
        value = {"default": flags.default, "trial": flags.trial, "tries": flags.tries}
        self._replace("boot/flags.json", dump(value))

    # ------------------------------------------------------------ slots

    def slots(self) -> Mapping[str, Slot]:
        value = self._read("slots.json")
        found = {}
        for name in ("a", "b"):
            item = value.get(name)
            if isinstance(item, dict) and is_digest(item.get("digest")):
                found[name] = Slot(clip(str(item.get("release")), 128), str(item["digest"]), item.get("good") is True)
            else:
                found[name] = Slot()
        return found

    def slot_bytes(self) -> int:
        return self._room

    def slot_size(self, slot: str) -> int:
        item = self._read("slots.json").get(slot)
        return int(item.get("size", 0)) if isinstance(item, dict) else 0

    def forget_slot(self, slot: str) -> None:
        self._only_inactive(slot)
        if self.slots()[slot] != Slot():
            self._record(slot, Slot(), 0)

    def open_slot(self, slot: str, size: int) -> slotfile.SlotFile:
        self._only_inactive(slot)
        if self.slots()[slot] != Slot():
            raise HardwareError(f"slot {slot} is still recorded as holding something")
        if size > self._room:
            raise HardwareError(f"the image of {size} bytes does not fit into the slot of {self._room} bytes")
        path = self._slot_file(slot)
        self.disk.on_step(f"open {path.name}")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise HardwareError(f"{path.name} cannot be opened: {error}") from None
        return slotfile.SlotFile(descriptor, path.name, size, self.disk)

    def read_slot(self, slot: str, end: int, start: int = 0) -> Iterator[memoryview]:
        try:
            yield from slotfile.read_from_disk(self._slot_file(slot), start, end)
        except OSError as error:
            raise HardwareError(f"slot {slot} cannot be read: {error}") from None

    def record_slot(self, slot: str, release: str, digest: str, size: int) -> None:
        self._only_inactive(slot)
        self._record(slot, Slot(release, digest, False), size)

    def _only_inactive(self, slot: str) -> None:
        if slot == self.booted() or slot == self.flags().default:
            raise HardwareError(f"slot {slot} is in use and must not be written")

    def _record(self, slot: str, held: Slot, size: int) -> None:
        value = self._read("slots.json")
        value[slot] = {"release": held.release, "digest": held.digest, "good": held.good, "size": size}
        self._replace("slots.json", dump(value))

    def _slot_file(self, slot: str) -> Path:
        return self.root / f"slot-{slot}.img"

    # ------------------------------------------------------------ the running image

    def version(self) -> ImageVersion:
        values = {}
        with suppress(OSError):
            text = (self.root / "etc" / "edge-image-version").read_text("utf-8", "replace")
            values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        current, previous = (values.get(key) for key in ("current", "previous"))
        return ImageVersion(current if is_text(current) else None, previous if is_text(previous) else None)

    def set_version(self, version: ImageVersion) -> None:
        text = f"current={version.current or ''}\nprevious={version.previous or ''}\n"
        self._replace("etc/edge-image-version", text.encode())

    def running_root(self) -> Path | None:
        """Folder with the files of the booted image, or None where the slot holds none that can be read."""
        slot = self.booted()
        digest = self.slots()[slot].digest
        if digest is None:
            return None
        try:
            return slotroot.unpack(self._slot_file(slot), digest, self._cache)
        except OSError as error:
            raise HardwareError(f"the booted image cannot be read: {error}") from None

    def healthcheck(self) -> tuple[Check, ...]:
        faults = self._faults()
        try:
            key = (self.booted(), self.slots()[self.booted()].digest, self.config_digest(), dict(self.apps()), faults)
            if not self._always and self._checked is not None and self._checked[0] == key:
                return self._checked[1]
            root = self.running_root()
        except HardwareError as error:
            return (Check("healthcheck", "critical", str(error)[:300]),)
        # A bare device has nothing that could be judged, or be worse.
        if root is None:
            return ()
        checks = healthcheck.run(
            root / HEALTHCHECK_IN_IMAGE,
            ["--root", str(root)],
            {"ROOT": str(root), "SITE_ID": self._site, "EDGE_DEVICE_ROOT": str(self.root)},
            self._timeout_s,
        )
        names = {name for name, _, _ in faults}
        checks = tuple(check for check in checks if check.name not in names)
        checks = (*(Check(name, status, message) for name, status, message in faults), *checks)[:MAX_CHECKS]
        self._checked = (key, checks)
        return checks

    def _faults(self) -> tuple[tuple[str, str, str], ...]:
        found = []
        with suppress(OSError):
            for path in sorted((self.root / "faults").iterdir()):
                word, _, message = path.read_text("utf-8", "replace").strip().partition(" ")
                status = (
                    word.rstrip(":") if word.rstrip(":") in ("ok", "warning", "critical", "unknown") else "critical"
                )
                found.append((path.name[:64], status, (message or "a fault was put here")[:200]))
        return tuple(found)

    def keyring(self, kind: str) -> Keyring:
        root = self.running_root()
        folders = [root / KEYS_IN_IMAGE] if root is not None else []
        return keys.read_keyring(kind, [*folders, self.root / "keys"])

    def clock(self) -> Clock:
        """That of whoever runs it, which is taken for right."""
        return Clock(True, 0.0)

    def state_folder(self) -> Path:
        return self.root / "agent"

    # ------------------------------------------------------------ configuration and apps

    def config_digest(self) -> str | None:
        return self.seed.digest()

    def apply_config(self, config: SiteConfig) -> None:
        self.seed.store(config)

    def restore_config(self, digest: str | None) -> None:
        self.seed.put_back(digest)

    def activate_config(self) -> Iterator[float]:
        return self.seed.activate()

    def apps(self) -> Mapping[str, str]:
        found = {}
        with suppress(OSError):
            for name in sorted(os.listdir(self.root / "apps")):
                with suppress(OSError):
                    digest = "sha256:" + os.readlink(self.root / "apps" / name / "running")
                    if is_digest(digest):
                        found[name] = digest
        return found

    def app_folder(self, app: str) -> Path:
        if not is_name(app):
            raise HardwareError(f"{app!r} is not an app's name")
        return self.disk.folder(self.root / "apps" / app)

    def run_app(self, app: str, digest: str | None) -> None:
        folder, before = self.app_folder(app), self.apps().get(app)
        if before == digest:
            return
        try:
            if digest is None:
                self.disk.remove(folder / "running")
                return
            wanted = digest.replace("sha256:", "")
            if not (folder / wanted).is_dir():
                raise HardwareError(f"release {digest} of {app} is not on the device")
            if before is not None:
                self.disk.link(before.replace("sha256:", ""), folder / "previous")
            self.disk.link(wanted, folder / "running")
            keep = {wanted, (before or "").replace("sha256:", ""), "running", "previous"}
            for old in sorted(folder.iterdir()):
                if old.name not in keep:
                    self.disk.remove(old)
        except OSError as error:
            raise HardwareError(f"{app} cannot be switched: {error}") from None

    # ------------------------------------------------------------ files

    def _read(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.root / name).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise HardwareError(_unreadable(self.root / name, error)) from None
        if not isinstance(value, dict):
            raise HardwareError(_unreadable(self.root / name, "it holds no object"))
        return value

    def _replace(self, name: str, data: bytes) -> None:
        try:
            self.disk.replace(self.root / name, data)
        except OSError as error:
            raise HardwareError(f"{name} cannot be written: {error}") from None


def _unreadable(path: Path, error: object) -> str:
    why = error.strerror if isinstance(error, OSError) else error
    return f"{path} cannot be read: {why}; nothing is begun before it can be. Restore it"
