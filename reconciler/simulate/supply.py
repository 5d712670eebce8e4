"""How releases get onto a simulated device: the agent's long work (`agent.supply`), as waits in virtual time.

Durations come from `timings`, bytes from a `Depot`, the line from `network`. A download that is cut off keeps what it has; a power
cut loses it. What was fetched, written or checked is compared with what was assigned, as on a device: a depot that gives
other bytes is refused. Called by the real `agent.work`. Source: design §5; the timing model of `timings`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from reconciler.agent.hardware import HardwareError, Spoiled
from reconciler.agent.supply import Job
from reconciler.agent.transport import NotFound, TransportError
from reconciler.model.desired import Desired
from reconciler.protocol.assignment import AppTarget, ImageTarget
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.signature import Refused
from reconciler.simulate.hardware import MemoryHardware
from reconciler.simulate.network import Link
from reconciler.simulate.timings import CHECK_S, CONFIGURE_S, PULL_S, RESTART_S, Timings, download_s, timings

Fate = Callable[[str, str], str | None]
"""How an update attempt of (device, release) fails: `boot`, `health` or `disk`; None: it does not."""


@dataclass(slots=True)
class Depot:
    """What devices fetch, and how long that takes: shared by all of them. Whoever drives the run keeps `desired` up to date."""

    desired: Desired
    sizes: dict[str, int] = field(default_factory=dict)
    """Release → bytes of its artifact, where they are known."""
    gives: dict[str, str | None] = field(default_factory=dict)
    """Digest of an image or of an app's release → digest of what is given for it, where that is something else; None: nothing."""
    fate: Fate = lambda _device, _release: None
    _timings: Timings | None = None
    _of: object = None

    def timings(self) -> Timings:
        """The durations of the fleet in force."""
        if self._timings is None or self._of is not self.desired.fleet:
            self._timings, self._of = timings(self.desired.fleet), self.desired.fleet
        return self._timings

    def fetch_s(self, site: str, release: str) -> int:
        """Seconds of a download at a site. One that git does not name any more fetches at once: nobody asks it to."""
        if site not in self.desired.sites:
            return 0
        return download_s(self.desired, site, self.sizes.get(release))


class MemorySupply:
    """`agent.supply.Supply` of one device."""

    __slots__ = ("_cached", "_depot", "_hardware", "_link", "_part", "_site")

    def __init__(self, site: str, hardware: MemoryHardware, link: Link, depot: Depot) -> None:
        self._site, self._hardware, self._link, self._depot = site, hardware, link, depot
        self._cached: tuple[str, str] | None = None
        self._part: tuple[str, float] | None = None

    def install(self, image: ImageTarget) -> None:
        """Before a run: the artifact was fetched already."""
        self._cached = (image.digest, image.digest)

    @property
    def boot_s(self) -> int:
        """Seconds from a reboot, or from the power's return, until the next life of the agent begins."""
        return self._depot.timings().boot_s

    def lose_power(self) -> None:
        """What was not synced is gone: a download in work. A finished one stays."""
        self._part = None

    # ------------------------------------------------------------ images

    def has_image(self, image: ImageTarget) -> bool:
        return self._cached is not None and self._cached[0] == image.digest

    def fetch_image(self, image: ImageTarget, sources: Sequence[str], now: object) -> Job:
        if not sources:
            raise NotFound(f"no address of {image.release} was given", status=404)
        whole = float(self._depot.fetch_s(self._site, image.release))
        have = self._part[1] if self._part is not None and self._part[0] == image.digest else 0.0
        began = self._hardware.time.at - timedelta(seconds=have)
        # There is room for one artifact: another one goes when this one comes.
        self._cached = None
        try:
            while (left := whole - (self._hardware.time.at - began).total_seconds()) > 0 or not self._link.is_up:
                if not self._link.is_up:
                    raise TransportError("the line is down")
                yield left
        finally:
            # However it ends: cut off, called off, or done.
            have = (self._hardware.time.at - began).total_seconds()
            self._part = (image.digest, min(have, whole))
        given = self._depot.gives.get(image.digest, image.digest)
        self._part = None
        if given is None:
            raise NotFound(f"the artifact of {image.release} is not there", status=404)
        if given != image.digest:
            raise Refused("artifact-digest", f"what is given for {image.release} is not the file that SHA256SUMS names")
        self._hardware.step("rename artifact")
        self._cached = (image.digest, given)

    def check_slot(self, slot: str, image: ImageTarget) -> Job:
        yield from self._pass(CHECK_S)
        fate = self._depot.fate(self._hardware.name, image.release)
        held = self._hardware.slots_held[slot]
        if held.image != image.digest or fate == "disk":
            raise Spoiled(f"slot {slot} does not hold what was written to it")
        self._decide(slot, fate)

    def write_image(self, image: ImageTarget, slot: str) -> Job:
        hardware = self._hardware
        if self._cached is None:
            raise Refused("artifact-incomplete", f"the artifact of {image.release} is no longer on the device")
        bytes_of = self._cached[1]
        hardware.forget_slot(slot)
        hardware.begin_image(slot, image.release)
        fate = self._depot.fate(hardware.name, image.release)
        yield from self._pass(self._depot.timings().write_s)
        if fate == "disk":
            hardware.end("failed")
            raise Spoiled(f"slot {slot} does not hold what was written to it")
        hardware.end_image(slot, bytes_of)
        if bytes_of != image.digest:
            hardware.end("failed")
            raise Refused("image-digest", "the unpacked image is not the one that was assigned")
        self._decide(slot, fate)
        hardware.record_slot(slot, image.release, image.digest, 1)

    def drop_image(self) -> None:
        if self._cached is not None or self._part is not None:
            self._hardware.step("remove artifact")
        self._cached = self._part = None

    def _decide(self, slot: str, fate: str | None) -> None:
        hardware = self._hardware
        hardware.slots_held[slot].boots = fate != "boot"
        hardware.sick = slot if fate == "health" else None

    # ------------------------------------------------------------ apps and configuration

    def has_app(self, name: str, app: AppTarget) -> bool:
        return self._hardware.has_app(name, app.digest)

    def pull_app(self, name: str, app: AppTarget, sources: Sequence[str], token: str | None) -> Job:
        if not sources:
            raise NotFound("no registry's address was given", status=404)
        until = self._hardware.time.at + timedelta(seconds=PULL_S)
        while True:
            if not self._link.is_up:
                raise TransportError("the line is down")
            left = (until - self._hardware.time.at).total_seconds()
            if left <= 0:
                break
            yield left
        given = self._depot.gives.get(app.digest, app.digest)
        if given is None:
            raise NotFound(f"{app.repository} has no {app.digest}", status=404)
        if given != app.digest:
            raise Refused("app-digest", f"the registry sent another manifest than {app.digest}")
        self._hardware.keep_app(name, app.digest)

    def start_app(self, name: str, digest: str) -> Job:
        if not self._hardware.has_app(name, digest):
            raise HardwareError(f"release {digest} of {name} is not on the device")
        yield from self._pass(RESTART_S)
        self._hardware.run_app(name, digest)

    def apply_config(self, config: SiteConfig) -> Job:
        yield from self._pass(CONFIGURE_S)
        self._hardware.apply_config(config)

    def _pass(self, seconds: float) -> Job:
        """Let so much time pass, however often it is gone on with meanwhile."""
        until = self._hardware.time.at + timedelta(seconds=seconds)
        while (left := (until - self._hardware.time.at).total_seconds()) > 0:
            yield left
