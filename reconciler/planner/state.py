"""The planner's state: columns of observed state and, per row, what the three stages left there. Pure.

`decide` is the definition: all rows through judge → want → ration. `State.step` does the same work for rows that changed, for
rows whose time has come, and for rows of waves whose gates changed; the result is the same, and a property test holds them equal.
Called by `planner.plan` and the controller's loop; rendering to the contract's plan is `planner.render`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.planner.columns import Columns
from reconciler.planner.gates import TrackGates, gates
from reconciler.planner.ground import Ground, Nights, Places, ahead_rows, counted_rows, place_rows
from reconciler.planner.judge import CLASSES, Classes, Rows, Tally, classify, in_flight, judge_wave, silent_rows, tally
from reconciler.planner.ration import cut, site_picks
from reconciler.planner.roster import I8, I32, I64, IMAGE_TRACK, Bools, Roster, membership
from reconciler.planner.want import MAY_START, SETTLED, Wants
from reconciler.planner.want_app import TagVerdict, tags, want_app, want_config
from reconciler.planner.want_image import want_image
from reconciler.planner.windows import NEVER

ALL = slice(None)


@dataclass(slots=True)
class Track:
    """What the stages left per row on one track, and the sums per wave."""

    seen: I8
    start: I64
    target: I32
    why: I8
    reason: I8
    turn: I8
    starts: Bools
    sums: Tally

    @classmethod
    def empty(cls, size: int, waves: int) -> Track:
        """Nothing judged yet."""
        small = [np.zeros(size, np.int8) for _ in range(4)]
        sums = Tally(np.zeros((waves, CLASSES), np.int64), np.zeros(waves, np.int64))
        return cls(
            small[0],
            np.zeros(size, np.int64),
            np.full(size, -1, np.int32),
            small[1],
            small[2],
            small[3],
            np.zeros(size, np.bool_),
            sums,
        )

    def put(self, rows: Rows, wants: Wants) -> None:
        """Keep stage two's answer for some rows."""
        self.target[rows], self.why[rows] = wants.target, wants.why
        self.reason[rows], self.turn[rows] = wants.reason, wants.turn


@dataclass(slots=True)
class State:
    """Everything that one plan leaves for the next."""

    roster: Roster
    obs: Columns
    now: int = 0
    tracks: list[Track] = field(default_factory=list)
    config: Track = field(init=False)
    places: Places = field(init=False)
    ground: Ground = field(init=False)
    tag_verdicts: list[list[TagVerdict]] = field(default_factory=list)
    updating: Bools = field(init=False)
    busy: Bools = field(init=False)
    update_timed_out: Bools = field(init=False)
    restart_timed_out: Bools = field(init=False)
    silent: Bools = field(init=False)
    ahead: Bools = field(init=False)
    due: I64 = field(init=False)
    seen_in_last: I64 = field(init=False)

    def __post_init__(self) -> None:
        size, waves = self.roster.size, len(self.roster.waves)
        self.tracks = [Track.empty(size, waves) for _ in self.roster.tracks]
        self.config = Track.empty(size, waves)
        self.updating, self.busy, self.silent, self.ahead, self.update_timed_out, self.restart_timed_out = (
            np.zeros(size, np.bool_) for _ in range(6)
        )
        self.due = np.full(size, NEVER, np.int64)

    # ---- judge

    def observe(self, rows: Rows) -> None:
        """Stage one for some rows: marks of time on each, and its class on every track."""
        roster, obs = self.roster, self.obs
        flight = in_flight(roster, obs, rows, self.now)
        self.updating[rows], self.busy[rows] = flight.updating, flight.busy
        self.update_timed_out[rows] = flight.update_timed_out
        self.restart_timed_out[rows] = flight.restart_timed_out
        self.silent[rows] = silent_rows(roster, obs, rows, self.now)
        self.ahead[rows] = ahead_rows(roster, obs, rows, self.places)
        counted = counted_rows(roster, rows, self.places, self.ahead[rows])
        wave_of = self.places.wave_of[rows]
        due = np.full(len(wave_of), NEVER, np.int64)
        for number, track in enumerate(self.tracks):
            asked = np.array([wave.ask(number) for wave in roster.waves] + [-1], np.int32)
            classes = classify(roster, obs, rows, self.now, number, asked[wave_of], counted, flight)
            self._add_up(number, rows, classes)
            track.seen[rows], track.start[rows] = classes.seen, classes.start
            np.minimum(due, classes.due, out=due)
        self.due[rows] = due

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
            out.append(gates(self.roster, self.obs, number, judged))
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
            self.update_timed_out,
            self.restart_timed_out,
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

    def count_last(self) -> None:
        """How many devices of the last wave run each release."""
        inside = self.places.wave_of == len(self.roster.waves) - 1
        image = self.obs.image[inside]
        self.seen_in_last = np.bincount(image[image >= 0], minlength=len(self.obs.release_names) + 1)

    # ---- want and ration

    def want(self, rows: Rows) -> None:
        """Stages two and three. Images first, then configurations, then apps: one active action a device."""
        image = self.tracks[IMAGE_TRACK]
        site_busy = self._busy_sites()
        room = self._room()
        image.put(rows, want_image(self.ground, rows))
        self._ration(image, site_busy, room)
        self.config.put(rows, want_config(self.ground, rows, image.starts))
        self._ration(self.config, site_busy, None)
        acted = image.starts | self.config.starts
        for number, track in enumerate(self.tracks):
            if number != IMAGE_TRACK:
                track.put(rows, want_app(self.ground, rows, number, self.tag_verdicts[number - 1], acted))
                self._ration(track, site_busy, room)
                acted = acted | track.starts

    def _busy_sites(self) -> Bools:
        busy = np.zeros(len(self.roster.site_names), np.bool_)
        busy[self.roster.site_of[self.busy]] = True
        return busy

    def _room(self) -> list[int]:
        """Per wave, how many more may start: `maxInFlight` of its devices that are not suspended, less those in flight."""
        wave_of = self.places.wave_of
        waves = len(self.roster.waves)
        able = (wave_of >= 0) & ~self.roster.suspended_of & (self.roster.pin_of < 0)
        size = np.bincount(wave_of[able], minlength=waves)
        flying = np.bincount(wave_of[self.busy & (wave_of >= 0)], minlength=waves)
        return [
            wave.spec.max_in_flight.slots(int(size[wave.index])) - int(flying[wave.index]) for wave in self.roster.waves
        ]

    def _ration(self, track: Track, site_busy: Bools, room: list[int] | None) -> None:
        picks = site_picks(self.roster, track.reason, track.turn, site_busy)
        if room is not None and len(picks):
            keep = cut(self.places.wave_of, track.turn, picks, room)
            picks = picks[keep]
            for wave, used in enumerate(np.bincount(self.places.wave_of[picks], minlength=len(room))):
                room[wave] -= int(used)
        track.starts[:] = False
        track.starts[picks] = True
        site_busy[self.roster.site_of[picks]] = True

    # ---- the two ways to plan

    def plan_all(self, now: int) -> None:
        """All rows."""
        self.now = now
        site_wave = membership(self.roster, self.obs.members)
        self.places = place_rows(self.roster, site_wave)
        self.observe(ALL)
        self.count_last()
        self.lay_ground()
        self.want(ALL)


def decide(roster: Roster, obs: Columns, now: int) -> State:
    """The definition: plan every row of `obs` at `now` (microseconds)."""
    state = State(roster, obs)
    state.plan_all(now)
    return state


__all__ = ["MAY_START", "SETTLED", "DeviceObservation", "Iterable", "Snapshot", "State", "decide"]
