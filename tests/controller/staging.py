"""A planner and its boards without a loop around them, for tests of what reads boards: a lab, a canary, and a wave of the rest."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from reconciler.controller.board import Board
from reconciler.controller.boards import Boards
from reconciler.controller.gather import World
from reconciler.model.desired import AppSpec, Desired, FleetSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.planner.live import Live
from reconciler.ports import ConditionRow, Store
from reconciler.simulate.memory_store import MemoryStore
from tests.controller.harness import T0

APP = {"1.0.0": "sha256:" + "1" * 64, "1.1.0": "sha256:" + "2" * 64}


def desired(sites: int = 4, *, canary: str = "v1.4.2") -> Desired:
    """A lab site, a canary site, and others in the last wave, two devices each."""
    specs = {}
    for number in range(sites):
        devices = [f"S{number}-1", f"S{number}-2"]
        specs[f"S{number}"] = SiteSpec.model_validate({"timezone": "UTC", "devices": devices, "lab": number == 0})
    listed = [
        {"name": "lab", "sites": ["S0"], "image": canary, "apps": {"video": "1.0.0"}, "soak": "1h"},
        {"name": "canary", "sites": ["S1"], "image": canary, "apps": {"video": "1.0.0"}, "soak": "48h"},
        {"name": "all", "percent": 100, "image": "v1.4.1", "apps": {"video": "1.0.0"}, "soak": "24h"},
    ]
    image = ImageSpec.model_validate({"recipe": "edge/"})
    return Desired(
        commit="c1",
        fleet=FleetSpec.model_validate({"images": "file:///images/", "registry": "registry.example"}),
        images={"v1.4.1": image, "v1.4.2": image},
        apps={"video": AppSpec.model_validate({"repository": "video", "releases": APP})},
        waves=WavesSpec.model_validate({"waves": listed}),
        sites=specs,
    )


def observed(name: str, image: str = "v1.4.1", **more: Any) -> DeviceObservation:
    values: dict[str, Any] = {
        "name": name,
        "site": name.partition("-")[0],
        "image": image,
        "image_since": T0 - timedelta(days=30),
        "health": "ok",
        "health_since": T0 - timedelta(days=30),
        "last_seen": T0,
        "apps": {"video": {"digest": APP["1.0.0"], "since": T0 - timedelta(days=30)}},
    }
    return DeviceObservation.model_validate(values | more)


SHARED = Snapshot.model_validate(
    {
        "artifacts": {"v1.4.1": "published", "v1.4.2": "published"},
        "tags": {"video": {"lab": APP["1.0.0"], "canary": APP["1.0.0"], "stable": APP["1.0.0"]}},
        "tagsSet": {"video": {"lab": APP["1.0.0"], "canary": APP["1.0.0"], "stable": APP["1.0.0"]}},
    }
)


class Stage:
    """A planner and its boards, without a loop around them."""

    def __init__(self, fleet: Desired | None = None, store: Store | None = None) -> None:
        self.store, self.live, self.now = store or MemoryStore(), Live(), T0
        self.refused: tuple[str, str] | None = None
        self.boards = Boards(self.store)
        self.desired = fleet or desired()
        self.conditions: tuple[ConditionRow, ...] = ()
        self.shared: Snapshot | None = SHARED

    def tick(self, *devices: DeviceObservation) -> Board:
        world = World(self.now, self.desired, SHARED, devices, self.shared is not None, self.store)
        with self.boards.planning(self.live):
            made = self.live.advance(self.desired, devices, self.shared, self.now)
        self.shared = None
        return self.boards.publish(world, made, self.live, self.conditions, self.refused, self.now)

    def everybody(self, **images: str) -> list[DeviceObservation]:
        names = [name for spec in self.desired.sites.values() for name in spec.devices]
        return [observed(name, images.get(name.replace("-", "_"), "v1.4.1")) for name in names]
