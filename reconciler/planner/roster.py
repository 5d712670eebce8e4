"""The roster: desired state compiled to columns, once a commit. Pure.

Rows are devices, ordered by the draw order of their site (design §4.2) and then by their place in it, so that the devices of
a site are neighbours. Releases, apps, waves and calendars become small integer codes. Nothing here depends on the clock or
on what was observed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from reconciler.model.desired import Desired, WaveSpec
from reconciler.model.scalars import release_key, version_key
from reconciler.planner.windows import SECOND, Calendar, calendar, micros

I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

IMAGE_TRACK = 0
"""Track 0 is the image; track 1 + a is app a. Every track is judged and rationed by the same code."""


def draw_key(order: str, site: str) -> bytes:
    """The stable order in which sites are drawn for percentages (contract, fine print 8)."""
    return hashlib.sha256(f"{order}/{site}".encode()).digest()


@dataclass(frozen=True, slots=True)
class WaveFacts:
    """One wave as the planner needs it: codes in place of names, microseconds in place of durations."""

    index: int
    spec: WaveSpec
    image: int
    """Code of the release asked for; -1 where the wave asks for none."""
    apps: tuple[int, ...]
    """Per app, the code of the version asked for; -1 for none."""
    tag: str
    soak: int
    app_soak: int

    def ask(self, track: int) -> int:
        """Code of what the wave asks for on a track."""
        return self.image if track == IMAGE_TRACK else self.apps[track - 1]

    def soak_of(self, track: int) -> int:
        """How long it soaks on a track, in microseconds."""
        return self.soak if track == IMAGE_TRACK else self.app_soak


@dataclass(frozen=True, slots=True)
class AppFacts:
    """One app: versions in ascending order, their digests, and whether restarts wait for the site's window."""

    name: str
    versions: tuple[str, ...]
    digests: tuple[str, ...]
    in_window: bool

    def key(self, code: int) -> str:
        """`video-ingest@2.8.0`: how a release of an app is named in facts."""
        return f"{self.name}@{self.versions[code]}"


class Roster:
    """Desired state as columns. Site arrays have a row a site, device arrays a row a device."""

    def __init__(self, desired: Desired) -> None:
        self.desired = desired
        fleet = desired.fleet
        self.releases = desired.releases_in_order()
        self.release_code = {name: code for code, name in enumerate(self.releases)}
        self.release_keys = [release_key(name) for name in self.releases]
        self.withdrawn = np.array([desired.images[name].withdrawn is not None for name in self.releases], np.bool_)
        self.apps = tuple(self._app(name) for name in sorted(desired.apps))
        self.app_code = {app.name: code for code, app in enumerate(self.apps)}
        self.waves = tuple(self._wave(index, spec) for index, spec in enumerate(desired.waves.waves))
        self.wave_code = {wave.spec.name: wave.index for wave in self.waves}
        self.flash_length = fleet.flash_duration * SECOND
        self.stale_after = fleet.stale_after * SECOND
        self.critical_for = fleet.critical_for * SECOND
        self.update_timeout = fleet.update_timeout * SECOND
        self.boot_timeout = fleet.boot_timeout * SECOND
        self.freezes = sorted((micros(item.from_), micros(item.to), item.why) for item in fleet.freezes)
        self._sites()

    def _app(self, name: str) -> AppFacts:
        spec = self.desired.apps[name]
        versions = tuple(sorted(spec.releases, key=lambda version: (version_key(version), version)))
        return AppFacts(name, versions, tuple(spec.releases[v] for v in versions), spec.window == "site")

    def _wave(self, index: int, spec: WaveSpec) -> WaveFacts:
        image = self.release_code.get(spec.image, -1) if spec.image is not None else -1
        apps = tuple(
            app.versions.index(spec.apps[app.name]) if spec.apps.get(app.name) in app.versions else -1
            for app in self.apps
        )
        app_soak = spec.soak if spec.app_soak is None else spec.app_soak
        tag = self.desired.tag_of(index)
        return WaveFacts(index, spec, image, apps, tag, spec.soak * SECOND, app_soak * SECOND)

    def _sites(self) -> None:
        desired = self.desired
        order = desired.waves.order
        names = sorted(desired.sites, key=lambda name: (draw_key(order, name), name))
        self.site_names: list[str] = names
        self.site_code = {name: code for code, name in enumerate(names)}
        specs = [desired.sites[name] for name in names]
        self.site_lab = np.array([spec.lab for spec in specs], np.bool_)
        self.site_suspended = np.array([spec.suspended for spec in specs], np.bool_)
        calendars: dict[tuple[str, int, int], int] = {}
        window = desired.fleet.window
        codes = []
        for spec in specs:
            own = spec.window or window
            codes.append(calendars.setdefault((spec.timezone, own.start, own.end), len(calendars)))
        self.site_calendar: I32 = np.array(codes, np.int32)
        self.calendars: tuple[Calendar, ...] = tuple(calendar(*key) for key in calendars)
        self.device_names: list[str] = [device for spec in specs for device in sorted(spec.devices)]
        sizes = np.array([len(spec.devices) for spec in specs], np.int64)
        self.site_of: I32 = np.repeat(np.arange(len(names), dtype=np.int32), sizes)
        self.site_start: I64 = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self.calendar_of: I32 = self.site_calendar[self.site_of] if names else np.zeros(0, np.int32)
        self.suspended_of: Bools = np.repeat(self.site_suspended, sizes)
        self.pin_of: I32 = np.full(len(self.device_names), -1, np.int32)
        for code, spec in enumerate(specs):
            if spec.pin is not None:
                self._pin(int(self.site_start[code]), sorted(spec.devices), spec.pin.devices, spec.pin.image)

    def _pin(self, first: int, devices: Sequence[str], pinned: Sequence[str] | None, release: str) -> None:
        for offset, device in enumerate(devices):
            if pinned is None or device in pinned:
                self.pin_of[first + offset] = self.release_code.get(release, -1)

    @cached_property
    def pinned(self) -> tuple[int, ...]:
        """Codes of the releases that some device is pinned to."""
        return tuple(sorted(set(self.pin_of[self.pin_of >= 0].tolist())))

    @property
    def size(self) -> int:
        """Number of devices."""
        return len(self.device_names)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Device name → row."""
        return {name: row for row, name in enumerate(self.device_names)}

    @cached_property
    def listed_wave(self) -> I32:
        """Per site, the wave that lists it by name; -1 where none does."""
        out = np.full(len(self.site_names), -1, np.int32)
        for wave in reversed(self.waves):
            for name in wave.spec.sites or ():
                if name in self.site_code:
                    out[self.site_code[name]] = wave.index
        return out

    @cached_property
    def wanted_config(self) -> list[str | None]:
        """Per site, the digest of its rendered configuration, or None where it has none."""
        return [self.desired.config.get(name) for name in self.site_names]

    @property
    def tracks(self) -> range:
        """Track 0 is the image, the others are the apps."""
        return range(1 + len(self.apps))

    def key(self, track: int, code: int) -> str:
        """How a release is named in facts: `v1.4.2`, or `video-ingest@2.8.0`."""
        return self.releases[code] if track == IMAGE_TRACK else self.apps[track - 1].key(code)

    @cached_property
    def asked(self) -> dict[str, list[int]]:
        """Key of every release that some wave asks for → those waves, first to last. These releases are *open*."""
        out: dict[str, list[int]] = {}
        for track in self.tracks:
            for wave in self.waves:
                if wave.ask(track) >= 0:
                    out.setdefault(self.key(track, wave.ask(track)), []).append(wave.index)
        return out

    @cached_property
    def config_of(self) -> tuple[list[str], I32]:
        """Distinct wanted configuration digests, and per device the code of its own (-1 for none)."""
        table: dict[str, int] = {}
        per_site = [-1 if d is None else table.setdefault(d, len(table)) for d in self.wanted_config]
        codes = np.array(per_site, np.int32)
        return list(table), codes[self.site_of] if per_site else np.zeros(0, np.int32)


def membership(roster: Roster, members: dict[str, I32]) -> I32:
    """The wave of every site; -1 where no wave takes it. Design §4.2, contract fine print 8.

    `members` has, per open release, the wave that took each site (-1: none). Listed sites are in the wave that lists them. A
    recorded place stands while its release is open, the higher release first. Then every percentage is filled up in draw
    order, from sites that no earlier wave has and that no other wave took for the same release; one lowered drops nobody.
    """
    wave_of = roster.listed_wave.copy()
    percent_waves = np.array([wave.spec.percent is not None for wave in roster.waves], np.bool_)
    for key in ranked_members(roster, members):
        place = _placed(wave_of, members[key], percent_waves)
        wave_of[place] = members[key][place]
    counted = ~roster.site_lab
    total, reached = int(counted.sum()), 0
    for wave in roster.waves:
        reached += int((counted & (wave_of == wave.index)).sum())
        if wave.spec.percent is None:
            continue
        goal = -(-wave.spec.percent * total // 100)
        goal = total if wave.spec.percent == 100 else min(max(goal, 1), max(total - 1, 0))
        if goal > reached:
            drawable = counted & (roster.listed_wave < 0) & ((wave_of < 0) | (wave_of > wave.index))
            own = members.get(roster.key(IMAGE_TRACK, wave.image)) if wave.image >= 0 else None
            if own is not None:
                drawable &= (own < 0) | (own == wave.index) | (wave_of < 0)
            drawn = np.flatnonzero(drawable)[: goal - reached]
            wave_of[drawn] = wave.index
            reached += len(drawn)
    return wave_of


def ranked_members(roster: Roster, members: dict[str, I32]) -> list[str]:
    """Open releases of which memberships are on record, the one that counts most first."""
    return sorted((key for key in members if key in roster.asked), key=lambda key: _recency(roster, key), reverse=True)


def _placed(wave_of: I32, taken: I32, percent_waves: Bools) -> Bools:
    """The sites that a record puts in a wave: those without one, taken by a wave that draws."""
    place: Bools = (wave_of < 0) & (taken >= 0)
    place[place] = percent_waves[taken[place]]
    return place


def recorded_waves(roster: Roster, members: dict[str, I32]) -> dict[int, str]:
    """Site → the release whose record put it in a wave, before percentages were filled up. For explanations."""
    wave_of = roster.listed_wave.copy()
    percent_waves = np.array([wave.spec.percent is not None for wave in roster.waves], np.bool_)
    out: dict[int, str] = {}
    for key in ranked_members(roster, members):
        place = _placed(wave_of, members[key], percent_waves)
        wave_of[place] = members[key][place]
        out |= dict.fromkeys(np.flatnonzero(place).tolist(), key)
    return out


def _recency(roster: Roster, key: str) -> tuple[int, object, str]:
    app, at_sign, version = key.partition("@")
    return (0, version_key(version), app) if at_sign else (1, release_key(key), "")
