"""Observed state as columns, bound to a roster: one row a device, codes in place of names, microseconds in place of instants.

`Columns.bind` takes the contract's snapshot; `put` replaces single rows when a report has been recorded. Releases that git does
not know get codes above the roster's; -1 is "none" in every code column, NONE in every time column. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache

import numpy as np

from reconciler.model.observed import ArtifactState, DeviceObservation, Health, Proposal, Snapshot, Verdict
from reconciler.planner.roster import I8, I32, I64, Bools, Roster
from reconciler.planner.windows import NONE, micros

UNKNOWN, OK, WARNING, CRITICAL = range(4)
_HEALTH = {Health.UNKNOWN: UNKNOWN, Health.OK: OK, Health.WARNING: WARNING, Health.CRITICAL: CRITICAL, None: -1}


_AS_IT_IS = (
    "health",
    "health_before",
    "worse",
    "conflict",
    "image_since",
    "health_since",
    "last_seen",
    "updating_since",
    "rebooting_since",
    "restarting_since",
    "configuring_since",
    "attempt_failed_at",
)


def _code(table: dict[str, int], text: str) -> int:
    return table.setdefault(text, len(table))


@lru_cache(maxsize=65536)
def _micros(instant: datetime) -> int:
    return micros(instant)


def _time(instant: datetime | None) -> int:
    return NONE if instant is None else _micros(instant)


class Columns:
    """What is observed. Device arrays follow the roster's rows; `failed` and `rescued` hold only rows that have any."""

    def __init__(self, roster: Roster) -> None:
        size = roster.size
        self.roster = roster
        self.release_code: dict[str, int] = dict(roster.release_code)
        self.release_names: list[str] = list(roster.releases)
        self.digest_code: dict[str, int] = {digest: code for code, digest in enumerate(roster.config_of[0])}
        self.app_digest_code: list[dict[str, int]] = [{} for _ in roster.apps]
        self.image: I32 = np.full(size, -1, np.int32)
        self.previous: I32 = np.full(size, -1, np.int32)
        self.inactive: I32 = np.full(size, -1, np.int32)
        self.updating_to: I32 = np.full(size, -1, np.int32)
        self.config: I32 = np.full(size, -1, np.int32)
        self.health: I8 = np.zeros(size, np.int8)
        self.health_before: I8 = np.full(size, -1, np.int8)
        self.restarting_app: I8 = np.full(size, -1, np.int8)
        self.worse: Bools = np.zeros(size, np.bool_)
        self.conflict: Bools = np.zeros(size, np.bool_)
        self.image_since: I64 = np.full(size, NONE, np.int64)
        self.health_since: I64 = np.full(size, NONE, np.int64)
        self.last_seen: I64 = np.full(size, NONE, np.int64)
        self.updating_since: I64 = np.full(size, NONE, np.int64)
        self.rebooting_since: I64 = np.full(size, NONE, np.int64)
        self.restarting_since: I64 = np.full(size, NONE, np.int64)
        self.configuring_since: I64 = np.full(size, NONE, np.int64)
        self.attempt_failed_at: I64 = np.full(size, NONE, np.int64)
        self.app_digest: list[I32] = [np.full(size, -1, np.int32) for _ in roster.apps]
        self.app_since: list[I64] = [np.full(size, NONE, np.int64) for _ in roster.apps]
        self.failed: dict[int, Mapping[str, int]] = {}
        self.rescued: dict[int, Mapping[str, datetime]] = {}
        self.unmanaged: set[str] = set()
        self.artifacts: dict[str, ArtifactState] = {}
        self.tags: Mapping[str, Mapping[str, str | None]] = {}
        self.tags_set: Mapping[str, Mapping[str, str | None]] = {}
        self.proofs: tuple[Verdict, ...] = ()
        self.failures: tuple[Verdict, ...] = ()
        self.proposals: tuple[Proposal, ...] = ()
        self.members: dict[str, I32] = {}
        for number, app in enumerate(roster.apps):
            table = self.app_digest_code[number]
            for digest in app.digests:
                table.setdefault(digest, len(table))

    @classmethod
    def bind(cls, roster: Roster, snapshot: Snapshot) -> Columns:
        """A snapshot as columns. A device listed twice is in conflict; one that git does not name is `unmanaged`."""
        out = cls(roster)
        claims: dict[str, list[DeviceObservation]] = {}
        for device in snapshot.devices:
            claims.setdefault(device.name, []).append(device)
        out.take(devices[0] for devices in claims.values() if len(devices) == 1)
        for name, devices in claims.items():
            if len(devices) > 1 and name in roster.row_of:
                # In an order of their own, so that the order of the input does not matter here either.
                last = max(devices, key=lambda device: device.model_dump_json())
                out.put(roster.row_of[name], last.model_copy(update={"conflict": True}))
        out.unmanaged |= claims.keys() - roster.row_of.keys()
        out.put_shared(snapshot)
        return out

    def take(self, devices: Iterable[DeviceObservation]) -> None:
        """Replace the rows of some devices; those that git does not name are `unmanaged`."""
        rows = self.roster.row_of
        for device in devices:
            row = rows.get(device.name)
            if row is None:
                self.unmanaged.add(device.name)
            else:
                self.put(row, device)

    def moved_to(self, roster: Roster) -> Columns:
        """The same observations bound to another roster: devices by name, codes by what they stand for.

        Devices that the new roster names and the old one did not have never reported, until they are `put`.
        """
        out = Columns(roster)
        pairs = [(row, roster.row_of[name]) for name, row in self.roster.row_of.items() if name in roster.row_of]
        old, new = (np.array(side, np.int64) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
        releases = np.array([*(out._release(name) for name in self.release_names), -1], np.int32)
        for name in ("image", "previous", "inactive", "updating_to"):
            getattr(out, name)[new] = releases[getattr(self, name)[old]]
        digests = np.array([*(_code(out.digest_code, digest) for digest in self.digest_code), -1], np.int32)
        out.config[new] = digests[self.config[old]]
        for name in _AS_IT_IS:
            getattr(out, name)[new] = getattr(self, name)[old]
        apps = [roster.app_code.get(app.name, -1) for app in self.roster.apps]
        out.restarting_app[new] = np.array([*apps, -1], np.int8)[self.restarting_app[old]]
        for number, app in enumerate(apps):
            if app >= 0:
                table = out.app_digest_code[app]
                codes = [*(_code(table, digest) for digest in self.app_digest_code[number]), -1]
                out.app_digest[app][new] = np.array(codes, np.int32)[self.app_digest[number][old]]
                out.app_since[app][new] = self.app_since[number][old]
        moved = dict(pairs)
        out.failed = {moved[row]: value for row, value in self.failed.items() if row in moved}
        out.rescued = {moved[row]: value for row, value in self.rescued.items() if row in moved}
        return out

    def put_shared(self, snapshot: Snapshot) -> None:
        """What is not a device's: artifacts, tags, proofs, failures, members, proposals."""
        self.artifacts = {name: artifact.state for name, artifact in snapshot.artifacts.items()}
        self.tags, self.tags_set = snapshot.tags, snapshot.tags_set
        self.proofs, self.failures, self.proposals = snapshot.proofs, snapshot.failures, snapshot.proposals
        self.members = {}
        for key, waves in snapshot.members.items():
            self.add_members(key, waves)

    def add_members(self, key: str, waves: Mapping[str, Iterable[str]]) -> None:
        """Record the sites that waves took for a release. Where two waves name a site, the earlier wave has it."""
        roster = self.roster
        taken = self.members.setdefault(key, np.full(len(roster.site_names), -1, np.int32))
        for name in sorted(waves, key=lambda wave: -roster.wave_code.get(wave, 1 << 30)):
            wave = roster.wave_code.get(name)
            if wave is not None:
                codes = [roster.site_code[site] for site in waves[name] if site in roster.site_code]
                taken[codes] = wave

    def _release(self, name: str | None) -> int:
        if name is None:
            return -1
        code = self.release_code.get(name)
        if code is None:
            code = self.release_code[name] = len(self.release_names)
            self.release_names.append(name)
        return code

    def put(self, row: int, device: DeviceObservation) -> None:
        """Replace one row."""
        self.image[row] = self._release(device.image)
        self.previous[row] = self._release(device.previous_image)
        self.inactive[row] = self._release(device.inactive_slot)
        self.updating_to[row] = self._release(device.updating_to)
        self.health[row] = _HEALTH[device.health]
        self.health_before[row] = _HEALTH[device.health_before_update]
        self.worse[row] = bool(device.checks_worse)
        self.conflict[row] = device.conflict
        self.image_since[row] = _time(device.image_since)
        self.health_since[row] = _time(device.health_since)
        self.last_seen[row] = _time(device.last_seen)
        self.updating_since[row] = _time(device.updating_since)
        self.rebooting_since[row] = _time(device.rebooting_since)
        self.restarting_since[row] = _time(device.restarting_since)
        self.configuring_since[row] = _time(device.configuring_since)
        self.attempt_failed_at[row] = _time(device.attempt_failed_at)
        self.restarting_app[row] = self.roster.app_code.get(device.restarting_app or "", -1)
        config = device.config
        self.config[row] = -1 if config is None else _code(self.digest_code, config)
        for number, app in enumerate(self.roster.apps):
            running = device.apps.get(app.name)
            table = self.app_digest_code[number]
            self.app_digest[number][row] = -1 if running is None else _code(table, running.digest)
            self.app_since[number][row] = NONE if running is None else _time(running.since)
        self._sparse(self.failed, row, device.failed_attempts)
        self._sparse(self.rescued, row, device.rescued_from)

    def restarts(self, app: int, rows: slice | I64 | int) -> Bools:
        """Rows whose restart is of an app. Where the snapshot does not say which, it is the one that git names, if it is one."""
        said = self.restarting_app[rows]
        if len(self.roster.apps) != 1:
            return np.asarray(said == app, np.bool_)
        return np.asarray((said == app) | ((said == -1) & (self.restarting_since[rows] != NONE)), np.bool_)

    @staticmethod
    def _sparse(table: dict[int, Mapping[str, object]] | dict, row: int, value: Mapping[str, object]) -> None:  # type: ignore[type-arg]
        if value:
            table[row] = value
        else:
            table.pop(row, None)

    def is_open(self, verdict: Verdict) -> bool:
        """Whether a proof or failure counts: its release is asked for by some wave, and it was not closed before."""
        return not verdict.closed and verdict.key in self.roster.asked

    def proven(self, key: str) -> Bools:
        """Per wave, whether an open proof for the release is on record."""
        return self._waves_of(verdict for verdict in self.proofs if verdict.key == key and self.is_open(verdict))

    def ever_proven(self, key: str) -> Bools:
        """Per wave, whether any proof for the release is on record, open or closed: that it ran there before."""
        return self._waves_of(verdict for verdict in self.proofs if verdict.key == key)

    def _waves_of(self, verdicts: Iterable[Verdict]) -> Bools:
        out = np.zeros(len(self.roster.waves), np.bool_)
        for verdict in verdicts:
            index = self.roster.wave_code.get(verdict.wave)
            if index is not None:
                out[index] = True
        return out

    @property
    def open_failures(self) -> set[str]:
        """Keys of releases that are stopped by a failure on record, whichever wave it was."""
        return {verdict.key for verdict in self.failures if self.is_open(verdict)}

    @property
    def on_record(self) -> set[str]:
        """Keys of releases that have anything open on record."""
        keys = {verdict.key for verdict in (*self.proofs, *self.failures) if not verdict.closed}
        return keys | set(self.members) | {proposal.key for proposal in self.proposals}
