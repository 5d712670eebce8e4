"""The demo's story: a fleet that runs v1.4.1 is taken over, promoted, given a bad release, and brought back.

Plays the people (engineer, reviewer, factory) and the world (a decoder that leaks memory), never the reconciler: whatever
moves between two merges was decided by the real controller and done by the real agents. Called by `reconciler demo` and by the
end-to-end tests, which look at the result. Source: design §1.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.agent.agent import Identity
from reconciler.agent.device import Device
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.factory import install
from reconciler.agent.oci import pull
from reconciler.agent.transport import HttpTransport, Server
from reconciler.agent.work import Timing
from reconciler.demo.director import _PROGRAM, Controller, Director, Time, killer
from reconciler.demo.ground import APP, REPORT_EVERY, STALE_AFTER, Ground
from reconciler.demo.summary import read_log, rows, table, when
from reconciler.model.observed import NO_CONFIG, DeviceObservation
from reconciler.planner import waves_of_sites
from reconciler.ports import TerminalError
from reconciler.protocol.assignment import AppTarget
from reconciler.protocol.signature import Verifier
from reconciler.server.tokens import hash_token, make_token

DAYS = 21
OLD, GOOD, BAD = "v1.4.1", "v1.4.2", "v1.4.3"
OLD_APP, NEW_APP = "2.7.0", "2.8.0"
_CHECK = """\
#!/bin/sh
# New in this release: the decoder tells how much memory it holds.
file="$EDGE_DEVICE_ROOT/faults/decoder-memory"
[ -r "$file" ] || { echo "nothing measured yet"; exit 0; }
read -r _ mib _ <"$file"
[ "$mib" -lt 1000 ] || { echo "the decoder holds $mib MiB and grows: it leaks"; exit 2; }
echo "the decoder holds $mib MiB"
"""


@dataclass(slots=True)
class Told:
    """What happened, for the summary: an instant and a sentence."""

    lines: list[tuple[datetime, str]] = field(default_factory=list)

    def add(self, at: datetime, text: str) -> None:
        """One more line."""
        self.lines.append((at, text))


class Demo:
    """One run. `say(at, text)` is told what happens as it happens."""

    def __init__(
        self,
        root: Path,
        fleet: Path,
        say: Callable[[datetime, str], object],
        *,
        kills: Sequence[float] = (),
        start: datetime | None = None,
        debug: bool = False,
    ) -> None:
        """`kills` are the real seconds between `kill -9`s of the controller. `start` is virtual; three weeks ago unless said."""
        noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
        self.ground = Ground(root, fleet, start or noon - timedelta(days=DAYS), debug=debug)
        self._say, self._kills = say, kills
        self.told = Told()
        self._ended = threading.Event()
        self.killed: Callable[[], int] = lambda: 0
        self._store: SqlStore | None = None
        self._leaking: dict[str, datetime] = {}
        self._released = False
        self._transports: list[HttpTransport] = []
        self._plan: tuple[str, Mapping[str, Any]] = ("", {})

    # ------------------------------------------------ the whole of it

    def play(self) -> None:
        """Everything, in order. TerminalError: something did not happen in time."""
        self.desired = self.ground.make()
        self.time = Time(self.ground.socket, self.ground.start)
        self.controller = Controller(self.ground.config, self.ground.log)
        self.director = Director(self.time, self.controller, self.ground.bells)
        try:
            self._publish_first()
            self._bring_up()
            self._adopt()
            if self._kills:
                self.killed = killer(self.controller, self._kills, self._ended)
            self._promote_image()
            self._promote_app()
            self._bad_release()
            self._roll_back()
        finally:
            self._ended.set()

    def close(self) -> None:
        """Stop everything; the folder stays."""
        self._ended.set()
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

    # ------------------------------------------------ the acts

    def _publish_first(self) -> None:
        self._tell(f"The controller starts on an empty image store: {OLD} is built, signed and published.")
        self._until(lambda: self._published(OLD), hours=24, what=f"publishing {OLD}")

    def _bring_up(self) -> None:
        """The fleet as a factory has delivered it: the old image and the old app, and nothing of a site yet."""
        raw = self._raw_image(OLD)
        cache, verify = self.ground.root / "unpacked", Verifier()
        timing = Timing(settle_s=60, spread_s=300, report_jitter=0.0, slice_s=3600)
        new = 0
        for site, spec in self.desired.sites.items():
            for name in spec.devices:
                token = make_token()
                self._enrol(name, token)
                hardware = DirectoryHardware(
                    self.ground.devices / name, site=site, slot_bytes=64 << 20, cache=cache, healthcheck_always=False
                )
                self._enrolment_keys(hardware)
                # One site is brand new: its devices hold nothing, and are provisioned.
                if site == "SITE-4532":
                    new += 1
                else:
                    install(hardware, raw, OLD)
                    self._install_app(hardware)
                server = Server(f"http://127.0.0.1:{self.ground.port}", token, allow_file_urls=True)
                device = Device(Identity(name, site), hardware, self._transport(server), timing=timing, verify=verify)
                self.director.add(device)
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

    def _promote_image(self) -> None:
        self.ground.branch(f"promote-{GOOD}")
        self.ground.edit("waves.yaml", f"image: {OLD}", f"image: {GOOD}")
        self._merge(f"promote-{GOOD}", f"Promote {GOOD} in every wave")
        self._until(lambda: self._complete(GOOD), hours=24 * 14, what=f"every wave on {GOOD}")
        self._tell(f"Every wave runs {GOOD} and has soaked.")

    def _promote_app(self) -> None:
        self.ground.branch(f"promote-{APP}-{NEW_APP}")
        self.ground.edit("waves.yaml", f"{APP}: {OLD_APP}", f"{APP}: {NEW_APP}")
        self._merge(f"promote-{APP}-{NEW_APP}", f"Promote {APP} {NEW_APP} in every wave")
        self._until(lambda: self._app_complete(NEW_APP), hours=48, what=f"every wave on {APP} {NEW_APP}")
        self._tell(f"Every device runs {APP} {NEW_APP}: its tags have moved wave by wave.")

    def _bad_release(self) -> None:
        self.ground.branch(f"add-{BAD}")
        text = (self.ground.clone / "images" / f"{GOOD}.yaml").read_text().replace(f"name: {GOOD}", f"name: {BAD}")
        self.ground.write(f"images/{BAD}.yaml", text)
        check = "images/edge-golden/rootfs/usr/local/lib/edge/health.d/decoder"
        self.ground.write(check, _CHECK, 0o755)
        self._merge(f"add-{BAD}", f"Add {BAD}: a decoder that tells its memory")
        self.ground.branch(f"promote-{BAD}")
        self.ground.edit("waves.yaml", f"image: {GOOD}", f"image: {BAD}")
        self._merge(f"promote-{BAD}", f"Promote {BAD} in every wave")
        self._released = True
        self._until(lambda: self._failed(BAD), hours=96, what=f"the failure of {BAD}")
        self._tell(
            f"{BAD} passed its trial boots, and its healthcheck turned critical in the canary: stopped in every wave."
        )
        self._until(lambda: bool(self.ground.branches("revert/*")), hours=2, what="a proposed revert")
        self._tell(f"The reconciler has pushed {self.ground.branches('revert/*')[0]} with its evidence.")

    def _roll_back(self) -> None:
        branch = self.ground.branches("revert/*")[0]
        self._merge(f"origin/{branch}", f"Merge the proposed revert of {BAD}")
        self._until(lambda: self._nobody_on(BAD), hours=72, what=f"leaving {BAD}")
        self._tell(f"No device runs {BAD} any more: they have switched back to the slot that still held {GOOD}.")
        self._until(self._quiet, hours=24, what="a quiet fleet")

    def go_on(self, say: Callable[[str], object]) -> None:
        """Leave everything up, on the system's clock, until interrupted."""
        self.ground.branch("report-each-minute")
        self.ground.edit("fleet.yaml", f"reportEvery: {REPORT_EVERY}", "reportEvery: 60s")
        self.ground.edit("fleet.yaml", f"staleAfter: {STALE_AFTER}", "staleAfter: 15m")
        self._merge("report-each-minute", "Report every minute again")
        self._hang_up()
        self.controller.stop()
        self.ground.on_system_clock()
        self.controller.start()
        self._await_service()
        say(f"The fleet goes on in real time. Watch it: reconciler status --watch --config {self.ground.config}")
        say(f"Merge into {self.ground.remote} (a clone is in {self.ground.clone}). Ctrl-C ends it.")
        with suppress(KeyboardInterrupt):
            self.director.real_time(self.controller)

    # ------------------------------------------------ what came of it

    def summary(self) -> str:
        """What happened when, wave by wave."""
        seen, digest = self.store.snapshot(), self.desired.apps[APP].releases[NEW_APP]
        wave_of = {
            name: wave
            for site, wave in waves_of_sites(self.desired, seen, self.now).items()
            for name in self.desired.sites[site].devices
        }
        log = read_log(self.ground.log)
        waves = [wave.name for wave in self.desired.waves.waves]
        found = rows(waves, (GOOD,), wave_of, log, seen)
        key = f"{APP}@{NEW_APP}"
        for row in rows(waves, (digest,), wave_of, log, seen.model_copy(update={"proofs": ()})):
            judged = rows((row.wave,), (key,), wave_of, (), seen)[0]
            found.append(replace(row, release=key, outcome=judged.outcome))
        found += rows(waves, (BAD,), wave_of, log, seen)
        back = [line for line in log if line.event == "action" and line.fields.get("why") == "rollback"]
        text = table(found)
        if back:
            text += f"\n\n{len(back)} devices went back to {GOOD}, {when(back[0].at)} to {when(back[-1].at)}, by switching slots."
        return text

    # ------------------------------------------------ what is seen

    def plan(self) -> Mapping[str, Any]:
        """The controller's last plan."""
        text = self.store.last_plan() or "{}"
        if text != self._plan[0]:
            self._plan = (text, json.loads(text))
        return self._plan[1]

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
        flying = any(d.updating_to or d.restarting_app or d.configuring_since for d in self.store.snapshot().devices)
        return not flying and not self.plan().get("actions") and not self.store.open_intents()

    # ------------------------------------------------ the world

    def _until(self, condition: Callable[[], bool], *, hours: float, what: str) -> None:
        def asked() -> bool:
            self._leak()
            return condition()

        self.director.run(asked, self.now + timedelta(hours=hours), what)

    def _leak(self) -> None:
        """In the bad release the decoder leaks 30 MiB a camera and hour. Only what runs for long and looks at much shows it."""
        if not self._released:
            return
        for name, device in self.director.devices.items():
            if device.hardware.version().current != BAD:
                self._leaking.pop(name, None)
                (device.hardware.root / "faults" / "decoder-memory").unlink(missing_ok=True)
                continue
            since = self._leaking.setdefault(name, self.now)
            hours = (self.now - since) // timedelta(hours=1)
            cameras = len(self.desired.sites[device.identity.site].cameras)
            text = f"ok {100 + 30 * cameras * hours} MiB held\n"
            file = device.hardware.root / "faults" / "decoder-memory"
            if not file.exists() or file.read_text() != text:
                file.write_text(text)

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
        self.told.add(self.now, text)
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
