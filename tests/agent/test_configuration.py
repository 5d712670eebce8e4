"""A configuration that takes its time to be in force, or never is: what the agent reports, and what it puts back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError
from reconciler.agent.seed import Seed
from reconciler.protocol.exchange import SiteConfig
from tests.agent.world import START, Office, Site


class Unit:
    """edge-configure.service, played: `pauses` answers that it still runs, then the exit status for what is stored."""

    def __init__(self, seed_of: Callable[[], Seed]) -> None:
        self.seed_of = seed_of
        self.pauses, self.statuses = 0, dict[str | None, int]()
        self.begun: list[str | None] = []
        self._left = 0

    def begin(self) -> None:
        self.begun.append(self.seed_of().digest())
        self._left = self.pauses
        if self.statuses.get(self.begun[-1]) == -1:
            raise HardwareError("systemctl start did not answer")

    def ended(self) -> int | None:
        if self._left > 0:
            self._left -= 1
            return None
        return self.statuses.get(self.begun[-1], 0)

    def meaning(self, status: int) -> str:
        return {13: "a service does not run with it"}.get(status, "it failed")


ONE, TWO = (
    SiteConfig("sha256:" + digit * 64, {"user-data": f"secret {digit}\n".encode(), "meta-data": b"x\n"})
    for digit in "12"
)


@pytest.fixture
def site(new_site: Callable[..., Site], office: Office) -> Site:
    """A device on which configuration one is in force."""
    office.config = ONE
    office.assign(config=ONE.digest)
    made = new_site()
    made.settle(START + timedelta(minutes=2))
    assert office.last().config == ONE.digest
    return made


@pytest.fixture
def unit(site: Site) -> Unit:
    made = Unit(lambda: site.hardware.seed)
    site.hardware.seed = Seed(site.hardware.seed.folder, Disk(), made)
    return made


def _assign_two(office: Office) -> None:
    office.config = TWO
    office.assign(config=TWO.digest)


def _codes(office: Office) -> list[str]:
    return [refusal.code for refusal in office.last().refusals]


def test_the_agent_goes_on_while_it_is_put_in_force(site: Site, unit: Unit, office: Office) -> None:
    unit.pauses = 40  # Of half a second each.
    _assign_two(office)
    due = site.step()
    begun = site.now
    while office.last().phase != "configuring" or due == site.now:
        office.now = max(site.now, due)
        due = site.step()
    assert due - site.now <= timedelta(seconds=1), "it waits in pieces"
    site.settle(START + timedelta(minutes=5))
    assert unit.begun == [TWO.digest], "and begins once"
    assert office.last().config == TWO.digest and office.last().refusals == ()
    assert site.now - begun >= timedelta(seconds=20)


@pytest.mark.slow
@pytest.mark.parametrize(("status", "says"), [(13, "exit status 13, a service does not run"), (-1, "did not answer")])
def test_one_that_cannot_be_put_in_force_is_put_back(
    status: int, says: str, site: Site, unit: Unit, office: Office
) -> None:
    unit.statuses = {TWO.digest: status}
    _assign_two(office)
    site.settle(START + timedelta(minutes=5))
    assert unit.begun == [TWO.digest, ONE.digest], "what was in force before is put in force again, and that is all"
    assert office.last().config == ONE.digest
    (refusal,) = office.last().refusals
    assert refusal.code == "config-not-in-force" and says in refusal.reason
    assert "secret" not in refusal.reason
    site.settle(START + timedelta(minutes=30))
    assert unit.begun == [TWO.digest, ONE.digest], "not tried again under the same assignment"
    unit.statuses = {}
    _assign_two(office)
    site.settle(START + timedelta(minutes=35))
    assert office.last().config == TWO.digest and office.last().refusals == ()


def test_one_that_makes_a_check_worse_is_put_back_and_the_one_before_put_in_force(
    site: Site, unit: Unit, office: Office
) -> None:
    ended = unit.ended

    def breaking() -> int | None:
        fault = site.root / "faults" / "vpn"
        if unit.begun[-1] == TWO.digest:
            fault.parent.mkdir(exist_ok=True)
            fault.write_text("critical no handshake")
        else:
            fault.unlink()
        return ended()

    unit.ended = breaking  # type: ignore[method-assign]
    _assign_two(office)
    site.settle(START + timedelta(minutes=5))
    assert unit.begun == [TWO.digest, ONE.digest]
    assert (office.last().config, _codes(office)) == (ONE.digest, ["health-worse"])


def test_where_neither_can_be_put_in_force_it_ends_and_says_so(site: Site, unit: Unit, office: Office) -> None:
    unit.statuses = {TWO.digest: 13, ONE.digest: 11}
    _assign_two(office)
    site.settle(START + timedelta(minutes=10))
    assert unit.begun == [TWO.digest, ONE.digest]
    assert (office.last().config, _codes(office)) == (ONE.digest, ["config-not-in-force"])
    assert office.last().phase == "idle"


def test_an_agent_that_was_killed_meanwhile_has_it_put_in_force_before_it_judges(
    site: Site, unit: Unit, office: Office
) -> None:
    unit.pauses = 10**6
    _assign_two(office)
    site.settle(START + timedelta(minutes=3))
    assert unit.begun == [TWO.digest]
    unit.pauses = 0
    site.device = site.new_device()
    site.settle(START + timedelta(minutes=6))
    assert unit.begun == [TWO.digest, TWO.digest]
    assert office.last().config == TWO.digest


def test_an_agent_that_was_killed_while_it_put_one_back_does_so_before_anything_else(
    site: Site, unit: Unit, office: Office
) -> None:
    unit.statuses = {TWO.digest: 13}
    _assign_two(office)
    for _ in range(50):
        office.now = max(site.now, site.step())
        if unit.begun == [TWO.digest] and site.hardware.config_digest() == ONE.digest:
            break
    # The one before is stored, and not in force.
    office.config = None
    site.device = site.new_device()
    site.settle(START + timedelta(minutes=6))
    assert unit.begun[:2] == [TWO.digest, ONE.digest]
    assert office.last().config == ONE.digest
