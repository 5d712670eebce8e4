"""When an image may be written and booted: the assignment's windows, this device's place in them, and what a waiver waives.

Python 3.10, standard library only: runs as root on a device. Pure: it is told the instant, and what the slots hold.
Whether the clock that tells the instant is right is looked at by `work`, which is the only caller. Source: design,
sections 4.5 and 5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta

from reconciler.protocol.assignment import Assignment, ImageTarget
from reconciler.protocol.report import Slot


def opens(
    assignment: Assignment, device: str, now: datetime, *, spread_s: float, least_window_s: float
) -> datetime | None:
    """`now` if a window is open to this device, else when that will be, or None. Devices spread over a window's start."""
    share = int.from_bytes(hashlib.sha256(device.encode()).digest()[:4], "big") / 2**32
    least = timedelta(seconds=least_window_s)
    for start, end in assignment.window:
        spread = min(timedelta(seconds=spread_s), (end - start) / 10)
        begin = start + timedelta(seconds=round(spread.total_seconds() * share))
        if now + least <= end and now < end:
            return max(begin, now)
    return None


def waives(
    assignment: Assignment, image: ImageTarget, slots: Mapping[str, Slot], booted: str, *, is_bare: bool
) -> bool:
    """Whether the assignment's waiver is one that a device obeys.

    It is, where it leads to a slot that was good with this very image: that is a rescue, and it brings nothing that was not
    here and proven. It is also where nothing runs (`is_bare`), so that nothing is disturbed. A waiver for anything else waits
    for a window, so that whoever can sign assignments still cannot put something new on every device at noon.
    """
    if not assignment.window_waived:
        return False
    other = slots["b" if booted == "a" else "a"]
    return is_bare or (other.good and other.digest == image.digest)
