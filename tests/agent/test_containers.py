"""Apps as containers, through the whole agent: a real registry, podman with crun, the unit's own commands. Only systemd is played.

The controller is the small world's office, on real time from a day in 2030 on.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from reconciler.agent.agent import Identity
from reconciler.agent.containers import Containers, Limits
from reconciler.agent.device import Device
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.machine import State
from reconciler.agent.supply import ContainerSupply
from reconciler.protocol.assignment import AppTarget
from reconciler.protocol.report import Check, Report
from tests.agent.conftest import Releases
from tests.agent.world import DEVICE, QUICK, SITE, START, Office, Site
from tests.support.faults import FaultProxy
from tests.support.podman import ENDS, Units, app_image, running_podman
from tests.support.registry import RunningRegistry, index_of, running_registry

pytestmark = [pytest.mark.system, pytest.mark.slow]

APP, REPOSITORY = "video-ingest", "cameras/video-ingest"
SOON = Limits(steady_s=1.0, come_up_s=6, restart_s=60, fresh_s=0.1)
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


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apps]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        made = {
            "one": app_image("2.7.0", bytes_more=300_000),
            "two": app_image("2.8.0", bytes_more=300_000),
            "three": app_image("2.9.0"),
            "ending": app_image("3.0.0", command=ENDS),
            "foreign": app_image("2.8.0", "arm64"),
        }
        digests = {}
        for name, image in made.items():
            registry.push_image(REPOSITORY, image, "stable" if name == "one" else None)
            digests[name] = image.digest
        for name, parts in (("index", ("foreign", "three")), ("foreign_index", ("foreign",))):
            data = index_of(*(made[part] for part in parts))
            digests[name] = registry.push_manifest(REPOSITORY, data)
        versions = {name: f"2.{number}.0" for number, name in enumerate(digests)}
        yield Apps(
            registry, **{name: AppTarget(REPOSITORY, "lab", digest, versions[name]) for name, digest in digests.items()}
        )


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
        timing = replace(QUICK, settle_s=2, recheck_s=0.5, slice_s=1)
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

    def until(self, what: Callable[[Report], bool], seconds: float = 40) -> Report:
        """Live on real time until a report says it."""
        ends = time.monotonic() + seconds
        while not (self.office.reports and what(self.office.last())):
            said = self.office.last() if self.office.reports else None
            assert time.monotonic() < ends, f"not within {seconds} s: {said}\n{self.journal()}"
            time.sleep(min(self.step(), 0.1))
        return self.office.last()

    def assign(self, app: AppTarget, what: Callable[[Report], bool] | None = None, seconds: float = 40) -> Report:
        """Assign a release and ring; live until it runs, or until `what`."""
        self.office.assign(apps={APP: app})
        self.office.reports.clear()
        self.device.call_in()
        return self.until(what or (lambda report: runs(report, app)), seconds)

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


@pytest.fixture
def proxy(apps: Apps) -> Iterator[FaultProxy]:
    with FaultProxy(apps.registry.url) as made:
        yield made


@pytest.fixture
def device(office: Office, releases: Releases, tmp_path: Path, proxy: FaultProxy) -> Iterator[AppDevice]:
    with running_podman() as runtime:
        made = AppDevice(tmp_path / "d", office, releases, runtime, proxy.url)
        try:
            yield made
        finally:
            made.end()
            made.site.transport.close()


# ---------------------------------------------------------------- forth and back


def test_from_a_merged_revert_to_healthy_on_the_previous_release_in_seconds_and_without_the_registry(
    device: AppDevice, apps: Apps, proxy: FaultProxy
) -> None:
    device.limits = Limits(fresh_s=0.5)  # a device's own times
    device.boot()
    report = device.until(
        lambda report: report.apps == {APP: apps.one.digest}
    )  # by the wave's tag, without any assignment
    device.assign(apps.two)
    assert "2.8.0" in device.journal()
    proxy.seen.clear()
    began = time.monotonic()
    report = device.assign(apps.one, seconds=120)
    took = time.monotonic() - began
    assert (report.attempts, report.refusals) == ({}, ())
    assert proxy.seen == [], "the registry was asked"
    assert took < 45, f"{took:.0f} s"  # two minutes are allowed
    assert device.names() == {"edge/video-ingest:current", "edge/video-ingest:previous"}
    assert {f"TAG={apps.one.tag}", f"DIGEST={apps.one.digest}", f"REPOSITORY={REPOSITORY}"} <= set(
        device.env().split("\n")
    )
    assert device.longest_step < 5


def test_the_same_release_comes_up_after_a_power_cut_without_a_registry(
    device: AppDevice, apps: Apps, proxy: FaultProxy
) -> None:
    device.assign(apps.two)
    proxy.seen.clear()
    device.boot()
    device.office.reports.clear()
    report = device.until(lambda report: runs(report, apps.two))
    assert (report.attempts, report.refusals) == ({}, ())
    assert device.units.starts == 1, "what was coming up was started again"
    assert proxy.seen == []


def test_a_third_release_removes_the_first_pruning_spares_the_second_and_an_index_is_reported_as_it_was_assigned(
    device: AppDevice, apps: Apps, proxy: FaultProxy
) -> None:
    for app in (apps.one, apps.two, apps.index):
        device.assign(app)
    assert device.images() == 2
    subprocess.run([device.runtime, "image", "prune", "--force"], check=True, capture_output=True)
    proxy.seen.clear()
    device.assign(apps.two)
    device.assign(apps.index)
    assert proxy.seen == []
    device.assign(apps.one)
    assert proxy.seen, "the oldest release is fetched again"


def test_what_does_not_run_or_is_something_else_is_reported_as_such(device: AppDevice, apps: Apps) -> None:
    device.assign(apps.two)
    subprocess.run([device.units.systemctl, "stop", f"{APP}.service"], check=True)
    time.sleep(0.2)
    assert device.containers.running() == {}
    words = [
        "run",
        "--detach",
        "--rm",
        "--pull",
        "never",
        "--name",
        APP,
        "--label",
        f"edge.app={APP}",
        "--network",
        "host",
    ]
    other = f"{device.registry.removeprefix('http://')}/{REPOSITORY}@{apps.one.digest}"
    subprocess.run([device.runtime, *words, other], check=True, capture_output=True)
    time.sleep(0.2)
    assert device.containers.running() == {APP: apps.one.digest}
    # The next look puts it right.
    device.office.reports.clear()
    device.device.call_in()
    device.until(lambda report: runs(report, apps.two))


# ---------------------------------------------------------------- what does not work, and what then runs


def test_a_release_that_keeps_ending_is_taken_back_and_counted(
    device: AppDevice, apps: Apps, proxy: FaultProxy
) -> None:
    device.assign(apps.one)
    report = device.assign(apps.ending, lambda report: runs(report, apps.one) and bool(report.attempts))
    assert report.attempts == {f"{APP}@{apps.ending.version}": 1}
    assert [item.code for item in report.refusals] == ["restart-failed"]
    assert "does not keep running" in reason(report, "restart-failed") or "nothing runs" in reason(
        report, "restart-failed"
    )
    assert f"DIGEST={apps.one.digest}" in device.env()


def test_a_first_release_that_keeps_ending_leaves_what_the_unit_ran_by_itself(device: AppDevice, apps: Apps) -> None:
    report = device.assign(apps.ending, lambda report: runs(report, apps.one) and bool(report.attempts))
    assert [item.code for item in report.refusals] == ["restart-failed"]


def test_an_app_that_fails_long_after_its_deployment_is_counted_and_left_to_its_unit(
    device: AppDevice, apps: Apps
) -> None:
    device.assign(apps.one)
    device.assign(apps.two)
    (device.system / "etc/edge/cameras").unlink()  # the container cannot be started without it
    subprocess.run([device.runtime, "kill", APP], check=True, capture_output=True)
    time.sleep(0.3)
    device.office.reports.clear()
    device.device.call_in()
    report = device.until(refused("restart-failed"))
    assert report.apps == {}
    assert f"DIGEST={apps.two.digest}" in device.env()
    (device.system / "etc/edge/cameras").write_text("")
    device.office.reports.clear()
    device.device.call_in()
    device.until(lambda report: report.apps == {APP: apps.two.digest})


def test_what_is_not_what_was_assigned_or_cannot_be_had_is_refused_by_code_and_what_ran_runs(
    device: AppDevice, apps: Apps, proxy: FaultProxy
) -> None:
    device.until(lambda report: runs(report, apps.one))
    starts = device.units.starts
    registry, nobody = device.registry, "http://127.0.0.1:9"
    absent = replace(apps.two, digest="sha256:" + "0" * 64)
    for number, (app, address, fault, code, words) in enumerate(
        (
            (apps.foreign_index, registry, None, "app-platform", "linux/amd64"),
            (apps.foreign, registry, None, "app-platform", "for linux/arm64"),
            (absent, registry, None, "not-fetched", "manifest unknown"),
            (apps.two, registry, ("wrong", "/manifests/"), "app-digest", ""),
            (apps.two, registry, ("wrong", "/blobs/"), "app-digest", ""),
            (apps.two, nobody, None, "not-fetched", "connection refused"),
            (apps.two, "http://registry.example", None, "not-fetched", "needs https"),
            (apps.two, "https://registry.example/below", None, "not-fetched", "is no registry"),
            (apps.two, registry, ("drop", "/blobs/"), "not-fetched", ""),
        )
    ):
        proxy.mend()
        if fault is not None:
            proxy.next(fault[0], "GET", fault[1], times=9)
        device.office.registry = address
        # Another version each time: what was put off under the last one's name is not waited for.
        wanted = replace(app, version=f"9.{number}.0")
        report = device.assign(wanted, refused(code, words))
        assert (report.apps, report.attempts) == ({APP: apps.one.digest}, {}), number
        assert device.images() == 1, number
    assert device.units.starts == starts
    assert f"DIGEST={apps.two.digest}" not in "".join(path.read_text() for path in device.records())
    proxy.mend()
    device.pass_time(60)
    device.until(lambda report: runs(report, apps.two))


def test_a_full_disk_is_named_and_what_ran_runs(device: AppDevice, apps: Apps) -> None:
    device.until(lambda report: report.apps == {APP: apps.one.digest})
    full = device.folder / "podman-full"
    full.write_text(
        '#!/bin/sh\n[ "$1" != pull ] || { echo "Error: writing blob: write /var/tmp/x: no space left on device" >&2; exit 125; }\n'
        f'exec {device.runtime} "$@"\n'
    )
    full.chmod(0o755)
    device.command = [str(full)]
    device.boot()
    report = device.assign(apps.two, refused("no-room"))
    assert report.apps == {APP: apps.one.digest}


def test_a_runtime_that_does_not_answer_keeps_nobody_waiting_for_long(device: AppDevice, apps: Apps) -> None:
    device.until(lambda report: report.apps == {APP: apps.one.digest})
    hung = device.folder / "podman-hung"
    hung.write_text("#!/bin/sh\nexec sleep 600\n")
    hung.chmod(0o755)
    device.command, device.limits, device.longest_step = [str(hung)], replace(SOON, answer_s=0.5, fresh_s=30), 0
    device.boot()
    device.office.reports.clear()
    device.office.assign(apps={APP: apps.two})
    device.device.call_in()
    report = device.until(lambda report: "device-fault" in {item.code for item in report.refusals}, 45)
    assert "no answer within 0.5 s" in reason(report, "device-fault")
    assert device.longest_step < 3


def test_a_release_that_was_pulled_and_vanished_is_pulled_again(device: AppDevice, apps: Apps) -> None:
    device.assign(apps.one)
    device.office.assign(apps={APP: apps.two})
    device.device.call_in()
    while device.device.agent.work.state is not State.RESTARTING:
        device.step()
    names = subprocess.run(
        [device.runtime, "images", "--no-trunc", "--quiet", "--filter", "reference=edge/video-ingest:next"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    subprocess.run([device.runtime, "rmi", "--force", *names], check=True, capture_output=True)
    report = device.until(refused("restart-failed"))
    assert report.apps == {APP: apps.one.digest}


def test_power_cut_at_every_durable_step_of_a_deployment(device: AppDevice, apps: Apps) -> None:
    """Whatever is cut off, one of the two releases runs after the boot, and the device ends on the assigned one."""

    class Cut(BaseException):
        pass

    device.assign(apps.two)
    device.assign(apps.one)  # both are here: from now on nothing is pulled
    steps: list[str] = []
    device.site.disk.on_step = steps.append
    device.assign(apps.two)
    deploying = [number for number, step in enumerate(steps) if APP in step]
    assert len(deploying) >= 6, steps
    target, other = apps.one, apps.two
    for cut in deploying:
        count = [0]

        def meter(_name: str, count: list[int] = count, cut: int = cut) -> None:
            count[0] += 1
            if count[0] == cut + 1:
                raise Cut

        device.site.disk.on_step = meter
        with suppress(Cut):
            device.assign(target)
        device.site.disk.on_step = lambda _name: None
        device.boot()
        assert device.containers.deployed(APP) in (target.digest, other.digest), f"cut before {steps[cut]}"
        device.office.reports.clear()
        report = device.until(lambda report, target=target: runs(report, target))  # type: ignore[misc]
        assert report.attempts == {}, f"cut before {steps[cut]}"
        target, other = other, target


# ---------------------------------------------------------------- the registry's token


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[RunningRegistry, AppTarget]]:
    with running_registry(tmp_path / "guarded", htpasswd=("AWS", TOKEN, BCRYPT)) as registry:
        image = app_image("2.8.0")
        registry.push_image(REPOSITORY, image)
        yield registry, AppTarget(REPOSITORY, "lab", image.digest, "2.8.0")


@pytest.mark.parametrize("token", [TOKEN, f"AWS:{TOKEN}"])
def test_a_pull_uses_the_token_and_leaves_it_nowhere(
    device: AppDevice, guarded: tuple[RunningRegistry, AppTarget], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    registry, app = guarded
    watching = _watch(device, monkeypatch, token)
    device.office.registry = registry.url
    device.assign(app)
    assert watching.modes == {("folder", 0o700), ("config.json", 0o600)}
    assert watching.commands, "no pull was seen"
    assert not any(TOKEN in words for words in watching.commands)
    assert list(device.private.iterdir()) == []
    for file in [*device.folder.rglob("*"), *device.site.root.rglob("*")]:
        if file.is_file() and not file.is_symlink():
            assert TOKEN.encode() not in file.read_bytes(), file


def test_a_token_that_has_expired_is_named_and_a_new_one_is_used_at_the_next_try(
    device: AppDevice, guarded: tuple[RunningRegistry, AppTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, app = guarded
    watching = _watch(device, monkeypatch, "expired-token-1234")
    device.office.registry = registry.url
    report = device.assign(app, refused("registry-denied"))
    assert "expired-token-1234" not in json.dumps([item.reason for item in report.refusals])
    assert list(device.private.iterdir()) == []
    watching.token = TOKEN
    device.pass_time(60)
    device.until(lambda report: runs(report, app))


def test_a_job_that_is_dropped_ends_its_pull_and_takes_the_token_along(
    device: AppDevice, proxy: FaultProxy, apps: Apps
) -> None:
    device.until(lambda report: report.apps == {APP: apps.one.digest})
    proxy.seen.clear()
    proxy.next("hang", "GET", "/blobs/", times=4)
    job = device.containers.pull(APP, apps.two, [proxy.url], TOKEN)
    next(job)
    ends = time.monotonic() + 15
    while not any("/blobs/" in path for _, path in proxy.seen):
        time.sleep(min(next(job), 0.1))
        assert time.monotonic() < ends
    assert [path.name for path in device.private.rglob("config.json")] == ["config.json"]
    del job
    assert list(device.private.iterdir()) == []
    time.sleep(0.2)
    assert not [words for words in _commands() if str(device.folder.parent) in words and " pull " in words]


class _Watch:
    def __init__(self, token: str) -> None:
        self.token = token
        self.modes: set[tuple[str, int]] = set()
        self.commands: set[str] = set()


def _watch(device: AppDevice, monkeypatch: pytest.MonkeyPatch, token: str) -> _Watch:
    """Hand out `token`, and look at files and command lines while a pull lasts."""
    watching, over = _Watch(token), threading.Event()
    from reconciler.protocol import exchange

    to_bytes = exchange.Answer.to_bytes
    monkeypatch.setattr(
        exchange.Answer, "to_bytes", lambda answer: to_bytes(replace(answer, registry_token=watching.token))
    )

    def look() -> None:
        while not over.wait(0.01):
            for folder in device.private.glob("auth-*"):
                with suppress(OSError):
                    mode, files = folder.stat().st_mode & 0o777, list(folder.iterdir())
                    watching.modes |= {("folder", mode)} | {(file.name, file.stat().st_mode & 0o777) for file in files}
            watching.commands |= {words for words in _commands() if " pull " in words}

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    end = device.end

    def ending() -> None:
        over.set()
        thread.join()
        end()

    monkeypatch.setattr(device, "end", ending)
    return watching


def _commands() -> list[str]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                found.append(Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found
