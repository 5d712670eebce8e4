"""Two devices of two waves, in machines that boot the golden image: promotion, configuration, rollback, a bad release.

The reconciler runs on real time over a fleet repo with real merges; releases are signed and published by it; devices fetch
them over HTTP from S3, write their inactive slot, reboot by GRUB under UEFI, and judge themselves. Each test goes on where
the one before it ended. What `test_power` cuts at eleven moments is cut here at two. Emulated: minutes a boot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.support.aws import use_test_credentials
from tests.vm import office as offices
from tests.vm import releases
from tests.vm.guest import BOOT_S, Guest, data_blocks
from tests.vm.office import FIRST, SECOND, Office
from tests.vm.releases import Change, Release

pytestmark = [pytest.mark.vm, pytest.mark.full, pytest.mark.timeout(5400)]
OLD, NEW, SICK = "v1.0.0", "v1.1.0", "v1.2.0"
MOST_MEMORY = 64 << 20
UPDATE_S = 2 * BOOT_S
"""Download, write, reboot and judgement under emulation."""
# Everything that a site's configuration is made of, and what the agent keeps of it.
SEED_SUM = "cat /data/cidata/user-data /data/cidata/meta-data /data/cidata/network-config | sha256sum"


@dataclass
class Fleet:
    """The office, its two devices, and the releases by name."""

    office: Office
    first: Guest
    second: Guest
    made: dict[str, Release]
    samples: tuple[int, ...]
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Something measured, shown where the test's output is."""
        self.notes.append(text)
        print(text)


@pytest.fixture(scope="module")
def fleet(golden_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("update")
    kept = golden_image.parent / "releases"
    made = {
        name: releases.derive(golden_image, name, change, kept)
        for name, change in (
            (OLD, Change()),
            (NEW, Change()),
            (SICK, releases.health_check("decoder", 2, "no frame for a minute")),
        )
    }
    with pytest.MonkeyPatch.context() as patch:
        use_test_credentials(patch)
        with offices.opened(folder, attempts=1) as office:
            office.name(made[OLD])
            raw = releases.unpack(made[OLD], folder / "first.img")
            first = Guest(office, FIRST, raw, folder / "first")
            second = Guest(office, SECOND, raw, folder / "second")
            # The two differ in a few blocks.
            samples = data_blocks(raw)
            raw.unlink()
            try:
                first.machine.start()
                second.machine.start()
                office.controller.start()
                office.name(made[NEW], made[SICK])
                yield Fleet(office, first, second, made, samples)
            finally:
                first.close()
                second.close()


def test_two_devices_come_up_as_they_were_installed(fleet: Fleet) -> None:
    office = fleet.office
    for guest in (fleet.first, fleet.second):
        office.until(f"{guest.name} runs {OLD}", lambda name=guest.name: office.runs(name, OLD), BOOT_S)
        guest.machine.wait_shell(BOOT_S)
        assert guest.booted() == "a"
    office.until("both waves have passed", lambda: office.wave("all").get("state") == "complete", BOOT_S)


def test_a_promotion_goes_from_wave_to_wave_through_power_cuts(fleet: Fleet) -> None:
    office, first, second = fleet.office, fleet.first, fleet.second
    seeds = [guest.out(SEED_SUM) for guest in (first, second)]
    # Of the one whose power goes when its disks are unmounted: what the other has not synchronised is lost.
    first.watch_memory()
    merged_at = time.monotonic()
    office.promote(NEW)
    first.told(NEW)
    first.machine.wait_for("reboot: Restarting system", UPDATE_S)
    first.machine.cut()
    assert first.variables() == ({"edge_default": "a", "edge_trial": "b", "edge_tries": "1"}, {"edge_default": "a"})
    first.machine.start()
    office.until("the first wave runs it", lambda: office.runs(first.name, NEW), UPDATE_S)
    assert first.slot_digest("b", fleet.made[NEW].manifest.image_size) == fleet.made[NEW].digest
    assert {variables["edge_default"] for variables in first.variables()} == {"b"}
    assert second.filled("b", fleet.samples) == 0 and office.device(second.name).image == OLD  # type: ignore[union-attr]

    second.told(NEW)
    second.cut_when("slot b is armed", lambda: second.variables()[0].get("edge_tries") == "1", UPDATE_S)
    assert second.variables()[0] == {"edge_default": "a", "edge_trial": "b", "edge_tries": "1"}
    second.machine.start()
    office.until("the second wave runs it", lambda: office.runs(second.name, NEW), UPDATE_S)
    fleet.note(office.course(merged_at))
    for guest, seed in zip((first, second), seeds, strict=True):
        guest.machine.wait_shell(BOOT_S)
        assert guest.booted() == "b"
        assert guest.out(SEED_SUM) == seed
        assert guest.out("cat /etc/edge-image-version").split() == [f"current={NEW}", f"previous={OLD}"]
    peaks = first.memory_peaks()
    fleet.note(f"largest resident size while flashing, in bytes: {peaks}")
    assert 0 < peaks["agent"] < MOST_MEMORY
    office.until("both waves have passed", lambda: office.wave("all").get("state") == "complete", BOOT_S)


def test_a_configuration_reaches_both_without_a_boot(fleet: Fleet) -> None:
    office, guests = fleet.office, (fleet.first, fleet.second)
    boots = [guest.out("cat /proc/sys/kernel/random/boot_id") for guest in guests]
    before = {device.name: device.config for device in office.devices()}
    changed = {}
    for site in (FIRST, SECOND):
        text = (office.fleet / f"sites/{site}.yaml").read_text()
        changed[f"sites/{site}.yaml"] = text.replace("ntp: [127.0.0.1]", "ntp: [127.0.0.1, 127.0.0.2]")
    merged_at = time.monotonic()
    office.merge("a-second-time-server", "Give both sites a second time server", changed)
    for guest, boot in zip(guests, boots, strict=True):
        # The second may have asked of itself while the first was waited for.
        office.until(
            f"{guest.name} is to be configured", partial(office.was_configured, guest.name, before[guest.name]), 300
        )
        guest.ring()
        office.until(f"{guest.name} has it", partial(office.is_configured, guest.name, before[guest.name]), BOOT_S)
        assert "server 127.0.0.2 iburst" in guest.out("cat /etc/chrony/sources.d/site.sources")
        assert guest.out("cat /proc/sys/kernel/random/boot_id") == boot
    fleet.note(f"configuration in force after {time.monotonic() - merged_at:.1f} s")


def test_a_revert_goes_back_without_a_download(fleet: Fleet) -> None:
    office, guests = fleet.office, (fleet.first, fleet.second)
    seeds = [guest.out(SEED_SUM) for guest in guests]
    asked, merged_at = len(office.store.seen), time.monotonic()
    office.revert(office.repo.git("log", "-1", "--format=%H", f"--grep=Merge promote-{NEW}"))
    for guest in guests:
        guest.told(OLD)
    for guest in guests:
        office.until(f"{guest.name} runs {OLD} again", lambda name=guest.name: office.runs(name, OLD), UPDATE_S)
    assert office.store.images_asked(asked) == []
    fleet.note(office.course(merged_at))
    for guest, seed in zip(guests, seeds, strict=True):
        guest.machine.wait_shell(BOOT_S)
        assert guest.booted() == "a"
        assert guest.out(SEED_SUM) == seed
        assert guest.out("cat /etc/edge-image-version").split() == [f"current={OLD}", f"previous={NEW}"]
        # The configuration is the new one, although this slot never saw it arrive.
        assert "server 127.0.0.2 iburst" in guest.out("cat /etc/chrony/sources.d/site.sources")


def test_a_release_with_a_critical_healthcheck_stops_in_the_first_wave(fleet: Fleet) -> None:
    office, first, second = fleet.office, fleet.first, fleet.second
    untouched, boot = second.variables(), second.out("cat /proc/sys/kernel/random/boot_id")
    held = _digest(second, "b", fleet.made[NEW])
    merged_at = time.monotonic()
    office.promote(SICK)
    first.told(SICK)

    def gone_back() -> bool:
        seen = office.device(first.name)
        return seen is not None and seen.failed_attempts.get(SICK, 0) > 0 and office.runs(first.name, OLD)

    office.until("the first device goes back by itself", gone_back, 2 * UPDATE_S)
    office.until("the gate has failed", lambda: office.wave("lab").get("state") == "failed", BOOT_S)
    fleet.note(office.course(merged_at))
    first.machine.wait_shell(BOOT_S)
    assert first.booted() == "a"
    assert {variables["edge_default"] for variables in first.variables()} == {"a"}
    # The second wave has not been touched: the same boot, the same variables, the same bytes in the other slot.
    assert office.runs(second.name, OLD)
    assert second.out("cat /proc/sys/kernel/random/boot_id") == boot
    assert second.variables() == untouched
    assert _digest(second, "b", fleet.made[NEW]) == held == fleet.made[NEW].digest


def _digest(guest: Guest, slot: str, release: Release) -> str:
    return guest.slot_digest(slot, release.manifest.image_size)
