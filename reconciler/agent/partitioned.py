"""A device with two root partitions, booted from one of them: the hardware port on a machine that runs the golden image.

Python 3.10, standard library only: runs as root on a device. Puts parts together: `partitions` finds and opens slots,
`records` keeps what is known of them, a `bootloader` chooses, a `seed` holds the site's configuration, `apps` run. What it
adds is order: what may be written when. A slot that is booted, or that any copy of the boot flags names, is never written;
its record is gone before its first byte changes; without a data partition nothing is begun, since nothing would be
remembered. Where things are is given (`Places`), so that folders and files serve as well. Built by `opening`.
Source: design, section 5, and docs/reference/boot.md.

    /var/lib/edge-agent/slots.json      what is recorded of the slots
    /var/lib/edge-agent/image-version   current and previous release; /etc/edge-image-version is its copy in the slot
    /var/lib/edge-agent/keys/           keys from enrolment, for an image that carries none
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from reconciler.agent import healthcheck, keys, partitions, slotfile
from reconciler.agent.bootloader import BootLoader
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import BootFlags, Clock, HardwareError, ImageVersion
from reconciler.agent.judge import Keyring
from reconciler.agent.records import Records
from reconciler.agent.seed import Seed
from reconciler.protocol.canonical import clip, is_text
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.report import Check, Slot

HEALTHCHECK = "usr/local/bin/healthcheck.sh"
RELEASE_FILE, VERSION_FILE = "etc/edge-release", "etc/edge-image-version"
TRIAL = "edge.trial=1"
"""What GRUB says to the kernel of a slot that it tries."""
_SUPERBLOCK_AT, _SUPERBLOCK_BYTES = 1024, 1024
PATH = "/usr/bin:/bin"
_SMALL = 64 * 1024


@dataclass(frozen=True)
class Places:
    """Where a device running the golden image has what."""

    command_line: Path = Path("/proc/cmdline")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")
    slot: Path = Path("/run/edge/slot")
    """The booted slot's own file system, read-only, without the layer above it."""
    storage: Path = Path("/run/edge/storage")
    """What the initrd did: `slot=`, `data=` and `esp=` lines."""
    root: Path = Path("/")
    state: Path = Path("/var/lib/edge-agent")


class Apps(Protocol):
    """What runs beside the image. Every method may raise HardwareError."""

    def running(self) -> Mapping[str, str]:
        """App → digest of the release that runs."""

    def folder(self, app: str) -> Path:
        """Where what belongs to an app is kept."""

    def run(self, app: str, digest: str | None) -> None:
        """Switch the app to a release that is on the device, and restart it (None: stop it)."""


class PartitionedHardware:
    """`hardware.Hardware` of a machine that was booted from one of two slots. HardwareError: it was not."""

    def __init__(
        self,
        places: Places,
        slots: partitions.Slots,
        loader: BootLoader,
        seed: Seed,
        apps: Apps,
        *,
        clock: Callable[[], Clock],
        disk: Disk | None = None,
        restart: Callable[[], None] | None = None,
        healthcheck_timeout_s: float = 60.0,
    ) -> None:
        """`restart` reboots the machine, `systemctl reboot` unless given."""
        self.disk = disk or Disk()
        self.seed, self.apps_here = seed, apps
        self._places, self._slots, self._loader, self._clock = places, slots, loader, clock
        self._records = Records(places.state / "slots.json", self.disk)
        self._restart, self._timeout_s = restart or systemctl_reboot, healthcheck_timeout_s
        self._booted = booted_slot(places.command_line)
        self._is_tried = TRIAL in _words(places.command_line)

    # ------------------------------------------------------------ booting

    def begin(self) -> None:
        with suppress(HardwareError, OSError):
            held = self.slots()[self._booted]
            self._loader.mend(self._booted if held.good else None)
            if self._loader.flags().default == self._booted:
                self._keep_version()

    def boot_id(self) -> str:
        return _read(self._places.boot_id).decode("ascii", "replace").strip()

    def booted(self) -> str:
        return self._booted

    def flags(self) -> BootFlags:
        return self._loader.flags()

    def passed_over(self) -> bool:
        # The boot loader itself says what it tries; a slot that is neither tried nor default was its last resort.
        return not self._is_tried and self._loader.flags().default != self._booted

    def arm(self, slot: str) -> None:
        self._must_remember()
        self._loader.arm(slot)

    def disarm(self) -> None:
        self._loader.disarm()

    def mark_good(self, slot: str) -> None:
        self._must_remember()
        # The flags first: a slot that is default and not yet recorded as good is finished at the next boot; one
        # recorded as good and not default would count as a fall-back.
        self._loader.mark_good(slot)
        held = self.slots()[slot]
        # Whose record was lost is recognised afterwards, and good because it is the default.
        if held.digest is not None and not held.good:
            self._records.put(slot, Slot(held.release, held.digest, True), self.slot_size(slot))

    def reboot(self) -> None:
        self.disk.on_step("reboot")
        self._restart()

    # ------------------------------------------------------------ slots

    def slots(self) -> Mapping[str, Slot]:
        found = dict(self._records.slots())
        held = found[self._booted]
        # Whoever wrote the booted slot past the agent made its record a lie.
        if held.release is not None and self._release() not in (None, held.release):
            found[self._booted] = Slot()
        return found

    def slot_bytes(self) -> int:
        return self._slots.size("b" if self._booted == "a" else "a")

    def slot_size(self, slot: str) -> int:
        return self._records.size(slot)

    def forget_slot(self, slot: str) -> None:
        flags = self._only_inactive(slot)
        if flags.trial == slot:
            self._loader.disarm()
        # From here on, no copy of the flags names it, whatever tears the other one.
        self._loader.mend()
        self._records.forget(slot)

    def open_slot(self, slot: str, size: int) -> slotfile.SlotFile:
        self._only_inactive(slot)
        if self.slots()[slot] != Slot():
            raise HardwareError(f"slot {slot} is still recorded as holding something")
        return partitions.open_slot(self._slots, slot, size, self.disk)

    def read_slot(self, slot: str, end: int, start: int = 0) -> Iterator[memoryview]:
        yield from partitions.read_slot(self._slots.path(slot), end, start)

    def record_slot(self, slot: str, release: str, digest: str, size: int) -> None:
        self._only_inactive(slot)
        self._records.put(slot, Slot(release, digest, False), size)

    def _only_inactive(self, slot: str) -> BootFlags:
        self._must_remember()
        flags = self._loader.flags()
        if slot in (self._booted, flags.default):
            raise HardwareError(f"slot {slot} is in use and must not be written")
        return flags

    def _must_remember(self) -> None:
        """HardwareError: what the agent writes down now is gone with the next boot."""
        if storage(self._places.storage).get("data") == "memory":
            raise HardwareError(
                "the data partition is missing or broken, and memory has taken its place; no slot is written or chosen"
                " until it is back: see `lsblk`, and install the device again if it is lost"
            )

    # ------------------------------------------------------------ the booted slot, where no record tells what it is

    def recognise(self) -> Iterator[float] | None:
        if self.slots()[self._booted].digest is not None:
            return None
        return self._recognised()

    def _recognised(self) -> Iterator[float]:
        """Hash the booted slot as far as its file system reaches, which is as large as its image, and record it."""
        slot, release = self._booted, self._release()
        # Before the long work: what boots by default is good.
        is_good = self._loader.flags().default == slot
        if release is None:
            raise HardwareError(f"slot {slot} is booted, but {RELEASE_FILE} in it names no RELEASE")
        size = file_system_bytes(self._head(slot))
        if size is None or size > self._slots.size(slot):
            raise HardwareError(f"slot {slot} is booted, but holds no whole ext4 file system")
        digest, length = hashlib.sha256(), 0
        for piece in self.read_slot(slot, size):
            digest.update(piece)
            length += len(piece)
            yield 0.0
        if length != size:
            raise HardwareError(f"slot {slot} ends after {length} bytes, and its file system has {size}")
        self._records.put(slot, Slot(release, f"sha256:{digest.hexdigest()}", is_good), size)

    def _head(self, slot: str) -> bytes:
        return b"".join(bytes(piece) for piece in self.read_slot(slot, _SUPERBLOCK_AT + _SUPERBLOCK_BYTES))

    def _release(self) -> str | None:
        """The release that the booted slot says it is."""
        with suppress(HardwareError):
            release = _pairs(_read(self._places.slot / RELEASE_FILE)).get("RELEASE")
            return clip(release, 128) if release else None
        return None

    # ------------------------------------------------------------ the running image

    def version(self) -> ImageVersion:
        for path in (self._truth(), self._places.root / VERSION_FILE):
            values = _pairs(_read(path)) if path.is_file() else {}
            if is_text(values.get("current")):
                previous = values.get("previous")
                return ImageVersion(values["current"], previous if is_text(previous) else None)
        return ImageVersion()

    def set_version(self, version: ImageVersion) -> None:
        self._write_version(self._truth(), version)
        # A copy for people. Where /etc cannot be written, the check `image` says that they differ, and the next life tries
        # again; no update stays open for it.
        with suppress(HardwareError):
            self._write_version(self._places.root / VERSION_FILE, version)

    def _keep_version(self) -> None:
        """Let the truth outlive this slot's layer, and the slot say the same."""
        version = self.version()
        if version != ImageVersion():
            for path in (self._truth(), self._places.root / VERSION_FILE):
                self._write_version(path, version)

    def _write_version(self, path: Path, version: ImageVersion) -> None:
        data = f"current={version.current or ''}\nprevious={version.previous or ''}\n".encode()
        with suppress(HardwareError):
            if _read(path) == data:
                return
        try:
            self.disk.replace(path, data)
        except OSError as error:
            raise HardwareError(f"{path} cannot be written: {error.strerror}") from None

    def _truth(self) -> Path:
        return self._places.state / "image-version"

    def healthcheck(self) -> tuple[Check, ...]:
        root = self._places.root
        # Only without --root does the script judge what runs, and not files alone.
        elsewhere = root != Path("/")
        arguments, environment = (["--root", str(root)], {"ROOT": str(root)}) if elsewhere else ([], {})
        return healthcheck.run(root / HEALTHCHECK, arguments, environment, self._timeout_s)

    def keyring(self, kind: str) -> Keyring:
        return keys.read_keyring(kind, (self._places.slot / keys.IN_IMAGE, self._places.state / "keys"))

    def clock(self) -> Clock:
        return self._clock()

    def state_folder(self) -> Path:
        return self._places.state

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
        return self.apps_here.running()

    def app_folder(self, app: str) -> Path:
        return self.apps_here.folder(app)

    def run_app(self, app: str, digest: str | None) -> None:
        self.apps_here.run(app, digest)


def booted_slot(command_line: Path) -> str:
    """The slot that the kernel's command line names. HardwareError: none."""
    # The initrd takes the last one too.
    named = [word.partition("=")[2] for word in _words(command_line) if word.startswith("edge.slot=")]
    if not named or named[-1] not in ("a", "b"):
        raise HardwareError(
            f"{command_line} names no slot (edge.slot=a or b): this machine was not booted from an install disk;"
            " set 'hardware' to 'directory' and give a 'root', or install it with `reconciler image disk`"
        )
    return named[-1]


def _words(command_line: Path) -> list[str]:
    return _read(command_line).decode("utf-8", "replace").split()


def storage(path: Path) -> Mapping[str, str]:
    """What the initrd did, as it wrote it down; nothing where it did nothing."""
    with suppress(HardwareError):
        return _pairs(_read(path))
    return {}


def file_system_bytes(head: bytes) -> int | None:
    """Size of an ext4 file system by its superblock, at byte 1024 of `head`; None where there is none.

    Source: Linux, Documentation/filesystems/ext4/super.rst.
    """
    block = head[_SUPERBLOCK_AT : _SUPERBLOCK_AT + _SUPERBLOCK_BYTES]
    if len(block) < _SUPERBLOCK_BYTES or block[0x38:0x3A] != b"\x53\xef":
        return None
    blocks, shift = int.from_bytes(block[0x4:0x8], "little"), int.from_bytes(block[0x18:0x1C], "little")
    if block[0x60] & 0x80:  # INCOMPAT_64BIT: the count has a high half
        blocks += int.from_bytes(block[0x150:0x154], "little") << 32
    return blocks << (10 + shift) if blocks and shift <= 6 else None


def _pairs(data: bytes) -> dict[str, str]:
    """`name=value` lines."""
    lines = data.decode("utf-8", "replace").splitlines()
    return {
        name.strip(): value.strip().strip('"') for name, mark, value in (line.partition("=") for line in lines) if mark
    }


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_SMALL)
    except OSError as error:
        raise HardwareError(f"{path} cannot be read: {error.strerror}") from None


def systemctl_reboot() -> None:
    """Ask systemd to reboot the machine; it goes down some time after this returns. HardwareError: it does not."""
    try:
        done = subprocess.run(
            ["systemctl", "reboot"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"PATH": PATH, "LC_ALL": "C"},
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HardwareError(f"the machine cannot be rebooted: {error}") from None
    if done.returncode != 0:
        said = clip(done.stderr.decode("utf-8", "replace").strip(), 200)
        raise HardwareError(f"the machine cannot be rebooted: systemctl says {said or done.returncode}")
