"""One device in a machine: its app released and taken back in the container runtime, and an image that does not boot.

As `test_update`, with what is too long for every change. Each test goes on where the one before it ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.aws import use_test_credentials
from tests.vm import office as offices
from tests.vm import releases
from tests.vm.guest import BOOT_S, Guest
from tests.vm.office import APP, FIRST, Office
from tests.vm.releases import Change

pytestmark = [pytest.mark.vm, pytest.mark.full, pytest.mark.timeout(2 * 3600)]
OLD, DEAD = "v1.0.0", "v1.3.0"
UPDATE_S = 2 * BOOT_S
BACK_S = 120
"""From a merged revert of an app's release to its predecessor running in good health: the contract's."""


@dataclass
class Device:
    """The machine and its office; digests of the app by version."""

    office: Office
    guest: Guest
    apps: dict[str, str]

    def runs_app(self, version: str) -> bool:
        """Whether the device is known to run a release of the app, at rest and in good health."""
        seen = self.office.device(self.guest.name)
        if seen is None or APP not in seen.apps or seen.phase != "idle" or seen.restarting_app is not None:
            return False
        return seen.apps[APP].digest == self.apps[version] and seen.health.value in ("ok", "warning")

    def container(self) -> str:
        """What the app itself says that it is."""
        return self.guest.out(f"docker exec {APP} cat /version", 60)


@pytest.fixture(scope="module")
def device(golden_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("more")
    kept = golden_image.parent / "releases"
    old = releases.derive(golden_image, OLD, Change(), kept)
    dead = releases.derive(golden_image, DEAD, releases.NO_INIT, kept)
    with pytest.MonkeyPatch.context() as patch:
        use_test_credentials(patch)
        with offices.opened(folder, attempts=1, report_every="30s") as office:
            office.name(old)
            apps = office.offer_app("2.7.0", "2.8.0")
            office.promote_app("2.7.0")
            raw = releases.unpack(old, folder / "first.img")
            guest = Guest(office, FIRST, raw, folder / "first")
            raw.unlink()
            try:
                guest.machine.start()
                office.controller.start()
                office.name(dead)
                yield Device(office, guest, apps)
            finally:
                guest.close()


def test_the_app_runs_by_digest(device: Device) -> None:
    device.office.until("the app runs", lambda: device.runs_app("2.7.0"), UPDATE_S)
    device.guest.machine.wait_shell(BOOT_S)
    assert device.container() == "2.7.0"


def test_another_release_of_the_app_and_back_without_a_download(device: Device) -> None:
    merged = device.office.promote_app("2.8.0")
    took = device.office.until("the new release runs", lambda: device.runs_app("2.8.0"), UPDATE_S)
    assert device.container() == "2.8.0"
    reverted_at = time.monotonic()
    device.office.revert(merged)
    back = device.office.until("the release before runs", lambda: device.runs_app("2.7.0"), UPDATE_S)
    print(f"app: {took:.1f} s there, {back:.1f} s back\n{device.office.course(reverted_at)}")
    assert back < BACK_S
    assert device.container() == "2.7.0"


def test_a_release_that_does_not_boot_falls_back_by_itself(device: Device) -> None:
    office, guest = device.office, device.guest
    before = guest.out("cat /var/lib/edge-agent/slots.json")
    merged_at = time.monotonic()
    office.promote(DEAD)

    def fell_back() -> bool:
        seen = office.device(guest.name)
        return seen is not None and seen.failed_attempts.get(DEAD, 0) > 0 and office.runs(guest.name, OLD)

    office.until("the device falls back", fell_back, 2 * UPDATE_S)
    print(office.course(merged_at))
    office.until("the gate has failed", lambda: office.wave("lab").get("state") == "failed", BOOT_S)
    guest.machine.wait_shell(BOOT_S)
    assert guest.booted() == "a"
    assert guest.variables()[0]["edge_tries"] == "0" and guest.variables()[0]["edge_default"] == "a"
    assert OLD in before and OLD in guest.out("cat /var/lib/edge-agent/slots.json")
    office.until("the app runs again", lambda: device.runs_app("2.7.0"), BOOT_S)
