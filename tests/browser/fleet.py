"""The example fleet of 52 sites in the middle of a rollout, with the real loop that brought it there, and its dashboard.

What is shown was played by the simulator from `fleet/`: a promotion of all waves, an app release behind it, a device that turns
critical after its update, another whose line is down, a third that warns. Clock, names and hashes are the same in every run, so
that pictures made of it stay true. From then on time stands still but for what a test does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.cli.foresee import foreseer
from reconciler.controller.boards import Boards
from reconciler.controller.chronicle import Chronicle
from reconciler.model.access import OperatorToken, Scope
from reconciler.model.observed import DeviceObservation
from reconciler.ports import Commit, Export
from reconciler.review.asked import askers
from reconciler.server.app import create_app
from reconciler.server.options import Limits, Options
from reconciler.server.run import HttpServer
from reconciler.server.tokens import hash_token, make_token
from reconciler.simulate.controller import SimController
from reconciler.simulate.course import Course, Merge
from reconciler.simulate.hardware import Condition
from reconciler.simulate.memory_images import MemoryImages, image_digest
from reconciler.simulate.run import Simulation

ROOT = Path(__file__).resolve().parents[2]
BEGUN = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
NOW = datetime(2026, 3, 15, 7, 25, tzinfo=UTC)
"""Half of wave `half` has moved; those in America wait for their night."""
CRITICAL = "SITE-2417-1"
SILENT = "SITE-1216-1"
WARNS = "SITE-2840-1"
WELL = "SITE-2841-1"
"""One of the same wave that is well until a test makes it ill."""
FREE = Limits(per_address=(1e6, 10**6), refused_per_address=(1e6, 10**6), per_device=(1e6, 10**6))
_ILL = "2 of 6 cameras deliver no frames"
_PACKAGES = {
    "v1.4.1": {"chrony": "4.2-2ubuntu2", "docker-ce": "27.3.1-1", "linux-image": "5.15.0-126", "nvidia-driver-535": "535.216.01"},
    "v1.4.2": {"chrony": "4.2-2ubuntu2", "docker-ce": "27.4.1-1", "linux-image": "5.15.0-130", "nvidia-driver-535": "535.216.03"},
}  # fmt: skip


class _Images:
    """The simulator's image store, with packages in its manifests."""

    def __init__(self, images: MemoryImages) -> None:
        self._images = images

    def folder(self, release: str) -> str | None:
        return self._images.folder(release)

    def read(self, release: str, name: str) -> bytes:
        data = self._images.read(release, name)
        if name != "manifest.json" or release not in _PACKAGES:
            return data
        return json.dumps(json.loads(data) | {"packages": _PACKAGES[release]}).encode()


def played() -> SimController:
    """The controller at `NOW`, its boards and its chronicle, by way of everything that happened since `BEGUN`."""
    files = {
        path.relative_to(ROOT / "fleet").as_posix(): path.read_bytes()
        for path in sorted((ROOT / "fleet").rglob("*.yaml"))
    }
    waves = files["waves.yaml"].decode().replace("image: v1.4.1", "image: v1.4.2")
    apps = waves.replace("{video-ingest: 2.7.0}", "{video-ingest: 2.8.0}", 2)
    merges = (
        Merge(BEGUN, {"waves.yaml": waves.encode()}, "Promote v1.4.2 to all waves"),
        Merge(NOW - timedelta(hours=45), {"waves.yaml": apps.encode()}, "Promote video-ingest 2.8.0 to lab and canary"),
    )
    simulation = Simulation(Course(files, BEGUN - timedelta(seconds=1), merges, seed=1))
    controller = simulation.controller
    loop = controller._life.loop  # type: ignore[union-attr]
    loop._parts = replace(
        loop._parts, boards=Boards(controller.store), chronicle=Chronicle(controller.store, lambda *_a, **_m: None)
    )
    machines = simulation.machines
    machines.impose([CRITICAL], (*_cameras(9000),), BEGUN)
    machines.impose(
        [WARNS], (Condition("disk", "warning", "/data is 91 % full", since=NOW - timedelta(hours=9)),), BEGUN
    )
    while (at := simulation._next_at()) is not None and at <= NOW:
        if at >= NOW - timedelta(hours=5):
            machines.cut([SILENT], at)
        simulation.step(at)
    return controller


def _cameras(after_s: int) -> Iterator[Condition]:
    """Well on the old image, and ill on the new one after a while."""
    yield Condition("cameras", "ok", "6 of 6 cameras deliver frames", image=image_digest("v1.4.1"))
    yield Condition("cameras", "critical", _ILL, image=image_digest("v1.4.2"), after_s=after_s)


class Fleet:
    """The fleet as it stands, and the service over it. `at` is the instant that everything is told to be."""

    def __init__(self, folder: Path) -> None:
        self.at = NOW
        self.sql: SqlStore = open_store(folder / "store.db")
        self.controller = played()
        self.store = self.controller.store
        self._settle()

    @cached_property
    def boards(self) -> Boards:
        found = self.controller._life.loop._parts.boards  # type: ignore[union-attr]
        assert found is not None
        return found

    def _settle(self) -> None:
        """Devices that the simulator knows to go on reporting have done so within the last minute."""
        for number, device in enumerate(self.store.snapshot().devices):
            if device.last_seen is not None and device.last_seen > NOW:
                self.store.set_last_seen(device.name, NOW - timedelta(seconds=number * 7 % 60))
        self.tick()

    def tick(self) -> None:
        """One pass of the loop; its plan is kept, as a real one's is."""
        self.controller.tick(self.at)
        plan, recorder = self.controller.plan, self.controller._life.loop._parts.recorder  # type: ignore[union-attr]
        if plan is not None:
            self.store.save_plan(recorder.epoch, plan.to_json())

    def change(self, device: str, **changes: Any) -> None:
        """Let a device be another from now on, and the loop hear of it."""
        found = self.store.observation(device)
        assert found is not None
        seen = DeviceObservation.model_validate(found[0].model_dump() | {"last_seen": self.at} | changes)
        self.store.observe([seen], sequences={})
        self.tick()

    @contextmanager
    def export(self) -> Iterator[Export]:
        """Everything recorded."""
        snapshot = self.store.snapshot()
        texts = (device.model_dump_json(by_alias=True) for device in snapshot.devices)
        yield Export(1, snapshot.model_copy(update={"devices": ()}), texts)

    def commit(self, sha: str) -> Commit:
        """A commit, with somebody who wrote it."""
        return replace(self.controller.git.commit(sha), author="Ada Mayer <ada@example.org>")

    def options(self, **changes: Any) -> Options:
        """What the service is given."""
        given: dict[str, Any] = {
            "store": self.store,
            "now": lambda: self.at,
            "wall": lambda: self.at,
            "access": self.sql.access,
            "local": True,
            "boards": self.boards,
            "images": _Images(self.controller.images),
            "signed_by": lambda _release, _sums, _signature: "0123456789ABCDEF0123456789ABCDEF01234567",
            "commit": self.commit,
            "changed": self.controller.git.changed,
            "asked": askers(self.controller.git),
            "foresee": foreseer(self.export, lambda: self.at),
            "limits": FREE,
        }
        return Options(**given | changes)

    def token(self, name: str = "ada", *scopes: Scope) -> str:
        """A new operator's token, of all scopes unless said."""
        token = make_token()
        kept = OperatorToken(name, frozenset(scopes or (Scope.ALL,)), self.at, self.at + timedelta(days=30))
        self.sql.access.add_operator(hash_token(token), kept, replace=True)
        return token

    def close(self) -> None:
        """Let go of the store."""
        self.sql.close()


@contextmanager
def serving(options: Options, port: int = 0) -> Iterator[str]:
    """A service; gives its address. At its end it does not wait for those who listen to its stream: they never go by themselves."""
    server = HttpServer(create_app(options), "127.0.0.1", port)
    server._server.config.timeout_graceful_shutdown = 0
    with server:
        yield server.address
