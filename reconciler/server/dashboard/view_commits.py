"""What the page of a commit says: what it asked of each wave, and which files it changed. Pure. Called by `pages_commits`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reconciler.controller.board import Board
from reconciler.model.events import Event, EventKind
from reconciler.server.dashboard.view_rollout import asked, key_of

MOST_PATHS = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """What a commit asks of a wave, and what came of it so far: a wave's state, or the kind of the last event about it."""

    wave: str
    release: str
    came_of: str


@dataclass(frozen=True, slots=True)
class Paths:
    """Files that a commit changed, those that it removed, and how many are not named here."""

    changed: tuple[str, ...]
    removed: tuple[str, ...]
    more: int


def asked_of(board: Board, sha: str, events: Sequence[Event]) -> tuple[Asked, ...]:
    """Of the commit in force what every wave asks for; of an earlier one what it set in motion, as its events tell."""
    if sha == board.commit:
        return tuple(
            Asked(wave.name, key_of(wave, app), (wave if app is None else wave.apps[app]).state.value)
            for wave, app in asked(board)
        )
    last: dict[tuple[str, str], EventKind] = {}
    for event in sorted(events, key=lambda event: event.id or 0):
        if event.wave is not None and event.release is not None and event.device is None:
            last[event.wave, event.release] = event.kind
    order = {wave.name: number for number, wave in enumerate(board.waves)}
    places = sorted(last, key=lambda place: (order.get(place[0], len(order)), "@" in place[1], place))
    return tuple(Asked(wave, release, last[wave, release].value) for wave, release in places)


def paths_of(changes: Mapping[str, object | None], most: int = MOST_PATHS) -> Paths:
    """Path → what is there now (None: removed), as git tells it."""
    there = sorted(path for path, entry in changes.items() if entry is not None)
    gone = sorted(path for path, entry in changes.items() if entry is None)
    shown, away = there[:most], gone[:most]
    return Paths(tuple(shown), tuple(away), len(changes) - len(shown) - len(away))
