"""When the healthcheck runs again for a report, and when its last result still says how the device is.

Python 3.10, standard library only: runs as root on a device. Decides that alone: the healthcheck is the hardware's, and a
judgement (before an update, in a trial, after an activation or a restart) never asks here, it runs it. Called by `agent`.

A report tells how the device is now, and a healthcheck starts dozens of programs: where reports come faster than it can
be had at a small share of the machine's time, it would be the load that it looks for. So a good result stands until twenty
times what it took has passed, five minutes at most. One that takes less than a second is had with every report, and so is
one that was not good: a single slow check must not be told for longer than it was so. Source: docs/reference/device.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from reconciler.protocol.report import Check, overall

CHEAP_S = 1.0
TIMES = 20
LONGEST_S = 300.0
GOOD = ("ok", "warning")


class Pace:
    """The last result, for as long as it stands."""

    def __init__(self, count: Callable[[], float] = time.monotonic) -> None:
        """`count` is the machine's own count of seconds: what a run takes is of real time, whatever the clock says."""
        self._count = count
        self._last: tuple[object, tuple[Check, ...], datetime, datetime] | None = None

    def forget(self) -> None:
        """Something was begun that may change how the device is."""
        self._last = None

    def checks(self, run: Callable[[], tuple[Check, ...]], what: object, now: datetime) -> tuple[Check, ...]:
        """The last result where it stands for `what`, the things that a report tells beside it; else a new one of `run`."""
        if self._last is not None:
            was, checks, since, until = self._last
            # Before `since`: the clock has been set back.
            if was == what and since <= now < until:
                return checks
        began = self._count()
        checks = run()
        took_s = self._count() - began
        self._last = None
        if took_s >= CHEAP_S and overall(checks) in GOOD:
            self._last = (what, checks, now, now + timedelta(seconds=min(took_s * TIMES, LONGEST_S)))
        return checks
