"""What is kept of what a device tells about itself for people alone: a clock that is wrong, and what it refused. Pure.

Nothing is judged by it. A device whose clock is right and that refuses nothing costs nothing. Called by the fold.
Source: design, section 5.
"""

from __future__ import annotations

from datetime import datetime

from reconciler.model.observed import MOST_MESSAGE, MOST_REFUSALS, ClockSeen, DeviceObservation, RefusalSeen
from reconciler.protocol.report import Report

RIGHT_WITHIN_S = 10
"""A clock further off than this is told of. What a report takes on its way counts too, so less would be noise."""
_SAME_S = 2


def ahead_s(report: Report, received_at: datetime) -> float | None:
    """By how many seconds the device's clock was ahead of the recorder's; None: the device does not tell."""
    return None if report.clock is None else (report.clock.at - received_at).total_seconds()


def clock_seen(before: DeviceObservation, report: Report, received_at: datetime) -> ClockSeen | None:
    """The device's clock, where it is not right. A difference that stays about the same stays what it was, so that the record of a
    device changes when its clock does, and not with every report."""
    ahead = ahead_s(report, received_at)
    if report.clock is None or ahead is None or (report.clock.synchronised and abs(ahead) <= RIGHT_WITHIN_S):
        return None
    seen, known = ClockSeen(synchronised=report.clock.synchronised, ahead_s=round(ahead)), before.clock
    if known is not None and known.synchronised == seen.synchronised and abs(known.ahead_s - ahead) <= _SAME_S:
        return known
    return seen


def refusals_seen(before: DeviceObservation, report: Report, at: datetime) -> tuple[RefusalSeen, ...]:
    """The newest refusals that stand. One that stood before with the same code and serial has stood since then."""
    since = {(item.code, item.serial): item.since for item in before.refusals}
    return tuple(
        RefusalSeen(
            code=item.code,
            reason=item.reason[:MOST_MESSAGE],
            serial=item.serial,
            since=since.get((item.code, item.serial), at),
        )
        for item in report.refusals[-MOST_REFUSALS:]
    )
