"""The demo's stage: a fleet on one folder, brought up and adopted, and what can be seen of it from beside it.

Plays the factory and the operator, never the reconciler. What is played on the stage is `story`'s, or a person's (`follow`).
Looks into the controller's store and the stores beside it; writes nothing there but what a factory would. Source: design §1.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from reconciler.adapters import durable
from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.adapters.registry_layout import LayoutRegistry
from reconciler.adapters.secrets_dir import DirectorySecrets
from reconciler.adapters.sql import SqlStore, open_store
from reconciler.agent.agent import Identity
from reconciler.agent.device import Device
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.factory import install
from reconciler.agent.oci import pull
from reconciler.agent.supply import DiskSupply, Supply
from reconciler.agent.timing import Timing
from reconciler.agent.transport import HttpTransport, Server
from reconciler.demo.director import _PROGRAM, Controller, Director, Time
from reconciler.demo.ground import APP, Ground
from reconciler.demo.pace import PacedSupply
from reconciler.model.observed import NO_CONFIG, DeviceObservation, Snapshot
from reconciler.ports import TerminalError
from reconciler.protocol.assignment import AppTarget
from reconciler.protocol.signature import Verifier
from reconciler.repo.render import secret_refs
from reconciler.server.tokens import hash_token, make_token
from reconciler.simulate.timings import RING_S, Timings, download_s, timings

OLD, OLD_APP = "v1.4.1", "2.7.0"
Say = Callable[[datetime, str], object]


class Stage:
    """One run. `say(at, text)` is told what happens as it happens."""

    def __init__(self, root: Path, fleet: Path, say: Say, start: datetime, *, paced: bool, debug: bool = False) -> None:
        """`start` is virtual. `paced`: what takes time in the field takes it here, by `simulate.timings`."""
        self.ground = Ground(root, fleet, start, paced=paced, debug=debug)
        self._say, self._paced = say, paced
        self._store: SqlStore | None = None
        self._transports: list[HttpTransport] = []
        self._plan: tuple[str, Mapping[str, Any]] = ("", {})
        self._wal = (0, 0)
        self._sizes: dict[str, int] = {}
        """Release → bytes that a download is played with; one that is not named is as large as a golden image."""

    def set_up(self) -> None:
        """The ground, time, and a controller that starts when it is first waited for."""
        self.desired = self.ground.make()
        self.time = Time(self.ground.socket, self.ground.start)
        self.controller = Controller(self.ground.config, self.ground.log)
        self.director = Director(self.time, self.controller, self.ground.bells, ring_s=RING_S if self._paced else 0)

    def close(self) -> None:
        """Stop everything; the folder stays."""
        if self._store is not None:
            self._store.close()
        self._hang_up()
        if hasattr(self, "director"):
            self.director.close()
        # Who looks at the folder afterwards (status, plan, run) has no director to ask for the time.
        self.ground.on_system_clock()
        self.ground.close()

    @property
    def now(self) -> datetime:
        """Virtual time."""
        return self.time.now()

    @property
    def store(self) -> SqlStore:
        """The controller's store, read beside it."""
        if self._store is None:
            self._store = open_store(self.ground.state / "store.db", create=False)
        return self._store

    # ------------------------------------------------ bringing it up

    def bring_up(self) -> None:
        """A fleet on the old image and the old app, adopted and healthy. TerminalError: it did not come to that in time."""
        self._publish_first()
        self._bring_up()
        self._adopt()

    def _publish_first(self) -> None:
        self._tell(f"The controller starts on an empty image store: {OLD} is built, signed and published.")
        self._until(lambda: self._published(OLD), hours=24, what=f"publishing {OLD}")

    def _bring_up(self) -> None:
        """The fleet as a factory has delivered it: the old image and the old app, and nothing of a site yet."""
        raw = self._raw_image(OLD)
        verify, took = Verifier(), timings(self.desired.fleet)
        new = 0
        for site, spec in self.desired.sites.items():
            # One site is brand new: its devices hold nothing, and are provisioned.
            delivered = None if site == "SITE-4532" else raw
            new += 0 if delivered else len(spec.devices)
            for name in spec.devices:
                self.director.add(self._device(name, site, delivered, verify, took))
        raw.unlink()
        self._tell(
            f"{len(self.director.devices) - new} devices of {len(self.desired.sites)} sites report {OLD}; {new} are new."
        )
        self._until(self._all_reported, hours=2, what="the first reports")

    def _adopt(self) -> None:
        """An operator's procedure: stop the loop, adopt, start the loop."""
        self._until(self._all_configured, hours=24, what="configuring the fleet")
        self._tell("Every device has its site's configuration. The operator adopts what runs in health.")
        self._hang_up()
        self.controller.stop()
        self._reconciler("adopt", "--config", str(self.ground.config))
        self._until(lambda: self._complete(OLD), hours=48, what=f"a fleet on {OLD}")

    def _device(self, name: str, site: str, raw: Path | None, verify: Verifier, took: Timings) -> Device:
        """A device as the factory delivers it, enrolled: with the old image, or bare."""
        token = make_token()
        self._enrol(name, token)
        cache = self.ground.root / "unpacked"
        hardware = DirectoryHardware(
            self.ground.devices / name, site=site, slot_bytes=64 << 20, cache=cache, healthcheck_always=False
        )
        self._enrolment_keys(hardware)
        if raw is not None:
            install(hardware, raw, OLD)
            self._install_app(hardware)
        transport = self._transport(Server(f"http://127.0.0.1:{self.ground.port}", token, allow_file_urls=True))
        supply: Supply | None = None
        if self._paced:
            disk = DiskSupply(hardware, transport, hardware.disk, verify)

            def fetch_s(release: str) -> int:
                return download_s(self.desired, site, self._sizes.get(release))

            supply = PacedSupply(disk, self.time.now, fetch_s=fetch_s, write_s=took.write_s)
        timing = Timing(settle_s=60, spread_s=300, report_jitter=0.0, slice_s=3600)
        boot_s = took.boot_s if self._paced else 0
        return Device(
            Identity(name, site), hardware, transport, timing=timing, verify=verify, boot_s=boot_s, supply=supply
        )

    # ------------------------------------------------ what is seen

    def plan(self) -> Mapping[str, Any]:
        """The controller's last plan."""
        text = self.store.last_plan() or "{}"
        if text != self._plan[0]:
            self._plan = (text, json.loads(text))
        return self._plan[1]

    def observed(self) -> Snapshot:
        """Everything that is observed now: the controller's record, and what the stores hold."""
        ground, apps = self.ground, self.desired.apps
        images = DirectoryImageStore(ground.images, now=self.time.now)
        registry = LayoutRegistry(ground.root / "registry")
        return self.store.snapshot().model_copy(
            update={
                "api_version": "fleet/v1",
                "kind": "Observed",
                "at": self.now,
                "artifacts": dict(images.artifacts()),
                "tags": {name: dict(registry.tags(app.repository)) for name, app in sorted(apps.items())},
                "secret_versions": dict(
                    DirectorySecrets(ground.secrets).versions(secret_refs(self.desired.sites.values()))
                ),
            }
        )

    def stirred(self) -> bool:
        """Whether anybody has written to the controller's store since the last call."""
        log = Path(f"{self.ground.state / 'store.db'}-wal")
        try:
            status = log.stat()
        except FileNotFoundError:
            return True
        before, self._wal = self._wal, (status.st_mtime_ns, status.st_size)
        return before != self._wal

    def write(self, path: Path, snapshot: Snapshot) -> None:
        """Write a snapshot down, whole or not at all."""
        text = snapshot.model_dump_json(by_alias=True, exclude_defaults=True, indent=2)
        durable.write_atomic(path, [text.encode(), b"\n"])

    def _published(self, release: str) -> bool:
        index = self.ground.images / "index.json"
        return index.is_file() and f'"{release}"' in index.read_text()

    def _all_reported(self) -> bool:
        return len(self.store.snapshot().devices) >= len(self.director.devices)

    def _all_configured(self) -> bool:
        seen = self.store.snapshot().devices
        return all(d.config not in (None, NO_CONFIG) and d.image == OLD and self._app_of(d) == OLD_APP for d in seen)

    def _app_of(self, device: DeviceObservation) -> str | None:
        """The version of the app that a device runs."""
        running = device.apps.get(APP)
        releases = self.desired.apps[APP].releases
        return next((v for v, digest in releases.items() if running is not None and running.digest == digest), None)

    def _complete(self, release: str) -> bool:
        waves = self.plan().get("waves", [])
        done = bool(waves) and all(w["image"] == release and w["state"] in ("complete", "idle") for w in waves)
        return done and all(d.image == release for d in self.store.snapshot().devices)

    def _app_complete(self, version: str) -> bool:
        apps = [wave["apps"].get(APP, {}) for wave in self.plan().get("waves", [])]
        return bool(apps) and all(a.get("release") == version and a.get("state") in ("complete", "idle") for a in apps)

    def _failed(self, release: str) -> bool:
        return any(verdict.key == release for verdict in self.store.snapshot().failures)

    def _nobody_on(self, release: str) -> bool:
        return all(d.image != release and d.updating_to is None for d in self.store.snapshot().devices)

    def _quiet(self) -> bool:
        if self.plan().get("actions") or self.store.open_intents():
            return False
        return not any(d.updating_to or d.restarting_app or d.configuring_since for d in self.store.snapshot().devices)

    # ------------------------------------------------ the world

    def _until(self, condition: Callable[[], bool], *, hours: float, what: str) -> None:
        def asked() -> bool:
            self._weather()
            return condition()

        self.director.run(asked, self.now + timedelta(hours=hours), what)

    def _weather(self) -> None:
        """What happens to devices from outside, at every look at them. Nothing here."""

    # ------------------------------------------------ parts

    def _merge(self, branch: str, message: str) -> None:
        if not branch.startswith("origin/"):
            self.ground.commit(message, self.now)
        sha = self.ground.merge(branch, message, self.now)
        self._tell(f"Merged: {message} ({sha[:12]}).")
        # The watcher rings within milliseconds; time stands still meanwhile.
        give_up = time.monotonic() + 20
        while self.store.last_good_commit() != sha and time.monotonic() < give_up:
            self.director.settle()
            time.sleep(0.02)

    def _tell(self, text: str) -> None:
        self._say(self.now, text)

    def _raw_image(self, release: str) -> Path:
        """The published artifact, unpacked: what a factory writes."""
        packed = next(self.ground.images.glob(f"*-{release}-*/*.img*"))
        raw = self.ground.root / "factory.img"
        if packed.suffix == ".zst":
            subprocess.run(["zstd", "-q", "-d", "-f", str(packed), "-o", str(raw)], check=True, timeout=120)
        else:
            raw.write_bytes(packed.read_bytes())
        return raw

    def _enrol(self, device: str, token: str) -> None:
        path = self.ground.tokens / device
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token)
        self.store.add_token(device, hash_token(token), self.now)

    def _enrolment_keys(self, hardware: DirectoryHardware) -> None:
        for name, key in (("assignment", self.ground.assignment), ("release", self.ground.release)):
            (hardware.root / "keys" / f"{name}.gpg").write_bytes(key.public)
            (hardware.root / "keys" / f"{name}.fpr").write_text(f"{key.fingerprint}\n")

    def _transport(self, server: Server) -> HttpTransport:
        """A connection that is closed with the demo."""
        self._transports.append(HttpTransport(server))
        return self._transports[-1]

    def _await_service(self) -> None:
        """Until the controller serves: a device that is not answered tries again only minutes later."""
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.ground.port), timeout=1):
                return
            time.sleep(0.1)
        raise TerminalError("the controller does not serve", needed_for="going on", remedy="see controller.log")

    def _hang_up(self) -> None:
        """Close the devices' connections, for which a service that ends would wait. The next exchange opens a new one."""
        for transport in self._transports:
            transport.close()

    def _install_app(self, hardware: DirectoryHardware) -> None:
        """The old app, pulled and running, as the factory delivers it."""
        digest = self.desired.apps[APP].releases[OLD_APP]
        registry = (self.ground.root / "registry").as_uri()
        transport = self._transport(Server("http://127.0.0.1:1", "factory", allow_file_urls=True))
        target = AppTarget(self.desired.apps[APP].repository, "stable", digest, OLD_APP)
        for _ in pull(target, [registry], transport, None, hardware.app_folder(APP), hardware.disk):
            pass
        hardware.run_app(APP, digest)

    def _reconciler(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode != 0:
            raise TerminalError(f"reconciler {arguments[0]} failed: {done.stderr.strip()}", needed_for="the demo")
        return done.stdout
