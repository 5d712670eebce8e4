"""What the last tick left, for people: waves, holds, flags, conditions, and every site and device as columns. A value.

A `Board` never changes: its columns are copies that are shared with the board before where nothing in them changed. Rows are made
when somebody looks at them, a page at a time. Decides nothing: it names the codes that the planner left. Made by
`controller.boards` after every tick; read by the HTTP service from any thread.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np

from reconciler.controller.board_rows import HEALTHS, STATES, DeviceState, Rows
from reconciler.model.desired import Desired
from reconciler.model.observed import Health, Snapshot
from reconciler.model.plan import Action, DeviceFact, Hold, Reason, WaveStatus
from reconciler.planner.groups import Held, keys_of
from reconciler.planner.roster import I8, I64, IMAGE_TRACK, Bools, Roster
from reconciler.planner.want import MAY_START, REASONS, SETTLED
from reconciler.planner.windows import NONE, instant
from reconciler.ports import ConditionRow

__all__ = ["STATES", "TROUBLE", "AppOnDevice", "Asked", "Board", "DeviceRow", "DeviceState", "SiteRow"]

TROUBLE = (DeviceState.FAILED, DeviceState.CRITICAL, DeviceState.SILENT, DeviceState.WARNING)
"""States in which somebody has to look at a device, the worst first."""


CONFIGURATION = "configuration"
"""The track that is no image's and no app's."""


@dataclass(frozen=True, slots=True)
class AppOnDevice:
    """An app on a device: versions where git knows the digest, else the digest. `target` None: nothing is wanted."""

    running: str | None
    target: str | None


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device as lists show it. `holds` are the reasons why something wanted does not start, by track (`image`, `configuration`,
    or the app's name)."""

    name: str
    site: str
    wave: str | None
    state: DeviceState
    health: Health
    image: str | None
    target: str | None
    previous: str | None
    inactive: str | None
    updating_to: str | None
    holds: Mapping[str, Reason]
    last_seen: datetime | None
    health_since: datetime | None
    image_since: datetime | None
    worse: bool
    conflict: bool
    suspended: bool
    pinned: bool
    flagged: bool
    apps: Mapping[str, AppOnDevice]


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A site as lists and the grid show it: the state of its worst device, and how many devices are in each."""

    name: str
    wave: str | None
    state: DeviceState
    devices: int
    counts: Mapping[DeviceState, int]
    lab: bool
    suspended: bool
    timezone: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a list of devices is cut down to; None and empty: everything. `q` is a part of a device's or a site's name."""

    wave: str | None = None
    site: str | None = None
    state: DeviceState | None = None
    health: Health | None = None
    release: str | None = None
    """Devices that run it, or that are being moved to it: `v1.4.2`, or `video-ingest@2.8.0`."""
    flagged: bool | None = None
    q: str = ""


@dataclass(frozen=True)
class Board:
    """One reading of everything. `rows` and `desired` are None before anything was planned, and `as_of` is then the instant of the
    plan on record that the rest was taken from, if there is one; `generation` rises when something that
    a person could see has changed, which `last_seen` alone is not; `at` is the instant of the tick."""

    generation: int
    at: datetime
    commit: str | None
    desired: Desired | None
    observed: Snapshot
    """What the stores hold: artifacts, tags, proofs, failures, members, proposals; no devices."""
    waves: tuple[WaveStatus, ...]
    holds: tuple[Held, ...]
    flagged: tuple[DeviceFact, ...]
    actions: tuple[Action, ...]
    conditions: tuple[ConditionRow, ...]
    refused: tuple[str, str] | None
    """The branch's head that is not acted on, and why."""
    wake_at: datetime | None
    rows: Rows | None
    as_of: datetime | None = None

    @cached_property
    def states(self) -> I8:
        """Per row, the position of its state in `STATES`."""
        return np.zeros(0, np.int8) if self.rows is None else self.rows.states()

    @cached_property
    def next_change_at(self) -> datetime | None:
        """The earliest `until` of a hold."""
        return min((one.hold.until for one in self.holds if one.hold.until is not None), default=None)

    @cached_property
    def counts(self) -> Mapping[DeviceState, int]:
        """How many devices are in each state."""
        sums = np.bincount(self.states, minlength=len(STATES))
        return {state: int(sums[number]) for number, state in enumerate(STATES)}

    @property
    def devices_in_all(self) -> int:
        """How many devices git names."""
        return len(self.states)

    # ------------------------------------------------ devices

    def device(self, name: str) -> DeviceRow | None:
        """One device; None where git names none that is called so."""
        row = None if self.rows is None else self.rows.roster.row_of.get(name)
        return None if row is None else self._device(row)

    def devices(self, asked: Asked | None = None, *, after: str | None = None, limit: int = 100) -> Sequence[DeviceRow]:
        """A page of devices by name, those behind the name `after`."""
        return [self._device(row) for row in self._page(self.matching(asked or Asked()), after, limit)]

    def in_trouble(self, limit: int) -> Mapping[DeviceState, tuple[int, Sequence[DeviceRow]]]:
        """Devices that failed, are critical, are silent, or warn: how many, and the first by name. One that warns while it is held
        or updated counts among those; a kind that no device is in is left out."""
        rows, found = self.rows, dict[DeviceState, tuple[int, Sequence[DeviceRow]]]()
        if rows is None:
            return found
        masks = {state: self.states == STATES.index(state) for state in TROUBLE}
        others = [STATES.index(state) for state in (DeviceState.UPDATING, DeviceState.HELD)]
        masks[DeviceState.WARNING] |= np.isin(self.states, others) & (rows.health == HEALTHS.index(Health.WARNING))
        for state, mask in masks.items():
            if total := int(mask.sum()):
                found[state] = total, [self._device(row) for row in self._page(mask, None, limit)]
        return found

    def count(self, asked: Asked) -> int:
        """How many devices a list has in all."""
        return int(self.matching(asked).sum())

    def matching(self, asked: Asked) -> Bools:
        """Per row, whether the device is in a list."""
        rows = self.rows
        if rows is None:
            return np.zeros(0, np.bool_)
        out = np.ones(len(self.states), np.bool_)
        if asked.wave is not None:
            out &= rows.wave_of == rows.roster.wave_code.get(asked.wave, len(rows.roster.waves))
        if asked.site is not None:
            out &= rows.roster.site_of == rows.roster.site_code.get(asked.site, -1)
        if asked.state is not None:
            out &= self.states == STATES.index(asked.state)
        if asked.health is not None:
            out &= rows.health == HEALTHS.index(asked.health)
        if asked.release is not None:
            out &= self._running(rows, asked.release)
        if asked.flagged is not None:
            out &= (self.states == STATES.index(DeviceState.FAILED)) == asked.flagged
        if asked.q:
            out &= _named(rows, asked.q.lower())
        return out

    def of_hold(self, held: Held, limit: int = 100) -> Sequence[str]:
        """Names of the devices that a hold is about, the first of them by name."""
        rows = self.rows
        if rows is None or not held.keys:
            return held.hold.devices[:limit]
        codes = rows.config if held.track < 0 else rows.tracks[held.track]
        of = keys_of(rows.roster, held.track, codes, rows.wave_of, slice(None))
        mask = np.isin(of, list(held.keys))
        return [rows.roster.device_names[row] for row in self._page(mask, None, limit)]

    def holds_of(self, name: str) -> Mapping[str, Hold]:
        """Track → the hold that a device is in, of the tracks on which something is held."""
        rows, row = self.rows, None if self.rows is None else self.rows.roster.row_of.get(name)
        if rows is None or row is None:
            return {}
        found, at = {}, np.array([row], np.int64)
        for track, _ in _holds(rows, row):
            number = -1 if track == CONFIGURATION else _track(rows, track)
            codes = rows.config if number < 0 else rows.tracks[number]
            key = int(keys_of(rows.roster, number, codes, rows.wave_of, at)[0])
            if (hold := self._by_key.get((number, key))) is not None:
                found[track] = hold
        return found

    @cached_property
    def _by_key(self) -> Mapping[tuple[int, int], Hold]:
        return {(one.track, key): one.hold for one in self.holds for key in one.keys}

    def running(self, release: str) -> int:
        """How many devices run a release: `v1.4.2`, or `video-ingest@2.8.0`."""
        return 0 if self.rows is None else int(self._running(self.rows, release, moving=False).sum())

    def running_in(self, release: str) -> Mapping[str, int]:
        """Wave → how many of its devices run a release; the empty name is for devices in no wave."""
        if self.rows is None:
            return {}
        of = self.rows.wave_of[self._running(self.rows, release, moving=False)]
        sums = np.bincount(of + 1, minlength=1) if len(of) else np.zeros(1, np.int64)
        return {_wave(self.rows.roster, code - 1) or "": int(sums[code]) for code in np.flatnonzero(sums).tolist()}

    def images(self) -> Mapping[str, int]:
        """Image releases that devices run → how many do."""
        if self.rows is None:
            return {}
        known = self.rows.image[self.rows.image >= 0]
        sums = np.bincount(known) if len(known) else np.zeros(0, np.int64)
        return {self.rows.releases[code]: int(sums[code]) for code in np.flatnonzero(sums).tolist()}

    @staticmethod
    def _running(rows: Rows, release: str, *, moving: bool = True) -> Bools:
        app, at_sign, version = release.partition("@")
        if not at_sign:
            try:
                code = list(rows.releases).index(release)
            except ValueError:
                return np.zeros(len(rows.image), np.bool_)
            on = rows.image == code
            return np.asarray(on | (rows.updating_to == code) if moving else on, np.bool_)
        number = rows.roster.app_code.get(app, -1)
        if number < 0 or version not in rows.roster.apps[number].versions:
            return np.zeros(len(rows.image), np.bool_)
        facts = rows.roster.apps[number]
        digest = facts.digests[facts.versions.index(version)]
        table = rows.digests[number]
        code = table.index(digest) if digest in table else -2
        return np.asarray(rows.app_digest[number] == code, np.bool_)

    def _page(self, mask: Bools, after: str | None, limit: int) -> list[int]:
        rows = self.rows
        if rows is None:
            return []
        order, names = rows.index.devices, rows.roster.device_names
        first = 0 if after is None else bisect.bisect_right(order, after, key=lambda row: names[row])
        found: I64 = order[first:]
        page: list[int] = found[mask[found]][:limit].tolist()
        return page

    def _device(self, row: int) -> DeviceRow:
        rows = self.rows
        assert rows is not None
        roster, site = rows.roster, int(rows.roster.site_of[row])
        image = rows.tracks[IMAGE_TRACK]
        wanted = int(image.target[row])
        return DeviceRow(
            name=roster.device_names[row],
            site=roster.site_names[site],
            wave=_wave(roster, int(rows.wave_of[row])),
            state=STATES[self.states[row]],
            health=HEALTHS[rows.health[row]],
            image=_release(rows, int(rows.image[row])),
            target=_release(rows, wanted) if image.reason[row] != SETTLED else _release(rows, int(rows.image[row])),
            previous=_release(rows, int(rows.previous[row])),
            inactive=_release(rows, int(rows.inactive[row])),
            updating_to=_release(rows, int(rows.updating_to[row])),
            holds=dict(_holds(rows, row)),
            last_seen=_instant(rows.last_seen[row]),
            health_since=_instant(rows.health_since[row]),
            image_since=_instant(rows.image_since[row]),
            worse=bool(rows.worse[row]),
            conflict=bool(rows.conflict[row]),
            suspended=bool(roster.suspended_of[row]),
            pinned=bool(roster.pin_of[row] >= 0),
            flagged=STATES[self.states[row]] is DeviceState.FAILED,
            apps=dict(_apps(rows, row)),
        )

    # ------------------------------------------------ sites

    @cached_property
    def site_counts(self) -> I64:
        """Per site and state, how many devices."""
        if self.rows is None:
            return np.zeros((0, len(STATES)), np.int64)
        sites, of = len(self.rows.roster.site_names), self.rows.roster.site_of.astype(np.int64)
        sums = np.bincount(of * len(STATES) + self.states, minlength=sites * len(STATES))
        return sums.reshape(sites, len(STATES))

    @cached_property
    def site_states(self) -> I8:
        """Per site, the position of its state in `STATES`: that of its worst device."""
        there = self.site_counts > 0
        states = np.where(there.any(axis=1), there.argmax(axis=1), STATES.index(DeviceState.GOOD))
        return states.astype(np.int8)

    @cached_property
    def site_totals(self) -> Mapping[tuple[str | None, DeviceState], int]:
        """Wave and state → how many sites, in the waves' order; sites in no wave first."""
        return {} if self.rows is None else self.totals_of(np.arange(len(self.site_states)))

    def totals_of(self, codes: I64) -> Mapping[tuple[str | None, DeviceState], int]:
        """The same of some sites, by their codes."""
        if self.rows is None:
            return {}
        # One number for a wave and a state; -1 is the code of no wave.
        pairs = (self.rows.site_wave[codes].astype(np.int64) + 1) * len(STATES) + self.site_states[codes]
        sums = np.bincount(pairs)
        found = ((*divmod(number, len(STATES)), int(sums[number])) for number in np.flatnonzero(sums).tolist())
        return {(_wave(self.rows.roster, wave - 1), STATES[state]): count for wave, state, count in found}

    def site(self, name: str) -> SiteRow | None:
        """One site; None where git names none that is called so."""
        code = None if self.rows is None else self.rows.roster.site_code.get(name)
        return None if code is None else self._site(code)

    def sites(
        self,
        *,
        wave: str | None = None,
        state: DeviceState | None = None,
        q: str = "",
        after: str | None = None,
        limit: int | None = None,
    ) -> Sequence[SiteRow]:
        """Sites by name, those behind the name `after`; no limit: all of them."""
        return self.site_rows(self.site_codes(wave=wave, state=state, q=q, after=after)[:limit])

    def site_codes(
        self,
        *,
        wave: str | None = None,
        state: DeviceState | None = None,
        q: str = "",
        after: str | None = None,
    ) -> I64:
        """The same as codes: what many sites are counted and cut by, without a row for each."""
        rows = self.rows
        if rows is None:
            return np.zeros(0, np.int64)
        names, order = rows.roster.site_names, rows.index.sites
        first = 0 if after is None else bisect.bisect_right(order, after, key=lambda code: names[code])
        codes: I64 = order[first:]
        if wave is not None:
            codes = codes[rows.site_wave[codes] == rows.roster.wave_code.get(wave, len(rows.roster.waves))]
        if state is not None:
            codes = codes[self.site_states[codes] == STATES.index(state)]
        if q:
            part, lower = q.lower(), rows.index.lower_sites
            codes = codes[np.array([part in lower[code] for code in codes.tolist()], np.bool_)]
        return codes

    def site_rows(self, codes: I64) -> Sequence[SiteRow]:
        """Rows of sites, by their codes."""
        return [self._site(code) for code in codes.tolist()]

    def _site(self, code: int) -> SiteRow:
        rows = self.rows
        assert rows is not None
        roster, sums = rows.roster, self.site_counts[code]
        there = np.flatnonzero(sums)
        name = roster.site_names[code]
        return SiteRow(
            name=name,
            wave=_wave(roster, int(rows.site_wave[code])),
            state=STATES[int(there[0])] if len(there) else DeviceState.GOOD,
            devices=int(sums.sum()),
            counts={STATES[number]: int(sums[number]) for number in there.tolist()},
            lab=bool(roster.site_lab[code]),
            suspended=bool(roster.site_suspended[code]),
            timezone=roster.desired.sites[name].timezone,
        )


def _named(rows: Rows, q: str) -> Bools:
    """Rows whose device or site has `q` in its name."""
    sites = np.array([q in name for name in rows.index.lower_sites], np.bool_)
    devices = np.array([q in name for name in rows.index.lower], np.bool_)
    return np.asarray(devices | sites[rows.roster.site_of], np.bool_)


def _wave(roster: Roster, code: int) -> str | None:
    return roster.waves[code].spec.name if code >= 0 else None


def _release(rows: Rows, code: int) -> str | None:
    return rows.releases[code] if code >= 0 else None


def _instant(value: int) -> datetime | None:
    return None if value == NONE else instant(int(value))


def _tracks(rows: Rows) -> tuple[str, ...]:
    return "image", *(app.name for app in rows.roster.apps), CONFIGURATION


def _track(rows: Rows, name: str) -> int:
    return _tracks(rows).index(name)


def _holds(rows: Rows, row: int) -> Iterator[tuple[str, Reason]]:
    for name, codes in zip(_tracks(rows), (*rows.tracks, rows.config), strict=True):
        code = int(codes.reason[row])
        if code != SETTLED and not codes.starts[row]:
            yield name, Reason.BUDGET if code == MAY_START else REASONS[code - 1]


def _apps(rows: Rows, row: int) -> Iterator[tuple[str, AppOnDevice]]:
    for number, app in enumerate(rows.roster.apps):
        codes, digest = rows.tracks[number + 1], int(rows.app_digest[number][row])
        running = rows.digests[number][digest] if digest >= 0 else None
        if running in app.digests:
            running = app.versions[app.digests.index(running)]
        target = int(codes.target[row])
        wanted = app.versions[target] if target >= 0 else None
        if running is not None or wanted is not None:
            yield app.name, AppOnDevice(running, wanted)
