"""The power goes at every durable step. Afterwards the device boots a slot that was good, and ends where it should.

The cut is a seam in `disk.Disk`: before its n-th step an exception ends the life, as a power cut does, and the
machine boots. The files are those that a real cut would leave at that step, half-written slots and stray temporary
files among them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from reconciler.agent.machine import State
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.report import Slot
from tests.agent.conftest import Releases
from tests.agent.world import START, Office, Site

pytestmark = pytest.mark.system

END = START + timedelta(minutes=8)


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut is played, so nothing has to reach a real disk; that it is asked for is `test_disk`'s to prove."""
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)
    monkeypatch.setattr("os.O_SYNC", 0)


class PowerCut(BaseException):
    """Not an Exception: nothing in the agent may catch it."""


class Meter:
    """Counts durable steps, and cuts before the n-th."""

    def __init__(self, site: Site, at: int | None = None) -> None:
        self.steps: list[str] = []
        self.at = at
        site.disk.on_step = self

    def __call__(self, name: str) -> None:
        self.steps.append(name)
        if self.at is not None and len(self.steps) > self.at:
            self.at = None
            raise PowerCut


def _run(site: Site) -> None:
    """To the end, with a boot after a cut. What must hold after every boot is checked there."""
    for _ in range(3):
        try:
            site.settle(END)
            return
        except PowerCut:
            site.device.power_cycle()
            _after_boot(site)
    raise AssertionError("the power was cut once, but the device did not come to an end")


def _after_boot(site: Site) -> None:
    """1. What runs is whole. 2. What boots by default was good. 3. Only a try that is not over runs anything else."""
    hardware = site.hardware
    held, flags = hardware.slots()[hardware.booted()], hardware.flags()
    assert held.digest is not None
    assert site.slot_digest(hardware.booted(), hardware.slot_size(hardware.booted())) == held.digest
    assert hardware.booted() == flags.default or (hardware.booted() == flags.trial and flags.tries == 0)
    default = hardware.slots()[flags.default]
    assert default.release in ("v1", "v2")
    assert site.slot_digest(flags.default, hardware.slot_size(flags.default)) == default.digest


def _count(site: Site) -> list[str]:
    meter = Meter(site)
    _run(site)
    return meter.steps


def test_an_update_cut_at_some_steps(new_site: Callable[..., Site], office: Office, releases: Releases) -> None:
    _cut_updates(new_site, office, releases, every=9)


@pytest.mark.slow
def test_an_update_cut_at_every_step(new_site: Callable[..., Site], office: Office, releases: Releases) -> None:
    _cut_updates(new_site, office, releases, every=1)


def _cut_updates(new_site: Callable[..., Site], office: Office, releases: Releases, every: int) -> None:
    office.assign(releases.v2)
    steps = _count(new_site())
    assert len(steps) > 40
    reboot = steps.index("reboot")
    spent: list[int] = []
    assert {"reboot", "write slot", "write state.json.new"} <= set(steps)
    writes = ("write slots", "write flags", "write grubenv")
    marks = {number for number in range(reboot, len(steps)) if steps[number].startswith(writes)}
    assert len(marks) >= 2
    for cut in sorted({*range(0, len(steps), every), reboot, reboot + 1, reboot + 4, *marks}):
        office.now, office.n = START, 0
        office.assign(releases.v2)
        site = new_site()
        meter = Meter(site, cut)
        _run(site)
        report, where = office.last(), f"cut before step {cut}, {steps[cut]}"
        assert meter.at is None, where
        assert site.device.agent.notes.memory.intent is None, where
        assert site.hardware.flags().trial is None, where
        fell_back = report.attempts == {"v2": 1}
        assert report.image == ("v1" if fell_back else "v2"), where
        spent += [cut] if fell_back else []
        # A slot that fell back was never recorded as one to go back to.
        assert site.hardware.slots()["a"].good is not fell_back, where
        version = site.hardware.version()
        assert (version.current, version.previous) == (("v1", None) if fell_back else ("v2", "v1")), where
        assert not list(site.root.rglob("*.part")), where
        site.transport.close()
        office.reports.clear()
    # An attempt is lost only by a cut after the reboot was asked for and before the mark is durable.
    marked = max(number for number, name in enumerate(steps) if name in ("rename flags.json", "write grubenv"))
    assert reboot < min(spent) <= max(spent) <= marked


@pytest.mark.slow
def test_a_bad_release_cut_at_every_step_always_ends_on_the_old_one(
    new_site: Callable[..., Site], office: Office, releases: Releases
) -> None:
    office.assign(releases.bad)
    steps = _count(new_site())
    for cut in range(len(steps)):
        office.now, office.n = START, 0
        office.assign(releases.bad)
        site = new_site()
        Meter(site, cut)
        _run(site)
        where = f"cut before step {cut}, {steps[cut]}"
        assert office.last().image == "v1", where
        # Counted once, never twice and never lost: the count and the end of the intent are one write.
        assert office.last().attempts == {"v3": 1}, where
        assert site.hardware.flags() == type(site.hardware.flags())("b"), where
        site.transport.close()


@pytest.mark.slow
def test_a_switch_back_cut_at_every_step(new_site: Callable[..., Site], office: Office, releases: Releases) -> None:
    def prepared() -> Site:
        office.now, office.n = START - timedelta(minutes=30), 0
        office.assign(releases.v2)
        site = new_site()
        site.settle(START - timedelta(minutes=10))
        office.now = START
        office.assign(releases.v1)
        return site

    steps = _count(prepared())
    for cut in range(len(steps)):
        site = prepared()
        Meter(site, cut)
        _run(site)
        where = f"cut before step {cut}, {steps[cut]}"
        assert office.last().image == ("v2" if office.last().attempts else "v1"), where
        assert all(slot.good for slot in site.hardware.slots().values()), where
        site.transport.close()


@pytest.mark.slow
def test_configuration_cut_at_every_step(new_site: Callable[..., Site], office: Office) -> None:
    old = SiteConfig("sha256:" + "1" * 64, {"user-data": b"old", "meta-data": b"old"})
    new = SiteConfig("sha256:" + "2" * 64, {"user-data": b"new", "meta-data": b"new"})

    def prepared() -> Site:
        office.now, office.n, office.config = START - timedelta(minutes=30), 0, old
        office.assign(config=old.digest)
        site = new_site()
        site.settle(START - timedelta(minutes=10))
        office.now, office.config = START, new
        office.assign(config=new.digest)
        return site

    steps = _count(prepared())
    for cut in range(len(steps)):
        site = prepared()
        Meter(site, cut)
        try:
            site.settle(END)
        except PowerCut:
            digest = site.hardware.config_digest()
            text = {old.digest: b"old", new.digest: b"new"}[digest or ""]
            folder = site.root / "cidata"
            assert {(folder / name).read_bytes() for name in ("user-data", "meta-data")} == {text}, steps[cut]
            site.device.power_cycle()
            _run(site)
        assert office.last().config == new.digest, f"cut before step {cut}, {steps[cut]}"
        site.transport.close()


@pytest.mark.slow
def test_an_app_cut_at_every_step(new_site: Callable[..., Site], office: Office) -> None:
    first, second = office.push_app(b"one" * 100), office.push_app(b"two" * 100, version="2.9.0")

    def prepared() -> Site:
        office.now, office.n = START - timedelta(minutes=30), 0
        office.assign(apps={"video-ingest": first})
        site = new_site()
        site.settle(START - timedelta(minutes=10))
        office.now = START
        office.assign(apps={"video-ingest": second})
        return site

    steps = _count(prepared())
    for cut in range(len(steps)):
        site = prepared()
        Meter(site, cut)
        try:
            site.settle(END)
        except PowerCut:
            assert site.hardware.apps()["video-ingest"] in (first.digest, second.digest), steps[cut]
            site.device.power_cycle()
            _run(site)
        where = f"cut before step {cut}, {steps[cut]}"
        assert office.last().apps == {"video-ingest": second.digest}, where
        assert office.last().attempts == {}, where
        site.transport.close()


@pytest.mark.slow
def test_two_cuts_in_one_update(new_site: Callable[..., Site], office: Office, releases: Releases) -> None:
    office.assign(releases.v2)
    steps = _count(new_site())
    for cut in range(0, len(steps), 3):
        for again in (1, 4, 9):
            office.now, office.n = START, 0
            office.assign(releases.v2)
            site = new_site()
            meter = Meter(site, cut)
            try:
                site.settle(END)
            except PowerCut:
                meter.at, meter.steps = again, []
                try:
                    site.device.power_cycle()
                except PowerCut:
                    site.device.power_cycle()
            _run(site)
            _after_boot(site)
            assert office.last().image == ("v1" if office.last().attempts else "v2"), f"cuts {cut} and {again}"
            site.transport.close()


def test_the_boot_loader_is_cut_after_it_has_spent_the_try(site: Site, office: Office, releases: Releases) -> None:
    """The try is gone and the old slot boots: one attempt, and the device goes on."""
    office.assign(releases.v2)
    while not site.device.agent.leaving:
        site.device.agent.step(site.now)
    meter = Meter(site)
    meter.at = 3  # flags are written and renamed; the record of the boot is not
    with pytest.raises(PowerCut):
        site.device.power_cycle()
    assert (site.hardware.flags().trial, site.hardware.flags().tries) == ("a", 0)
    site.device.power_cycle()
    _after_boot(site)
    site.settle(END)
    assert (office.last().image, office.last().attempts) == ("v1", {"v2": 1})
    assert site.hardware.slots()["b"] == Slot("v1", releases.v1.digest, True)


def test_an_agent_that_dies_before_it_leaves_a_bad_slot_leaves_it_in_its_next_life(
    site: Site, office: Office, releases: Releases
) -> None:
    """The process ends, the machine does not: the trial was judged and counted, and the slot is still the bad one."""
    office.assign(releases.bad)
    while site.device.agent.work.state is not State.RETURNING:
        office.now = max(office.now, site.step())
    assert site.hardware.booted() == "a"
    site.device = site.new_device()
    site.step()
    assert site.device.agent.work.state is not State.IDLE
    site.settle(END)
    assert (site.hardware.booted(), office.last().image, office.last().attempts) == ("b", "v1", {"v3": 1})


@pytest.mark.parametrize("at", [State.WRITING, State.WRITTEN, State.REBOOTING])
def test_an_agent_that_dies_without_a_reboot_finishes_in_its_next_life(
    site: Site, office: Office, releases: Releases, at: State
) -> None:
    office.assign(releases.v2)
    while site.device.agent.work.state is not at:
        site.step()
    site.device = site.new_device()
    site.settle(END)
    assert (office.last().image, office.last().attempts) == ("v2", {})
    assert site.hardware.flags().trial is None
