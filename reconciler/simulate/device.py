"""One simulated device: the real agent on a machine in memory, stepped only when something can happen.

A report that would say nothing new and be told nothing new is not played: the device is *parked* until its work goes on, its
health changes, or somebody rings. A device that nobody can reach is *silent* until its work goes on or the line is back. Both are
what stepping through every report would have come to; a test holds them equal. Stepped by `simulate.fleet`. Source: the timing
model of `timings`; design §5.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from reconciler.agent.agent import Agent, Identity
from reconciler.agent.judge import Keyring, Verify
from reconciler.agent.machine import State
from reconciler.agent.timing import Timing
from reconciler.protocol.report import overall
from reconciler.simulate.hardware import Condition, MemoryHardware
from reconciler.simulate.network import Far, Link
from reconciler.simulate.signing import verify as verify_simulated
from reconciler.simulate.supply import Depot, MemorySupply
from reconciler.simulate.timings import SPREAD_S
from reconciler.simulate.watch import NOBODY, Watch

TIMING = Timing(spread_s=SPREAD_S, report_jitter=0)
"""As on a real device, but in step: the forecast has to know when a report comes."""
SPINS = 100
"""Steps at one instant after which a device is said to run in a circle."""
_NEXT = timedelta(seconds=1)
_ON_THE_LINE = frozenset({State.FETCHING, State.PULLING})
_AT_A_SLOT = frozenset({State.WRITING, State.WRITTEN, State.REBOOTING, State.TRIAL, State.RETURNING})


class SimDevice:
    """A device over its lives. `hardware`, `supply` and `link` may be set up before `begin` or `settle` is called."""

    __slots__ = (
        "_agent", "_begins_at", "_called_at", "_critical", "_due_at", "_far", "_health_at", "_is_parked", "_is_silent",
        "_quiet_since", "_verify", "hardware", "identity", "link", "name", "parking", "supply", "watch",
    )  # fmt: skip

    def __init__(
        self,
        identity: Identity,
        far: Far,
        depot: Depot,
        key: Keyring,
        *,
        watch: Watch | None = None,
        verify: Verify = verify_simulated,
        parking: bool = True,
    ) -> None:
        """A bare machine that does nothing yet. `key` verifies assignments. With `parking` off every report is played."""
        self.identity, self.name, self._far, self._verify, self.parking = (
            identity,
            identity.device,
            far,
            verify,
            parking,
        )
        self.watch = watch or NOBODY
        self.hardware = MemoryHardware(identity.device, far.clock, keys={"assignment": key}, watch=self.watch)
        self.link = Link(identity.device, far)
        self.supply = MemorySupply(identity.site, self.hardware, self.link, depot)
        self._agent: Agent | None = None
        self._begins_at: datetime | None = None
        self._due_at: datetime | None = None
        self._called_at: datetime | None = None
        self._health_at: datetime | None = None
        self._quiet_since: tuple[datetime, int] | None = None
        self._is_parked = self._is_silent = self._critical = False

    @property
    def agent(self) -> Agent | None:
        """The present life; None while the machine boots, or where nothing has made it necessary yet."""
        return self._agent

    @property
    def is_parked(self) -> bool:
        """Whether its reports go on and are not played."""
        return self._is_parked

    @property
    def is_at_work(self) -> bool:
        """Whether it has more to do by itself than to go on reporting, or to see its assignment expire."""
        if self._begins_at or self._called_at or self._health_at or self.link.late:
            return True
        agent = self._agent
        if agent is None:
            return False
        # A parked device whose health has changed says so with its next report.
        tells = self._is_parked and self._due_at is not None and agent.has_news()
        return tells or agent.work.state is not State.IDLE or not (self._is_parked or self._is_silent)

    @property
    def wakes_at(self) -> datetime | None:
        """When to step it next; None: not by itself."""
        found, health_at = self._due_at, self._health_at
        if self._begins_at is not None:
            found, health_at = self._begins_at, None
        for other in (self._called_at, health_at, *(at for at, _ in self.link.late)):
            if other is not None and (found is None or other < found):
                found = other
        return found

    # ------------------------------------------------------------ how it stands at first

    def begin(self, at: datetime) -> None:
        """Its first life begins at `at`, with an exchange."""
        self._begins_at = at

    def settle(self, last_at: datetime, every_s: int) -> None:
        """It has been running quietly, reported last at `last_at`, and is parked."""
        self._quiet_since = (last_at, every_s)
        self._is_parked = self.link.is_reaching
        self._is_silent = not self._is_parked
        self._health_at = self.hardware.health_changes_at()
        self._critical = overall(self.hardware.healthcheck()) == "critical"
        if self._is_parked:
            self.watch.parked(self.name, last_at, every_s)

    # ------------------------------------------------------------ what happens to it

    def ring(self, at: datetime) -> None:
        """Somebody rings at `at`: it exchanges then, if it can be reached and runs."""
        if self._called_at is None or at < self._called_at:
            self._called_at = at

    def hear(self, after: datetime) -> None:
        """Something new waits for it since `after`: it hears of it with its next report after that."""
        if self._is_parked:
            agent = self._living()
            agent.pass_reports(after + _NEXT, answered=True)
            self._due_at = _first(self._due_at, agent.reports_at)

    def cut_line(self, now: datetime) -> None:
        """Its line is down from now on."""
        before, self.link.is_up = self.link.is_reaching, False
        self.reach_changed(now, was_reaching=before)

    def restore_line(self, now: datetime) -> None:
        """Its line is up from now on."""
        before, self.link.is_up = self.link.is_reaching, True
        self.reach_changed(now, was_reaching=before)

    def reach_changed(self, now: datetime, *, was_reaching: bool) -> None:
        """The line, or what it leads to, went down or came back. Reports that were due until now, this instant included, met
        what was there before."""
        is_reaching = self.link.is_reaching
        if was_reaching == is_reaching or self._begins_at is not None:
            return
        if not is_reaching:
            self._unpark(now + _NEXT)
            agent, self._is_silent = self._agent, self.parking
            if agent is not None and agent.work.state in _ON_THE_LINE:
                self._due_at = now
            elif self.parking:
                self._due_at = None if agent is None else agent.work_wakes_at
        elif self._is_silent:
            agent = self._living()
            agent.pass_reports(now + _NEXT, answered=False)
            self._is_silent = False
            self._due_at = _first(agent.work_wakes_at, agent.reports_at)

    def power_cut(self, now: datetime, off_s: int = 0) -> None:
        """The power goes, for `off_s` seconds: what was not durable is lost, and the machine boots."""
        self._end_life(now + _NEXT)
        if self.hardware.flags().trial is None:
            self.hardware.end("dropped")
        self.supply.lose_power()
        self.hardware.boot()
        self._begins_at = now + timedelta(seconds=off_s + self.supply.boot_s)

    def impose(self, conditions: tuple[Condition, ...], now: datetime) -> None:
        """From now on these conditions, and no others, show in its healthcheck."""
        self.hardware.conditions = conditions
        self._look_at_health(now)

    # ------------------------------------------------------------ stepping

    def step(self, now: datetime) -> None:
        """Everything that is due now. `clock.at` must be `now`."""
        if self.link.late:
            self.link.deliver(now)
        rung = self._called_at is not None and self._called_at <= now
        if rung:
            self._called_at = None
        if self._begins_at is not None:
            if self._begins_at > now:
                return
            self._begins_at, self._due_at = None, now
        elif self._health_at is not None and self._health_at <= now:
            self._look_at_health(now)
        if rung and self.link.is_reaching:
            self._unpark(now)
            self._living().call_in()
            self._due_at = now
        if self._due_at is not None and self._due_at <= now:
            self._live(now)

    def _live(self, now: datetime) -> None:
        self._unpark(now)
        agent = self._living()
        if self._is_silent:
            agent.pass_reports(now, answered=False)
            self._is_silent = False
        for _ in range(SPINS):
            due_at = agent.step(now)
            if agent.leaving:
                self._end_life(now)
                self.hardware.boot()
                self._begins_at = now + timedelta(seconds=self.supply.boot_s)
                return
            if due_at > now:
                break
        else:
            raise AssertionError(f"{self.name} runs in a circle: {agent.work.state.name}")
        if self.hardware.doing is not None and agent.work.state not in _AT_A_SLOT:
            self.hardware.end("dropped")
        self._rest(agent, now)

    def _rest(self, agent: Agent, now: datetime) -> None:
        """When there is something to play again."""
        self._look_at_health(now)
        self._due_at = agent.work_wakes_at
        if self.parking and not self.link.is_reaching:
            self._is_silent = True
        elif self.parking and agent.reached and self.link.is_clean and not agent.has_news():
            self._park(agent)
        else:
            self._due_at = _first(self._due_at, agent.reports_at)

    def _living(self) -> Agent:
        if self._agent is None:
            agent = Agent(
                self.identity,
                self.hardware,
                self.link,
                timing=TIMING,
                verify=self._verify,
                supply=self.supply,
                memory=self.hardware,
            )
            if self._quiet_since is not None:
                last_at, every_s = self._quiet_since
                agent.report_from(last_at + timedelta(seconds=every_s), every_s)
                self._quiet_since = None
            self._agent = agent
        return self._agent

    def _end_life(self, until: datetime) -> None:
        self._unpark(until)
        if self._agent is not None:
            self._agent.work.end()
        self._agent = self._due_at = self._quiet_since = self._called_at = None
        self._is_silent = False

    # ------------------------------------------------------------ parking

    def _park(self, agent: Agent) -> None:
        assert agent.reports_at is not None
        self._is_parked = True
        every = agent.report_every_s
        self.watch.parked(self.name, agent.reports_at - timedelta(seconds=every), every)

    def _unpark(self, until: datetime) -> None:
        """Its reports are played again; those that were due before `until` were answered."""
        if not self._is_parked:
            return
        agent, self._is_parked = self._living(), False
        agent.pass_reports(until, answered=True)
        assert agent.reports_at is not None
        self.watch.woken(self.name, agent.reports_at - timedelta(seconds=agent.report_every_s))

    def _look_at_health(self, now: datetime) -> None:
        """Tell a change of the true health, and let a parked device report it with its next report."""
        hardware = self.hardware
        self._health_at = hardware.health_changes_at()
        if not hardware.conditions and hardware.sick is None and not self._critical:
            return
        critical = overall(hardware.healthcheck()) == "critical"
        if critical != self._critical:
            self._critical = critical
            self.watch.health(self.name, now, critical=critical)
        if self._is_parked:
            agent = self._living()
            if agent.has_news():
                agent.pass_reports(now, answered=True)
                self._due_at = _first(self._due_at, agent.reports_at)


def _first(*instants: datetime | None) -> datetime | None:
    return min((at for at in instants if at is not None), default=None)
