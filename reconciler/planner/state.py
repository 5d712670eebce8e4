"""The planner's state: columns of observed state and, per row, what the three stages left there. Pure.

`decide` is the definition: all rows through judge → want → ration. `State.step` does the same work for rows that changed, for
rows whose time has come, and for rows of waves whose gates changed; the result is the same, and a property test holds them equal.
Called by `planner.plan` and the controller's loop; rendering to the contract's plan is `planner.render`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.planner.columns import Columns
from reconciler.planner.due import Due
from reconciler.planner.gates import TrackGates
from reconciler.planner.gates import gates as chain
from reconciler.planner.ground import Ground, Nights, Places, ahead_rows, counted_rows, place_rows
from reconciler.planner.judge import CLASSES, Classes, Rows, Tally, classify, in_flight, judge_wave, silent_rows, tally
from reconciler.planner.ration import Blocked, Ration
from reconciler.planner.roster import I8, I32, I64, IMAGE_TRACK, Bools, Roster, membership
from reconciler.planner.sets import distinct, union
from reconciler.planner.want import SETTLED, Wants
from reconciler.planner.want_app import TagVerdict, tags, want_app, want_config
from reconciler.planner.want_image import RESCUE, ROLLBACK, want_image
from reconciler.planner.windows import NEVER

ALL = slice(None)


class Track:
    """What the stages left per row on one track, and the sums per wave."""

    def __init__(self, roster: Roster, *, budgeted: bool = True) -> None:
        size, waves = roster.size, len(roster.waves)
        self.seen: I8 = np.zeros(size, np.int8)
        self.start: I64 = np.zeros(size, np.int64)
        self.target: I32 = np.full(size, -1, np.int32)
        self.why: I8 = np.zeros(size, np.int8)
        self.reason: I8 = np.zeros(size, np.int8)
        self.turn: I8 = np.zeros(size, np.int8)
        self.sums = Tally(np.zeros((waves, CLASSES), np.int64), np.zeros(waves, np.int64))
        self.ration = Ration(roster, budgeted=budgeted)
        self._wanted: I64 = np.zeros(1, np.int64)
        self._back: I64 = np.zeros(1, np.int64)

    @property
    def starts(self) -> Bools:
        """Rows that start in this plan."""
        return self.ration.starts

    def put(self, rows: Rows, wants: Wants) -> None:
        """Keep stage two's answer for some rows, and the sums over targets that follow from it."""
        if isinstance(rows, slice):
            self._wanted, self._back = np.zeros(1, np.int64), np.zeros(1, np.int64)
        else:
            self._count(self.target[rows], self.why[rows], self.reason[rows], -1)
        self._count(wants.target, wants.why, wants.reason, 1)
        self.target[rows], self.why[rows] = wants.target, wants.why
        self.reason[rows], self.turn[rows] = wants.reason, wants.turn

    def _count(self, target: I32, why: I8, reason: I8, sign: int) -> None:
        off = reason != SETTLED
        self._wanted = _added(self._wanted, target[off], sign)
        self._back = _added(self._back, target[off & ((why == ROLLBACK) | (why == RESCUE))], sign)

    def wanted(self) -> list[int]:
        """Codes that some row is off and wants."""
        return (np.flatnonzero(self._wanted[1:])).tolist()

    def gone_back_to(self) -> list[int]:
        """Codes that some row wants to go back to."""
        return (np.flatnonzero(self._back[1:])).tolist()

    @property
    def off(self) -> int:
        """How many rows something is wanted of."""
        return int(self._wanted.sum())


def _added(sums: I64, codes: I32, sign: int) -> I64:
    """Sums per code, the first for "none" (-1), longer where a code is new."""
    more = np.bincount(codes + 1, minlength=len(sums))
    if len(more) > len(sums):
        sums = np.concatenate([sums, np.zeros(len(more) - len(sums), np.int64)])
    sums += sign * more
    return sums


class Flags:
    """A flag a row, and the rows that have it, kept as long as no flag changes."""

    def __init__(self, size: int) -> None:
        self.of: Bools = np.zeros(size, np.bool_)
        self._rows: I64 | None = None

    def put(self, rows: Rows, values: Bools) -> None:
        """Replace the flags of some rows."""
        if not np.array_equal(self.of[rows], values):
            self.of[rows] = values
            self._rows = None

    @property
    def rows(self) -> I64:
        """Rows that have the flag, ascending."""
        if self._rows is None:
            self._rows = np.flatnonzero(self.of)
        return self._rows


Shared = tuple[object, ...]
Taken = dict[str, dict[str, tuple[str, ...]]]


@dataclass(slots=True)
class Signature:
    """What rows depend on besides themselves: two equal signatures need no row looked at again."""

    everyone: Shared
    waves: list[Shared]
    calendars: list[tuple[bool, ...]]


@dataclass(slots=True)
class State:
    """Everything that one plan leaves for the next."""

    roster: Roster
    obs: Columns
    now: int = 0
    tracks: list[Track] = field(init=False)
    config: Track = field(init=False)
    places: Places = field(init=False)
    ground: Ground = field(init=False)
    signature: Signature = field(init=False)
    deadlines: Due = field(init=False)
    tag_verdicts: list[list[TagVerdict]] = field(init=False)
    updating: Bools = field(init=False)
    busy: Bools = field(init=False)
    late_updates: Flags = field(init=False)
    late_restarts: Flags = field(init=False)
    taken_memo: tuple[object, object, object, Taken] | None = None
    silent: Bools = field(init=False)
    ahead: Bools = field(init=False)
    busy_in: I64 = field(init=False)
    """Per site, devices in flight."""
    flying_in: I64 = field(init=False)
    """Per wave, devices in flight; the last entry is for rows in no wave."""
    able_in: list[int] = field(init=False)
    """Per wave, devices that its budgets are percentages of: not suspended, not pinned."""
    seen_in_last: I64 = field(init=False)
    """Per release that git names, the devices of the last wave that run it."""

    def __post_init__(self) -> None:
        size = self.roster.size
        self.tracks = [Track(self.roster) for _ in self.roster.tracks]
        self.config = Track(self.roster, budgeted=False)
        self.updating, self.busy, self.silent, self.ahead = (np.zeros(size, np.bool_) for _ in range(4))
        self.late_updates, self.late_restarts = Flags(size), Flags(size)
        self.deadlines = Due(size)

    # ---- what changed

    def _place(self, site_wave: I32) -> None:
        roster = self.roster
        self.places = place_rows(roster, site_wave)
        wave_of = self.places.wave_of
        able = (wave_of >= 0) & ~roster.suspended_of & (roster.pin_of < 0)
        self.able_in = np.bincount(wave_of[able], minlength=len(roster.waves)).tolist()
        self.busy[:] = False
        self.busy_in = np.zeros(len(roster.site_names), np.int64)
        self.flying_in = np.zeros(len(roster.waves) + 1, np.int64)
        inside = wave_of == len(roster.waves) - 1
        self.seen_in_last = np.zeros(len(roster.releases), np.int64)
        self._count_images(self.obs.image[inside], 1)

    def _count_images(self, image: I32, sign: int) -> None:
        known = image[(image >= 0) & (image < len(self.roster.releases))]
        self.seen_in_last += sign * np.bincount(known, minlength=len(self.roster.releases))

    def _put(self, devices: Iterable[DeviceObservation]) -> I64:
        """Take over reports; returns their rows. The last report of a device stands."""
        last = {self.roster.row_of[device.name]: device for device in devices if device.name in self.roster.row_of}
        rows = np.array(sorted(last), np.int64)
        inside = rows[self.places.wave_of[rows] == len(self.roster.waves) - 1]
        self._count_images(self.obs.image[inside], -1)
        for row, device in last.items():
            self.obs.put(row, device)
        self._count_images(self.obs.image[inside], 1)
        return rows

    # ---- judge

    def observe(self, rows: Rows) -> None:
        """Stage one for some rows: marks of time on each, and its class on every track."""
        roster, obs = self.roster, self.obs
        flight = in_flight(roster, obs, rows, self.now)
        wave_of = self.places.wave_of[rows]
        moved = np.flatnonzero(flight.busy != self.busy[rows])
        sign = np.where(flight.busy[moved], 1, -1)
        np.add.at(self.busy_in, roster.site_of[rows][moved], sign)
        np.add.at(self.flying_in, wave_of[moved], sign)
        self.updating[rows], self.busy[rows] = flight.updating, flight.busy
        self.late_updates.put(rows, flight.update_timed_out)
        self.late_restarts.put(rows, flight.restart_timed_out)
        self.silent[rows] = silent_rows(roster, obs, rows, self.now)
        self.ahead[rows] = ahead_rows(roster, obs, rows, self.places)
        counted = counted_rows(roster, rows, self.places, self.ahead[rows])
        due = np.full(len(wave_of), NEVER, np.int64)
        for number, track in enumerate(self.tracks):
            asked = np.array([wave.ask(number) for wave in roster.waves] + [-1], np.int32)
            classes = classify(roster, obs, rows, self.now, number, asked[wave_of], counted, flight)
            self._add_up(number, rows, classes)
            track.seen[rows], track.start[rows] = classes.seen, classes.start
            np.minimum(due, classes.due, out=due)
        self.deadlines.at[rows] = due

    def _add_up(self, number: int, rows: Rows, classes: Classes) -> None:
        track, waves = self.tracks[number], len(self.roster.waves)
        wave_of = self.places.wave_of
        if isinstance(rows, slice):
            track.sums = tally(waves, wave_of, classes)
            return
        old = Classes(track.seen[rows], track.start[rows], classes.due)
        before, after = tally(waves, wave_of[rows], old), tally(waves, wave_of[rows], classes)
        track.sums.counts += after.counts - before.counts
        track.seen[rows], track.start[rows] = classes.seen, classes.start
        # A wave whose latest instant may have gone away is looked through again; otherwise it can only have risen.
        for wave in np.flatnonzero(before.start > after.start):
            if before.start[wave] >= track.sums.start[wave]:
                after.start[wave] = track.start[wave_of == wave].max()
                track.sums.start[wave] = after.start[wave]
        np.maximum(track.sums.start, after.start, out=track.sums.start)

    def judge(self) -> list[TrackGates]:
        """Stage one for the waves: their gates on every track."""
        out = []
        for number, track in enumerate(self.tracks):
            judged = [
                judge_wave(
                    wave,
                    number,
                    self.places.sites_in[wave.index],
                    track.sums.counts[wave.index],
                    int(track.sums.start[wave.index]),
                    self.now,
                )
                for wave in self.roster.waves
            ]
            out.append(chain(self.roster, self.obs, number, judged))
        return out

    def lay_ground(self) -> None:
        """Join what all rows share."""
        roster = self.roster
        nights = Nights.at(roster, self.now)
        self.ground = Ground(
            roster,
            self.obs,
            self.now,
            self.places,
            nights,
            self.judge(),
            [track.seen for track in self.tracks],
            self.updating,
            self.busy,
            self.late_updates.of,
            self.late_restarts.of,
            self.silent,
            self.ahead,
            self._provision(),
        )
        self.ground.settle()
        self.tag_verdicts = [tags(self.ground, number) for number in roster.tracks if number != IMAGE_TRACK]

    def _provision(self) -> int:
        """The highest release that the last wave is seen on, else what it asks for (fine print 9)."""
        known = len(self.roster.releases)
        seen = np.flatnonzero((self.seen_in_last[:known] > 0) & ~self.roster.withdrawn)
        return int(seen[-1]) if len(seen) else self.roster.waves[-1].image

    def _signature(self) -> Signature:
        """What `_again` compares."""
        ground, nights, waves = self.ground, self.ground.nights, []
        for wave in self.roster.waves:
            parts: list[object] = [bool(ground.paused[wave.index])]
            for gates in ground.gates:
                parts += [gates.entry[wave.index].reason, gates.judged[wave.index].own_held]
            parts += [
                (of.state, of.wanted) for verdicts in self.tag_verdicts for of in verdicts if of.wave == wave.index
            ]
            waves.append(tuple(parts))
        everyone = (
            tuple(tuple(sorted(gates.failed)) for gates in ground.gates),
            ground.frozen,
            ground.published[: len(self.roster.releases)].tobytes(),
            ground.provision,
            tuple(sorted((verdict.key, verdict.wave, verdict.closed) for verdict in self.obs.proofs)),
        )
        bits = (nights.can_flash, nights.flash_missing, nights.can_restart, nights.restart_missing)
        return Signature(everyone, waves, list(zip(*(bit.tolist() for bit in bits), strict=True)))

    def _again(self, new: Signature) -> I64 | None:
        """Rows to look at again because what they share changed; None for all."""
        old = self.signature
        if old.everyone != new.everyone:
            return None
        out = [np.zeros(0, np.int64)]
        for wave, (before, after) in enumerate(zip(old.waves, new.waves, strict=True)):
            if before != after:
                out.append(np.flatnonzero(self.places.wave_of == wave))
        pairs = enumerate(zip(old.calendars, new.calendars, strict=True))
        calendars = [code for code, (before, after) in pairs if before != after]
        if calendars:
            out.append(np.flatnonzero(np.isin(self.roster.calendar_of, calendars)))
        return union(*out)

    # ---- want and ration

    def want(self, rows: Rows, sites: I64 | None) -> None:
        """Stages two and three. Images first, then configurations, then apps: one active action a device.

        `sites` are those of `rows` (None: all). What a track starts is seen by the next: rows that flash do not restart.
        """
        image = self.tracks[IMAGE_TRACK]
        room = self._room()
        blocked = Blocked(self.busy_in, [])
        image.put(rows, want_image(self.ground, rows))
        changed = self._renew(image, blocked, sites, room)
        earlier = [image]
        for number in (-1, *self.roster.tracks[1:]):
            blocked.started.append(earlier[-1].ration.site_starts)
            rows, sites = self._widen(rows, sites, changed)
            acted = earlier[0].starts[rows].copy()
            for other in earlier[1:]:
                acted |= other.starts[rows]
            track = self.config if number < 0 else self.tracks[number]
            track.put(rows, self._wants(rows, number, acted))
            changed = self._renew(track, blocked, sites, room)
            earlier.append(track)

    def _wants(self, rows: Rows, number: int, acted: Bools) -> Wants:
        """Stage two of what comes after the image. `acted` tells which of `rows` an earlier track starts something on."""
        if number < 0:
            return want_config(self.ground, rows, acted)
        return want_app(self.ground, rows, number, self.tag_verdicts[number - 1], acted)

    def _renew(self, track: Track, blocked: Blocked, sites: I64 | None, room: list[int]) -> I64:
        return track.ration.renew(self.places.wave_of, track.reason, track.turn, blocked, sites, room)

    def _widen(self, rows: Rows, sites: I64 | None, changed: I64) -> tuple[Rows, I64 | None]:
        """Rows and sites for the next track: those of this one, and those whose start changed here."""
        if isinstance(rows, slice) or sites is None:
            return rows, None
        more = distinct(self.roster.site_of[changed])
        return union(rows, changed), union(sites, more)

    def _room(self) -> list[int]:
        """Per wave, how many more may start: `maxInFlight` of its devices that are not suspended, less those in flight."""
        return [
            wave.spec.max_in_flight.slots(self.able_in[wave.index]) - int(self.flying_in[wave.index])
            for wave in self.roster.waves
        ]

    # ---- the two ways to plan

    def plan_all(self, now: int) -> None:
        """All rows."""
        self.now = now
        self._place(membership(self.roster, self.obs.members))
        self.observe(ALL)
        self.lay_ground()
        self.want(ALL, None)
        self.signature = self._signature()
        self.deadlines.renew_all()

    def step(self, now: int, devices: Iterable[DeviceObservation] = (), shared: Snapshot | None = None) -> I64 | None:
        """The same plan, from what changed since the last: reports, the stores (`shared`, its devices ignored), the time.

        Returns the rows that were looked at again, or None where it had to be all of them.
        """
        self.now = now
        if shared is not None:
            before = self.obs.members
            self.obs.put_shared(shared)
            if not _same_members(before, self.obs.members):
                self._put(devices)
                self.plan_all(now)
                return None
        rows = union(self._put(devices), self.deadlines.passed(now))
        self.observe(rows)
        self.lay_ground()
        signature = self._signature()
        again = self._again(signature)
        self.signature = signature
        if again is None:
            self.deadlines.renew(rows)
            self.want(ALL, None)
            return None
        looked = union(rows, again)
        self.deadlines.renew(rows)
        self.want(looked, distinct(self.roster.site_of[looked]))
        return looked


def _same_members(old: Mapping[str, I32], new: Mapping[str, I32]) -> bool:
    return old.keys() == new.keys() and all(np.array_equal(old[key], new[key]) for key in old)


def decide(roster: Roster, obs: Columns, now: int) -> State:
    """The definition: plan every row of `obs` at `now` (microseconds)."""
    state = State(roster, obs)
    state.plan_all(now)
    return state
