"""When an image may begin: in a window by a clock that is right, or where a waiver leads to a slot that was good."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from reconciler.agent import window
from reconciler.agent.hardware import Clock
from reconciler.agent.machine import State
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.report import Slot
from tests.agent.conftest import Releases
from tests.agent.world import DEVICE, START, Office, Site

WRONG, RIGHT = Clock(False), Clock(True, 0.0)
HOUR = timedelta(hours=1)


@pytest.fixture
def clock(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[Clock], None]:
    """Sets what the site's machine says of its clock."""
    return lambda said: monkeypatch.setattr(site.hardware, "clock", lambda: said)


# ---------------------------------------------------------------- the clock

pytestmark = pytest.mark.system


def test_by_a_clock_that_nobody_vouches_for_no_window_opens(
    site: Site, office: Office, releases: Releases, clock: Callable[[Clock], None]
) -> None:
    clock(WRONG)
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=10))
    report = office.last()
    assert [(item.code, item.serial) for item in report.refusals] == [("clock-unsynchronised", (1, 1))]
    assert (report.image, report.slots["a"], report.attempts) == ("v1", Slot(), {})
    assert list((site.root / "agent" / "cache").rglob("manifest.json")), "it was fetched all the same"
    clock(RIGHT)
    site.settle(START + timedelta(minutes=12))
    assert (office.last().image, office.last().refusals) == ("v2", ())


def test_a_clock_that_is_lost_while_it_writes_holds_the_reboot(
    site: Site, office: Office, releases: Releases, clock: Callable[[Clock], None]
) -> None:
    office.assign(releases.v2)
    while site.device.agent.work.state is not State.WRITTEN:
        site.step()
    clock(WRONG)
    site.settle(START + timedelta(minutes=5))
    assert site.device.agent.work.state is State.WRITTEN
    assert [item.code for item in office.last().refusals] == ["clock-unsynchronised"]
    assert site.hardware.flags().trial is None
    clock(RIGHT)
    site.settle(START + timedelta(minutes=7))
    assert office.last().image == "v2"


def test_outside_of_a_window_nobody_asks_for_the_time(
    site: Site, office: Office, releases: Releases, clock: Callable[[Clock], None]
) -> None:
    clock(WRONG)
    office.assign(releases.v2, window=((START + HOUR, START + 2 * HOUR),))
    site.settle(START + HOUR - timedelta(minutes=1))
    assert office.last().refusals == ()


# ---------------------------------------------------------------- waivers


def test_a_waiver_for_what_was_never_here_waits_for_a_window(site: Site, office: Office, releases: Releases) -> None:
    opens = START + 3 * HOUR
    office.assign(releases.v2, window=((opens, opens + HOUR),), window_waived=True)
    site.settle(opens - timedelta(seconds=1))
    report = office.last()
    assert [(item.code, item.serial) for item in report.refusals] == [("waiver-refused", (1, 1))]
    assert (report.image, site.hardware.slots()["a"]) == ("v1", Slot())
    assert not (site.root / "slot-a.img").exists()
    site.settle(opens + timedelta(minutes=2))
    assert (office.last().image, office.last().refusals) == ("v2", ())


def test_a_waiver_back_to_a_slot_that_was_good_is_obeyed_at_once_whatever_the_clock_says(
    site: Site, office: Office, releases: Releases, clock: Callable[[Clock], None]
) -> None:
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=2))
    clock(WRONG)
    office.assign(releases.v1, window=(), window_waived=True)
    site.settle(START + timedelta(minutes=4))
    assert (office.last().image, office.last().refusals) == ("v1", ())


def test_a_waiver_to_a_slot_that_fell_back_waits(site: Site, office: Office, releases: Releases) -> None:
    """The bytes are there and whole, but the slot was never good."""
    office.assign(releases.bad)
    site.settle(START + timedelta(minutes=5))
    assert site.hardware.slots()["a"] == Slot("v3", releases.bad.digest, False)
    office.assign(releases.bad, window=(), window_waived=True)
    site.settle(START + timedelta(minutes=10))
    assert [item.code for item in office.last().refusals] == ["waiver-refused"]
    assert office.last().attempts == {"v3": 1}


def test_a_waiver_is_forgotten_with_its_assignment(site: Site, office: Office, releases: Releases) -> None:
    office.assign(releases.v2, window=(), window_waived=True)
    site.settle(START + timedelta(minutes=2))
    assert [item.code for item in office.last().refusals] == ["waiver-refused"]
    office.assign()
    site.settle(START + timedelta(minutes=4))
    assert office.last().refusals == ()


def test_a_device_on_which_nothing_runs_obeys_a_waiver(
    new_site: Callable[..., Site], office: Office, releases: Releases
) -> None:
    bare = new_site(None)
    office.assign(releases.v2, window=(), window_waived=True)
    bare.settle(START + timedelta(minutes=2))
    assert office.last().image == "v2"


def test_a_slot_that_could_not_be_recognised_is_not_nothing(site: Site, office: Office, releases: Releases) -> None:
    booted, image = Slot(), releases.v2.target
    told = Assignment(DEVICE, (1, 1), START, START + HOUR, image, window_waived=True)
    slots = {"a": booted, "b": Slot()}
    assert window.waives(told, image, slots, "a", is_bare=True)
    assert not window.waives(told, image, slots, "a", is_bare=False)
