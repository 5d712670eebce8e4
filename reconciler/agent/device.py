"""A device over its reboots: makes an agent for each life.

Python 3.10, standard library only. `Device` serves machines whose boot is played (the directory hardware): it boots them
between two lives, and a hundred of them run in one process, each stepped when it is due. `Resident` is the one life of a
real machine: its reboot ends the process, and its init starts the next. Both are for one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from reconciler.agent.agent import Agent, Identity
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import Hardware
from reconciler.agent.judge import Verify
from reconciler.agent.supply import Supply
from reconciler.agent.timing import Timing
from reconciler.agent.transport import Transport
from reconciler.protocol.signature import verify_detached

if TYPE_CHECKING:
    from reconciler.agent.directory import DirectoryHardware


class Life(Protocol):
    """What the loop steps."""

    @property
    def agent(self) -> Agent:
        """The present life."""

    @property
    def is_over(self) -> bool:
        """Whether the machine goes down, and this process with it."""

    def step(self, now: datetime) -> datetime:
        """One step. Returns when to call again."""

    def call_in(self) -> None:
        """Exchange at the next step, whatever the interval says."""

    def clock_moved(self, by: timedelta) -> None:
        """The clock was set by so much."""

    def end(self) -> None:
        """The process stops."""


class Resident:
    """The agent of a real machine."""

    def __init__(
        self,
        identity: Identity,
        hardware: Hardware,
        transport: Transport,
        *,
        timing: Timing,
        verify: Verify,
        disk: Disk,
        supply: Supply,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        """`pulse` is called between the parts of a step that may each take long."""
        self.agent = Agent(
            identity, hardware, transport, timing=timing, verify=verify, disk=disk, supply=supply, pulse=pulse
        )

    @property
    def is_over(self) -> bool:
        return self.agent.leaving

    def step(self, now: datetime) -> datetime:
        return self.agent.step(now)

    def call_in(self) -> None:
        self.agent.call_in()

    def clock_moved(self, by: timedelta) -> None:
        self.agent.clock_moved(by)

    def end(self) -> None:
        self.agent.work.end()


class Device:
    """Identity, machine and network, and the agent that lives there now."""

    def __init__(
        self,
        identity: Identity,
        hardware: DirectoryHardware,
        transport: Transport,
        *,
        timing: Timing | None = None,
        verify: Verify = verify_detached,
        boot_s: float = 0.0,
        supply: Supply | None = None,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        """`boot_s` is how long a reboot takes before the next life begins. `verify` may be a shared
        `signature.Verifier`. `supply` serves every life; files below the hardware's folders unless given. `pulse` is called
        between the parts of a step that may each take long."""
        self.identity, self.hardware, self._supply, self._pulse = identity, hardware, supply, pulse
        self._transport, self._timing, self._verify, self._boot_s = transport, timing or Timing(), verify, boot_s
        self._agent: Agent | None = None

    @property
    def agent(self) -> Agent:
        """The present life."""
        if self._agent is None:
            self._agent = Agent(
                self.identity,
                self.hardware,
                self._transport,
                timing=self._timing,
                verify=self._verify,
                disk=self.hardware.disk,
                supply=self._supply,
                pulse=self._pulse,
            )
        return self._agent

    @property
    def booting(self) -> bool:
        """Whether one life is over and the next has not begun: nobody is there who could be rung."""
        return self._agent is None

    @property
    def is_over(self) -> bool:
        """Never: the machine is a folder, and its next life begins here."""
        return False

    def call_in(self) -> None:
        """Somebody rang: exchange at the next step, whatever the interval says."""
        self.agent.call_in()

    def clock_moved(self, by: timedelta) -> None:
        """The clock was set by so much."""
        if self._agent is not None:
            self._agent.clock_moved(by)

    def step(self, now: datetime) -> datetime:
        """One step of the present life, with the boot after it if it asked for one. Returns when to call again."""
        due = self.agent.step(now)
        if not self.agent.leaving:
            return due
        self.power_cycle()
        return now + timedelta(seconds=self._boot_s)

    def power_cycle(self) -> None:
        """Boot as after a power cut: the present life ends wherever it is."""
        self.end()
        self.hardware.boot()

    def end(self) -> None:
        """End the present life without a boot, as when the process stops. The next step begins another."""
        if self._agent is not None:
            self._agent.work.end()
            self._agent = None
