"""The head office of a fleet whose devices are virtual machines: the fleet repo, the keys, the reconciler, and a person who merges.

Two waves of one device each, with windows that are always open and soaks of seconds; everything else is as in a fleet of
any size: releases are uploaded as built, signed and published by the loop, promoted by a merge, taken back by `git revert`.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reconciler.controller.bootstrap import make_store
from reconciler.controller.settings import load_settings
from reconciler.model.observed import DeviceObservation
from tests.support import golden
from tests.support.gitrepo import Repo
from tests.support.gpg import Home, make_home
from tests.support.podman import app_image
from tests.support.registry import RunningRegistry, running_registry
from tests.support.settings import write_settings
from tests.vm import releases, servers
from tests.vm.releases import Release
from tests.vm.servers import Controller, Store, wait_until

FIRST, SECOND = "LAB-9001", "SITE-9002"
"""The sites; each has one device, named by it and `-1`."""
APP = "video-ingest"
# A machine under emulation boots for minutes, and is silent meanwhile.
FLEET = """\
apiVersion: fleet/v1
kind: Fleet
metadata: {{name: vm-fleet}}
spec:
  images: s3://{bucket}/
  registry: 127.0.0.1:{registry}
  releaseKeys: [{key}]
  window: {{start: "00:00", end: "24:00"}}
  flashDuration: 1m
  reportEvery: {report_every}
  staleAfter: 20m
  criticalFor: 15m
  bootTimeout: 1h
  updateTimeout: 4h
  attempts: {attempts}
"""
WAVES = """\
apiVersion: fleet/v1
kind: Waves
metadata: {name: waves}
spec:
  waves:
    - name: lab
      sites: [LAB-9001]
      image: v1.0.0
      soak: 20s
    - name: all
      percent: 100
      image: v1.0.0
      soak: 20s
"""
SITE = """\
apiVersion: fleet/v1
kind: Site
metadata:
  name: {site}
spec:
  timezone: {timezone}
  lab: {lab}
  devices: [{site}-1]
  ntp: [127.0.0.1]
"""
IMAGE = """\
apiVersion: fleet/v1
kind: Image
metadata: {{name: {release}}}
spec:
  family: edge-golden
  recipe: edge-golden/
  base: {{distribution: debian, suite: bookworm}}
"""
APP_DOCUMENT = f"""\
apiVersion: fleet/v1
kind: App
metadata: {{{{name: {APP}}}}}
spec:
  repository: {APP}
  window: any
  releases:
{{rows}}"""


@dataclass(frozen=True)
class Entry:
    """What a device was seen to be, from an instant on (`time.monotonic`)."""

    at: float
    device: str
    image: str | None
    phase: str | None
    health: str


@dataclass
class Office:
    """Everything that is not on a device. Made by `opened`."""

    folder: Path
    repo: Repo
    store: Store
    registry: RunningRegistry
    controller: Controller
    assignment: Home
    key: str
    time_port: int
    diary: list[Entry] = field(default_factory=list)

    @property
    def fleet(self) -> Path:
        """The fleet repo's work tree, on `main`."""
        return self.repo.path

    @property
    def ports(self) -> tuple[int, ...]:
        """What a device must reach: the reconciler, the image store, the registry, the time."""
        settings = load_settings(self.controller.config)
        return (settings.server.port, self.store.port, int(self.registry.url.rpartition(":")[2]), self.time_port)

    # ------------------------------------------------ an engineer's work

    def upload(self, release: Release) -> None:
        """Put a release into the image store as `built`, of the repo's head."""
        folder = releases.at_commit(release, self.fleet, self.repo.head(), self.folder / "built")
        self.controller.run("image", "upload", str(folder), "--config", str(self.controller.config))

    def merge(self, branch: str, message: str, files: Mapping[str, str | bytes | None]) -> str:
        """A branch with one commit, merged as the merge button does; the merge commit."""
        self.repo.git("checkout", "-q", "-b", branch)
        self.repo.commit(message, files)
        self.repo.git("checkout", "-q", "main")
        self.repo.git("merge", "-q", "--no-ff", "-m", f"Merge {branch}: {message}", branch)
        return self.repo.head()

    def name(self, *made: Release) -> None:
        """Upload releases, then merge their Image documents."""
        for release in made:
            self.upload(release)
        names = [release.name for release in made]
        files = {f"images/{name}.yaml": IMAGE.format(release=name) for name in names}
        self.merge(f"name-{names[0]}", f"Name {', '.join(names)}", files)

    def promote(self, release: str, waves: Sequence[str] = ("lab", "all")) -> str:
        """Raise waves to a release by a merge; the merge commit."""
        text = (self.fleet / "waves.yaml").read_text()
        for wave in waves:
            text = re.sub(rf"(- name: {wave}\n(?:      .*\n)*?      image: )\S+", rf"\g<1>{release}", text)
        return self.merge(
            f"promote-{release}-{self.repo.head()[:8]}",
            f"Promote {release} in {', '.join(waves)}",
            {"waves.yaml": text},
        )

    def offer_app(self, *versions: str) -> dict[str, str]:
        """Push releases of the app, and merge its document with them; their digests by version."""
        digests = {}
        for version in versions:
            image = app_image(version)
            self.registry.push_image(APP, image)
            digests[version] = image.digest
        rows = "".join(f"    {version}: {digest}\n" for version, digest in digests.items())
        self.merge(
            "offer-app", f"Name {APP} {', '.join(versions)}", {f"apps/{APP}.yaml": APP_DOCUMENT.format(rows=rows)}
        )
        return digests

    def promote_app(self, version: str) -> str:
        """Raise both waves to a release of the app; the merge commit."""
        text = re.sub(r"\n      apps: .*", "", (self.fleet / "waves.yaml").read_text())
        text = re.sub(r"(\n      image: \S+)", rf"\g<1>\n      apps: {{{APP}: {version}}}", text)
        return self.merge(f"app-{version}-{self.repo.head()[:8]}", f"Promote {APP} {version}", {"waves.yaml": text})

    def revert(self, merge: str) -> str:
        """`git revert` of a merge, on main; the commit."""
        self.repo.git("revert", "--no-edit", "-m", "1", merge)
        return self.repo.head()

    # ------------------------------------------------ what can be seen

    def device(self, name: str) -> DeviceObservation | None:
        """What the reconciler knows of a device."""
        return next((device for device in self.devices() if device.name == name), None)

    def devices(self) -> Sequence[DeviceObservation]:
        """All devices on record."""
        store = make_store(load_settings(self.controller.config), create=False)
        try:
            found = store.snapshot().devices
        finally:
            store.close()
        for device in found:
            entry = Entry(time.monotonic(), device.name, device.image, device.phase, device.health.value)
            last = next((old for old in reversed(self.diary) if old.device == device.name), None)
            if last is None or replace(last, at=entry.at) != entry:
                self.diary.append(entry)
        return found

    def plan(self) -> Mapping[str, Any]:
        """The last plan."""
        store = make_store(load_settings(self.controller.config), create=False)
        try:
            found: dict[str, Any] = json.loads(store.last_plan() or "{}")
            return found
        finally:
            store.close()

    def wave(self, name: str) -> Mapping[str, Any]:
        """A wave in the last plan; empty before there is one."""
        return next((wave for wave in self.plan().get("waves", ()) if wave["name"] == name), {})

    def course(self, since: float) -> str:
        """What devices were seen to do since an instant, with seconds."""
        rows = [entry for entry in self.diary if entry.at >= since]
        return "\n".join(
            f"{entry.at - since:7.1f} s {entry.device}: {entry.image} {entry.phase} {entry.health}" for entry in rows
        )

    def tell(self) -> str:
        """For a message: devices, waves, and the end of the log."""
        rows = [
            f"{device.name}: {device.image} {device.health} {device.phase} → {device.updating_to}, seen {device.last_seen}"
            f" attempts {dict(device.failed_attempts)}"
            for device in self.devices()
        ]
        waves = [json.dumps(wave)[:600] for wave in self.plan().get("waves", ())]
        return "\n".join([*rows, *waves, self.controller.tail()])

    def until(self, what: str, condition: Any, timeout_s: float) -> float:
        """Wait until a condition holds; seconds. AssertionError with what is known here."""

        def holds() -> bool:
            assert self.controller.is_on(), f"the reconciler ended\n{self.controller.tail()}"
            return bool(condition())

        return wait_until(what, holds, timeout_s, self.tell)

    def runs(self, device: str, release: str) -> bool:
        """Whether a device is known to run a release, at rest and in good health."""
        seen = self.device(device)
        return (
            seen is not None
            and seen.image == release
            and seen.health.value in ("ok", "warning")
            and seen.updating_to is None
            and seen.phase == "idle"
        )

    def phase(self, device: str) -> str | None:
        """What a device last said that it was doing."""
        seen = self.device(device)
        return None if seen is None else seen.phase

    def was_configured(self, device: str, before: str | None) -> bool:
        """Whether a device is being sent another configuration than it had, or has it."""
        seen = self.device(device)
        return seen is not None and (seen.configuring_since is not None or seen.config != before)

    def is_configured(self, device: str, before: str | None) -> bool:
        """Whether a device is known to have another configuration than it had, and is at rest."""
        seen = self.device(device)
        return seen is not None and seen.config != before and seen.configuring_since is None and seen.phase == "idle"


@contextmanager
def opened(folder: Path, *, attempts: int = 3, report_every: str = "60s") -> Iterator[Office]:
    """An office with a fleet that names no release yet, and its servers but for the reconciler, which the caller starts."""
    with ExitStack() as stack:
        store = stack.enter_context(servers.running_store())
        registry = stack.enter_context(running_registry(folder / "registry"))
        time_port = stack.enter_context(servers.running_time())
        signing = stack.enter_context(golden.key().home())
        assignment = stack.enter_context(make_home())
        key = assignment.generate("Assignments <assign@example.org>")
        repo = _fleet(folder / "fleet", registry, attempts, report_every)
        config = _settings(folder, store, registry, assignment, key, signing)
        controller = Controller(config)
        stack.callback(controller.close)
        yield Office(folder, repo, store, registry, controller, assignment, key, time_port)


def _fleet(path: Path, registry: RunningRegistry, attempts: int, report_every: str) -> Repo:
    repo = Repo(path)
    shutil.copytree(golden.fleet() / "images/edge-golden", path / "images/edge-golden")
    fleet = FLEET.format(
        bucket=servers.BUCKET,
        registry=registry.url.rpartition(":")[2],
        key=golden.key().fingerprint,
        attempts=attempts,
        report_every=report_every,
    )
    files: dict[str, str | bytes | None] = {"fleet.yaml": fleet, "waves.yaml": WAVES}
    for site, lab, zone in ((FIRST, "true", "Europe/Berlin"), (SECOND, "false", "America/New_York")):
        files[f"sites/{site}.yaml"] = SITE.format(site=site, lab=lab, timezone=zone)
    repo.commit("The fleet", files)
    return repo


def _settings(folder: Path, store: Store, registry: RunningRegistry, assignment: Home, key: str, signing: Home) -> Path:
    (folder / "secrets").mkdir(mode=0o700)
    shutil.copyfile(golden.PLACE / "release-key.gpg", folder / "release.gpg")
    release = golden.key().fingerprint
    return write_settings(
        folder,
        state=str(folder / "state"),
        git={"url": str(folder / "fleet"), "poll": "5s"},
        images={"type": "s3", "url": f"s3://{servers.BUCKET}/", "region": "us-east-1", "endpoint": store.url},
        registry={"type": "oci", "url": registry.url},
        allowed={"images": [f"s3://{servers.BUCKET}/"], "registries": [registry.url.removeprefix("http://")]},
        keys={
            "assignment": {"home": str(assignment.path), "fingerprint": key},
            "releases": [release],
            "releaseKeyring": str(folder / "release.gpg"),
            "signer": {"type": "key", "home": str(signing.path), "fingerprint": release},
        },
        server={"bind": f"127.0.0.1:{_free_port()}"},
        loop={"interval": "5s", "storesPoll": "10s", "retryFirst": "2s", "retryMost": "20s"},
    )


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
