"""Stage one, *judge*: what the devices of a wave prove about the release it asks for. Pure.

`classify` gives every row one class on one track (the image, or an app), the instant from which its evidence counts, and the
instant at which its class can change by the passing of time alone. `tally` adds classes up per wave, and `judge_wave` turns the
sums into a gate: passed, failed, unresolved, or not yet. Design §4.3 and §4.4, contract fine print 1 to 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from reconciler.planner.columns import CRITICAL, OK, WARNING, Columns
from reconciler.planner.roster import I8, I32, I64, IMAGE_TRACK, Bools, Roster, WaveFacts
from reconciler.planner.windows import NEVER, NONE

Rows = slice | I64
"""Rows to work on: all of them, or those that changed."""


class Seen(IntEnum):
    """What one device says about its wave's release."""

    OUTSIDE = 0
    """Not counted: in no wave, suspended, pinned, ahead, or nothing is asked."""
    FAILED = 1
    SILENT = 2
    """Offline or stale, on another release: neither success nor failure."""
    SILENT_AFTER = 3
    """Offline or stale since it was updated to this release."""
    NEITHER = 4
    """On the release, but neither charged nor credited: critical before it came, or critical by what changed after it."""
    HEALTHY = 5
    PENDING = 6
    """On the release and critical, not yet for `criticalFor`; or its health is not known yet."""
    NOT_THERE = 7


CLASSES = len(Seen)


class Gate(IntEnum):
    """The judgement of a wave for a release."""

    EMPTY = 0
    PASSED = 1
    FAILED = 2
    UNRESOLVED = 3
    INCOMPLETE = 4
    SOAKING = 5


@dataclass(slots=True)
class InFlight:
    """What is being done to rows now. `timed_out` updates and restarts are in flight no more."""

    updating: Bools
    busy: Bools
    """Updating, restarting or being configured."""
    update_timed_out: Bools
    restart_timed_out: Bools
    timeout_at: I64
    """When what is in flight will have timed out; NEVER where nothing is, or where no window ever opens."""
    update_late_at: I64
    """When an update timed out; NONE where none did."""
    restart_late_at: I64


def in_flight(roster: Roster, obs: Columns, rows: Rows, now: int) -> InFlight:
    """Which rows are being updated, restarted or configured, and whose time is up (fine print 1)."""
    since, reboot = obs.updating_since[rows], obs.rebooting_since[rows]
    wanted = obs.updating_to[rows] >= 0
    restarting = obs.restarting_since[rows] != NONE
    configuring = obs.configuring_since[rows] != NONE
    timeout_at = np.full(len(since), NEVER, np.int64)
    index = np.flatnonzero(wanted & (since != NONE))
    if len(index):
        timeout_at[index] = _open_time_is_up(roster, roster.calendar_of[rows][index], since[index])
    silent = wanted & (reboot != NONE) & (obs.last_seen[rows] <= reboot)
    np.minimum(timeout_at, reboot + roster.boot_timeout, out=timeout_at, where=silent)
    update_timed_out = wanted & (timeout_at <= now)
    started = np.where(restarting, obs.restarting_since[rows], obs.configuring_since[rows])
    app_timeout_at = np.where(restarting | configuring, started + roster.update_timeout, NEVER)
    restart_timed_out = (restarting | configuring) & (app_timeout_at <= now)
    updating = wanted & ~update_timed_out
    busy = updating | ((restarting | configuring) & ~restart_timed_out)
    due = np.minimum(np.where(updating, timeout_at, NEVER), np.where(restart_timed_out, NEVER, app_timeout_at))
    update_late_at = np.where(update_timed_out, timeout_at, NONE)
    restart_late_at = np.where(restart_timed_out, app_timeout_at, NONE)
    return InFlight(updating, busy, update_timed_out, restart_timed_out, due, update_late_at, restart_late_at)


def _open_time_is_up(roster: Roster, calendars: I32, since: I64) -> I64:
    """When windows will have been open for `updateTimeout` since each instant; equal questions are answered once."""
    number = len(roster.calendars)
    first = int(since.min())
    questions, inverse = np.unique((since - first) * number + calendars, return_inverse=True)
    answers = [
        roster.calendars[int(question % number)].when_open_for(int(question // number) + first, roster.update_timeout)
        for question in questions
    ]
    out: I64 = np.array(answers, np.int64)[inverse.reshape(-1)]
    return out


def _positions(rows: Rows, table: Mapping[int, object]) -> Iterable[tuple[int, int]]:
    """(position in `rows`, row) of those rows that a sparse table holds."""
    if isinstance(rows, slice):
        return ((row, row) for row in table)
    return ((position, row) for position, row in enumerate(rows.tolist()) if row in table)


def attempts_on(rows: Rows, obs: Columns, keys: Sequence[str], target: I32) -> I32:
    """Per row, the failed attempts on its target. `keys` names each target code."""
    out = np.zeros(len(target), np.int32)
    for position, row in _positions(rows, obs.failed):
        code = int(target[position])
        if code >= 0:
            out[position] = obs.failed[row].get(keys[code], 0)
    return out


def rescued_from(rows: Rows, obs: Columns, target: I32) -> Bools:
    """Per row, whether a rescue from its target is on record (fine print 6)."""
    out = np.zeros(len(target), np.bool_)
    for position, row in _positions(rows, obs.rescued):
        code = int(target[position])
        out[position] = code >= 0 and obs.release_names[code] in obs.rescued[row]
    return out


@dataclass(slots=True)
class Classes:
    """Per row: its class, from when its evidence counts (NONE: no instant), and when time alone can change the class."""

    seen: I8
    start: I64
    due: I64


def silent_rows(roster: Roster, obs: Columns, rows: Rows, now: int) -> Bools:
    """Rows that have not reported for longer than `staleAfter`; exactly `staleAfter` is still fresh (fine print 12)."""
    last = obs.last_seen[rows]
    silent: Bools = (last == NONE) | (last < now - roster.stale_after)
    return silent


def classify(
    roster: Roster, obs: Columns, rows: Rows, now: int, track: int, target: I32, counted: Bools, flight: InFlight
) -> Classes:
    """The class of every row on one track. `target` is what the row's wave asks for (codes; -1: nothing)."""
    silent = silent_rows(roster, obs, rows, now) | obs.conflict[rows]
    health, run = obs.health[rows], obs.health_since[rows]
    critical = health == CRITICAL
    if track == IMAGE_TRACK:
        on, since, attempts = _on_image(roster, obs, rows, target, flight)
        mine = ~_app_changed_last(roster, obs, rows)
        unsaid = obs.health_before[rows] < 0
        before = (obs.health_before[rows] == CRITICAL) | (unsaid & critical & (run != NONE) & (run < since))
        before &= ~obs.worse[rows]
        leaving = flight.updating
        gone_into = flight.update_timed_out & (obs.updating_to[rows] == target)
        fallen = rescued_from(rows, obs, target)
        late_at = np.where(gone_into, flight.update_late_at, NONE)
    else:
        on, since, attempts = _on_app(roster, obs, rows, track, target, flight)
        mine = (since != NONE) & (since > obs.image_since[rows])
        before = critical & (run != NONE) & (since != NONE) & (run < since)
        leaving = flight.busy
        gone_into = np.zeros(len(target), np.bool_)
        fallen = gone_into
        late_at = np.where(obs.restarts(track - 1, rows), flight.restart_late_at, NONE)
    exhausted = ~on & ((attempts >= roster.desired.fleet.attempts) | fallen)
    begin = np.maximum(since, run)
    failed_at = np.where(on & critical & (begin != NONE), begin + roster.critical_for, NEVER)
    long_critical = failed_at <= np.where(silent, np.maximum(obs.last_seen[rows], 0), now)
    failed = exhausted | (long_critical & mine & ~before)
    good = (health == OK) | (health == WARNING)
    there = on & ~leaving
    seen = np.full(len(target), Seen.NOT_THERE, np.int8)
    seen[there] = Seen.PENDING
    seen[there & good & (begin != NONE)] = Seen.HEALTHY
    seen[there & (before | (long_critical & ~mine))] = Seen.NEITHER
    lost = silent & ~flight.updating
    seen[lost] = Seen.SILENT
    seen[lost & (on | gone_into)] = Seen.SILENT_AFTER
    seen[failed] = Seen.FAILED
    seen[~counted | (target < 0)] = Seen.OUTSIDE
    attempt = np.maximum(obs.attempt_failed_at[rows], late_at)
    start = np.full(len(target), NONE, np.int64)
    np.copyto(start, begin, where=seen == Seen.HEALTHY)
    np.copyto(start, np.where(on, failed_at, np.where(attempt == NONE, begin, attempt)), where=seen == Seen.FAILED)
    np.copyto(start, failed_at, where=(seen == Seen.NEITHER) & long_critical & ~before)
    np.copyto(start, obs.last_seen[rows], where=(seen == Seen.SILENT) | (seen == Seen.SILENT_AFTER))
    due = np.where(silent, NEVER, obs.last_seen[rows] + (roster.stale_after + 1))
    np.minimum(due, failed_at, out=due, where=failed_at > now)
    return Classes(seen, start, np.minimum(due, flight.timeout_at))


def _on_image(roster: Roster, obs: Columns, rows: Rows, target: I32, flight: InFlight) -> tuple[Bools, I64, I32]:
    image = obs.image[rows]
    attempts = attempts_on(rows, obs, obs.release_names, target)
    attempts += (flight.update_timed_out & (obs.updating_to[rows] == target)).astype(np.int32)
    return (image == target) & (target >= 0), obs.image_since[rows], attempts


def _on_app(
    roster: Roster, obs: Columns, rows: Rows, track: int, target: I32, flight: InFlight
) -> tuple[Bools, I64, I32]:
    app = roster.apps[track - 1]
    digests = digest_codes(roster, obs, track)[target]
    attempts = attempts_on(rows, obs, [app.key(code) for code in range(len(app.versions))], target)
    attempts += (flight.restart_timed_out & obs.restarts(track - 1, rows)).astype(np.int32)
    running = obs.app_digest[track - 1][rows]
    return (running == digests) & (target >= 0), obs.app_since[track - 1][rows], attempts


def digest_codes(roster: Roster, obs: Columns, track: int) -> I32:
    """Version code → code of its digest in the columns; one entry more, -2, so that target -1 matches nothing."""
    table = obs.app_digest_code[track - 1]
    return np.array([*(table[digest] for digest in roster.apps[track - 1].digests), -2], np.int32)


def _app_changed_last(roster: Roster, obs: Columns, rows: Rows) -> Bools:
    """Rows on which an app that is asked for changed after the image did: critical health is charged to the app."""
    out = np.zeros(len(obs.image[rows]), np.bool_)
    for number in range(len(roster.apps)):
        since = obs.app_since[number][rows]
        out |= (since != NONE) & (obs.image_since[rows] != NONE) & (since > obs.image_since[rows])
    return out


@dataclass(slots=True)
class Tally:
    """Sums per wave on one track: `counts[wave, class]`, and `start[wave]`, the latest instant that bounds the soak."""

    counts: I64
    start: I64


def tally(waves: int, wave_of: I32, classes: Classes) -> Tally:
    """Add up all rows."""
    inside = wave_of >= 0
    codes = wave_of[inside].astype(np.int64) * CLASSES + classes.seen[inside]
    counts = np.bincount(codes, minlength=waves * CLASSES).reshape(waves, CLASSES)
    start = np.full(waves, NONE, np.int64)
    bounding = inside & (classes.start != NONE)
    np.maximum.at(start, wave_of[bounding], classes.start[bounding])
    return Tally(counts, start)


@dataclass(frozen=True, slots=True)
class Judged:
    """A wave's gate on one track, with the counts it was judged by."""

    gate: Gate
    devices: int
    on_release: int
    healthy: int
    failed: int
    offline: int
    soak_ends: int
    """When the soak ends or ended; NEVER unless all are there."""
    own_held: bool
    """The wave's own devices hold too: unresolved by devices that fell silent after the update (fine print 4)."""


def judge_wave(wave: WaveFacts, track: int, sites: int, counts: I64, start: int, now: int) -> Judged:
    """The gate of one wave. Failed is judged first, then unresolved, then what is missing, then the soak."""
    number = [int(value) for value in counts]
    devices = sum(number) - number[Seen.OUTSIDE]
    failed, healthy = number[Seen.FAILED], number[Seen.HEALTHY]
    offline = number[Seen.SILENT] + number[Seen.SILENT_AFTER]
    on_release = healthy + number[Seen.PENDING] + number[Seen.NEITHER] + number[Seen.SILENT_AFTER]
    ends = NEVER
    if sites == 0:
        gate = Gate.EMPTY
    elif wave.spec.max_failed.exceeded_by(failed, devices):
        gate = Gate.FAILED
    elif wave.spec.max_offline.exceeded_by(offline, devices):
        gate = Gate.UNRESOLVED
    elif number[Seen.PENDING] or number[Seen.NOT_THERE]:
        gate = Gate.INCOMPLETE
    elif healthy == 0:
        gate = Gate.UNRESOLVED
    else:
        ends = start + wave.soak_of(track)
        gate = Gate.PASSED if now >= ends else Gate.SOAKING
    held = gate is Gate.UNRESOLVED and number[Seen.SILENT_AFTER] > 0
    return Judged(gate, devices, on_release, healthy, failed, offline, ends, held)
