"""A review: everything that a merge will do, as one value. Pure: told both sides, what is observed and the instant of the merge.

Joins the comparisons (`changes`, `moves`, `config`, `downloads`, `back`, `keys`, `overlap`) with two forecasts. Renders nothing
but the JSON's shape; `summary`, `text` and `markdown` tell it to people. Called by `cli.diff`. Source: design §4 and §6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from reconciler.model.desired import Desired
from reconciler.model.observed import Snapshot
from reconciler.model.plan import Why
from reconciler.model.scalars import format_instant
from reconciler.repo.accept import REMOVED_PERCENT
from reconciler.repo.problem import Problem
from reconciler.review.back import Return, returns
from reconciler.review.calendar import (
    ClockChange,
    Known,
    Place,
    Run,
    clock_changes,
    entry_dict,
    exposure_dict,
    in_order,
    never,
    run_of,
)
from reconciler.review.changes import Change, changes_of
from reconciler.review.config import Configurations, configurations
from reconciler.review.downloads import Downloads, downloads
from reconciler.review.keys import Keyring, Keys, keys_of
from reconciler.review.moves import Move, Moves, Standing, moves_of, standing
from reconciler.review.overlap import Overlaps
from reconciler.review.sides import Side, Sides, new_warnings
from reconciler.simulate.trace import Held

if TYPE_CHECKING:
    from reconciler.simulate.start import Silent


_BACK = frozenset({Why.ROLLBACK, Why.RESCUE})


@dataclass(frozen=True, slots=True)
class Observed:
    """What is known of the fleet: a snapshot, where it is from (None: assumed, a settled fleet at BASE), and when it was taken."""

    snapshot: Snapshot
    source: str | None
    taken_at: datetime | None

    def age(self, at: datetime) -> timedelta | None:
        """How old it is at an instant; None where nobody can say, or where it is assumed."""
        if self.source is None or self.taken_at is None:
            return None
        return max(at - self.taken_at, timedelta(0))


@dataclass(frozen=True, slots=True)
class Outside:
    """What was found beside the fleet's documents: keyrings, and branches."""

    keyrings: Sequence[Keyring] = ()
    keys_unread: str = "no keyring was named, and no recipe holds one"
    overlaps: Overlaps = field(default_factory=lambda: Overlaps((), 0, unread="two folders have no branches"))


@dataclass(frozen=True, slots=True)
class Review:
    """Everything. `likely` and `earliest` are None where nothing moves; they are one value where no device is silent."""

    at: datetime
    base: Side | None
    head: Side
    relation: str
    observed: Observed
    silent: int
    changes: tuple[Change, ...]
    moves: Moves
    waves: tuple[str, ...]
    wave_sites: Mapping[str, int]
    configurations: Configurations
    places: tuple[Place, ...]
    by_merge: frozenset[Place]
    earliest: Run | None
    likely: Run | None
    clock_changes: tuple[ClockChange, ...]
    never: tuple[tuple[Place, tuple[Held, ...]], ...]
    known: Known
    warnings: tuple[Problem, ...]
    downloads: Downloads
    returns: tuple[Return, ...]
    keys: Keys
    overlaps: Overlaps

    @property
    def kind(self) -> str:
        """`promotion`, `rollback`, `promotion and rollback`, `configuration`, `policy`, or `nothing`."""
        whys = {move.why for move in self.moves.moves}
        back = bool(whys & _BACK)
        if whys - _BACK:
            return "promotion and rollback" if back else "promotion"
        if back:
            return "rollback"
        if self.configurations.sites:
            return "configuration"
        return "policy" if self.changes else "nothing"

    @property
    def removed_sites(self) -> tuple[str, ...]:
        """Sites that git names no more after the merge."""
        return tuple(change.subject for change in self.changes if change.kind == "Site" and change.what == "removed")

    @property
    def must_confirm(self) -> bool:
        """Whether so many sites go that the controller wants a line in the merge's message (`repo.accept`)."""
        before = len(self.base.desired.sites) if self.base is not None else 0
        return len(self.removed_sites) * 100 > REMOVED_PERCENT * before

    def fails_either_way(self, place: Place) -> bool:
        """Whether a wave never proves a release even if the silent devices answer."""
        entry = self.earliest.entries.get(place) if self.earliest is not None else None
        return entry is None or entry.proven_at is None

    def to_dict(self) -> dict[str, Any]:
        """The whole, as docs/reference/diff.md describes it."""
        from reconciler.review.summary import summary

        return {
            "apiVersion": "fleet/v1",
            "kind": "Review",
            "at": format_instant(self.at),
            "base": _side(self.base),
            "head": _side(self.head),
            "relation": self.relation,
            "observed": self._observed(),
            "change": self.kind,
            "summary": summary(self),
            "changes": [change.to_dict() for change in self.changes],
            "moves": [move.to_dict() for move in self.moves.moves],
            "siteMoves": [move.to_dict() for move in self.moves.sites],
            "alreadyThere": dict(self.moves.there),
            "underWay": dict(self.moves.pending),
            "removedSites": {"sites": list(self.removed_sites), "mustConfirm": self.must_confirm},
            "removedDevices": list(self.moves.removed),
            "calendar": self._calendar(),
            "exposure": {
                "earliest": exposure_dict(self.earliest.exposure) if self.earliest else None,
                "likely": exposure_dict(self.likely.exposure) if self.likely else None,
            },
            "neverPass": [
                {
                    "wave": place[0],
                    "release": place[1],
                    "eitherWay": self.fails_either_way(place),
                    "held": [_held(one) for one in held],
                }
                for place, held in self.never
            ],
            "warnings": [_problem(problem) for problem in self.warnings],
            "downloads": self.downloads.to_dict(),
            "rollback": [way.to_dict() for way in self.returns],
            "keys": self.keys.to_dict(),
            "overlaps": self.overlaps.to_dict(),
            "configuration": {
                "sites": self.configurations.sites,
                "devices": self.configurations.devices,
                "groups": [group.to_dict() for group in self.configurations.groups],
            },
        }

    def _observed(self) -> dict[str, Any]:
        age = self.observed.age(self.at)
        taken = self.observed.taken_at
        return {
            "source": self.observed.source,
            "assumed": self.observed.source is None,
            "at": format_instant(taken) if taken is not None and self.observed.source is not None else None,
            "ageSeconds": int(age.total_seconds()) if age is not None else None,
            "silentDevices": self.silent,
        }

    def _calendar(self) -> dict[str, Any]:
        runs = (self.earliest, self.likely)
        ends = [
            format_instant(run.finished_at) if run is not None and run.finished_at is not None else None for run in runs
        ]
        entries = [
            {
                "wave": place[0],
                "release": place[1],
                "byMerge": place in self.by_merge,
                "apart": place in self.known.apart,
                "earliest": entry_dict(self.earliest, place) if self.earliest is not None else None,
                "likely": entry_dict(self.likely, place) if self.likely is not None else None,
            }
            for place in self.places
        ]
        changes = [change.to_dict() for change in self.clock_changes]
        return {"entries": entries, "provenAt": {"earliest": ends[0], "likely": ends[1]}, "clockChanges": changes}


def _side(side: Side | None) -> dict[str, Any] | None:
    if side is None:
        return None
    commit = side.commit
    return {
        "name": side.label,
        "commit": commit.sha if commit is not None else None,
        "author": commit.author if commit is not None else None,
    }


def _held(held: Held) -> dict[str, Any]:
    until = format_instant(held.until) if held.until is not None else None
    return {"reason": held.reason, "message": held.message, "until": until}


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "file": problem.path,
        "line": problem.line,
        "column": problem.column,
        "code": problem.code,
        "message": problem.message,
    }


# ---------------------------------------------------------------- making it


def _assumed(base: Desired | None, at: datetime, versions: Mapping[str, str]) -> Observed:
    """A settled fleet: everybody healthy on what BASE asks for, every secret there is in its first version."""
    if base is None:
        return Observed(Snapshot(at=at, secret_versions=versions), None, at)
    from reconciler.simulate.start import settled

    return Observed(settled(base, at).model_copy(update={"secret_versions": versions}), None, at)


def _every_secret(base: Desired | None, head: Desired) -> dict[str, str]:
    from reconciler.repo.render import secret_refs

    return dict.fromkeys(secret_refs([*head.sites.values(), *(base.sites.values() if base is not None else ())]), "1")


def observed_of(snapshot: Snapshot, source: str) -> Observed:
    """A snapshot that was read. Without an instant of its own it is as old as the last that it heard."""
    taken = snapshot.at
    if taken is None:
        taken = max((device.last_seen for device in snapshot.devices if device.last_seen is not None), default=None)
        snapshot = snapshot.model_copy(update={"at": taken})
    return Observed(snapshot, source, taken)


Both = Callable[[Callable[[], Run], Callable[[], Run]], tuple[Run, Run]]
"""How two forecasts are computed: one after the other, or side by side."""
MANY = 2_000
"""Devices of a fleet whose forecasts take long enough to be computed side by side."""


def one_by_one(one: Callable[[], Run], other: Callable[[], Run]) -> tuple[Run, Run]:
    """The plain way."""
    return one(), other()


def make(
    sides: Sides, observed: Observed | None, at: datetime, outside: Outside, side_by_side: Both = one_by_one
) -> Review:
    """The review of a merge at `at`. `observed` None: a settled fleet at BASE is assumed."""
    base, head = (sides.base.desired if sides.base is not None else None), sides.head.desired
    versions = dict(observed.snapshot.secret_versions) if observed is not None else _every_secret(base, head)
    if observed is None or any(device.config is not None for device in observed.snapshot.devices):
        base = replace(base, config=_digests(base, versions, None)) if base is not None else None
        head = replace(head, config=_digests(head, versions, base))
    if observed is None:
        observed = _assumed(base, at, versions)
    snapshot = observed.snapshot
    # Judged at the snapshot's own instant: a fleet does not fall silent because its snapshot lay about.
    then = min(snapshot.at, at) if snapshot.at is not None else at
    before = standing(base, snapshot, then) if base is not None else None
    after = standing(head, snapshot, then, before)
    moves = moves_of(before, after)
    by_merge = frozenset((move.wave, move.key) for move in moves.moves if move.wave is not None) | _asked_anew(
        base, head
    )
    changes = changes_of(sides)
    places = by_merge | (moves.under_way if changes else frozenset())
    # A fleet of which nobody has heard yet calls in when it is set up; there is no telling when.
    unheard = observed.source is None and base is None
    silent = 0 if unheard else int(after.state.silent.sum())
    way = side_by_side if after.roster.size >= MANY else one_by_one
    known = _known(base, after, moves)
    earliest, likely = _runs((base, head), snapshot, at, places, known, both=way if silent else None, unheard=unheard)
    until = max((run.finished_at or run.ended_at for run in (earliest, likely) if run is not None), default=at)
    started = [move for move in moves.moves if move.why in _BACK or _starts(earliest, move)]
    sites = sorted({site for move in moves.moves for site in move.sites})
    return Review(
        at=at,
        base=sides.base,
        head=sides.head,
        relation=sides.relation,
        observed=observed,
        silent=silent,
        changes=changes,
        moves=moves,
        waves=tuple(wave.name for wave in head.waves.waves),
        wave_sites=_wave_sites(after),
        configurations=configurations(base, head),
        places=tuple(in_order(likely, places)) if likely is not None else (),
        by_merge=by_merge,
        earliest=earliest,
        likely=likely,
        clock_changes=clock_changes(head, sites, at, until) if likely is not None else (),
        never=tuple(never(likely, in_order(likely, places), known)) if likely is not None else (),
        known=known,
        warnings=tuple(new_warnings(sides)),
        downloads=downloads(started, after, head, snapshot.artifacts),
        returns=returns(started, after, head, snapshot.artifacts),
        keys=keys_of(outside.keyrings, outside.keys_unread, head.fleet.release_keys, at, until),
        overlaps=outside.overlaps,
    )


def _runs(
    sides: tuple[Desired | None, Desired],
    snapshot: Snapshot,
    at: datetime,
    places: frozenset[Place],
    known: Known,
    *,
    both: Both | None,
    unheard: bool,
) -> tuple[Run | None, Run | None]:
    """Earliest and likely. They differ only by the devices that are silent now: where none is, one forecast is both."""
    if not places:
        return None, None
    from reconciler.simulate.forecast import forecast

    base, head = sides

    def run(silent: Silent) -> Run:
        return run_of(forecast(head, snapshot, at, before=base, silent=silent), head, places, known)

    if both is None:
        likely = run("return" if unheard else "stay")
        return likely, likely
    return both(partial(run, "return"), partial(run, "stay"))


def _starts(run: Run | None, move: Move) -> bool:
    """Whether any device of a wave ever starts: who waits for a gate that never passes downloads nothing."""
    entry = run.entries.get((move.wave, move.key)) if run is not None and move.wave is not None else None
    return entry is None or entry.first_told_at is not None or entry.arrived > 0


def _known(base: Desired | None, after: Standing, moves: Moves) -> Known:
    """What stands before the forecast: gates that passed, who runs what, who goes back, and who is apart from its wave."""
    roster, obs = after.roster, after.state.obs
    asked = {
        (wave.spec.name, roster.key(track, wave.ask(track))): (track, wave.index)
        for track in roster.tracks
        for wave in roster.waves
        if wave.ask(track) >= 0
    }
    # A release that no wave asked for until now begins anew: its old proofs count no more.
    still = None if base is None else {key for number in range(len(base.waves.waves)) for key in _keys(base, number)}
    proven: dict[Place, datetime] = {}
    for verdict in obs.proofs:
        place = (verdict.wave, verdict.key)
        if place in asked and (still is None or verdict.key in still) and obs.is_open(verdict):
            proven[place] = min(verdict.at, proven.get(place, verdict.at))
    apart: dict[Place, int] = {}
    for move in moves.moves:
        place = (move.wave or "", move.key)
        if move.wave is not None and place not in asked:
            apart[place] = apart.get(place, 0) + len(move.goes)
    # Of a release that is gone back to, every wave knows that it runs: also where devices never left it.
    returns_to = {move.key for move in moves.moves if move.why in _BACK}
    returns_to -= {move.key for move in moves.moves if move.why not in _BACK}
    back = frozenset(place for place in asked.keys() | apart.keys() if place[1] in returns_to)
    apps = base.apps if base is not None else {}
    other = tuple(
        f"{app}@{version}"
        for app, spec in sorted(after.roster.desired.apps.items())
        for version, digest in sorted(spec.releases.items())
        if app in apps and apps[app].releases.get(version, digest) != digest
    )
    running = {place: after.running(*numbers) for place, numbers in asked.items() if place not in proven}
    return Known(proven, apart, back, other, {place: found for place, found in running.items() if found})


def _asked_anew(base: Desired | None, head: Desired) -> frozenset[Place]:
    """Waves that ask for another release than before, whether or not a device moves for it."""
    had = {} if base is None else {wave.name: _keys(base, number) for number, wave in enumerate(base.waves.waves)}
    return frozenset(
        (wave.name, key)
        for number, wave in enumerate(head.waves.waves)
        for key in _keys(head, number) - had.get(wave.name, frozenset())
    )


def _keys(desired: Desired, number: int) -> frozenset[str]:
    wave = desired.waves.waves[number]
    apps = {f"{app}@{version}" for app, version in wave.apps.items()}
    return frozenset(apps | ({wave.image} if wave.image is not None else set()))


def _wave_sites(after: Standing) -> dict[str, int]:
    out: dict[str, int] = {}
    for wave in after.wave_of_site().values():
        if wave is not None:
            out[wave] = out.get(wave, 0) + 1
    return out


def _digests(desired: Desired, versions: Mapping[str, str], known: Desired | None) -> dict[str, str]:
    """Site → digest. What a site says as it did before need not be rendered again."""
    from reconciler.repo.render import config_digests

    if known is None or known.fleet.registry != desired.fleet.registry:
        return config_digests(desired.sites, desired.fleet, versions)
    same = {name for name, spec in desired.sites.items() if known.sites.get(name) is spec}
    changed = {name: spec for name, spec in desired.sites.items() if name not in same}
    out = {name: digest for name, digest in known.config.items() if name in same}
    return out | config_digests(changed, desired.fleet, versions)
