"""The device of the sweep: the real hardware over files, and a boot that is played by the rule of docs/reference/boot.md.

ROOT/disk/esp/EFI/edge/         the ESP
ROOT/disk/slot-a.img slot-b.img the partitions, larger than their image
ROOT/disk/data/                 the data partition: agent, cidata, apps, and the layers over the slots
ROOT/run/                       what kernel and initrd say; in memory on a device, so that no power cut leaves any of it
ROOT/marks                      what a recorded run says of itself

A `Workshop` is what many devices share: keys, releases, and the answers of the server, all made beforehand.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

from reconciler.agent import healthcheck, slotroot
from reconciler.agent.agent import Identity
from reconciler.agent.device import Device
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.disk import Disk
from reconciler.agent.grub import GrubLoader
from reconciler.agent.hardware import Clock, ImageVersion
from reconciler.agent.partitioned import HEALTHCHECK, PartitionedHardware, Places
from reconciler.agent.partitions import FileSlots
from reconciler.agent.records import Records
from reconciler.agent.seed import Seed
from reconciler.agent.transport import NotFound
from reconciler.protocol.exchange import Answer, SiteConfig
from reconciler.protocol.report import Check, Report, Slot
from reconciler.protocol.signature import Verifier
from tests.agent.bench import LinkedApps
from tests.agent.firmware import new_esp
from tests.agent.power import grub
from tests.agent.power.replay import UNMOUNTED
from tests.agent.world import BAD, DEVICE, GOOD, QUICK, SITE, START, Keys, build_image, office_at, pack

END = START + timedelta(minutes=6)
IMAGE_KIB = 3072
ROOM = (IMAGE_KIB + 512) * 1024
CHUNK = 48 * 1024
"""What comes over the network at once."""
HEALTHY = {"v0": True, "v1": True, "v2": True, "v3": False}
CONFIGS = {
    name: SiteConfig(
        f"sha256:{number * 64}", {"user-data": f"{name} user".encode(), "meta-data": f"{name} meta".encode()}
    )
    for name, number in (("c1", "1"), ("c2", "2"))
}


@dataclass(frozen=True)
class Scenario:
    """What the server wants of a device with v1 in slot a, v0 in slot b, and configuration c1."""

    name: str
    release: str
    config: str
    is_new: bool = False
    """The device was never started: its slot b is empty, nothing is recorded of slot a, and it has no configuration."""

    @property
    def is_good(self) -> bool:
        return HEALTHY[self.release]


SCENARIOS = {
    item.name: item
    for item in (
        Scenario("update", "v2", "c2"),
        Scenario("bad", "v3", "c1"),
        Scenario("revert", "v0", "c1"),
        Scenario("first", "v2", "c2", is_new=True),
    )
}


class Workshop:
    """What all devices of a sweep share, in one folder that is written once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.digests: Mapping[str, str] = json.loads((root / "digests.json").read_text())
        self.releases: Mapping[str, str] = {digest: release for release, digest in self.digests.items()}
        self.images = {release: (root / f"{release}.img").read_bytes() for release in self.digests}

    @classmethod
    def make(cls, root: Path, keys: Keys) -> Workshop:
        """Build images, sign everything, and prepare the disk that every run begins with."""
        targets, digests = {}, {}
        for number, (release, healthy) in enumerate(HEALTHY.items()):
            image = build_image(
                root, release, GOOD if healthy else BAD, keys, payload=_noise(number), size=f"{IMAGE_KIB}k"
            )
            made = pack(image, root / "artifacts" / f"edge-golden-{release}-20300101", release, keys)
            targets[release], digests[release] = made.target, made.digest
            slotroot.unpack(root / f"{release}.img", made.digest, root / "images")
        (root / "digests.json").write_text(json.dumps(digests))
        (root / "office").mkdir()
        with office_at(root / "office", keys) as office:
            wanted = [("before", "v1", "c1"), *((item.name, item.release, item.config) for item in SCENARIOS.values())]
            for name, release, config in wanted:
                # A second one wants the same under a higher serial: what a failed attempt takes to be made again.
                office.n = 0 if name == "before" else 1
                for again in ("", "-again"):
                    office.assign(targets[release], config=CONFIGS[config].digest)
                    sources = {"image": (f"http://desk/{targets[release].folder}/",)}
                    (root / f"{name}{again}.answer").write_bytes(Answer(office.bundle, sources).to_bytes())
        workshop = cls(root)
        workshop._prepare()
        return workshop

    def _prepare(self) -> None:
        root = self.root / "pristine"
        for name in ("agent", "layers/a/etc", "layers/b/etc", "apps"):
            (root / "disk" / "data" / name).mkdir(parents=True)
        (root / "run").mkdir()
        new_esp(root / "disk" / "esp", "a")
        records = Records(root / "disk" / "data" / "agent" / "slots.json", Disk())
        for slot, release in (("a", "v1"), ("b", "v0")):
            (root / "disk" / f"slot-{slot}.img").write_bytes(self.images[release].ljust(ROOM, b"\0"))
            records.put(slot, Slot(release, self.digests[release], True), len(self.images[release]))
        hardware = SweptHardware(self, root)
        hardware.seed.store(CONFIGS["c1"])
        hardware.set_version(ImageVersion("v1", "v0"))
        live(self, hardware, Desk(self, "before"), START - timedelta(minutes=1))

    def new_device(self, root: Path, scenario: Scenario) -> None:
        """A copy of the prepared device, or of what `reconciler image disk` makes."""
        shutil.copytree(self.root / "pristine", root, symlinks=True)
        if scenario.is_new:
            data = root / "disk" / "data"
            for name in ("agent", "cidata", "layers"):
                shutil.rmtree(data / name)
            for name in ("agent", "layers/a/etc", "layers/b/etc"):
                (data / name).mkdir(parents=True)
            (root / "disk" / "slot-b.img").write_bytes(bytes(ROOM))


def _noise(seed: int) -> bytes:
    """Two thirds of an image that cannot be packed, and some that can."""
    noise = b"".join(hashlib.sha256(b"%d %d" % (seed, at)).digest() for at in range(IMAGE_KIB * 1024 * 5 // 8 // 32))
    return noise + bytes(64 * 1024) + b"text %d " % seed * 8192


class Desk:
    """`transport.Transport` without a network: the answers and files of a workshop."""

    def __init__(self, workshop: Workshop, answer: str, mark: Callable[[str], None] = lambda _text: None) -> None:
        self.workshop, self.answer, self._mark = workshop, answer, mark
        self.reports: list[Report] = []

    def exchange(self, report: bytes) -> bytes:
        told = Report.from_bytes(report)
        self.reports.append(told)
        facts = {
            "serial": told.serial,
            "sequence": told.sequence,
            "image": told.image,
            "config": told.config,
            "attempts": dict(told.attempts),
            "phase": told.phase,
        }
        self._mark(f"told {json.dumps(facts)}")
        return (self.workshop.root / f"{self.answer}.answer").read_bytes()

    def config(self) -> bytes:
        wanted = SCENARIOS[self.answer.removesuffix("-again")].config
        return CONFIGS[wanted].to_bytes()

    def read(self, url: str, limit: int, headers: Mapping[str, str] | None = None) -> bytes:
        data = self._file(url).read_bytes()
        assert len(data) <= limit
        return data

    def stream(
        self, url: str, offset: int, limit: int, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Iterator[bytes]]:
        data = self._file(url).read_bytes()[offset:]
        return offset, (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))

    def _file(self, url: str) -> Path:
        path = self.workshop.root / "artifacts" / url.removeprefix("http://desk/")
        if not path.is_file():
            raise NotFound(f"{url} is not there", status=404)
        return path


class SweptHardware(PartitionedHardware):
    """The real hardware below a folder; `boot` is played. `mark` is told what no file says."""

    def __init__(self, workshop: Workshop, root: Path, mark: Callable[[str], None] = lambda _text: None) -> None:
        self.workshop, self.root, self.mark = workshop, root, mark
        self.boots: list[str] = []
        self._start()

    def boot(self) -> None:
        """An orderly reboot, as far as `Device` is asked for one."""
        self.mark(UNMOUNTED)
        self._start()
        self.mark(f"booted {self.boots[-1]}")

    def _start(self) -> None:
        slot, is_trial = self._firmware()
        self.boots.append(slot)
        run, data = self.root / "run", self.root / "disk" / "data"
        run.mkdir(exist_ok=True)
        (run / "slot").unlink(missing_ok=True)
        image = hashlib.sha256((self.root / "disk" / f"slot-{slot}.img").read_bytes()[: IMAGE_KIB * 1024]).hexdigest()
        files = self.workshop.root / "images" / image
        assert files.is_dir(), f"slot {slot} boots and holds no release"
        (run / "slot").symlink_to(files)
        self.image = image
        (run / "cmdline").write_text(f"ro edge.slot={slot}{' edge.trial=1' if is_trial else ''}\n")
        (run / "boot_id").write_text(f"{uuid.uuid4()}\n")
        (run / "storage").write_text(f"slot={slot}\ndata=/dev/sda4\n")
        disk, parts = Disk(), self.root / "disk"
        super().__init__(
            Places(
                run / "cmdline", run / "boot_id", run / "slot", run / "storage", data / "layers" / slot, data / "agent"
            ),
            FileSlots(parts / "slot-a.img", parts / "slot-b.img", ROOM),
            GrubLoader(parts / "esp", disk, check=lambda _esp: None),
            Seed(data / "cidata", disk),
            LinkedApps(data / "apps", disk),
            clock=lambda: Clock(True, 0.0),
            disk=disk,
            restart=lambda: None,
        )

    def _firmware(self) -> tuple[str, bool]:
        """GRUB: choose, and spend an armed try before it is started."""
        folder = self.root / "disk" / "esp" / "EFI" / "edge"
        found = [
            path.read_bytes() if (path := folder / name).is_file() else None for name in ("grubenv", "grubenv.bak")
        ]
        choice = grub.choose(found[0], found[1])
        if choice.trial is None:
            return choice.default, False
        # In place, as GRUB writes; firmware keeps nothing back.
        descriptor = os.open(folder / "grubenv", os.O_WRONLY | os.O_SYNC | os.O_CLOEXEC)
        os.write(descriptor, grub.spent(found[0] or b""))
        os.close(descriptor)
        return choice.trial, True

    def mark_good(self, slot: str) -> None:
        self.mark(f"good {self.workshop.releases[f'sha256:{self.image}']}")
        super().mark_good(slot)

    def healthcheck(self) -> tuple[Check, ...]:
        """The image's own script, run once for each image: these scripts say the same every time."""
        if self.image not in _CHECKED:
            files = self.workshop.root / "images" / self.image
            _CHECKED[self.image] = healthcheck.run(
                files / HEALTHCHECK, ["--root", str(files)], {"ROOT": str(files)}, 60.0
            )
        return _CHECKED[self.image]


_CHECKED: dict[str, tuple[Check, ...]] = {}
_VERIFIER = Verifier()


def live(workshop: Workshop, hardware: SweptHardware, desk: Desk, end: datetime, begin: datetime = START) -> Device:
    """A device's life from `begin` to `end`, with its reboots, its clock going from one due instant to the next."""
    # It has what a Device needs beside the port: a disk, and a boot that is played.
    device = Device(Identity(DEVICE, SITE), cast("DirectoryHardware", hardware), desk, timing=QUICK, verify=_VERIFIER)
    now = begin
    for _ in range(3000):
        due = device.step(now)
        if due > end:
            return device
        now = max(now, due)
    raise AssertionError(f"still busy after 3000 steps: {device.agent.work.state}")
