"""The ladder's image track: which release each device shall run, what the flash is for, and what may stop it. Pure.

Design §4.1, §4.5, §4.7; contract fine print 5, 6, 9.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reconciler.model.plan import Why
from reconciler.planner.columns import CRITICAL
from reconciler.planner.ground import Ground
from reconciler.planner.judge import Rows, Seen, attempts_on, rescued_from
from reconciler.planner.roster import I8, I32, IMAGE_TRACK, Bools
from reconciler.planner.want import Joined, Wants, climb

WHYS = tuple(Why)
PROMOTE, ROLLBACK, RESCUE, PROVISION, REPAIR = range(5)
LAST_TURN = 2


def want_image(ground: Ground, rows: Rows) -> Wants:
    """Climb the ladder on the image track."""
    target, why = _targets(ground, rows)
    row = _join(ground, rows, target, why)
    reason = climb(row)
    critical = ground.obs.health[rows] == CRITICAL
    turn = np.where(row.back, np.where(critical, 0, 1), LAST_TURN).astype(np.int8)
    return Wants(target, why, reason, turn)


def _targets(ground: Ground, rows: Rows) -> tuple[I32, I8]:
    """The release each row shall run, and what moving there would be for."""
    roster, obs = ground.roster, ground.obs
    wave_of, image, pin = ground.places.wave_of[rows], obs.image[rows], roster.pin_of[rows]
    asked = ground.asks(IMAGE_TRACK)[wave_of]
    pinned = pin >= 0
    target = np.where(pinned, pin, asked).astype(np.int32)
    why = np.full(len(target), PROMOTE, np.int8)

    new = image < 0
    fresh = new & ~pinned & (wave_of >= 0)
    target[fresh] = ground.provision if ground.provision >= 0 else asked[fresh]
    why[new] = PROVISION

    if roster.desired.fleet.on_failure == "rollback":
        # A failed device returns at once to what it ran before; its wave's judgement is not waited for.
        before = np.where(obs.previous[rows] >= 0, obs.previous[rows], obs.inactive[rows])
        failed_on = (ground.seen[IMAGE_TRACK][rows] == Seen.FAILED) & (image == target) & (target >= 0)
        rescue = failed_on & (before >= 0) & (before != image)
        target[rescue] = before[rescue]
        why[rescue] = RESCUE

    rank = ground.rank
    lower = (why == PROMOTE) & (image >= 0) & (target >= 0) & (rank[target] < rank[image]) & (rank[target] >= 0)
    if lower.any():
        why[lower & _ran_before(ground, rows, target)] = ROLLBACK
    upward = (why == PROMOTE) & ~pinned & (target >= 0) & (image >= 0) & (rank[target] > rank[image])
    index = np.flatnonzero(upward & (obs.previous[rows] == target))
    if len(index):
        # It ran the release that its wave has proved, and somebody took it off: drift, not promotion.
        proven = _per_code(ground, obs.proven)
        why[index[proven[target[index], wave_of[index]]]] = REPAIR
    return target, why


def _per_code(ground: Ground, waves_of: Callable[[str], Bools]) -> Bools:
    """A table [release code, wave], filled for releases that git knows; column -1 is "in no wave"."""
    roster = ground.roster
    table = np.zeros((len(ground.obs.release_names) + 1, len(roster.waves) + 1), np.bool_)
    for code, name in enumerate(roster.releases):
        table[code, : len(roster.waves)] = waves_of(name)
    return table


def _ran_before(ground: Ground, rows: Rows, target: I32) -> Bools:
    """Fine print 6: the device or its wave ran it before: `previousImage`, `inactiveSlot`, a proof, members."""
    obs, roster = ground.obs, ground.roster
    out = (obs.previous[rows] == target) | (obs.inactive[rows] == target)
    proven = _per_code(ground, obs.ever_proven)
    out |= proven[target, ground.places.wave_of[rows]]
    for key, taken in obs.members.items():
        code = roster.release_code.get(key, -1)
        if code >= 0:
            out |= (target == code) & (taken[roster.site_of[rows]] >= 0)
    return np.asarray(out, np.bool_)


def waived_back(ground: Ground, back: Bools, critical: Bools) -> Bools:
    """Rows that go back without waiting for a window: critical ones, all, or none (`rollback.ignoreWindow`, fine print 6)."""
    policy = ground.roster.desired.fleet.rollback.ignore_window
    if policy == "all":
        return back
    out: Bools = back & critical & (policy == "true")
    return out


def _join(ground: Ground, rows: Rows, target: I32, why: I8) -> Joined:
    roster, obs = ground.roster, ground.obs
    wave_of, image = ground.places.wave_of[rows], obs.image[rows]
    pinned = roster.pin_of[rows] >= 0
    back = (why == ROLLBACK) | (why == RESCUE)
    known = len(roster.releases)
    foreign = image >= known
    conflict = obs.conflict[rows]
    updating = ground.updating[rows]
    off = ((target >= 0) & (image != target)) | (foreign & (wave_of >= 0)) | conflict | updating
    codes = np.concatenate([roster.withdrawn, np.zeros(len(obs.release_names) - known + 1, np.bool_)])
    entry, held = ground.entries(IMAGE_TRACK)
    attempts = attempts_on(rows, obs, obs.release_names, target)
    attempts += (ground.update_timed_out[rows] & (obs.updating_to[rows] == target)).astype(np.int32)
    exhausted = (attempts >= roster.desired.fleet.attempts) | rescued_from(rows, obs, target)
    calendar = roster.calendar_of[rows]
    waived = (why == PROVISION) | waived_back(ground, back, obs.health[rows] == CRITICAL)
    stopped = ground.stopped(IMAGE_TRACK, len(obs.release_names))
    return Joined(
        off=off,
        conflict=conflict,
        suspended=roster.suspended_of[rows],
        updating=updating,
        serialised=ground.busy[rows] & ~updating,
        silent=ground.silent[rows],
        unknown=foreign,
        ahead=ground.ahead[rows] & ~pinned,
        withdrawn=codes[target],
        stopped=stopped[target],
        paused=ground.paused[wave_of],
        frozen=np.full(len(off), ground.frozen),
        back=back,
        apart=pinned | (why == PROVISION),
        entry=entry[wave_of],
        wave_held=held[wave_of],
        exhausted=exhausted,
        not_ready=~ground.published[target],
        drifted=np.zeros(len(off), np.bool_),
        window_closed=~(ground.nights.can_flash[calendar] | waived),
        window_missing=ground.nights.flash_missing[calendar] & ~waived,
    )
