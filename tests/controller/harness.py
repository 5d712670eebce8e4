"""A loop on real parts in a temporary folder: git, SQLite, folders; only the clock, the builder and the signers are by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from reconciler.adapters.git_source import GitMirror
from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.adapters.registry_layout import LayoutRegistry
from reconciler.adapters.secrets_dir import DirectorySecrets
from reconciler.adapters.sql import open_store
from reconciler.controller.assign import Artifacts, Assigner
from reconciler.controller.boards import Boards
from reconciler.controller.chronicle import Chronicle
from reconciler.controller.conditions import Conditions
from reconciler.controller.execute import Executor, Hands
from reconciler.controller.gather import Gatherer, Polls
from reconciler.controller.herald import Herald
from reconciler.controller.jobs import Jobs
from reconciler.controller.loop import Loop, Parts
from reconciler.controller.observe import fold
from reconciler.controller.pace import Backoff, Poll
from reconciler.controller.record import Recorder
from reconciler.controller.settings import Settings
from reconciler.controller.source import Source
from reconciler.model.desired import ImageSpec
from reconciler.planner.live import Live
from reconciler.ports import Built, Forge, Store, TerminalError
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.manifest import NAME, Manifest
from reconciler.protocol.report import Report, Slot
from reconciler.protocol.sums import format_sums
from tests.support.gitrepo import Repo

T0 = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
SITES = ("LAB-1", "SITE-1", "SITE-2", "SITE-3")


class HandClock:
    """A clock that a test sets."""

    def __init__(self, at: datetime = T0) -> None:
        self.at = at
        self.woken = threading.Event()

    def now(self) -> datetime:
        return self.at

    def wait(self, until: datetime | None) -> bool:
        if self.woken.is_set():
            self.woken.clear()
            return True
        assert until is not None
        self.at = max(self.at, until)
        return False

    def wake(self) -> None:
        self.woken.set()

    def step(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


def digest_of(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class OneFileBuilder:
    """`ports.Builder` whose image is the release's name. `fail` is raised instead, where it is set."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0
        self.fail: Exception | None = None

    def build(self, release: str, spec: ImageSpec, recipe: Path, commit: str) -> Built:
        self.calls += 1
        if self.fail is not None:
            raise self.fail
        assert (recipe / "setup.sh").is_file()
        out = self.folder / f"{release}-{self.calls}"
        out.mkdir(parents=True)
        data = release.encode()
        name = f"edge-golden-{release}-20260115"
        (out / f"{name}.img").write_bytes(data)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        manifest = Manifest(release, f"{name}.img", len(data), "none", len(data), digest)
        (out / NAME).write_bytes(manifest.to_bytes())
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}
        (out / "SHA256SUMS").write_bytes(format_sums(sums))
        return Built(release, name, out, digest)


class NameSigner:
    """Both signer ports, without keys: who checks signatures has tests of their own."""

    def __init__(self) -> None:
        self.fail: Exception | None = None
        self.roots = 0

    def sign_release(self, release: str, commit: str) -> bytes:
        if self.fail is not None:
            raise self.fail
        return b"signed " + release.encode()

    def judge(self, release: str, sums: bytes, signature: bytes, keys: Collection[str]) -> None:
        if signature != b"signed " + release.encode():
            raise TerminalError(f"SHA256SUMS.gpg of {release} is refused", needed_for=f"publishing {release}")

    def sign_root(self, root: bytes) -> bytes:
        if self.fail is not None:
            raise self.fail
        self.roots += 1
        return b"signed " + root


class Bells:
    """`ports.Doorbell` that remembers."""

    def __init__(self) -> None:
        self.rung: list[str] = []

    def ring(self, devices: Any) -> Mapping[str, str]:
        self.rung += devices
        return dict.fromkeys(devices, "delivered")


def waves(**releases: Any) -> str:
    """The waves document; keywords change a wave: `canary={"image": "v1.4.2"}`."""
    listed: list[dict[str, Any]] = [
        {"name": "lab", "sites": ["LAB-1"], "soak": "1h"},
        {"name": "canary", "sites": ["SITE-1"], "soak": "48h"},
        {"name": "all", "percent": 100, "soak": "24h"},
    ]
    for wave in listed:
        wave |= {"image": "v1.4.1", "apps": {"video-ingest": "2.7.0"}, **releases.get(wave["name"], {})}
    return json.dumps(
        {"apiVersion": "fleet/v1", "kind": "Waves", "metadata": {"name": "waves"}, "spec": {"waves": listed}}
    )


def document(kind: str, name: str, **spec: Any) -> str:
    return json.dumps({"apiVersion": "fleet/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})


class Bench:
    """The folder, and a loop that can be killed and started again."""

    def __init__(self, root: Path) -> None:
        self.root, self.clock = root, HandClock()
        self.repo = Repo(root / "fleet")
        self.registry = LayoutRegistry(root / "registry")
        self.app = {v: self.registry.put_manifest("video-ingest", _manifest(v)) for v in ("2.7.0", "2.8.0")}
        (root / "secrets").mkdir(mode=0o700)
        self.builder, self.signer, self.bells = OneFileBuilder(root / "built"), NameSigner(), Bells()
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.sequence = 0
        self.forge: Forge | None = None
        self.herald: Herald | None = None
        self.repo.commit("First", self.files())
        self.loop = self.start()

    def files(self) -> dict[str, str | bytes | None]:
        out: dict[str, str | bytes | None] = {
            "fleet.yaml": document(
                "Fleet", "test", images="file:///images/", registry="registry.example", staleAfter="15m"
            ),
            "waves.yaml": waves(),
            "apps/video-ingest.yaml": document("App", "video-ingest", repository="video-ingest", releases=self.app),
            "images/edge-golden/setup.sh": "#!/bin/sh\n",
        }
        for release in ("v1.4.1", "v1.4.2"):
            out[f"images/{release}.yaml"] = document("Image", release, recipe="edge-golden/")
        for site in SITES:
            spec: dict[str, Any] = {
                "timezone": "UTC",
                "devices": [f"{site}-1"],
                "window": {"start": "00:00", "end": "24:00"},
            }
            out[f"sites/{site}.yaml"] = document("Site", site, **spec, **({"lab": True} if site == "LAB-1" else {}))
        return out

    def settings(self, **changes: Any) -> Settings:
        key = {"home": "home", "fingerprint": "A" * 40}
        tree: dict[str, Any] = {
            "git": {"url": str(self.root / "fleet")},
            "images": {"type": "directory", "path": str(self.root / "images")},
            "registry": {"type": "layout", "path": str(self.root / "registry")},
            "secrets": {"type": "directory", "path": str(self.root / "secrets")},
            "keys": {"assignment": key, "releases": ["B" * 40], "releaseKeyring": "keys.gpg"},
            "allowed": {"images": ["file:///images/"], "registries": ["registry.example"]},
            **changes,
        }
        return Settings.model_validate(tree)

    def start(self, *, inline: bool = True, **changes: Any) -> Loop:
        """A controller as a new process would be: nothing in memory, everything from the folder."""
        settings = self.settings(**changes)
        self.store: Store = open_store(self.root / "store.db")
        self.git = GitMirror(self.root / "git", str(self.root / "fleet"), "main")
        self.images = DirectoryImageStore(self.root / "images", now=self.clock.now)
        rng, backoff = random.Random(1), Backoff(5, 900)
        epoch = self.store.begin_epoch()
        source = Source(self.git, self.store, settings, Poll(60, backoff), epoch)
        polls = Polls(*(Poll(60, backoff) for _ in range(3)))
        secrets = DirectorySecrets(self.root / "secrets")
        self.jobs = Jobs(self.clock.wake, nullcontext, inline=inline)
        hands = Hands(
            self.git,
            self.images,
            self.registry,
            self.builder,
            self.signer,
            self.root / "work",
            self.signer.judge,
            self.forge,
            settings.git.branch,
        )
        if self.forge is not None:
            self.herald = Herald(self.forge, self.log, environments="fleet", backoff=backoff)
        self.executor = Executor(hands, self.jobs)
        parts = Parts(
            clock=self.clock,
            store=self.store,
            gatherer=Gatherer(source, self.store, self.images, self.registry, secrets, polls, rng),
            live=Live(),
            executor=self.executor,
            assigner=Assigner(self.store, valid_s=172800, nights=2),
            recorder=Recorder(self.store, epoch, backoff, rng, self.log),
            signer=self.signer,
            artifacts=Artifacts(self.images),
            doorbell=self.bells,
            conditions=Conditions(self.store.conditions(), self.clock.now(), self.log),
            log=self.log,
            herald=self.herald,
            chronicle=Chronicle(self.store, self.log),
            boards=Boards(self.store),
        )
        self.parts = parts
        self.loop = Loop(parts, settings.loop, debug=True)
        return self.loop

    def log(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    def events(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.lines if event == name]

    # ------------------------------------------------ what happens

    def settle(self, most: int = 30) -> None:
        """Tick until nothing more is to be done now."""
        for _ in range(most):
            if not self.loop.tick() and not self.jobs.busy:
                return
        raise AssertionError(f"still busy after {most} ticks: {self.lines[-5:]}")

    def poll(self) -> None:
        """Let every poll come due, and settle."""
        self.clock.step(120)
        self.settle()

    def report(self, device: str, **changes: Any) -> None:
        """A device reports; what it says is given by keywords of `Report`."""
        self.sequence += 1
        site = device.rpartition("-")[0]
        image = changes.get("image", "v1.4.1")
        base = Report(
            device=device,
            site=site,
            boot_id=changes.pop("boot_id", f"boot-{device}"),
            sequence=self.sequence,
            slots={"a": Slot(image, digest_of(image or ""), True), "b": Slot()},
            image=image,
            health="ok",
            apps={"video-ingest": self.app["2.7.0"]},
            config=self.loop.world.desired.config.get(site) if self.loop.world else None,
        )
        message = dataclasses.replace(base, **changes)
        with self.store.transaction():
            found = self.store.observation(device)
            seen = fold(found[0] if found else None, message, self.clock.now(), 900)
            self.store.observe([seen], sequences={device: (message.boot_id, message.sequence)})

    def everybody(self, but: str = "", **changes: Any) -> None:
        for site in SITES:
            if site != but:
                self.report(f"{site}-1", **changes)

    def told(self, device: str) -> Assignment | None:
        """What the device's latest assignment says."""
        row = self.store.assignment(device)
        return None if row is None else Assignment.from_bytes(row.document)

    def condition(self, kind: str) -> tuple[str, str]:
        return next((row.status, row.reason) for row in self.parts.conditions.rows() if row.type == kind)

    def journal(self, kind: str = "") -> list[Mapping[str, str | None]]:
        return [row for row in reversed(self.store.journal(1000)) if str(row["kind"]).startswith(kind)]

    def run_fleet(self) -> None:
        """Everything published and every device at v1.4.1 in health, proven by hand for the waves."""
        self.settle()
        self.everybody()
        self.poll()


def _manifest(version: str) -> bytes:
    layer = json.dumps({"version": version}).encode()
    digest = "sha256:" + hashlib.sha256(layer).hexdigest()
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(layer)}
    return json.dumps(
        {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []}
    ).encode()


Step = Callable[[Bench], None]
