"""A device over its reboots: makes an agent for each life, and boots the machine between them.

Python 3.10, standard library only. Serves machines whose boot is played (the directory hardware); a real one ends the
process when it reboots, and its init starts the next. One `Device` is for one thread; a hundred of them run in one
process, each stepped when it is due.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from reconciler.agent.agent import Agent, Identity
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.judge import Verify
from reconciler.agent.supply import Supply
from reconciler.agent.timing import Timing
from reconciler.agent.transport import Transport
from reconciler.protocol.signature import verify_detached


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
    ) -> None:
        """`boot_s` is how long a reboot takes before the next life begins. `verify` may be a shared
        `signature.Verifier`. `supply` serves every life; files below the hardware's folders unless given."""
        self.identity, self.hardware, self._supply = identity, hardware, supply
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
            )
        return self._agent

    @property
    def booting(self) -> bool:
        """Whether one life is over and the next has not begun: nobody is there who could be rung."""
        return self._agent is None

    def call_in(self) -> None:
        """Somebody rang: exchange at the next step, whatever the interval says."""
        self.agent.call_in()

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
