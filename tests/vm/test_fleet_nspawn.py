"""A fleet of devices under systemd-nspawn: promotion wave by wave on real time, a power cut, a restart of the reconciler, a revert.

Each device is a container of the golden image's root, with its own data, its own network, its own processes, and the
real agent as the real unit, enrolled and under its watchdog; the reconciler runs over a fleet repo with real merges, S3 and a
container registry over HTTP. A container has no boot loader, no kernel of its own and no slots: they are files (hardware
`directory`), and the agent plays the boot by the flags that it would write for a boot loader. So nothing here says that a
device boots: `test_update` and `test_power` do, on two machines. This says what many do at once: who waits for whom, what their
agents take together, and what becomes of one that is cut off while the others go on. A power cut here ends every process of
a device and loses no page that was not synced. Each test goes on where the one before it ended.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import golden
from tests.support.aws import use_test_credentials
from tests.support.gitrepo import Repo
from tests.support.gpg import make_home
from tests.support.registry import running_registry
from tests.support.settings import write_settings
from tests.vm import office as offices
from tests.vm import servers, small
from tests.vm.nspawn import Device
from tests.vm.nspawn_memory import Watch, is_alive, memory
from tests.vm.office import Office
from tests.vm.releases import Release
from tests.vm.servers import Controller, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]
OLD, NEW = "v1.0.0", "v1.1.0"
MIB = small.MIB
PAYLOAD = 72 * MIB
"""More than an agent may take: one that held an image in memory would be seen."""
FLASHING, IDLE, UNIT_MOST = 64 * MIB, 25 * MIB, 256 * MIB
"""Resident size of an agent at work, at rest, and with all that it starts (the unit's MemoryMax, which not every host enforces)."""
SOAK_S = 6
BOOT_S, UPDATE_S = 300, 600
"""On a machine that others use too."""
SMALL = {"lab": {"LAB-9001": 1}, "all": {"SITE-9002": 2}}
LARGE = {
    "lab": {"LAB-9001": 1},
    "canary": {"SITE-9002": 2},
    "third": {"SITE-9003": 2, "SITE-9004": 2},
    "all": {"SITE-9005": 2, "SITE-9006": 2, "SITE-9007": 1},
}
"""Waves → sites → how many devices. The last wave is everybody."""
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Tokyo")
AT_ONCE = 4
"""Devices that are switched on together: each boot takes a processor's time for seconds."""


@dataclass
class Fleet:
    """The office, its devices by wave, and the releases by name."""

    office: Office
    waves: Mapping[str, list[Device]]
    made: Mapping[str, Release]
    merges: dict[str, str] = field(default_factory=dict)

    @property
    def devices(self) -> list[Device]:
        """All of them, wave by wave."""
        return [device for wave in self.waves.values() for device in wave]

    def all_run(self, release: str, but: Device | None = None) -> bool:
        """Whether all are known to run a release, at rest and in good health."""
        return all(self.office.runs(device.name, release) for device in self.devices if device is not but)

    def until_all_run(self, release: str) -> float:
        """Wait for that; seconds."""
        took = self.office.until(f"all run {release}", lambda: self.all_run(release), UPDATE_S)
        last = list(self.waves)[-1]
        self.office.until("every wave has passed", lambda: self.office.wave(last).get("state") == "complete", UPDATE_S)
        return took


@pytest.fixture(
    scope="module", params=[pytest.param(SMALL, id="3"), pytest.param(LARGE, id="12", marks=pytest.mark.full)]
)
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if os.geteuid() != 0:
        pytest.skip("needs root: systemd-nspawn")
    waves: Mapping[str, Mapping[str, int]] = request.param
    root, folder = golden.root(), tmp_path_factory.mktemp("fleet")
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        use_test_credentials(stack.enter_context(pytest.MonkeyPatch.context()))
        office = _office(folder, waves, stack)
        made, first = {}, folder
        for name, payload in ((OLD, 0), (NEW, PAYLOAD)):
            made[name], raw = small.make(name, payload, office.assignment, office.key, folder)
            first = raw if name == OLD else first
        office.name(made[OLD])
        text = (office.fleet / "waves.yaml").read_text()
        assert f"image: {OLD}" in text
        built: dict[str, list[Device]] = {}
        for wave, sites in waves.items():
            names = [(site, f"{site}-{number + 1}") for site in sites for number in range(sites[site])]
            built[wave] = [Device(office, site, name, root, folder / name) for site, name in names]
        found = Fleet(office, built, made)
        for device in found.devices:
            stack.callback(device.cut)
            device.install(OLD, made[OLD].digest, first)
        office.controller.start()
        office.name(made[NEW])
        yield found


def _office(folder: Path, waves: Mapping[str, Mapping[str, int]], stack: ExitStack) -> Office:
    """As `office.opened`, with these waves."""
    store = stack.enter_context(servers.running_store())
    registry = stack.enter_context(running_registry(folder / "registry"))
    signing, assignment = stack.enter_context(golden.key().home()), stack.enter_context(make_home())
    key, release = assignment.generate("Assignments <assign@example.org>"), golden.key().fingerprint
    (folder / "secrets").mkdir(mode=0o700)
    shutil.copyfile(golden.PLACE / "release-key.gpg", folder / "release.gpg")
    repo = Repo(folder / "fleet")
    shutil.copytree(golden.fleet() / "images/edge-golden", repo.path / "images/edge-golden")
    port = registry.url.rpartition(":")[2]
    head = offices.FLEET.format(bucket=servers.BUCKET, registry=port, key=release, attempts=3, report_every="5s")
    repo.commit("The fleet", {"fleet.yaml": head, **_documents(waves)})
    config = write_settings(
        folder,
        state=str(folder / "state"),
        git={"url": str(repo.path), "poll": "2s"},
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
        loop={"interval": "2s", "storesPoll": "5s", "retryFirst": "1s", "retryMost": "10s"},
    )
    controller = Controller(config)
    stack.callback(controller.close)
    return Office(folder, repo, store, registry, controller, assignment, key, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _documents(waves: Mapping[str, Mapping[str, int]]) -> dict[str, str | bytes | None]:
    """The waves' document, and the sites'."""
    rows, files = [], dict[str, str | bytes | None]()
    for number, (wave, sites) in enumerate(waves.items()):
        who = f"sites: [{', '.join(sites)}]" if number < len(waves) - 1 else "percent: 100"
        rows.append(f"    - name: {wave}\n      {who}\n      image: {OLD}\n      soak: {SOAK_S}s\n")
        for site, count in sites.items():
            lab, zone = str(number == 0).lower(), ZONES[len(files) % len(ZONES)]
            text = offices.SITE.format(site=site, lab=lab, timezone=zone)
            devices = ", ".join(f"{site}-{device + 1}" for device in range(count))
            files[f"sites/{site}.yaml"] = text.replace(f"[{site}-1]", f"[{devices}]")
    head = "apiVersion: fleet/v1\nkind: Waves\nmetadata: {name: waves}\nspec:\n  waves:\n"
    return {"waves.yaml": head + "".join(rows), **files}


# ---------------------------------------------------------------- the course of things


def test_every_device_comes_up_with_its_agent_under_the_watchdog(fleet: Fleet) -> None:
    began = time.monotonic()
    for start in range(0, len(fleet.devices), AT_ONCE):
        group = fleet.devices[start : start + AT_ONCE]
        for device in group:
            device.start()
        for device in group:
            device.container.wait(BOOT_S)
            wait_until(f"{device.name}'s agent is ready", lambda d=device: _ready(d), BOOT_S, device.journal)  # type: ignore[misc]
    took = fleet.until_all_run(OLD)
    print(
        f"{len(fleet.devices)} devices: ready and reported after {time.monotonic() - began:.0f} s, the last {took:.0f} s"
    )
    fed = {}
    for device in fleet.devices:
        unit = device.unit()
        assert unit["Type"] == "notify" and unit["NRestarts"] == "0" and unit["WatchdogUSec"] == "5min", unit
        assert unit["StatusText"].startswith("idle"), unit
        fed[device.name] = _fed(device)
        assert fed[device.name] > 0
        assert device.booted()[0] == "a"
    for device in fleet.devices:
        before = fed[device.name]
        wait_until(f"{device.name} feeds its watchdog", lambda d=device, b=before: _fed(d) > b, 60, device.journal)  # type: ignore[misc]


def test_a_promotion_goes_wave_by_wave_through_a_power_cut_and_a_restart(fleet: Fleet) -> None:
    office, waves = fleet.office, list(fleet.waves.values())
    victim, promoted_at = waves[1][0], time.monotonic()
    with Watch({device.name: device.agent() for device in fleet.devices}) as watch:
        fleet.merges[NEW] = office.promote(NEW, list(fleet.waves))
        what = f"half of slot b of {victim.name} is written"
        wait_until(what, lambda: victim.written("b") > PAYLOAD // 2, UPDATE_S, office.tell, every_s=0.01)
        watch.forget(victim.name)
        victim.cut()
        recorded = victim.slots().get("b", {}).get("digest")
        print(
            f"{victim.name}: cut {time.monotonic() - promoted_at:.0f} s after the merge, slot b recorded: {recorded is not None}"
        )
        assert victim.booted()[0] == "a", "it was cut too late: it had booted already"
        # All but the wave that it holds up have what they are to have: the first the new release, the later ones nothing.
        assert all(office.runs(device.name, NEW) for device in waves[0])
        office.controller.close()
        time.sleep(3)
        office.controller.start()
        time.sleep(SOAK_S)
        assert not any(device.written("b") for later in waves[2:] for device in later)
        victim.start()
        wait_until(f"{victim.name}'s agent is ready", lambda: _ready(victim), BOOT_S, victim.journal)
        watch.look_at(victim.name, victim.agent())
        fleet.until_all_run(NEW)
    print(f"{len(fleet.devices)} devices run {NEW} {time.monotonic() - promoted_at:.0f} s after the merge")
    image = fleet.made[NEW]
    for device in fleet.devices:
        assert device.booted()[0] == "b" and device.version() == [f"current={NEW}", f"previous={OLD}"]
        held = {"release": NEW, "digest": image.digest, "good": True, "size": image.manifest.image_size}
        assert device.slots()["b"] == held
        assert _digest(device.home / "slot-b.img") == image.digest
        seen = office.device(device.name)
        assert seen is not None and not seen.failed_attempts
    _hold_order(fleet)
    _hold_memory(fleet, watch)


def test_a_revert_takes_all_of_them_back_without_a_download(fleet: Fleet) -> None:
    office = fleet.office
    asked, reverted_at = len(office.store.seen), time.monotonic()
    written = [(device.home / "slot-a.img").stat().st_mtime_ns for device in fleet.devices]
    office.revert(fleet.merges[NEW])
    fleet.until_all_run(OLD)
    print(f"{len(fleet.devices)} devices back {time.monotonic() - reverted_at:.0f} s after the revert")
    assert office.store.images_asked(asked) == []
    assert [(device.home / "slot-a.img").stat().st_mtime_ns for device in fleet.devices] == written
    for device in fleet.devices:
        assert device.booted()[0] == "a" and device.version() == [f"current={OLD}", f"previous={NEW}"]


def test_agents_at_rest_are_small(fleet: Fleet) -> None:
    """After a restart: on a device with partitions each boot begins a process, here one lives on through its update."""
    for device in fleet.devices:
        device.container.says("systemctl", "restart", "edge-agent.service", within_s=120)
    restarted_at = time.time()

    def seen_twice() -> bool:
        return all(
            device.last_seen is not None and device.last_seen.timestamp() > restarted_at + 6
            for device in fleet.office.devices()
        )

    fleet.office.until("all have reported again", seen_twice, BOOT_S)
    sizes = {device.name: memory(device.agent(), "VmRSS") for device in fleet.devices}
    print(f"at rest: {_mib(sizes)}, all together {sum(sizes.values()) / MIB:.0f} MiB")
    assert max(sizes.values()) < IDLE, sizes
    assert all(device.unit()["NRestarts"] == "0" for device in fleet.devices)


def test_nothing_is_left_behind(fleet: Fleet) -> None:
    groups = [group for device in fleet.devices for group in device.container.groups]
    firsts = [device.container.first() for device in fleet.devices]
    assert all(is_alive(pid) for pid in firsts)
    assert groups and all(group.exists() for group in groups)
    for device in fleet.devices:
        device.cut()
    assert not [pid for pid in firsts if is_alive(pid)]
    assert not [group for group in groups if group.exists()]
    assert str(fleet.office.folder) not in Path("/proc/self/mountinfo").read_text()


# ---------------------------------------------------------------- what is held to


def _ready(device: Device) -> bool:
    unit = device.unit()
    return unit.get("ActiveState") == "active" and unit["SubState"] == "running"


def _fed(device: Device) -> int:
    """When it said last that it is alive, in microseconds of the machine's count."""
    return int(device.unit()["WatchdogTimestampMonotonic"])


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"


def _hold_order(fleet: Fleet) -> None:
    """No device of a wave began to write before all of the wave before it ran the release for the soak's time. By the
    files' own times on the devices, whatever the reconciler says of it."""
    waves = list(fleet.waves.items())
    for (name, before), (later, after) in itertools.pairwise(waves):
        last_boot = max(device.booted()[1] for device in before)
        first_write = min(_born(device.home / "slot-b.img") for device in after)
        print(f"{later} began {first_write - last_boot:.1f} s after the last boot in {name}")
        assert first_write > last_boot + SOAK_S, f"{later} did not wait for {name}"


def _born(file: Path) -> float:
    """When a file came to be (`time.time`)."""
    told = subprocess.run(["stat", "--format=%.W", str(file)], capture_output=True, text=True, check=True).stdout
    return float(told)


def _hold_memory(fleet: Fleet, watch: Watch) -> None:
    peaks = {device.name: memory(device.agent(), "VmHWM") for device in fleet.devices}
    print(
        f"while flashing: {_mib(peaks)}; with what it starts {watch.one / MIB:.0f} MiB at most; all {watch.all / MIB:.0f} MiB"
    )
    assert max(peaks.values()) < FLASHING, peaks
    assert watch.agents < FLASHING * len(fleet.devices)
    assert watch.one < UNIT_MOST, "more than the unit's own limit"


def _mib(sizes: Mapping[str, int]) -> str:
    return f"agents of {min(sizes.values()) / MIB:.1f} to {max(sizes.values()) / MIB:.1f} MiB"
