"""A device that a scene is played on: steps it, cuts its power, makes parts of it fail, and notes the edges that it walks."""

from __future__ import annotations

from datetime import timedelta
from http.server import BaseHTTPRequestHandler

import pytest

from reconciler.agent import work
from reconciler.agent.hardware import HardwareError
from reconciler.agent.machine import Event, State, Transition
from reconciler.agent.timing import Timing
from tests.agent.conftest import Releases
from tests.agent.world import Office, Site, send

S, E = State, Event
Edge = tuple[State, Event]
PIECES = Timing(settle_s=20, recheck_s=10, spread_s=0, least_window_s=0, slice_s=0, report_jitter=0)
"""Every piece of a job is a step of its own."""


class Cut(BaseException):
    """The power goes."""


class Play:
    """A device, its office, and the edges that it has walked."""

    def __init__(self, site: Site, office: Office, releases: Releases, patch: pytest.MonkeyPatch) -> None:
        self.site, self.office, self.releases, self.patch = site, office, releases, patch
        self.walked: list[Edge] = []
        follow = work.follow

        def noting(state: State, event: Event) -> Transition:
            found = follow(state, event)
            self.walked.append((state, event))
            return found

        patch.setattr(work, "follow", noting)
        patch.setattr("os.fsync", lambda _descriptor: None)
        site.device = site.new_device(PIECES)

    @property
    def state(self) -> State:
        return self.site.device.agent.work.state

    def settle(self, minutes: float = 10) -> None:
        self.site.settle(self.office.now + timedelta(minutes=minutes))

    def until(self, state: State) -> None:
        """To the first step after which the agent is in a state."""
        for _ in range(400):
            due = self.site.step()
            if self.state is state:
                return
            self.office.now = max(self.office.now, due)
        raise AssertionError(f"never came to {state.name}; it is in {self.state.name}")

    def power_cut(self) -> None:
        self.site.device.power_cycle()

    def new_process(self) -> None:
        """The process ends and begins again; the machine does not."""
        self.site.device.end()

    def fails(self, name: str, times: int = 1) -> None:
        """A method of the machine fails so many times."""
        whole, left = getattr(self.site.hardware, name), [times]

        def failing(*arguments: object) -> object:
            if left[0]:
                left[0] -= 1
                raise HardwareError(f"{name} does not work")
            return whole(*arguments)

        self.patch.setattr(self.site.hardware, name, failing)

    def away(self, part: str, times: int = 1) -> None:
        """The server answers so many requests for a path with 503."""
        left = [times]

        def busy(request: BaseHTTPRequestHandler) -> bool:
            if part in request.path and left[0]:
                left[0] -= 1
                send(request, 503, b"")
                return True
            return False

        self.office.before = busy

    def updated(self) -> None:
        """v2 runs, and v1 is in the other slot."""
        self.office.assign(self.releases.v2)
        self.settle()
        assert self.office.last().image == "v2"

    def faulty(self, name: str = "disk2") -> None:
        (self.site.root / "faults" / name).write_text("critical")

    def healed(self, name: str = "disk2") -> None:
        (self.site.root / "faults" / name).unlink()
