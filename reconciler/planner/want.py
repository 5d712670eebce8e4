"""Stage two, *want*: the ladder. For every device off its target, the first rung that applies is the reason it is held. Pure.

**This is where the decision to flash a device is made**: `RUNGS`, top to bottom; a row that no rung stops may start, if stage
three (`ration`) has room for it. Rungs are contract fine print 5, in its order; each has its why in one sentence. Predicates
work on `Joined`, device rows with their wave's and site's facts joined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reconciler.model.plan import Reason
from reconciler.planner.roster import I8, I32, Bools

SETTLED = 0
MAY_START = 100
"""Reason codes: 0 nothing is wanted, 1… the `Reason`s in ladder order, 100 no rung holds it."""

REASONS = tuple(Reason)
CODE = {reason: number + 1 for number, reason in enumerate(REASONS)}


@dataclass(slots=True)
class Joined:
    """Device rows on one track with everything a rung may look at. Every field has an entry a row."""

    off: Bools
    """Off its target: something is wanted."""
    conflict: Bools
    suspended: Bools
    updating: Bools
    serialised: Bools
    """Another action on the device is under way, or goes first in this plan."""
    silent: Bools
    unknown: Bools
    """It runs an image that git does not name."""
    ahead: Bools
    withdrawn: Bools
    stopped: Bools
    """A gate failed for its target while the release is open."""
    paused: Bools
    frozen: Bools
    back: Bools
    """It goes back (rollback or rescue): gates, pauses and freezes do not bind it."""
    apart: Bools
    """Pinned or new: it follows no wave, so no wave makes it wait."""
    entry: I8
    """Code of the reason for which its wave may not begin, or 0."""
    wave_held: Bools
    """Its wave is unresolved by devices that fell silent after updating."""
    exhausted: Bools
    not_ready: Bools
    drifted: Bools
    window_closed: Bools
    window_missing: Bools


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung: a reason, the rows that it stops, and why it is there."""

    reason: Reason
    stops: Callable[[Joined], Bools]
    why: str


def _waits(reason: Reason) -> Callable[[Joined], Bools]:
    return lambda row: (row.entry == CODE[reason]) & ~row.back & ~row.apart


def _unresolved(row: Joined) -> Bools:
    waits: Bools = ((row.entry == CODE[Reason.GATE_UNRESOLVED]) | row.wave_held) & ~row.back & ~row.apart
    return waits


RUNGS: tuple[Rung, ...] = (
    Rung(
        Reason.IDENTITY_CONFLICT, lambda row: row.conflict, "Two devices claim one name: nobody knows which would obey."
    ),
    Rung(Reason.SUSPENDED, lambda row: row.suspended, "Git says that nothing is done at this site."),
    Rung(
        Reason.IN_PROGRESS,
        lambda row: row.updating,
        "What is already flashing is not cut off, and nothing is added to it.",
    ),
    Rung(Reason.SERIALISED, lambda row: row.serialised, "One active action a device: the other one goes first."),
    Rung(
        Reason.OFFLINE,
        lambda row: row.silent,
        "A device that does not report cannot be judged; it is offered when it returns.",
    ),
    Rung(
        Reason.UNKNOWN_IMAGE,
        lambda row: row.unknown,
        "Somebody put an image there that git does not name: a person must look.",
    ),
    Rung(Reason.AHEAD, lambda row: row.ahead, "Membership alone never moves a device back."),
    Rung(Reason.WITHDRAWN, lambda row: row.withdrawn, "A withdrawn release is moved to by nobody, not even backwards."),
    Rung(
        Reason.GATE_FAILED,
        lambda row: row.stopped & ~row.back,
        "A failed gate stops the release in every wave while it is open.",
    ),
    Rung(Reason.PAUSED, lambda row: row.paused & ~row.back, "A pause stops what moves forward, never what goes back."),
    Rung(Reason.FROZEN, lambda row: row.frozen & ~row.back, "A freeze stops what moves forward, never what goes back."),
    Rung(
        Reason.WAVE_WAITS,
        _waits(Reason.WAVE_WAITS),
        "An earlier wave has no proof for the release and is not complete.",
    ),
    Rung(Reason.SOAKING, _waits(Reason.SOAKING), "The earlier wave is complete, and its soak runs."),
    Rung(Reason.GATE_UNRESOLVED, _unresolved, "Too many are silent to judge the release by."),
    Rung(Reason.ATTEMPTS_EXHAUSTED, lambda row: row.exhausted, "It failed this release as often as allowed."),
    Rung(Reason.IMAGE_NOT_READY, lambda row: row.not_ready & ~row.back, "Only published releases are flashed."),
    Rung(
        Reason.NO_ROLLBACK_IMAGE,
        lambda row: row.not_ready & row.back,
        "The artifact to go back to is missing or broken.",
    ),
    Rung(
        Reason.TAG_DRIFT, lambda row: row.drifted, "Somebody else moved the tag: a restart would pull who knows what."
    ),
    Rung(Reason.NO_WINDOW, lambda row: row.window_missing, "The coming night has no window."),
    Rung(Reason.OUTSIDE_WINDOW, lambda row: row.window_closed, "The window is closed, or too little of it is left."),
)
"""The ladder. The last reason of all, `budget`, is given by stage three."""


def climb(row: Joined) -> I8:
    """The code of the first rung that stops each row; MAY_START where none does, SETTLED where nothing is wanted."""
    out = np.full(len(row.off), MAY_START, np.int8)
    for rung in reversed(RUNGS):
        np.copyto(out, CODE[rung.reason], where=rung.stops(row))
    out[~row.off] = SETTLED
    return out


@dataclass(slots=True)
class Wants:
    """Stage two's answer on one track: per row its target code, what for, the rung that stops it, and its turn.

    `turn` ranks rows that may start: 0 critical devices that go back, 1 others that go back, 2 the rest.
    """

    target: I32
    why: I8
    reason: I8
    turn: I8
