"""What a scrape says of devices and waves, from the newest board. Makes samples; decides nothing, reads no store.

All but the ages of reports changes only with the board's generation, so that a scrape of a fleet at rest costs one pass over one
column, whatever the fleet's size. Called by `server.metrics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

import numpy as np
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from reconciler.controller.board import Asked, Board
from reconciler.controller.board_rows import Rows
from reconciler.model.observed import Health
from reconciler.model.plan import AppStatus, Reason, WaveState, WaveStatus
from reconciler.server import metrics_table as table

_IMAGE = "image"
_SECOND = 1_000_000
_OF_WAVE: tuple[tuple[table.Family, Callable[[WaveStatus], int]], ...] = (
    (table.WAVE_SITES, lambda wave: wave.sites),
    (table.WAVE_DEVICES, lambda wave: wave.devices),
    (table.WAVE_OFFLINE, lambda wave: wave.offline),
    (table.WAVE_IN_FLIGHT, lambda wave: wave.in_flight),
)


class Fleet:
    """Families of one board after the other. Called from any thread."""

    def __init__(self, latest: Callable[[], Board | None], now: Callable[[], datetime]) -> None:
        self._latest, self._now = latest, now
        self._made: tuple[int, tuple[Metric, ...]] | None = None

    def collect(self) -> Iterator[Metric]:
        """One scrape. Without a board the families are there, and empty."""
        board = self._latest()
        yield _ages(board, self._now())
        made = self._made
        generation = 0 if board is None else board.generation
        if made is None or made[0] != generation:
            made = self._made = (generation, (*_devices(board), *_holds(board), *_waves(board)))
        yield from made[1]


def _ages(board: Board | None, now: datetime) -> Metric:
    out = table.AGE_DEVICES.family()
    if board is None or board.rows is None:
        return out
    seen = board.rows.last_seen
    known = seen[seen >= 0]
    at = now.timestamp()
    bounds = [(at - bound) * _SECOND for _, bound in reversed(table.AGES[:-1])]
    # From the oldest group to the newest: what lies before the first bound is the oldest.
    sums = np.bincount(np.searchsorted(np.array(bounds, np.float64), known, side="left"), minlength=len(table.AGES))
    for (name, _), count in zip(table.AGES, reversed(sums.tolist()), strict=True):
        out.add_metric([name], count)
    out.add_metric([table.NEVER], len(seen) - len(known))
    return out


def _devices(board: Board | None) -> Iterator[Metric]:
    states, healths = table.STATE_DEVICES.family(), table.HEALTH_DEVICES.family()
    releases, flagged = table.RELEASE_DEVICES.family(), table.FLAGGED.family()
    if board is not None:
        for state, count in board.counts.items():
            states.add_metric([state.value], count)
        for health in Health:
            healths.add_metric([health.value], board.count(Asked(health=health)))
        flagged.add_metric([], len({fact.device for fact in board.flagged}))
        for track, counts in _running(board):
            for release, count in counts.items():
                releases.add_metric([track, release], count)
    yield from (states, healths, releases, flagged)


def _running(board: Board) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Per track, how many devices run each release that has a series of its own."""
    rows = board.rows
    if rows is None or board.desired is None:
        return
    asked = [(wave.image, {name: app.release for name, app in wave.apps.items()}) for wave in board.waves]
    wanted = {image for image, _ in asked if image is not None}
    yield _IMAGE, _cut(board.images(), set(board.desired.images), wanted, board.devices_in_all)
    for number, app in enumerate(rows.roster.apps):
        wanted = {apps[app.name] for _, apps in asked if app.name in apps}
        yield app.name, _cut(_versions(rows, number), set(app.versions), wanted, board.devices_in_all)


def _versions(rows: Rows, number: int) -> Mapping[str, int]:
    """Versions of an app that devices run, or digests that git does not know, → how many do."""
    app, codes = rows.roster.apps[number], rows.app_digest[number]
    version_of = dict(zip(app.digests, app.versions, strict=True))
    sums = np.bincount(codes[codes >= 0])
    digests = rows.digests[number]
    return {version_of.get(digests[code], digests[code]): int(sums[code]) for code in np.flatnonzero(sums).tolist()}


def _cut(counts: Mapping[str, int], named: set[str], wanted: set[str], devices: int) -> Mapping[str, int]:
    """`counts` with a bounded number of names: what git does not name, or few devices run, is `other`."""
    out = dict.fromkeys(sorted(wanted), 0)
    most = sorted((name for name in counts if name in named), key=lambda name: (-counts[name], name))
    for name in (*wanted, *most[: table.MOST_RELEASES]):
        out[name] = counts.get(name, 0)
    out[table.OTHER] = sum(count for name, count in counts.items() if name not in out)
    out[table.NONE] = devices - sum(counts.values())
    return out


def _holds(board: Board | None) -> Iterator[Metric]:
    holds, devices = table.HOLDS.family(), table.HOLD_DEVICES.family()
    groups: Counter[Reason] = Counter()
    rows: Counter[Reason] = Counter()
    for one in () if board is None else board.holds:
        groups[one.hold.reason] += 1
        rows[one.hold.reason] += one.count
    for reason in Reason if board is not None else ():
        holds.add_metric([reason.value], groups[reason])
        devices.add_metric([reason.value], rows[reason])
    yield from (holds, devices)


def _waves(board: Board | None) -> Iterator[Metric]:
    whole = [(family.family(), count) for family, count in _OF_WAVE]
    flagged = table.WAVE_FLAGGED.family()
    tracked = _Tracks()
    of_wave = Counter() if board is None else _flagged_of(board)
    for wave in () if board is None else board.waves:
        for family, count in whole:
            family.add_metric([wave.name], count(wave))
        flagged.add_metric([wave.name], of_wave[wave.name])
        if wave.image is not None:
            tracked.add(wave.name, _IMAGE, wave)
        for name, app in wave.apps.items():
            tracked.add(wave.name, name, app)
    yield from (family for family, _ in whole)
    yield flagged
    yield from tracked.families()


class _Tracks:
    """What is said of a wave for its image and for each of its apps."""

    def __init__(self) -> None:
        self._on, self._healthy = table.WAVE_ON_RELEASE.family(), table.WAVE_HEALTHY.family()
        self._failed, self._state = table.WAVE_FAILED.family(), table.WAVE_STATE.family()
        self._ends = table.WAVE_SOAK_END.family()

    def add(self, wave: str, track: str, status: WaveStatus | AppStatus) -> None:
        of = [wave, track]
        self._on.add_metric(of, status.on_release)
        self._healthy.add_metric(of, status.healthy)
        self._failed.add_metric(of, status.failed)
        for state in WaveState:
            self._state.add_metric([*of, state.value], int(status.state is state))
        if status.soak_ends_at is not None:
            self._ends.add_metric(of, status.soak_ends_at.timestamp())

    def families(self) -> tuple[GaugeMetricFamily, ...]:
        return self._on, self._healthy, self._failed, self._state, self._ends


def _flagged_of(board: Board) -> Counter[str]:
    """Per wave, how many devices are flagged."""
    rows, out = board.rows, Counter[str]()
    if rows is None:
        return out
    for device in {fact.device for fact in board.flagged}:
        row = rows.roster.row_of.get(device)
        code = -1 if row is None else int(rows.wave_of[row])
        if code >= 0:
            out[rows.roster.waves[code].spec.name] += 1
    return out
