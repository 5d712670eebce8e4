"""Which devices are in trouble, why, and what a person does next: the first few of each kind, the worst kind first.

Who is in trouble is told by the board's columns, so that it costs the same for many devices; only of those shown is the store
asked what their checks say. Decides nothing. Called by `pages_now` and `pages_devices`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from reconciler.controller.board import Board, DeviceRow, DeviceState
from reconciler.controller.words import clean
from reconciler.model.events import CheckSaid, HealthChange
from reconciler.model.observed import Health
from reconciler.server.dashboard.marks import count

MOST = 3
"""Devices shown of a kind."""
_WORDS = {
    DeviceState.FAILED: "failed on its release",
    DeviceState.CRITICAL: "critical",
    DeviceState.SILENT: "silent",
    DeviceState.WARNING: "with a warning",
}


@dataclass(frozen=True, slots=True)
class Ailing:
    """A device in trouble: `cause` is what its checks say (empty where they say nothing, or are not known), `step` what to do."""

    device: DeviceRow
    kind: DeviceState
    cause: str
    step: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of trouble: how many devices are in it, the first of them, and where all are listed."""

    state: DeviceState
    devices: tuple[Ailing, ...]
    total: int
    href: str

    @property
    def more(self) -> int:
        """How many are not shown."""
        return self.total - len(self.devices)


@dataclass(frozen=True, slots=True)
class Trouble:
    """All of it; `said` counts it in words."""

    kinds: tuple[Kind, ...]

    @property
    def total(self) -> int:
        """Devices in trouble."""
        return sum(kind.total for kind in self.kinds)

    @property
    def said(self) -> str:
        """`1 failed on its release, 2 silent`."""
        return ", ".join(f"{kind.total:,} {_WORDS[kind.state]}" for kind in self.kinds)


Log = Callable[[str], HealthChange | None]
"""The newest row of a device's health log; None: there is none, or the store does not answer."""


def trouble(board: Board, log: Log) -> Trouble:
    """Make it."""
    return Trouble(tuple(_kinds(board, log)))


def _kinds(board: Board, log: Log) -> Iterator[Kind]:
    for state, (total, rows) in board.in_trouble(MOST).items():
        shown = tuple(Ailing(row, state, _cause(row, state, log), next_step(board, row, state) or "") for row in rows)
        # A device that warns is listed by its health: it may be held or updating besides.
        query = {"health": Health.WARNING.value} if state is DeviceState.WARNING else {"state": state.value}
        yield Kind(state, shown, total, f"/devices?{urlencode(query)}")


def _cause(row: DeviceRow, state: DeviceState, log: Log) -> str:
    return "" if state is DeviceState.SILENT else "; ".join(map(_check, wrong(row, log(row.name))))


def _check(check: CheckSaid) -> str:
    return f"{clean(check.name)}: {clean(check.message)}" if check.message else f"{clean(check.name)} is {check.status}"


def wrong(row: DeviceRow, newest: HealthChange | None) -> Sequence[CheckSaid]:
    """The checks that are not ok by the newest row of the health log; none where that row is not of the present health."""
    return newest.checks if newest is not None and newest.health == row.health.value else ()


def next_step(board: Board, row: DeviceRow, kind: DeviceState | None = None) -> str | None:
    """What a person does about a device, None where there is nothing to do. `kind`: its state unless said."""
    state = kind or (DeviceState.WARNING if row.health is Health.WARNING else None)
    if row.state in (DeviceState.FAILED, DeviceState.CRITICAL, DeviceState.SILENT, DeviceState.NEVER):
        state = row.state
    if state is DeviceState.SILENT:
        return _find(board, row)
    return None if state is None else _STEPS.get(state)


_STEPS: Mapping[DeviceState, str] = {
    DeviceState.FAILED: "decide whether it is the device (mend or pin it) or the release (take it back): Flagged has the commands",
    DeviceState.CRITICAL: "mend what its check says; on the release of its wave it may count as failed if it stays critical",
    DeviceState.WARNING: "mend what its check says when you can: a warning counts as good, and stops no rollout",
    DeviceState.NEVER: "enrol it, or take it out of its site's file: git names it, and it has never reported",
}


def _find(board: Board, row: DeviceRow) -> str:
    """Where to look for a device that does not report: by whether the others of its site do."""
    site = board.site(row.site)
    if site is None or site.devices < 2:
        where = "its site has no other device to tell by: look at the site's line, then at the device and its power"
    elif answer := sum(number for state, number in site.counts.items() if state not in _MUTE):
        others = count(answer, "other device of its site answers", "other devices of its site answer")
        where = f"{others}: look at this device, its power and its cable; on it, journalctl -u edge-agent says more"
    else:
        where = "no device of its site answers: look at the site's line and its power"
    return f"{where}. Nothing is begun on it until it reports"


_MUTE = (DeviceState.SILENT, DeviceState.NEVER)
