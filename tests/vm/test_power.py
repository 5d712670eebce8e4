"""The power goes at eleven moments of an update: every time the device comes up on a good slot, and the update completes.

A machine and its own disk from beginning to end, one for the moments of writing and one for those of the trial; QEMU is
killed, so what the system had not written is lost. Moments are known from outside (bytes at the store, bytes on the disk,
the console), or, between two lines of the agent, by a tripwire in the machine that stops the agent there. Writes and fsyncs
are cut one by one elsewhere, on files; this is the whole machine: firmware, boot loader, kernel, file systems.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support.aws import use_test_credentials
from tests.vm import office as offices
from tests.vm import releases
from tests.vm.guest import BOOT_S, Guest, data_blocks
from tests.vm.office import FIRST, Office
from tests.vm.releases import Change, Release

pytestmark = [pytest.mark.vm, pytest.mark.full, pytest.mark.timeout(4 * 3600)]
OLD, NEW = "v1.0.0", "v1.1.0"
UPDATE_S = 2 * BOOT_S
SEED_SUM = "cat /data/cidata/user-data /data/cidata/meta-data /data/cidata/network-config | sha256sum"
# Stops the agent as soon as a file that it replaces says something; then tells.
TRIPWIRE = r"""
import ctypes, os, select, subprocess, sys
path, wanted, seconds = sys.argv[1], sys.argv[2].encode(), float(sys.argv[3])
agent = int(subprocess.check_output(["systemctl", "show", "--value", "-p", "MainPID", "edge-agent.service"]))
libc = ctypes.CDLL(None, use_errno=True)
watch = libc.inotify_init()
MOVED_TO = 0x80
assert agent > 0 and libc.inotify_add_watch(watch, os.path.dirname(path).encode(), MOVED_TO) >= 0
while select.select([watch], [], [], seconds)[0]:
    os.read(watch, 4096)
    try:
        if wanted in open(path, "rb").read():
            os.kill(agent, 19)
            print("stopped")
            break
    except FileNotFoundError:
        pass
"""


@dataclass
class Device:
    """The machine, its office, and the release that it is brought to."""

    office: Office
    guest: Guest
    new: Release
    samples: tuple[int, ...]
    _was_empty: bool = False

    def comes_up(self, slot: str) -> None:
        """Switch it on, and wait until it reports from a new boot, on a slot that is good."""
        before = self.office.device(self.guest.name)
        known = before.boot.id if before is not None and before.boot is not None else ""
        self._was_empty = False
        self.guest.machine.start()

        def reported() -> bool:
            self.write_reaches(1)
            seen = self.office.device(self.guest.name)
            return seen is not None and seen.boot is not None and seen.boot.id != known

        self.office.until(f"{self.guest.name} reports after a power cut", reported, BOOT_S)
        self.guest.machine.wait_shell(BOOT_S)
        assert self.guest.booted() == slot, self.guest.variables()

    def stops(self, path: str, text: str) -> None:
        """Wait for the agent to have written `text` to a file of its own; it does nothing more."""
        for _ in range(12):
            argv = f"python3 -I - {path} {text} 200 <<'EOF'\n{TRIPWIRE}\nEOF"
            if "stopped" in self.guest.out(argv, 280):
                return
        raise AssertionError(f"{path} never said {text}")

    def completes(self, seed: str) -> None:
        """Wait until the device runs the release for good, with the site's seed as it was."""
        guest = self.guest
        self.office.until(f"{guest.name} runs {NEW}", lambda: self.office.runs(guest.name, NEW), UPDATE_S)
        guest.machine.wait_shell(BOOT_S)
        assert guest.booted() == "b"
        assert {variables["edge_default"] for variables in guest.variables()} == {"b"}
        assert guest.slot_digest("b", self.new.manifest.image_size) == self.new.digest
        assert guest.out(SEED_SUM) == seed

    def write_reaches(self, part: float) -> bool:
        """Whether so much of slot b is written, by an attempt that began with an empty slot."""
        filled = self.guest.filled("b", self.samples)
        self._was_empty = self._was_empty or filled < 0.02
        return self._was_empty and filled >= part


@pytest.fixture
def device(golden_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("power")
    kept = golden_image.parent / "releases"
    old, new = (releases.derive(golden_image, name, Change(), kept) for name in (OLD, NEW))
    with pytest.MonkeyPatch.context() as patch:
        use_test_credentials(patch)
        # Every trial that is cut off is an attempt that failed.
        with offices.opened(folder, attempts=10, report_every="30s") as office:
            office.name(old)
            raw = releases.unpack(old, folder / "first.img")
            guest = Guest(office, FIRST, raw, folder / "first")
            samples = data_blocks(raw)
            raw.unlink()
            try:
                guest.machine.start()
                office.controller.start()
                office.name(new)
                office.until(f"{guest.name} runs {OLD}", lambda: office.runs(guest.name, OLD), BOOT_S)
                guest.machine.wait_shell(BOOT_S)
                yield Device(office, guest, new, samples)
            finally:
                guest.close()


def test_an_update_survives_the_power_going_while_it_is_fetched_and_written(device: Device) -> None:
    office, guest, size = device.office, device.guest, device.new.manifest.size
    seed = guest.out(SEED_SUM)
    office.promote(NEW, ["lab"])

    # 1. A third of the image is here.
    office.store.stop_at(size // 3)
    fetched = [size // 3 - (1 << 18), size]
    guest.cut_when("a third is fetched", lambda: any(r.sent >= fetched[0] for r in office.store.images_asked()))
    asked = len(office.store.seen)
    office.store.stop_at(None)
    device.comes_up("a")
    # What had reached the disk is not fetched again.
    office.until("the rest is asked for", lambda: bool(office.store.images_asked(asked)), BOOT_S)

    # 2 to 4. The slot is being written; each attempt begins anew.
    for part in (0.1, 0.5, 0.9):
        guest.cut_when(f"{part:.0%} of slot b is written", partial(device.write_reaches, part), UPDATE_S)
        asked = len(office.store.seen)
        device.comes_up("a")

    # 5. The slot is whole and recorded; nothing is intended yet.
    device.stops("/var/lib/edge-agent/slots.json", NEW)
    guest.machine.cut()
    device.comes_up("a")
    # 6. The intent is written down, the boot loader knows nothing of it.
    device.stops("/var/lib/edge-agent/state.json", '\'"kind":"image"\'')
    guest.machine.cut()
    assert guest.variables()[0]["edge_default"] == "a"
    device.comes_up("a")

    device.completes(seed)
    # The image was fetched once, whatever happened after.
    assert office.store.images_asked(asked) == []


def test_an_update_survives_the_power_going_while_it_is_tried_and_marked_good(device: Device) -> None:
    office, guest = device.office, device.guest
    seed = guest.out(SEED_SUM)
    office.promote(NEW, ["lab"])

    # 7. One trial is armed: the next boot is the trial itself.
    guest.cut_when("slot b is armed", lambda: guest.variables()[0].get("edge_tries") == "1", UPDATE_S)
    asked = len(office.store.seen)
    guest.machine.start()
    # 8. The trial's kernel starts. It is spent: the device is back on the slot that was good.
    guest.machine.wait_for(r"Command line: .* edge\.slot=b ", BOOT_S)
    guest.machine.cut()
    assert guest.variables()[0]["edge_tries"] == "0"
    device.comes_up("a")
    failed = office.device(guest.name)
    assert failed is not None and failed.image == OLD

    # 9. It has said goodbye, and is about to reset. 10. The trial's agent starts, and has judged nothing.
    guest.machine.wait_for(r"reboot: Restarting system|Reached target .*System Reboot", UPDATE_S)
    guest.machine.cut()
    assert guest.variables()[0]["edge_tries"] == "1"
    guest.machine.start()
    guest.machine.wait_for(r"Command line: .* edge\.slot=b ", BOOT_S)
    guest.cut_when("the trial's agent reports", lambda: office.phase(guest.name) == "trial", BOOT_S)
    device.comes_up("a")

    # 11. The trial was found good: one of two copies of the default says so.
    guest.cut_when("slot b is being marked good", lambda: guest.variables()[1]["edge_default"] == "b", UPDATE_S)
    guest.machine.start()

    device.completes(seed)
    # The image was fetched once, ahead of all of them.
    assert office.store.images_asked(asked) == []
