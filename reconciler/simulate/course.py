"""What is simulated, and what came of it. Values alone. Made by the command line, tests and benchmarks; played by `run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from reconciler.controller.settings import Settings
from reconciler.model.desired import Desired
from reconciler.model.observed import Snapshot
from reconciler.simulate.faults import Faults
from reconciler.simulate.oracle import Violation
from reconciler.simulate.start import Silent
from reconciler.simulate.trace import Entry, Exposure, Trace, calendar_of

LIMIT = timedelta(days=120)


@dataclass(frozen=True, slots=True)
class Merge:
    """What is pushed to the branch, and when. `rewrites` drops the commit before it, which no controller may follow."""

    at: datetime
    changes: Mapping[str, bytes | None]
    message: str = "Change the fleet"
    rewrites: bool = False


@dataclass(frozen=True, slots=True)
class Course:
    """What is played. `files` is the fleet repo when it begins, by path; without `observed` the fleet is at rest in it."""

    files: Mapping[str, bytes]
    at: datetime
    merges: Sequence[Merge] = ()
    observed: Snapshot | None = None
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    silent: Silent = "stay"
    limit: timedelta = LIMIT
    to_the_end: bool = False
    """Go on until the limit, though nothing would happen any more."""
    states: bool = False
    """Write down how the waves' states change: a picture wants it, and it costs each tick."""
    settings: Settings | None = None
    """Of the real controller, where they are known: its signers and allowances bind then."""


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a course."""

    course: Course
    trace: Trace
    desired: Desired
    waves: Mapping[str, str]
    """Site → wave, at the end."""
    violations: Sequence[Violation]
    unproven: Exposure
    """The most devices ever on a release that their wave had not proven."""
    bad: Exposure
    """The most devices ever on a release that the course calls bad."""
    devices: int
    ticks: int
    exchanges: int

    @property
    def calendar(self) -> tuple[Entry, ...]:
        """When each wave starts, ends and proves what is asked for."""
        return calendar_of(self.trace)
