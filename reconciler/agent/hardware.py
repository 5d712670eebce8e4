"""What the agent needs of the machine it runs on, as a Protocol. Imports the protocol's values alone.

Python 3.10, standard library only: runs as root on a device. `partitioned.PartitionedHardware` is a device with two root
partitions, `directory.DirectoryHardware` one that is a folder; one in memory is the simulator's. All keep the same
promises, to which `tests/agent/test_hardware_contract.py` holds all three:

1. Nothing but `mark_good` changes which slot boots by default; an armed trial boots once.
2. Only the inactive slot is ever written, and its record is cleared before its first byte changes.
3. Configuration and agent state lie outside the slots.
4. Whatever returned is durable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from reconciler.agent.judge import Keyring
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.report import Check, Slot


class HardwareError(Exception):
    """The machine did not do what it was asked. One sentence for a person."""


class Spoiled(Exception):
    """What stands in the slot is not what should: the disk, not the artifact, is at fault."""


@dataclass(frozen=True)
class BootFlags:
    """What the boot loader reads. `trial` is booted while `tries` is above 0; a trial with 0 tries left was tried."""

    default: str
    trial: str | None = None
    tries: int = 0


@dataclass(frozen=True)
class ImageVersion:
    """`/etc/edge-image-version`: the releases running now and before."""

    current: str | None = None
    previous: str | None = None


@dataclass(frozen=True)
class Clock:
    """What the machine knows of its own clock. `skew_s` is how far it is ahead of true time, in seconds, as its time
    service estimates it; None where nobody knows. Windows bind only a device whose clock is `synchronised`."""

    synchronised: bool
    skew_s: float | None = None


class SlotWriter(Protocol):
    """The inactive slot, open for writing at its first byte. It is written forward; what is skipped reads as zeros,
    whatever stood there before. Every method may raise HardwareError."""

    def write(self, data: bytes) -> None:
        """Append bytes. Blocks of zeros are skipped."""

    def descriptor(self) -> int:
        """The open file, at its place, for a program that writes to it: forward, and skipping zeros by seeking forward."""

    def place(self) -> int:
        """Up to which byte the slot was written, or skipped, by whoever does it."""

    def sync(self) -> None:
        """Make durable what lies before the place, and let go of it in memory."""

    def finish(self) -> None:
        """Sync and close: durable when it returns."""

    def abandon(self) -> None:
        """Close without a promise. Idempotent."""


class Hardware(Protocol):
    """The machine. Every method may raise HardwareError. Slots are `a` and `b`; digests are `sha256:…` of raw
    images."""

    def begin(self) -> None:
        """A life of the agent begins: put right what a power cut or a new slot left. Never raises: what cannot be put
        right now is met again by whoever needs it."""

    def recognise(self) -> Iterator[float] | None:
        """Where no record tells what the booted slot holds (a new device, or a lost record): a job (`supply.Job`) that finds
        out and records it. None: it is known, or nothing can be found out. Until it is known, nothing may be concluded
        from the slot having no digest. The job may raise HardwareError."""

    def boot_id(self) -> str:
        """Another text after every boot."""

    def booted(self) -> str:
        """The slot that runs."""

    def flags(self) -> BootFlags:
        """The boot flags as they are now."""

    def passed_over(self) -> bool:
        """Whether the slot runs only because the boot loader could not load the default one."""

    def arm(self, slot: str) -> None:
        """Boot `slot` once, next time; the default stays."""

    def disarm(self) -> None:
        """Clear a trial boot."""

    def mark_good(self, slot: str) -> None:
        """Make `slot` the default, record it as good, and clear the trial."""

    def reboot(self) -> None:
        """Reboot. May return before the machine goes down; nothing may be started after it."""

    def slots(self) -> Mapping[str, Slot]:
        """What is recorded of each slot. A slot being written has no digest."""

    def slot_bytes(self) -> int:
        """Room in a slot."""

    def forget_slot(self, slot: str) -> None:
        """Record that an inactive slot holds nothing usable."""

    def open_slot(self, slot: str, size: int) -> SlotWriter:
        """Begin writing an image of `size` bytes to an inactive slot, after `forget_slot`.

        Its `size` bytes read as zeros until they are written. A slot file is made anew. On a partition nothing does that by
        itself, and a discard (BLKDISCARD) promises no zeros: it takes BLKZEROOUT, which a disk that knows Write Zeroes does
        without a transfer, and for which the kernel writes zeros elsewhere.
        """

    def read_slot(self, slot: str, end: int, start: int = 0) -> Iterator[bytes | memoryview]:
        """The bytes of a slot from `start` (a multiple of 4096) to `end`, from the disk and not from memory where that
        can be had. A piece is valid until the one after the next is asked for."""

    def slot_size(self, slot: str) -> int:
        """Bytes of the image recorded in a slot; 0 where nothing is recorded."""

    def record_slot(self, slot: str, release: str, digest: str, size: int) -> None:
        """Record what a slot now holds; not good yet."""

    def version(self) -> ImageVersion:
        """Current and previous release."""

    def set_version(self, version: ImageVersion) -> None:
        """Write current and previous release."""

    def healthcheck(self) -> tuple[Check, ...]:
        """Run the booted image's healthcheck. Never raises: what cannot be run or read is a critical check."""

    def keyring(self, kind: str) -> Keyring:
        """The image's own keys: `assignment` or `release`."""

    def clock(self) -> Clock:
        """The state of the clock now. Never raises: what cannot be asked is not synchronised."""

    def state_folder(self) -> Path:
        """Where the agent keeps its own files: outside the slots."""

    def config_digest(self) -> str | None:
        """Digest of the stored site configuration."""

    def apply_config(self, config: SiteConfig) -> None:
        """Store a configuration, whole or not at all, and keep the one before. `activate_config` puts it in force."""

    def restore_config(self, digest: str | None) -> None:
        """Go back to the configuration before (None: it had no digest, or there was none). Does nothing where it is the
        stored one. `activate_config` puts it in force."""

    def activate_config(self) -> Iterator[float]:
        """Have the stored configuration put in force, as a job (`supply.Job`): it is when the job ends. May be begun again at
        any time; what is in force already stays. Raises seed.NotInForce."""

    def apps(self) -> Mapping[str, str]:
        """App → digest of the release that runs."""

    def app_folder(self, app: str) -> Path:
        """Where releases of an app are kept, in folders named by the digest's hex digits."""

    def run_app(self, app: str, digest: str | None) -> None:
        """Switch the app to a release that is on the device, and restart it (None: stop it). Keeps the release
        before."""
