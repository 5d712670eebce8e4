"""A few simulated devices and a desk that plays the controller: it assigns, signs, answers, and keeps what it was told."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from reconciler.agent.agent import Identity
from reconciler.agent.transport import TransportError
from reconciler.model.desired import Desired, FleetSpec, SiteSpec, WavesSpec
from reconciler.protocol.assignment import AppTarget, Assignment, ImageTarget
from reconciler.protocol.bundle import Bundle, seal
from reconciler.protocol.exchange import Answer, SiteConfig
from reconciler.protocol.report import Report
from reconciler.simulate.device import SimDevice
from reconciler.simulate.fleet import Machines
from reconciler.simulate.network import Far
from reconciler.simulate.signing import SimulatedSigner
from reconciler.simulate.supply import Depot
from reconciler.simulate.watch import Watch

START = datetime(2030, 1, 15, 1, 0, tzinfo=UTC)
EVERY_S = 60
SITE = "SITE-1"


def digest(word: str) -> str:
    return "sha256:" + word.encode().hex().ljust(64, "0")[:64]


def image(release: str) -> ImageTarget:
    return ImageTarget(release, digest(release), f"edge-golden-{release}")


def app(version: str) -> AppTarget:
    return AppTarget("video-ingest", "canary", digest(version), version)


@dataclass
class Instant:
    """The clock of a test."""

    at: datetime = START


@dataclass
class Desk:
    """`network.Controller`: the latest bundle of a device in every answer, until its report says that it has it."""

    reports: list[tuple[datetime, str, Report]] = field(default_factory=list)
    bundles: dict[str, Bundle] = field(default_factory=dict)
    serials: dict[str, tuple[int, int]] = field(default_factory=dict)
    configs: dict[str, SiteConfig] = field(default_factory=dict)
    signer: SimulatedSigner = field(default_factory=SimulatedSigner)
    is_up: bool = True
    n: int = 0

    def assign(self, device: str, at: datetime, **fields: Any) -> Assignment:
        """Issue the next assignment; an open window and a week's validity unless said."""
        self.n += 1
        values: dict[str, Any] = {
            "issued_at": at,
            "expires_at": at + timedelta(days=7),
            "window": ((at, at + timedelta(hours=6)),),
        }
        assignment = Assignment(device=device, serial=(1, self.n), **{**values, **fields})
        documents = [b"first", assignment.to_bytes(), b"last"]
        self.bundles[device] = seal(documents, 1, at, self.signer.sign_root)[1]
        self.serials[device] = assignment.serial
        return assignment

    def exchange(self, device: str, report: bytes, now: datetime) -> bytes:
        if not self.is_up:
            raise TransportError("the server does not answer")
        parsed = Report.from_bytes(report)
        self.reports.append((now, device, parsed))
        has = parsed.serial is not None and parsed.serial >= self.serials.get(device, (0, 0))
        sources = {"image": ("https://x.invalid/",), "registry": ("https://r.invalid",)}
        return Answer(None if has else self.bundles.get(device), sources, EVERY_S, now).to_bytes()

    def config(self, device: str, now: datetime) -> SiteConfig:
        return self.configs[device]

    def last(self, device: str = "SITE-1-1") -> Report:
        return next(report for _, name, report in reversed(self.reports) if name == device)


class Seen(Watch):
    """Everything that devices tell, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def began(self, device: str, release: str, at: datetime, *, waived: bool) -> None:
        self.events.append(("began", device, release, at, waived))

    def armed(self, device: str, release: str | None, at: datetime, *, waived: bool) -> None:
        self.events.append(("armed", device, release, at, waived))

    def ended(self, device: str, release: str | None, at: datetime, outcome: str) -> None:
        self.events.append(("ended", device, release, at, outcome))

    def app_runs(self, device: str, app: str, digest: str | None, at: datetime) -> None:
        self.events.append(("app", device, app, digest, at))

    def configured(self, device: str, digest: str | None, at: datetime) -> None:
        self.events.append(("configured", device, digest, at))

    def accepted(self, device: str, serial: tuple[int, int], at: datetime) -> None:
        self.events.append(("accepted", device, serial, at))

    def health(self, device: str, at: datetime, *, critical: bool) -> None:
        self.events.append(("health", device, at, critical))

    def parked(self, device: str, last_at: datetime, every_s: int) -> None:
        self.events.append(("parked", device, last_at, every_s))

    def woken(self, device: str, last_at: datetime) -> None:
        self.events.append(("woken", device, last_at))

    def of(self, *kinds: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] in kinds]


@dataclass
class World:
    """Devices SITE-1-1, … of one site, on v1 with v0 in the other slot, running app 1.0, and their desk."""

    clock: Instant
    desk: Desk
    seen: Seen
    far: Far
    depot: Depot
    machines: Machines

    def device(self, name: str = "SITE-1-1") -> SimDevice:
        return self.machines.devices[name]

    def play(self, until: datetime) -> None:
        self.machines.play(until)

    def tell(self, at: datetime, device: str = "SITE-1-1", **fields: Any) -> Assignment:
        """Assign at `at`, which time has reached, and ring a second later."""
        self.play(at)
        assignment = self.desk.assign(device, at, **fields)
        self.machines.ring([device], at + timedelta(seconds=1))
        return assignment


def desired(count: int = 1, **fleet: Any) -> Desired:
    names = tuple(f"{SITE}-{number}" for number in range(1, count + 1))
    site = SiteSpec(timezone="UTC", devices=names)
    waves = WavesSpec.model_validate({"waves": [{"name": "all", "sites": [SITE], "image": "v1", "soak": "1h"}]})
    return Desired(FleetSpec(**fleet), waves, {}, {}, {SITE: site})


def world(count: int = 1, *, parking: bool = True, bare: bool = False, begin: bool = True) -> World:
    clock, desk, seen = Instant(), Desk(), Seen()
    far, depot = Far(desk, clock), Depot(desired(count))
    devices = []
    for name in depot.desired.sites[SITE].devices:
        key = desk.signer.keyring
        device = SimDevice(Identity(name, SITE), far, depot, key, watch=seen, parking=parking)
        if not bare:
            held = {"a": ("v0", digest("v0")), "b": ("v1", digest("v1"))}
            device.hardware.install(held, "b", "v0", START - timedelta(days=9))
            device.hardware.install_app("video-ingest", digest("1.0"), START - timedelta(days=9))
        if begin:
            device.begin(START)
        devices.append(device)
    return World(clock, desk, seen, far, depot, Machines(devices, far))
