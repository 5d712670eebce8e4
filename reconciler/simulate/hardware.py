"""A device's machine in memory: two slots, a boot loader, apps, configuration, and a healthcheck made of conditions.

Keeps the promises of `agent.hardware`, so the real agent runs on it; what it holds is a few hundred bytes. It knows what its
slots truly hold, whatever is recorded of them, and tells a `Watch` what truly happens. Power may be cut between any two durable
steps. Called by the agent, by `simulate.supply` and `simulate.device`; the oracle reads it. Source: design §5.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from reconciler.agent.disk import Disk
from reconciler.agent.hardware import BootFlags, Clock, HardwareError, ImageVersion
from reconciler.agent.judge import Keyring
from reconciler.agent.slotfile import SlotFile
from reconciler.agent.state import Memory
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.report import MAX_CHECKS, Check, Slot
from reconciler.simulate.watch import NOBODY, Watch

SLOT_BYTES = 1 << 40
_WELL = (Check("services", "ok"),)
_RIGHT = Clock(True, 0.0)
_SLOTS = ("a", "b")


class Time(Protocol):
    """Where the present instant stands. Whoever plays the devices sets it."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that shows in the healthcheck while it holds. What is not given does not narrow it."""

    check: str
    status: str = "critical"
    message: str = ""
    image: str | None = None
    """Only while an image of this digest is booted."""
    app: str | None = None
    """Only while a release of this digest runs, whatever the app's name."""
    since: datetime | None = None
    until: datetime | None = None
    after_s: int | None = None
    """Only after `image`, or else `app`, has run for so long."""

    def bounds(self, hardware: MemoryHardware) -> tuple[datetime | None, datetime | None] | None:
        """[from, to) in which it holds as the device stands; None: not while it stands so. A bound of None is no bound."""
        began: datetime | None = None
        if self.image is not None:
            if hardware.booted_digest() != self.image:
                return None
            began = hardware.image_since
        if self.app is not None:
            since = [hardware.app_since.get(name) for name, digest in hardware.apps().items() if digest == self.app]
            if not since:
                return None
            began = since[0] if self.image is None else began
        start = self.since
        if self.after_s is not None and began is not None:
            ripe = began + timedelta(seconds=self.after_s)
            start = ripe if start is None or ripe > start else start
        return start, self.until


@dataclass(slots=True)
class Content:
    """What a slot truly holds, beside what is recorded of it."""

    record: Slot = field(default_factory=Slot)
    size: int = 0
    image: str | None = None
    """Digest of its bytes where they are a whole image; None: empty, half-written or flipped."""
    marked: bool = False
    """Whether these bytes were marked good: from the instant at which they boot by default, though it be recorded a step later."""
    boots: bool = True
    data: bytes | None = None
    """Bytes, where real ones were written."""


class MemoryHardware:
    """`agent.hardware.Hardware` in memory. `on_step` is called before each durable step with its name; what it raises is a power
    cut there: the step did not happen."""

    __slots__ = (
        "_apps", "_booted", "_boots", "_config", "_configs", "_first_boot", "_flags", "_kept_apps", "_version", "app_since",
        "conditions", "doing", "image_since", "keys", "memory", "name", "on_step", "sick", "slots_held", "time", "watch",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        time: Time,
        *,
        keys: Mapping[str, Keyring] | None = None,
        watch: Watch | None = None,
        on_step: Callable[[str], None] | None = None,
    ) -> None:
        """A bare machine: nothing in either slot, slot a by default. `keys` are those of `keyring`, by kind."""
        self.name, self.time, self.watch = name, time, watch or NOBODY
        self.keys: Mapping[str, Keyring] = keys or {}
        self.on_step = on_step
        self.slots_held = {slot: Content() for slot in _SLOTS}
        self.conditions: tuple[Condition, ...] = ()
        self.memory = Memory()
        """What the agent keeps over reboots."""
        self.image_since: datetime | None = None
        """Since when the booted image runs."""
        self.app_since: dict[str, datetime] = {}
        self.doing: str | None = None
        """The release that a slot is being changed to, from the first byte until it was marked good or given up."""
        self.sick: str | None = None
        """A slot that is critical while it is on trial, as a fault decided for this attempt."""
        self._booted, self._boots = "a", 0
        self._first_boot: str | None = None
        self._flags, self._version = BootFlags("a"), ImageVersion()
        self._config: str | None = None
        self._configs: tuple[str, ...] = ()
        self._apps: dict[str, str] = {}
        self._kept_apps: dict[str, tuple[str, ...]] = {}

    def step(self, name: str) -> None:
        """A durable step is about to happen."""
        if self.on_step is not None:
            self.on_step(name)

    # ------------------------------------------------------------ the truth, for whoever judges

    def booted_digest(self) -> str | None:
        """Digest of the bytes that the booted slot holds; None: no whole image."""
        return self.slots_held[self._booted].image

    def next_boots(self) -> Iterable[tuple[str, bool]]:
        """(digest of the bytes, marked good) of the slots that a boot now would try, in order; those that hold none left out."""
        flags = self._flags
        order = [flags.trial] if flags.trial is not None and flags.tries > 0 else []
        for slot in (*order, flags.default):
            held = self.slots_held[slot]
            if held.image is not None:
                yield held.image, held.marked

    def running(self) -> Mapping[str, str]:
        """App → digest of what runs."""
        return self._apps

    def is_default_sound(self) -> bool:
        """Whether the slot that boots by default was marked good and holds the very bytes that are recorded."""
        held = self.slots_held[self._flags.default]
        return held.marked and held.image is not None and held.image == held.record.digest

    def spoil(self, slot: str) -> None:
        """Flip a bit of a slot."""
        held = self.slots_held[slot]
        held.image = None
        if held.data:
            held.data = bytes([held.data[0] ^ 1]) + held.data[1:]

    # ------------------------------------------------------------ booting

    def boot(self) -> str:
        """What firmware, boot loader and kernel do: choose a slot by the flags and run it. Returns the slot."""
        flags, slot, before = self._flags, self._flags.default, self.booted_digest()
        if flags.trial is not None and flags.tries > 0:
            # The try is spent before the kernel starts: power may go at any instant of it.
            self.step("write flags")
            self._flags = BootFlags(flags.default, flags.trial, flags.tries - 1)
            tried = self.slots_held[flags.trial]
            if tried.image is not None and tried.boots:
                slot = flags.trial
        self.step("boot")
        self._booted = slot
        if slot == flags.default and flags.trial is not None:
            self.end("fell-back")
        self._boots += 1
        if self.booted_digest() != before:
            self.image_since = self.time.at
        self.watch.booted(self.name, slot, self.time.at)
        return slot

    def begin(self) -> None:
        """Nothing is left half done: a step happened or did not."""

    def recognise(self) -> Iterator[float] | None:
        """Records are never lost."""
        return None

    def passed_over(self) -> bool:
        """Its boot loader boots the default, whatever it holds."""
        return False

    def boot_id(self) -> str:
        return self._first_boot if self._boots == 0 and self._first_boot else f"{self.name}.{self._boots}"

    def booted(self) -> str:
        return self._booted

    def flags(self) -> BootFlags:
        return self._flags

    def arm(self, slot: str) -> None:
        self.step("write flags")
        self._flags = BootFlags(self._flags.default, slot, 1)
        self.doing = self.slots_held[slot].record.release
        self.watch.armed(self.name, self.doing, self.time.at, waived=self.is_waived)

    @property
    def is_waived(self) -> bool:
        """Whether the assignment in force says that no window binds the device."""
        accepted = self.memory.accepted
        return accepted is not None and accepted.assignment.window_waived

    def disarm(self) -> None:
        if self._flags.trial is not None:
            self.step("write flags")
            self._flags = BootFlags(self._flags.default)

    def mark_good(self, slot: str) -> None:
        # The flags first, as on a disk: default and not yet recorded as good is finished at the next boot.
        if self._flags != BootFlags(slot):
            self.step("write flags")
            self._flags = BootFlags(slot)
        held = self.slots_held[slot]
        held.marked = True
        self.end("good")
        if not held.record.good:
            self.step("write slots")
            held.record = Slot(held.record.release, held.record.digest, True)

    def reboot(self) -> None:
        """Nothing to do: whoever runs the agent sees that it asked, and calls `boot`."""
        self.step("reboot")

    # ------------------------------------------------------------ slots

    def slots(self) -> Mapping[str, Slot]:
        return {slot: self.slots_held[slot].record for slot in _SLOTS}

    def slot_bytes(self) -> int:
        return SLOT_BYTES

    def slot_size(self, slot: str) -> int:
        return self.slots_held[slot].size

    def forget_slot(self, slot: str) -> None:
        self._only_inactive(slot)
        held = self.slots_held[slot]
        if held.record != Slot():
            self.step("write slots")
            held.record, held.size = Slot(), 0

    def open_slot(self, slot: str, size: int) -> MemorySlot:
        if size > SLOT_BYTES:
            raise HardwareError(f"the image of {size} bytes does not fit into the slot")
        self._begin(slot)
        return MemorySlot(self, slot, size)

    def _begin(self, slot: str) -> None:
        self._only_inactive(slot)
        held = self.slots_held[slot]
        if held.record != Slot():
            raise HardwareError(f"slot {slot} is still recorded as holding something")
        self.step(f"open slot-{slot}")
        held.image, held.data, held.marked, held.boots = None, None, False, True

    def begin_image(self, slot: str, release: str) -> None:
        """Begin to write an image that has no bytes: the slot holds nothing whole until `end_image`."""
        self._begin(slot)
        self.doing = release
        self.watch.began(self.name, release, self.time.at, waived=self.is_waived)

    def end(self, outcome: str) -> None:
        """What was begun with a slot is over, if anything was (`Watch.ended`)."""
        if self.doing is not None:
            release, self.doing = self.doing, None
            self.watch.ended(self.name, release, self.time.at, outcome)

    def end_image(self, slot: str, digest: str | None) -> None:
        """All of the bytes are written and synced; they hash to `digest`, or to nothing that was ever published (None)."""
        self._only_inactive(slot)
        self.step("sync slot")
        self.slots_held[slot].image = digest

    def read_slot(self, slot: str, end: int, start: int = 0) -> Iterator[bytes]:
        """The bytes that were written. An image that was written without bytes gives none."""
        data = self.slots_held[slot].data
        if data:
            yield data[start:end]

    def record_slot(self, slot: str, release: str, digest: str, size: int) -> None:
        self._only_inactive(slot)
        self.step("write slots")
        held = self.slots_held[slot]
        held.record, held.size = Slot(release, digest, False), size

    def _only_inactive(self, slot: str) -> None:
        if slot in (self._booted, self._flags.default):
            raise HardwareError(f"slot {slot} is in use and must not be written")

    # ------------------------------------------------------------ the running image

    def version(self) -> ImageVersion:
        return self._version

    def set_version(self, version: ImageVersion) -> None:
        self.step("write edge-image-version")
        self._version = version

    def healthcheck(self) -> tuple[Check, ...]:
        # A bare device has nothing that could be judged, or be worse.
        if self.slots_held[self._booted].record.digest is None:
            return ()
        if not self.conditions and self.sick != self._booted:
            return _WELL
        found = {} if self.sick != self._booted else {"trial": Check("trial", "critical", "a service does not start")}
        for condition in self.conditions:
            bounds = condition.bounds(self)
            if bounds is not None and _holds(bounds, self.time.at):
                worst = found.get(condition.check)
                if worst is None or worst.status != "critical":
                    found[condition.check] = Check(condition.check, condition.status, condition.message)
        return (*_WELL, *(found[name] for name in sorted(found)))[:MAX_CHECKS]

    def health_changes_at(self) -> datetime | None:
        """The next instant after now at which a condition begins or ends to hold, as the device stands."""
        if not self.conditions:
            return None
        now = self.time.at
        bounds = (condition.bounds(self) for condition in self.conditions)
        return min(
            (at for pair in bounds if pair is not None for at in pair if at is not None and at > now), default=None
        )

    def keyring(self, kind: str) -> Keyring:
        found = self.keys.get(kind)
        if found is None:
            raise HardwareError(f"there is no {kind}.gpg in the image")
        return found

    def clock(self) -> Clock:
        return _RIGHT

    def state_folder(self) -> Path:
        raise HardwareError(f"{self.name} is simulated and has no folders")

    # ------------------------------------------------------------ configuration and apps

    def config_digest(self) -> str | None:
        return self._config

    def apply_config(self, config: SiteConfig) -> None:
        if self._config != config.digest:
            self.step("link cidata")
            before = (self._config,) if self._config is not None else ()
            self._config, self._configs = config.digest, (config.digest, *before)
            self.watch.configured(self.name, self._config, self.time.at)

    def restore_config(self, digest: str | None) -> None:
        if self._config == digest:
            return
        if digest is not None and digest not in self._configs:
            raise HardwareError(f"the configuration {digest} is not on the device any more")
        self.step("link cidata")
        self._config = digest
        self.watch.configured(self.name, digest, self.time.at)

    def activate_config(self) -> Iterator[float]:
        return iter(())

    def apps(self) -> Mapping[str, str]:
        return dict(self._apps)

    def app_folder(self, app: str) -> Path:
        raise HardwareError(f"{self.name} is simulated and has no folders")

    def has_app(self, app: str, digest: str) -> bool:
        """Whether a release of an app is on the device."""
        return digest in self._kept_apps.get(app, ())

    def keep_app(self, app: str, digest: str) -> None:
        """A release of an app was pulled."""
        if not self.has_app(app, digest):
            self.step("rename app")
            self._kept_apps[app] = (*self._kept_apps.get(app, ()), digest)

    def run_app(self, app: str, digest: str | None) -> None:
        before = self._apps.get(app)
        if before == digest:
            return
        if digest is not None and not self.has_app(app, digest):
            raise HardwareError(f"release {digest} of {app} is not on the device")
        self.step("link running")
        if digest is None:
            del self._apps[app]
            self.app_since.pop(app, None)
        else:
            self._apps[app] = digest
            self.app_since[app] = self.time.at
            # The one before is kept, as on a disk; older ones go.
            self._kept_apps[app] = (digest,) if before is None else (before, digest)
        self.watch.app_runs(self.name, app, digest, self.time.at)

    # ------------------------------------------------------------ the agent's memory (`agent.state.MemoryStore`)

    def load(self) -> Memory:
        """What was saved last."""
        return self.memory

    def save(self, memory: Memory) -> None:
        """Keep it over power cuts."""
        self.step("write state")
        before, self.memory = self.memory.last_serial, memory
        if memory.last_serial is not None and memory.last_serial != before:
            self.watch.accepted(self.name, memory.last_serial, self.time.at)

    # ------------------------------------------------------------ how it stands before a run

    def install(
        self, held: Mapping[str, tuple[str, str]], booted: str, previous: str | None, since: datetime | None
    ) -> None:
        """Slot → (release, digest) of good images, one of them booted and the default."""
        for slot, (release, digest) in held.items():
            self.slots_held[slot] = Content(Slot(release, digest, True), 1, digest, marked=True)
        self._booted, self._flags = booted, BootFlags(booted)
        self._version = ImageVersion(held[booted][0] if booted in held else None, previous)
        self.image_since = since

    def install_boot(self, boot_id: str, sequence: int) -> None:
        """The boot that it runs under, and the last report of it: a recorder knows both."""
        self._first_boot = boot_id
        self.memory = replace(self.memory, sequence_reserved=sequence)

    def install_app(self, app: str, digest: str, since: datetime | None) -> None:
        """A release of an app that runs."""
        self._apps[app] = digest
        self._kept_apps[app] = (digest,)
        if since is not None:
            self.app_since[app] = since

    def install_config(self, digest: str) -> None:
        """A configuration that is in force."""
        self._config, self._configs = digest, (digest,)


class MemorySlot(SlotFile):
    """`agent.hardware.SlotWriter` with real bytes, in a file without a name."""

    def __init__(self, hardware: MemoryHardware, slot: str, size: int) -> None:
        self._hardware, self._slot, self._bytes = hardware, slot, size
        super().__init__(os.memfd_create(f"slot-{slot}"), f"slot-{slot}", size, Disk())

    def finish(self) -> None:
        data = os.pread(self.descriptor(), self._bytes, 0)
        self._hardware.slots_held[self._slot].data = data
        self._hardware.end_image(self._slot, "sha256:" + hashlib.sha256(data).hexdigest())
        self.abandon()


def _holds(bounds: tuple[datetime | None, datetime | None], now: datetime) -> bool:
    start, end = bounds
    return (start is None or start <= now) and (end is None or now < end)
