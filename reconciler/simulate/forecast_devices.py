"""The forecast's devices: what each will do with what it is told, and when, by the formulas of virtual time. Pure.

Nothing here runs an agent: the instants are those at which the real agent would act on a machine that takes as long as
`timings` says. A device answers with the observation that its report would be folded into. Called by `forecast` alone.
Source: design §5; `agent.work` for the rules that a window has on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any

from reconciler.model.desired import Desired, Window
from reconciler.model.observed import NO_CONFIG, DeviceObservation, Health, RunningApp
from reconciler.planner.windows import DAY, SECOND, calendar
from reconciler.simulate.start import DeviceStart, Doing, Ill
from reconciler.simulate.timings import (
    CHECK_S,
    CONFIGURE_S,
    PULL_S,
    RESTART_S,
    RING_S,
    SPREAD_S,
    Timings,
    download_s,
    window_share,
)

LEAST_S = 60
"""With less than this left of a window nothing begins in it (`agent.work.Timing.least_window_s`)."""
VALID_S, NIGHTS = 172_800, 2
"""How long an assignment holds, and how many windows it names (the defaults of `loop.assignmentValid`, `loop.nights`)."""
_FAR_DAYS = 9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_of(seconds: int) -> datetime:
    """Seconds since the epoch → UTC."""
    return _EPOCH + timedelta(seconds=seconds)


def seconds_of(at: datetime) -> int:
    """UTC → whole seconds since the epoch, upwards."""
    return int(-((_EPOCH - at) // timedelta(seconds=1)))


class Work(Enum):
    """What a device was told to do."""

    IMAGE = auto()
    APP = auto()
    CONFIG = auto()


@dataclass(slots=True)
class Job:
    """Something that a device is about. Instants are seconds since the epoch."""

    work: Work
    target: str
    """A release; the digest of an app; the digest of a configuration."""
    app: str | None
    begins: int
    """From here on it writes: until then it may be taken back."""
    leaves: int
    """From here on nothing stops it."""
    ends: int
    """The report that tells of its end."""
    ready: int = 0
    """When its artifact is on the device."""
    written: int = 0
    """When the slot is written: what follows is waiting for the window, and the reboot."""


@dataclass(frozen=True, slots=True)
class Words:
    """What an assignment that acts says about time."""

    heard: int
    spans: tuple[tuple[int, int], ...]
    waived: bool
    expires: int

    def opens(self, now: int, share: float, *, known: bool) -> int | None:
        """`Look.opens`: `now` if writing and rebooting may begin, else when that will be, or None. `known`: its other slot was
        good with the release, or nothing runs, so that it obeys a waiver."""
        if self.waived and known:
            return now
        for start, end in self.spans:
            begin = start + round(min(SPREAD_S, (end - start) / 10) * share)
            if now + LEAST_S <= end and now < end:
                return max(begin, now)
        return None


@dataclass(slots=True)
class Unit:
    """One device as it truly is."""

    name: str
    site: str
    booted: str | None
    other: str | None
    previous: str | None
    apps: dict[str, str]
    config: str | None
    ill: Ill | None
    ill_app: str | None
    health: Health
    last_report: int
    """An instant of its chain of quiet reports: it would call in again every `reportEvery` after it."""
    share: float
    cached: dict[str, int] = field(default_factory=dict)
    """Release → when its artifact is on the device."""
    fetches_from: int = 0
    """When the download of what is not on the device yet begins, or began."""
    part: tuple[str, int] | None = None
    """A download that was cut off: its release, and the seconds that are left of it."""
    written: tuple[str, int] | None = None
    """A release that was written, and when, and waits for a word that lets it reboot."""
    whole: str | None = None
    """A release that the other slot holds and has never booted."""
    pulled: set[str] = field(default_factory=set)
    """Digests of apps that are on the device."""
    job: Job | None = None
    word: str | None = None
    """The release that it was last told to fetch and not to begin; None: it was last told something else."""

    @classmethod
    def of(cls, start: DeviceStart, site: str, first_report: int) -> Unit:
        """A device at the start."""
        return cls(
            start.name,
            site,
            start.booted,
            start.other,
            start.previous,
            dict(start.apps),
            start.config,
            start.ill,
            start.ill_app,
            start.health,
            first_report,
            window_share(start.name),
            pulled=set(start.apps.values()),
        )

    def stop_fetching(self, at: int) -> None:
        """It hears a word without an image: a download that is not done is cut off, and what is there of it stays."""
        for release, ready in self.cached.items():
            if ready > at:
                self.part = (release, ready - max(at, self.fetches_from))
                self.cached = {}
                return

    def next_report(self, after: int, every: int) -> int:
        """The first quiet report strictly after an instant."""
        if after < self.last_report:
            return self.last_report
        return self.last_report + ((after - self.last_report) // every + 1) * every


class Devices:
    """All devices of the forecast, made when they are first asked for."""

    def __init__(self, desired: Desired, starts: Mapping[str, DeviceStart], timings: Timings, start_s: int) -> None:
        self._desired, self._starts, self._timings, self._start = desired, starts, timings, start_s
        self._units: dict[str, Unit] = {}
        self._downloads: dict[tuple[str, int | None], int] = {}
        self._words: dict[tuple[str, int], Words] = {}

    def unit(self, name: str, site: str) -> Unit:
        """One device."""
        found = self._units.get(name)
        if found is None:
            start = self._starts[name]
            first = self._start if start.returns_at is None else seconds_of(start.returns_at)
            found = self._units[name] = Unit.of(start, site, first)
        return found

    # ------------------------------------------------ what it is told

    def flash(self, unit: Unit, tick: int, release: str, size: int | None, *, switch: bool) -> Job | None:
        """Told to run a release. None: it will not begin before what it was told has expired."""
        words = self._heard(unit.site, tick)
        c, share, timings = words.heard, unit.share, self._timings
        earlier = self._interrupted(unit, Work.IMAGE, release, c)
        unit.last_report, unit.word = c, None
        if earlier is not None and earlier.leaves <= c:
            # It is rebooting already: what it was told last is done after that.
            if earlier.target == release and earlier.work is Work.IMAGE:
                return earlier
            c = earlier.ends
        waits = unit.written[1] if unit.written is not None and unit.written[0] == release else None
        unit.written = None
        known = switch or unit.booted is None
        switch = switch or unit.whole == release
        ready = c
        if not switch and waits is None:
            if unit.fetches_from > c:
                # The word to fetch was not heard yet: this one is heard first.
                unit.stop_fetching(c)
            if release not in unit.cached:
                self._fetches(unit, c, release, size)
            ready = max(unit.cached[release], c)
        if waits is not None:
            begins: int | None = waits - timings.write_s
        elif earlier is not None and earlier.target == release and earlier.begins <= c < earlier.leaves:
            begins = earlier.begins
        else:
            begins = words.opens(ready, share, known=known)
        unit.job = None
        unit.job = self._writes(unit, words, c, release, begins, ready, known=known, switch=switch)
        return unit.job

    def _writes(
        self,
        unit: Unit,
        words: Words,
        at: int,
        release: str,
        begins: int | None,
        ready: int,
        *,
        known: bool,
        switch: bool,
    ) -> Job | None:
        """What comes of a write that begins at `begins`, under a word that holds from `at` on."""
        if begins is None or begins >= words.expires:
            return None
        written = begins + (CHECK_S if switch else self._timings.write_s)
        leaves = words.opens(max(written, at), unit.share, known=known)
        if leaves is None or (leaves > written and leaves >= words.expires):
            return None
        return Job(Work.IMAGE, release, None, begins, leaves, leaves + self._timings.boot_s, ready, written)

    def _interrupted(self, unit: Unit, work: Work, target: str, at: int) -> Job | None:
        """What the device is about when it hears another word. Of what that word ends nothing is left but the download."""
        job = unit.job
        if job is not None and job.leaves > at and (job.work is not work or job.target != target):
            unit.job = None
            return None
        return job

    def restart(self, unit: Unit, tick: int, app: str, digest: str) -> Job:
        """Told to run another release of an app."""
        c = tick + RING_S
        unit.last_report, unit.word = c, None
        unit.stop_fetching(c)
        earlier = self._interrupted(unit, Work.APP, digest, c)
        if earlier is not None and earlier.work is Work.IMAGE:
            c = earlier.ends
        elif earlier is not None:
            return earlier
        pulled = c if digest in unit.pulled else c + PULL_S
        unit.pulled.add(digest)
        unit.job = Job(Work.APP, digest, app, c, pulled, pulled + RESTART_S)
        return unit.job

    def configure(self, unit: Unit, tick: int, digest: str) -> Job:
        """Told to apply another configuration."""
        c = tick + RING_S
        unit.last_report, unit.word = c, None
        unit.stop_fetching(c)
        unit.job = Job(Work.CONFIG, digest, None, c, c, c + CONFIGURE_S)
        return unit.job

    def fetch(self, unit: Unit, tick: int, release: str, size: int | None, every: int, *, held: bool) -> None:
        """Told to fetch a release and not to begin: heard with its next report. `held`: its other slot has it."""
        if unit.word == release:
            return
        unit.word = release
        if held or release in unit.cached:
            return
        self._fetches(unit, unit.next_report(tick, every), release, size)

    def stand_still(self, unit: Unit, tick: int, every: int) -> None:
        """What it hears with its next report is not to begin what it was told: `word` says whether to fetch it still."""
        job, heard = unit.job, unit.next_report(tick, every)
        if job is None or job.leaves <= heard:
            return
        unit.job = None
        if job.work is not Work.IMAGE:
            return
        goes_on = unit.word == job.target
        if job.begins >= heard:
            # Where both fall on one second, it hears the word before it looks for work.
            if not goes_on:
                unit.stop_fetching(heard)
        elif goes_on:
            unit.written = (job.target, job.written)
        elif job.written <= heard:
            unit.whole = job.target
        else:
            unit.other = unit.whole = None

    def goes_on(self, unit: Unit, start: DeviceStart, target: str | None, window: tuple[str, Window]) -> Job | None:
        """What a device is in the middle of at the start, and was told to run; None where it has nothing to go on with. One
        that is silent goes on when it is heard again. `window`, with its time zone, is its site's when it was told."""
        lives_from = start.lives_from(instant_of(self._start))
        if target is None or lives_from is None:
            return None
        at = seconds_of(lives_from)
        if start.doing is Doing.UPDATING:
            # It has the artifact. Whether it may write is its window's to say: a waiver leads only to what was good here.
            unit.cached = {target: at}
            words = _words(*window, self._start)
            switch = unit.other == target
            known = switch or unit.booted is None
            begins = words.opens(at, unit.share, known=known)
            unit.job = self._writes(unit, words, at, target, begins, at, known=known, switch=switch)
        elif start.doing is Doing.RESTARTING and start.target is not None:
            if unit.apps.get(start.target) != target:
                pulled = at + (0 if target in unit.pulled else PULL_S)
                unit.pulled.add(target)
                unit.job = Job(Work.APP, target, start.target, at, pulled, pulled + RESTART_S)
        elif unit.config != target:
            unit.job = Job(Work.CONFIG, target, None, at, at, at + CONFIGURE_S)
        return unit.job

    def _fetches(self, unit: Unit, at: int, release: str, size: int | None) -> None:
        """A download begins, or goes on where it was cut off. There is room for one artifact."""
        part = unit.part
        left = part[1] if part is not None and part[0] == release else self._download(unit.site, size)
        unit.cached, unit.part, unit.fetches_from = {release: at + left}, None, at

    def _download(self, site: str, size: int | None) -> int:
        found = self._downloads.get((site, size))
        if found is None:
            found = self._downloads[(site, size)] = download_s(self._desired, site, size)
        return found

    def _heard(self, site: str, tick: int) -> Words:
        """The word that a tick gives to a site's devices: the same for all that share a calendar."""
        spec = self._desired.sites[site]
        window = spec.window or self._desired.fleet.window
        place = (f"{spec.timezone} {window.start} {window.end}", tick)
        found = self._words.get(place)
        if found is None:
            found = self._words[place] = _words(spec.timezone, window, tick)
        return found


def _words(timezone: str, window: Window, tick: int) -> Words:
    """What an assignment of a tick says about time: the coming windows, and a waiver where none is open."""
    at = tick * SECOND
    spans = calendar(timezone, window.start, window.end).intervals(at, at + _FAR_DAYS * DAY)
    named = tuple((opens // SECOND, closes // SECOND) for opens, closes in spans[:NIGHTS])
    waived = not any(start <= tick < end for start, end in named)
    return Words(tick + RING_S, named, waived, tick + VALID_S)


# ---------------------------------------------------------------- what its reports say


def first_report(unit: Unit, seen: DeviceObservation, at: datetime, heard: datetime) -> DeviceObservation:
    """The record after the first report of a device of which something was not known, or which had been silent."""
    silent = seen.last_seen is None or seen.last_seen < heard
    same = seen.image_since is not None
    runs_on = seen.health is unit.health and seen.health_since is not None and not silent
    return seen.model_copy(
        update={
            "site": unit.site,
            "last_seen": heard,
            "image_since": seen.image_since if same else (at if seen.image is not None else None),
            "health": unit.health,
            "health_since": seen.health_since if runs_on else at,
            "config": unit.config or NO_CONFIG,
            "rebooting_since": None,
        }
    )


def arrived(unit: Unit, job: Job, seen: DeviceObservation) -> DeviceObservation:
    """The record after the report that tells of the end of a job; the device is changed with it."""
    at = instant_of(job.ends)
    unit.last_report, unit.job = job.ends, None
    if job.work is Work.IMAGE:
        changes = _booted(unit, job.target, at, seen)
        if seen.updating_to == job.target:
            changes |= {"updating_to": None, "updating_since": None}
    elif job.work is Work.APP and job.app is not None:
        changes = _restarted(unit, job.app, job.target, at, seen)
    else:
        unit.config = job.target
        changes = {"config": job.target, "configuring_since": None}
    return seen.model_copy(update=changes)


def _booted(unit: Unit, release: str, at: datetime, seen: DeviceObservation) -> dict[str, Any]:
    before = unit.health
    unit.previous, unit.other, unit.booted = unit.booted, unit.booted, release
    unit.cached, unit.part, unit.written, unit.whole = {}, None, None, None
    if unit.ill is Ill.IMAGE:
        unit.ill, unit.health = None, Health.OK
    return {
        "image": release,
        "image_since": at,
        "previous_image": unit.previous,
        "inactive_slot": unit.other,
        "health": unit.health,
        "health_since": at,
        "health_before_update": before,
        "checks_worse": (),
        "checks": (),
        "attempt": None if seen.attempt is not None and seen.attempt.release == release else seen.attempt,
        "rebooting_since": None,
        "phase": "idle",
    }


def _restarted(unit: Unit, app: str, digest: str, at: datetime, seen: DeviceObservation) -> dict[str, Any]:
    unit.apps[app] = digest
    changes: dict[str, Any] = {"apps": {**seen.apps, app: RunningApp.model_construct(digest=digest, since=at)}}
    if seen.restarting_app in (None, app):
        changes |= {"restarting_app": None, "restarting_since": None}
    if unit.ill is Ill.APP and unit.ill_app == app:
        unit.ill, unit.ill_app, unit.health = None, None, Health.OK
        changes |= {"health": Health.OK, "health_since": at}
    return changes
