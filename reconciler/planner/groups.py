"""Holds as groups with a count: what a page shows of a large fleet, without a list of names. Pure.

The same grouping as `render.holds`, from the same codes; a test holds the two equal. A row's key says reason, wave, release and
calendar; rows of one key are counted together, so that a tick in which few rows changed costs those rows. Called by the
controller's board.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from reconciler.model.plan import Hold, Reason
from reconciler.planner.messages import message
from reconciler.planner.render import OF_THE_WAVE, failed_holds, named, tag_holds, until_of
from reconciler.planner.roster import I8, I32, I64, Bools, Roster
from reconciler.planner.state import State
from reconciler.planner.want import MAY_START, REASONS, SETTLED
from reconciler.planner.windows import NEVER, instant

_WAVE, _TARGET, _CALENDAR = 12, 22, 18
"""Bits of a key: 4,000 waves, four million releases, 260,000 calendars."""


@dataclass(frozen=True, slots=True)
class Held:
    """A hold that names no devices, how many it is about (0: it is about a release in a wave, not about devices), the track that
    it is on (-1: the configuration), and the keys of its rows."""

    hold: Hold
    count: int
    track: int
    keys: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Codes:
    """What decides in which group a row is, on one track; arrays over the same rows."""

    reason: I8
    starts: Bools
    target: I32


def keys_of(roster: Roster, number: int, codes: Codes, wave_of: I32, rows: slice | I64) -> I64:
    """The key of each of `rows`; 0 where nothing is held. `codes` and `wave_of` are over all rows, `number` is the track."""
    reason, target, wave = codes.reason[rows], codes.target[rows], wave_of[rows]
    asked = np.array([one.ask(max(number, 0)) for one in roster.waves] + [-1], np.int32)[wave]
    with_wave = (target == asked) & (roster.pin_of[rows] < 0) & (number >= 0)
    key = reason.astype(np.int64)
    for part, bits in ((wave + 1, _WAVE), (target + 1, _TARGET), (roster.calendar_of[rows], _CALENDAR), (with_wave, 1)):
        key <<= bits
        key |= part
    key[(reason == SETTLED) | codes.starts[rows]] = 0
    return key


def held(state: State, counts: Mapping[int, Mapping[int, int]]) -> tuple[Held, ...]:
    """Every hold, sorted as a plan's. `counts` maps track → key → how many rows have it."""
    out: list[Held] = []
    for number, of in counts.items():
        out += _of_track(state, number, of)
    have = {(one.hold.reason, one.hold.wave, one.hold.image, one.hold.app) for one in out}
    for hold in (*failed_holds(state), *tag_holds(state)):
        if (hold.reason, hold.wave, hold.image, hold.app) not in have:
            have.add((hold.reason, hold.wave, hold.image, hold.app))
            out.append(Held(hold, 0, -1))
    return tuple(sorted(out, key=lambda one: (one.hold.sort_key, one.track, -one.count)))


def _of_track(state: State, number: int, counts: Mapping[int, int]) -> Iterable[Held]:
    merged: dict[tuple[Reason, int, int, int, bool], list[int]] = {}
    for key, count in counts.items():
        if key == 0 or count == 0:
            continue
        code, wave, target, calendar, with_wave = _parts(key)
        why = Reason.BUDGET if code == MAY_START else REASONS[code - 1]
        until = until_of(state, number, why, wave, calendar)
        merged.setdefault((why, wave, target, until, why in OF_THE_WAVE and with_wave), []).append(key)
    for (why, wave, target, until, of_wave), keys in merged.items():
        count = sum(counts[key] for key in keys)
        names = () if of_wave else _names(state, number, why, keys, count)
        of = named(state, number, target)
        hold = Hold(
            reason=why,
            wave=state.roster.waves[wave].spec.name if wave >= 0 else None,
            image=of.image,
            app=of.app,
            release=of.release,
            until=None if until == NEVER else instant(until),
            message=message(state, number, why, wave, target, until, names),
        )
        yield Held(hold, count, number, frozenset(keys))


def _names(state: State, number: int, why: Reason, keys: list[int], count: int) -> tuple[str, ...]:
    """As many names as the sentence counts; the names themselves only where it says them."""
    if count > 1 and why is not Reason.UNKNOWN_IMAGE:
        return ("",) * count
    track = state.config if number < 0 else state.tracks[number]
    codes = Codes(track.reason, track.starts, track.target)
    of = keys_of(state.roster, number, codes, state.places.wave_of, slice(None))
    return tuple(sorted(state.roster.device_names[row] for row in np.flatnonzero(np.isin(of, keys))))


def _parts(key: int) -> tuple[int, int, int, int, bool]:
    """Reason code, wave, release, calendar, and whether the wave asks for that release."""
    with_wave, key = bool(key & 1), key >> 1
    calendar, key = key & ((1 << _CALENDAR) - 1), key >> _CALENDAR
    target, key = (key & ((1 << _TARGET) - 1)) - 1, key >> _TARGET
    return key >> _WAVE, (key & ((1 << _WAVE) - 1)) - 1, target, calendar, with_wave
