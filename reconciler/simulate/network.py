"""The line between a simulated device and the controller: up or down, and sometimes it loses, doubles, delays or replays.

Carries bytes and reads none of them; what an answer is worth is judged by the real agent. Deterministic from the random source that
it is handed. Called by the agent as its transport, and by `simulate.device` for what arrives late. Source: design §5, "Protocol".
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from reconciler.agent.transport import NotFound, TransportError
from reconciler.protocol.exchange import SiteConfig
from reconciler.simulate.hardware import Time

_KEPT_ANSWERS = 4


class Controller(Protocol):
    """The other end. TransportError: it does not answer."""

    def exchange(self, device: str, report: bytes, now: datetime) -> bytes:
        """Take a device's report; the answer's bytes."""

    def config(self, device: str, now: datetime) -> SiteConfig:
        """The rendered configuration of a device's site."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Shares, in [0, 1], of what goes wrong with single exchanges."""

    lost: float = 0.0
    """The report does not arrive, or its answer does not: each as often."""
    late: float = 0.0
    """The report arrives up to `late_s` seconds later, behind ones that were sent after it, and its answer reaches nobody."""
    doubled: float = 0.0
    """The report arrives twice."""
    replayed: float = 0.0
    """An answer from before takes the place of the answer, as from a cache or an attacker."""
    late_s: int = 180


class Far:
    """What all lines lead to, and the instant: one for a fleet. `is_up`: whether anybody answers there."""

    __slots__ = ("clock", "controller", "exchanges", "is_up")

    def __init__(self, controller: Controller, clock: Time) -> None:
        self.controller, self.clock = controller, clock
        self.is_up = True
        self.exchanges = 0
        """Reports that were sent off, over all lines."""


class Link:
    """One device's line: `agent.transport.Transport`."""

    __slots__ = ("_answers", "_draw", "_far", "_noise", "device", "is_clean", "is_up", "late")

    def __init__(self, device: str, far: Far) -> None:
        self.device, self._far = device, far
        self.is_up = True
        self.is_clean = True
        """Whether the last exchange brought the answer that the controller gave to it."""
        self.late: list[tuple[datetime, bytes]] = []
        """Reports that are still under way, with the instants at which they arrive."""
        self._noise: Noise | None = None
        self._draw: random.Random | None = None
        self._answers: deque[bytes] | None = None

    def disturb(self, noise: Noise | None, draw: random.Random) -> None:
        """From now on single exchanges go wrong (None: no more)."""
        self._noise, self._draw = noise, draw
        if self._answers is None:
            self._answers = deque(maxlen=_KEPT_ANSWERS)

    @property
    def is_reaching(self) -> bool:
        """Whether the line is up and somebody answers."""
        return self.is_up and self._far.is_up

    def deliver(self, now: datetime) -> None:
        """Let late reports arrive that are due. Their answers reach nobody."""
        due = sorted((item for item in self.late if item[0] <= now), key=lambda item: item[0])
        self.late = [item for item in self.late if item[0] > now]
        for _, report in due:
            try:
                self._far.controller.exchange(self.device, report, now)
            except TransportError:
                continue

    # ------------------------------------------------------------ agent.transport.Transport

    def exchange(self, report: bytes) -> bytes:
        far = self._far
        far.exchanges += 1
        if not self.is_up or not far.is_up:
            self.is_clean = False
            raise TransportError("the line is down" if not self.is_up else "the server does not answer")
        if self._noise is None or self._draw is None:
            self.is_clean = True
            answer = far.controller.exchange(self.device, report, far.clock.at)
            if self._answers is not None:
                self._answers.append(answer)
            return answer
        return self._disturbed(report, self._noise, self._draw)

    def _disturbed(self, report: bytes, noise: Noise, draw: random.Random) -> bytes:
        far, now, answers = self._far, self._far.clock.at, self._answers
        assert answers is not None
        self.is_clean = False
        # Always as many draws, so that one share changes nothing of what another does.
        lost, late, doubled, replayed = draw.random(), draw.random(), draw.random(), draw.random()
        delay_s, which = draw.randint(1, max(1, noise.late_s)), draw.random()
        if lost < noise.lost / 2:
            raise TransportError("the report was lost")
        if late < noise.late:
            self.late.append((now + timedelta(seconds=delay_s), report))
            raise TransportError("no answer came in time")
        answer = far.controller.exchange(self.device, report, now)
        if doubled < noise.doubled:
            answer = far.controller.exchange(self.device, report, now)
        if lost < noise.lost:
            raise TransportError("the answer was lost")
        if replayed < noise.replayed and answers:
            return answers[int(which * len(answers))]
        answers.append(answer)
        self.is_clean = True
        return answer

    def config(self) -> bytes:
        if not self.is_reaching:
            raise TransportError("the line is down")
        return self._far.controller.config(self.device, self._far.clock.at).to_bytes()

    def read(self, url: str, limit: int, headers: Mapping[str, str] | None = None) -> bytes:
        raise NotFound("a simulated line carries no files", status=404)

    def stream(
        self, url: str, offset: int, limit: int, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Iterator[bytes]]:
        raise NotFound("a simulated line carries no files", status=404)
