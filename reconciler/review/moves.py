"""Which devices a merge moves, in which wave, from and to which release: the planner's own targets before and after. Pure.

Both desired states are planned against the same observed state at the same instant; a device whose target differs, and which
does not run the new one yet, is moved by the merge. What it was to do anyway is counted, not blamed on it. Called by
`review.make`. Source: design §4.1, §4.7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from reconciler.model.desired import Desired
from reconciler.model.observed import Snapshot
from reconciler.model.plan import Reason, Why
from reconciler.model.scalars import release_key
from reconciler.planner import Columns, Roster, decide
from reconciler.planner.judge import digest_codes
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.planner.state import State
from reconciler.planner.want import CODE
from reconciler.planner.windows import micros

IMAGE = "image"
_WHYS = tuple(Why)
_REASONS = {code: reason for reason, code in CODE.items()}
_FOR_GOOD = frozenset(
    {Reason.IDENTITY_CONFLICT, Reason.SUSPENDED, Reason.UNKNOWN_IMAGE, Reason.AHEAD, Reason.WITHDRAWN}
    | {Reason.GATE_FAILED, Reason.ATTEMPTS_EXHAUSTED, Reason.NO_ROLLBACK_IMAGE}
)
"""What only a person or another commit ends: who is held so is not moved by this merge."""
# What no night ends: the calendar tells the rest.
_STANDING = _FOR_GOOD | {Reason.OFFLINE, Reason.PAUSED, Reason.IN_PROGRESS}


@dataclass(frozen=True, slots=True)
class Move:
    """Devices that go the same way. `of` is `image` or an app's name; `before` None: nothing is known to run there.

    `why` is the plan's: promote, rollback, rescue, provision or repair. `held` counts the devices that stand still for now for a
    reason that no night ends, by reason; `stuck` names those of them whom only a person or another commit frees. A device that is
    being updated to what the merge takes back is told as coming from there: what is being flashed is not cut off.
    """

    wave: str | None
    of: str
    before: str | None
    after: str
    why: str
    devices: tuple[str, ...]
    sites: tuple[str, ...]
    held: Mapping[str, int]
    stuck: tuple[str, ...] = ()

    @property
    def goes(self) -> tuple[str, ...]:
        """The devices that nothing stops for good."""
        stuck = frozenset(self.stuck)
        return tuple(device for device in self.devices if device not in stuck)

    @property
    def key(self) -> str:
        """The release as facts name it: `v1.4.2`, or `video-ingest@2.8.0`."""
        return self.after if self.of == IMAGE else f"{self.of}@{self.after}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with every name."""
        return {
            "wave": self.wave,
            "of": self.of,
            "from": self.before,
            "to": self.after,
            "why": self.why,
            "devices": list(self.devices),
            "sites": list(self.sites),
            "held": dict(self.held),
            "stuck": list(self.stuck),
        }


@dataclass(frozen=True, slots=True)
class SiteMove:
    """A site that is in another wave after the merge; None: in no wave."""

    site: str
    before: str | None
    after: str | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"site": self.site, "from": self.before, "to": self.after}


@dataclass(frozen=True, slots=True)
class Moves:
    """Everything that moves. Counts are of devices, by `image` or app."""

    moves: tuple[Move, ...]
    sites: tuple[SiteMove, ...]
    there: Mapping[str, int]
    """Devices that run already what the merge asks of them anew."""
    pending: Mapping[str, int]
    """Devices that are on their way already, to what they are asked before and after the merge."""
    removed: tuple[str, ...]
    """Devices that git names no more: held as they are, never wiped."""
    under_way: frozenset[tuple[str, str]]
    """Waves and keys of releases that pending devices are on their way to."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One desired state planned against what is observed."""

    roster: Roster
    state: State

    def wave_of_site(self) -> dict[str, str | None]:
        """Site → its wave's name, None for none."""
        names = [wave.spec.name for wave in self.roster.waves]
        waves = self.state.places.site_wave.tolist()
        return {
            site: names[wave] if wave >= 0 else None for site, wave in zip(self.roster.site_names, waves, strict=True)
        }

    def running(self, track: int, wave: int) -> tuple[str, ...]:
        """The devices of a wave that run what it asks for on a track."""
        obs, ask = self.state.obs, self.roster.waves[wave].ask(track)
        if track == IMAGE_TRACK:
            there = obs.image == ask
        else:
            there = obs.app_digest[track - 1] == digest_codes(self.roster, obs, track)[ask]
        rows = np.flatnonzero((self.state.places.wave_of == wave) & there)
        return tuple(self.roster.device_names[row] for row in rows.tolist())

    def other_slot(self) -> list[int]:
        """Row → code of the image in the other slot, once an update that is under way has ended: what ran until then."""
        obs = self.state.obs
        codes: list[int] = np.where(self.state.updating, obs.image, obs.inactive).tolist()
        return codes


def standing(desired: Desired, observed: Snapshot, at: datetime, like: Standing | None = None) -> Standing:
    """Plan one side. `like` is the other side, planned from the same snapshot: what it read of it is not read again."""
    roster = Roster(desired)
    if like is None or roster.row_of.keys() - like.roster.row_of.keys() or roster.app_code != like.roster.app_code:
        columns = Columns.bind(roster, observed)
    else:
        columns = like.state.obs.moved_to(roster)
        columns.put_shared(observed)
    return Standing(roster, decide(roster, columns, micros(at)))


def moves_of(before: Standing | None, after: Standing) -> Moves:
    """What the merge moves. Without a side before (a first commit) everything that is asked is new."""
    out: list[Move] = []
    there, pending = Counter[str](), Counter[str]()
    under_way: set[tuple[str, str]] = set()
    for track in after.roster.tracks:
        out += _track(before, after, track, there, pending, under_way)
    sites: list[SiteMove] = []
    removed: list[str] = []
    if before is not None:
        old, new = before.wave_of_site(), after.wave_of_site()
        sites = [
            SiteMove(site, old[site], new[site]) for site in sorted(old.keys() & new.keys()) if old[site] != new[site]
        ]
        removed = sorted(before.roster.row_of.keys() - after.roster.row_of.keys())
    return Moves(tuple(out), tuple(sites), dict(there), dict(pending), tuple(removed), frozenset(under_way))


def _track(
    before: Standing | None,
    after: Standing,
    track: int,
    there: Counter[str],
    pending: Counter[str],
    under_way: set[tuple[str, str]],
) -> list[Move]:
    """The moves on one track, in the order of waves and releases."""
    roster, state = after.roster, after.state
    wanted = state.tracks[track]
    name = IMAGE if track == IMAGE_TRACK else roster.apps[track - 1].name
    identity = _identities(roster, track)
    running = _running(after, track)
    target = np.array([*identity, None], object)[wanted.target]
    was = _was(before, after, track)
    coming = _coming(after) if track == IMAGE_TRACK else {}
    asked = np.flatnonzero(wanted.target >= 0)
    groups: dict[tuple[int, str | None, int, int], list[int]] = {}
    for row in asked.tolist():
        runs, why = running[row], int(wanted.why[row])
        if row in coming and runs == target[row] != was[row]:
            runs, why = coming[row], _turning(coming[row], target[row])
        if target[row] == was[row]:
            if runs != target[row] and (track == IMAGE_TRACK or state.obs.image[row] >= 0):
                pending[name] += 1
                wave = int(state.places.wave_of[row])
                if wave >= 0:
                    under_way.add((roster.waves[wave].spec.name, roster.key(track, int(wanted.target[row]))))
        elif runs == target[row]:
            there[name] += 1
        elif track == IMAGE_TRACK or state.obs.image[row] >= 0:
            key = (int(state.places.wave_of[row]), runs, int(wanted.target[row]), why)
            groups.setdefault(key, []).append(row)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], item[0][2], item[0][1] or "", item[0][3]))
    return [_move(after, track, name, key, rows) for key, rows in ordered]


def _coming(side: Standing) -> dict[int, str]:
    """Row → the release that a device is being updated to."""
    names = side.state.obs.release_names
    rows = np.flatnonzero(side.state.updating).tolist()
    return {row: names[side.state.obs.updating_to[row]] for row in rows}


def _turning(coming: str, target: str) -> int:
    """Why a device that is being updated away from what it shall run returns to it: it ran that before."""
    try:
        back = release_key(target) < release_key(coming)
    except ValueError:
        back = False
    return _WHYS.index(Why.ROLLBACK if back else Why.PROMOTE)


def _move(after: Standing, track: int, name: str, key: tuple[int, str | None, int, int], rows: list[int]) -> Move:
    roster, state = after.roster, after.state
    wave, running, code, why = key
    of_row = {row: _REASONS.get(int(state.tracks[track].reason[row])) for row in rows}
    reasons = Counter(of_row.values())
    if track == IMAGE_TRACK:
        release = roster.releases[code]
    else:
        app = roster.apps[track - 1]
        release = app.versions[code]
        versions = dict(zip(reversed(app.digests), reversed(app.versions), strict=True))
        running = versions.get(running, running[:19]) if running is not None else None
    return Move(
        wave=roster.waves[wave].spec.name if wave >= 0 else None,
        of=name,
        before=running,
        after=release,
        why=_WHYS[why].value,
        devices=tuple(sorted(roster.device_names[row] for row in rows)),
        sites=tuple(sorted({roster.site_names[roster.site_of[row]] for row in rows})),
        held={reason.value: count for reason, count in sorted(reasons.items(), key=_by_name) if reason in _STANDING},
        stuck=tuple(sorted(roster.device_names[row] for row, reason in of_row.items() if reason in _FOR_GOOD)),
    )


def _by_name(item: tuple[Reason | None, int]) -> str:
    return item[0] or ""


def _identities(roster: Roster, track: int) -> list[str]:
    """Code → what makes two targets the same: an image's name, the digest of an app's release."""
    return list(roster.releases) if track == IMAGE_TRACK else list(roster.apps[track - 1].digests)


def _running(side: Standing, track: int) -> list[str | None]:
    """Row → what is observed there, as `_identities` has it."""
    obs = side.state.obs
    if track == IMAGE_TRACK:
        names: list[str | None] = [*obs.release_names, None]
        return [names[code] for code in obs.image.tolist()]
    table = obs.app_digest_code[track - 1]
    digests: list[str | None] = [*sorted(table, key=lambda digest: table[digest]), None]
    return [digests[code] for code in obs.app_digest[track - 1].tolist()]


def _was(before: Standing | None, after: Standing, track: int) -> list[str | None]:
    """Row of the head → the target before the merge; None where there was none, or no such device."""
    if before is None:
        return [None] * after.roster.size
    number = track
    if track != IMAGE_TRACK:
        code = before.roster.app_code.get(after.roster.apps[track - 1].name)
        if code is None:
            return [None] * after.roster.size
        number = code + 1
    identity: list[str | None] = [*_identities(before.roster, number), None]
    targets = before.state.tracks[number].target.tolist()
    rows = before.roster.row_of
    return [identity[targets[rows[name]]] if name in rows else None for name in after.roster.device_names]


def total(moves: Iterable[Move], of: str | None = None) -> tuple[int, int]:
    """Devices and sites that move, each counted once."""
    chosen = [move for move in moves if of is None or move.of == of]
    devices = {device for move in chosen for device in move.devices}
    return len(devices), len({site for move in chosen for site in move.sites})
