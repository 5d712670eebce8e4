"""A device whose apps are containers, through the whole agent: a real registry, podman with crun, the unit's own commands. Only
systemd is played. The controller is the small world's office, on real time from a day in 2030 on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from reconciler.agent.agent import Identity
from reconciler.agent.containers import Containers, Limits
from reconciler.agent.device import Device
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.supply import ContainerSupply
from reconciler.protocol.assignment import AppTarget
from reconciler.protocol.report import Check, Report
from tests.agent.conftest import Releases
from tests.agent.world import DEVICE, QUICK, SITE, START, Office, Site
from tests.support.podman import Units
from tests.support.registry import RunningRegistry

APP, REPOSITORY = "video-ingest", "cameras/video-ingest"
SOON = Limits(answer_s=30, steady_s=1.0, come_up_s=100, restart_s=100, fresh_s=0.3)
"""A machine that runs tests may have much to do: what comes up well is given time for it."""
TOKEN = "short-lived-token-9f8e7d"
# Of that token, for `htpasswd`; made with crypt(3).
BCRYPT = "$2b$05$abcdefghijklmnopqrstuuQJZKc/NKUtsx94ucC.3rl37bclMeUHe"


@dataclass(frozen=True)
class Apps:
    """A registry and what it holds: two releases for this machine, one that ends at once, one for another machine, and an index."""

    registry: RunningRegistry
    one: AppTarget
    two: AppTarget
    three: AppTarget
    ending: AppTarget
    foreign: AppTarget
    index: AppTarget
    foreign_index: AppTarget
    manifest_of_three: bytes


class ContainerHardware(DirectoryHardware):
    """A device as a folder, whose apps are containers."""

    containers: Containers
    units: Units

    def apps(self) -> dict[str, str]:
        return dict(self.containers.running())

    def run_app(self, app: str, digest: str | None) -> None:
        self.containers.run(app, digest)

    def healthcheck(self) -> tuple[Check, ...]:
        word = {"active": "ok", "activating": "warning"}.get(self.units.state, "critical")
        return (*super().healthcheck(), Check(APP, word, self.units.state))


class AppDevice:
    """A device with a container runtime, from one life to the next."""

    def __init__(self, folder: Path, office: Office, releases: Releases, runtime: Path, registry: str) -> None:
        self.folder, self.office, self.runtime, self.registry = folder, office, runtime, registry
        self.site = Site(folder / "device", office, releases.v1, releases.root / "unpacked")
        self.system = folder / "system"
        self.private = folder / "private"
        self.began, self.longest_step = time.monotonic(), 0.0
        self.limits, self.command = SOON, [str(runtime)]
        for name in ("etc/edge", "usr/lib/edge", f"var/lib/{APP}", "var/lib/edge-agent"):
            (self.system / name).mkdir(parents=True)
        (self.system / "usr/lib/edge/recipe.env").write_text(
            f"GPU=none\nCONTAINER_RUNTIME={runtime}\nREPOSITORY={REPOSITORY}\n"
        )
        (self.system / "etc/environment").write_text("SITE_ID=SITE-2847\n")
        (self.system / "etc/edge/site.env").write_text(f"REGISTRY={registry.removeprefix('http://')}\nVPN_TYPE=none\n")
        (self.system / "etc/edge/cameras").write_text("192.0.2.7\n")
        office.registry, office.report_every_s = registry, 1
        self.lives = 0
        self.boot()

    def boot(self) -> None:
        """The next life, after a power cut or as the first: what runs is over, files and images are what they are."""
        self.end()
        with suppress(AttributeError):
            subprocess.run([self.runtime, "rm", "--force", APP], capture_output=True, check=False)
            self.site.hardware.boot()
        self.lives += 1
        place = self.folder / f"{self.lives}"
        place.mkdir()
        self.units = Units(self.system, place, restart_s=1.0)
        self.containers = Containers(
            self.system / "var/lib/edge-agent/apps",
            self.site.disk,
            runtime=self.command,
            systemctl=[str(self.units.systemctl)],
            private=self.private,
            limits=self.limits,
        )
        hardware = ContainerHardware(
            self.site.root, site=SITE, slot_bytes=1024 * 1024, healthcheck_always=False, disk=self.site.disk
        )
        hardware.containers, hardware.units = self.containers, self.units
        self.site.hardware = hardware
        verify = self.office.keys.verifier
        supply = ContainerSupply(hardware, self.site.transport, self.site.disk, verify, self.containers)
        timing = replace(QUICK, settle_s=100, recheck_s=0.5, slice_s=1)
        identity = Identity(DEVICE, SITE)
        self.device = Device(identity, hardware, self.site.transport, timing=timing, verify=verify, supply=supply)
        subprocess.run([self.units.systemctl, "start", f"{APP}.service"], check=False)

    def end(self) -> None:
        with suppress(AttributeError):
            self.device.end()
            self.units.close()

    def step(self) -> float:
        """One step of the agent; the seconds until it wants the next."""
        now = self.office.now = START + timedelta(seconds=time.monotonic() - self.began)
        before = time.monotonic()
        due = self.device.step(now)
        self.longest_step = max(self.longest_step, time.monotonic() - before)
        return max(0.0, (due - now).total_seconds())

    def until(self, what: Callable[[Report], bool], seconds: float = 200) -> Report:
        """Live on real time until a report says it."""
        ends = time.monotonic() + seconds
        while not (self.office.reports and what(self.office.last())):
            said = self.office.last() if self.office.reports else None
            assert time.monotonic() < ends, f"not within {seconds} s: {said}\n{self.journal()}"
            time.sleep(min(self.step(), 0.1))
        return self.office.last()

    def assign(self, app: AppTarget, what: Callable[[Report], bool] | None = None, seconds: float = 200) -> Report:
        """Assign a release and ring; live until it runs, or until `what`."""
        self.office.assign(apps={APP: app})
        self.office.reports.clear()
        self.device.call_in()
        return self.until(what or (lambda report: runs(report, app)), seconds)

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """An app that does not come up is not waited for as long as one that does."""
        self.containers._limits = replace(self.limits, come_up_s=4)
        try:
            yield
        finally:
            self.containers._limits = self.limits

    def journal(self) -> str:
        return self.units.log.read_text(errors="replace")[-3000:] if self.units.log.exists() else ""

    def pass_time(self, seconds: float) -> None:
        """Let time pass that nobody has to wait for."""
        self.began -= seconds
        self.device.call_in()

    def records(self) -> list[Path]:
        return sorted((self.system / "var/lib/edge-agent").glob("apps/*"))

    def env(self) -> str:
        return (self.system / "var/lib/edge-agent/apps" / f"{APP}.env").read_text()

    def names(self) -> set[str]:
        """Our own names of images that are there."""
        words = ["images", "--format", "{{.Repository}}:{{.Tag}}"]
        listed = subprocess.run([self.runtime, *words], capture_output=True, text=True, check=True).stdout.split()
        return {
            name.removeprefix("localhost/") for name in listed if "edge/video-ingest:" in name and "127" not in name
        }

    def images(self) -> int:
        listed = subprocess.run([self.runtime, "images", "--quiet"], capture_output=True, text=True, check=True)
        return len(set(listed.stdout.split()))


def runs(report: Report, app: AppTarget) -> bool:
    return report.apps == {APP: app.digest} and report.phase == "idle" and report.health == "ok"


def refused(code: str, words: str = "") -> Callable[[Report], bool]:
    return lambda report: (
        report.phase == "idle" and any(item.code == code and words in item.reason for item in report.refusals)
    )


def reason(report: Report, code: str) -> str:
    return next(item.reason for item in report.refusals if item.code == code)
