"""The ladder's app tracks and its configuration track: which digest each device shall run, what may stop a restart. Pure.

Design §4.8, §4.10; contract fine print 5, 7, 13. An app moves by its wave's tag: `tags` decides what each tag should point to,
then devices that run another digest restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from reconciler.model.plan import Reason
from reconciler.planner.columns import CRITICAL
from reconciler.planner.ground import Ground
from reconciler.planner.judge import Rows, attempts_on, digest_codes
from reconciler.planner.roster import I32, Bools
from reconciler.planner.want import Joined, Wants, climb
from reconciler.planner.want_image import LAST_TURN, PROMOTE, ROLLBACK, waived_back


class TagState(IntEnum):
    """What becomes of a wave's tag in this plan."""

    RIGHT = 0
    MOVES = 1
    """A retag is in this plan; restarts follow when the tag was seen there."""
    HELD = 2
    DRIFTED = 3
    """Somebody moved it, and git says to report that and touch nothing."""


@dataclass(frozen=True, slots=True)
class TagVerdict:
    """One wave's tag of one app: where it points, where it shall point, and why it does not move if it does not."""

    wave: int
    app: int
    state: TagState
    current: str | None
    wanted: str | None
    reason: Reason | None = None


def wave_goes_back(ground: Ground, wave: int, track: int) -> bool:
    """Whether a wave ran the app release that it asks for before, so that moving to a lower one is going back."""
    roster, obs = ground.roster, ground.obs
    key = roster.key(track, roster.waves[wave].ask(track))
    if obs.ever_proven(key)[wave]:
        return True
    taken = obs.members.get(key)
    return taken is not None and bool((taken == wave).any())


def tag_verdict(ground: Ground, wave: int, track: int) -> TagVerdict:
    """Where a wave's tag shall point now (design §4.8)."""
    roster, obs = ground.roster, ground.obs
    app, facts = roster.apps[track - 1], roster.waves[wave]
    code = facts.ask(track)
    wanted = app.digests[code]
    current = obs.tags.get(app.name, {}).get(facts.tag)
    ours = obs.tags_set.get(app.name, {}).get(facts.tag)
    known = facts.tag in obs.tags_set.get(app.name, {})
    lower = current in app.digests and code < app.digests.index(current)
    back = lower and wave_goes_back(ground, wave, track)
    halted = ground.halted(wave)
    free = back or (ground.entry_open(wave, track) and halted is None)

    def verdict(state: TagState, to: str | None, reason: Reason | None = None) -> TagVerdict:
        return TagVerdict(wave, track - 1, state, current, to, reason)

    if current == wanted and (free or not known or ours == current):
        return verdict(TagState.RIGHT, wanted)
    if known and ours != current:
        if roster.desired.fleet.tag_drift == "report":
            return verdict(TagState.DRIFTED, wanted, Reason.TAG_DRIFT)
        if halted is not None and not back:
            return verdict(TagState.HELD, wanted, halted)
        return verdict(TagState.MOVES, wanted if free or ours is None else ours)
    if free:
        return verdict(TagState.MOVES, wanted)
    gates = ground.gates[track]
    reason = Reason.GATE_FAILED if code in gates.failed else (halted or gates.entry[wave].reason)
    return verdict(TagState.HELD, wanted, reason)


def tags(ground: Ground, track: int) -> list[TagVerdict]:
    """Every wave's tag of one app. Where waves share a tag, each has its own verdict."""
    waves = ground.roster.waves
    return [tag_verdict(ground, wave.index, track) for wave in waves if wave.ask(track) >= 0]


def want_app(ground: Ground, rows: Rows, track: int, verdicts: list[TagVerdict], acted: Bools) -> Wants:
    """Climb the ladder on one app's track. `acted`: which of `rows` flash or configure in this plan."""
    roster, obs = ground.roster, ground.obs
    app, wave_of = roster.apps[track - 1], ground.places.wave_of[rows]
    target = ground.asks(track)[wave_of]
    digests = digest_codes(roster, obs, track)
    running = obs.app_digest[track - 1][rows]
    image = obs.image[rows]
    off = (target >= 0) & (image >= 0) & (running != digests[target])
    version = _version_of(ground, track)[running]
    lower = off & (version >= 0) & (target < version)
    ran = np.array(
        [wave.ask(track) >= 0 and wave_goes_back(ground, wave.index, track) for wave in roster.waves] + [False]
    )
    back = lower & ran[wave_of]
    moving, restored, drifted = (np.zeros(len(roster.waves) + 1, np.bool_) for _ in range(3))
    for verdict in verdicts:
        moving[verdict.wave] = verdict.state is TagState.MOVES
        # A tag that is only put back leads nobody forward: there the gates say why devices wait.
        restored[verdict.wave] = verdict.wanted != app.digests[roster.waves[verdict.wave].ask(track)]
        drifted[verdict.wave] = verdict.state is TagState.DRIFTED
    entry, held = ground.entries(track)
    keys = [app.key(code) for code in range(len(app.versions))]
    attempts = attempts_on(rows, obs, keys, target)
    attempts += (ground.restart_timed_out[rows] & obs.restarts(track - 1, rows)).astype(np.int32)
    calendar = roster.calendar_of[rows]
    nothing = np.zeros(len(off), np.bool_)
    critical = obs.health[rows] == CRITICAL
    waived = waived_back(ground, back, critical) if app.in_window else ~nothing
    row = Joined(
        off=off,
        conflict=obs.conflict[rows],
        suspended=roster.suspended_of[rows],
        updating=ground.busy[rows],
        serialised=acted | (moving[wave_of] & (back | ~restored[wave_of])),
        silent=ground.silent[rows],
        unknown=image >= len(roster.releases),
        ahead=nothing,
        withdrawn=nothing,
        stopped=ground.stopped(track, len(app.versions))[target],
        paused=ground.paused[wave_of],
        frozen=np.full(len(off), ground.frozen),
        back=back,
        apart=nothing,
        entry=entry[wave_of],
        wave_held=held[wave_of],
        exhausted=attempts >= roster.desired.fleet.attempts,
        not_ready=nothing,
        drifted=drifted[wave_of],
        window_closed=~(ground.nights.can_restart[calendar] | waived),
        window_missing=ground.nights.restart_missing[calendar] & ~waived,
    )
    turn = np.where(back, np.where(critical, 0, 1), LAST_TURN).astype(np.int8)
    why = np.where(back, ROLLBACK, PROMOTE).astype(np.int8)
    return Wants(target, why, climb(row), turn)


def _version_of(ground: Ground, track: int) -> I32:
    """Digest code → code of its (highest) version, -1 for digests that git does not name; index -1 is "none"."""
    table = ground.obs.app_digest_code[track - 1]
    out = np.full(len(table) + 1, -1, np.int32)
    for code, digest in enumerate(ground.roster.apps[track - 1].digests):
        out[table[digest]] = code
    return out


def want_config(ground: Ground, rows: Rows, flashing: Bools) -> Wants:
    """Rows whose configuration differs from the one that their site's spec renders to. Pauses and gates do not bind it."""
    roster, obs = ground.roster, ground.obs
    target = roster.config_of[1][rows]
    reported = obs.config[rows]
    nothing = np.zeros(len(target), np.bool_)
    row = Joined(
        off=(target >= 0) & (reported >= 0) & (reported != target),
        conflict=obs.conflict[rows],
        suspended=roster.suspended_of[rows],
        updating=ground.updating[rows],
        serialised=(ground.busy[rows] & ~ground.updating[rows]) | flashing,
        silent=ground.silent[rows],
        unknown=obs.image[rows] >= len(roster.releases),
        ahead=nothing,
        withdrawn=nothing,
        stopped=nothing,
        paused=nothing,
        frozen=nothing,
        back=nothing,
        apart=nothing,
        entry=np.zeros(len(target), np.int8),
        wave_held=nothing,
        exhausted=nothing,
        not_ready=nothing,
        drifted=nothing,
        window_closed=nothing,
        window_missing=nothing,
    )
    size = len(target)
    return Wants(target, np.full(size, PROMOTE, np.int8), climb(row), np.full(size, LAST_TURN, np.int8))
