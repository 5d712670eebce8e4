"""What a commit will do to a fleet, and when: the real planner in a closed loop of virtual time, devices by formula. Pure.

Source: design §4 and §6. Called by `review`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from reconciler.model.desired import Desired
from reconciler.model.observed import Snapshot
from reconciler.simulate.start import Silent
from reconciler.simulate.trace import Trace

LIMIT = timedelta(days=120)


def forecast(
    desired: Desired,
    observed: Snapshot,
    at: datetime,
    *,
    before: Desired | None = None,
    silent: Silent = "stay",
    limit: timedelta = LIMIT,
) -> Trace:
    """The trace of `desired` coming into force at `at`."""
    raise NotImplementedError
