"""What a board says, as the API shows it. Makes documents, decides nothing, reads no store. Called by `server.api`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from reconciler.controller.board import Board, DeviceRow, SiteRow
from reconciler.model.plan import Hold
from reconciler.model.scalars import format_instant
from reconciler.ports import ConditionRow
from reconciler.server.paging import MOST, page_of

SHOWN = 20
"""Names of devices that a hold says."""
FLAGGED = 100
"""Flags that the waves say; `GET /v1/devices?flagged=true` has all."""


def reading(board: Board, kind: str) -> dict[str, Any]:
    """What every answer begins with."""
    known = {"at": moment(board.at), "commit": board.commit, "asOf": moment(board.as_of)}
    return {"apiVersion": "fleet/v1", "kind": kind, **known}


def moment(at: datetime | None) -> str | None:
    """An instant, or null."""
    return None if at is None else format_instant(at)


def waves(board: Board, cursor: str | None = None, limit: int = MOST) -> dict[str, Any]:
    """`GET /v1/waves`: a page of waves in their order, and what is of the whole fleet."""
    page, onward = page_of([wave.name for wave in board.waves], cursor, limit)
    return {
        **reading(board, "Waves"),
        "waves": [wave.to_dict() for wave in board.waves[page]],
        "next": onward,
        "flagged": [fact.to_dict() for fact in board.flagged[:FLAGGED]],
        "flaggedInAll": len(board.flagged),
        "conditions": [condition(row) for row in board.conditions],
        "states": {state.value: count for state, count in board.counts.items()},
        "nextChangeAt": moment(board.next_change_at),
        "wakeAt": moment(board.wake_at),
        "refused": refused(board),
    }


def condition(row: ConditionRow) -> dict[str, Any]:
    """A condition."""
    return {
        "type": row.type,
        "status": row.status,
        "reason": row.reason,
        "message": row.message,
        "since": format_instant(row.since),
    }


def refused(board: Board) -> dict[str, str] | None:
    """The head that is not acted on."""
    return None if board.refused is None else {"commit": board.refused[0], "message": board.refused[1]}


def device(row: DeviceRow) -> dict[str, Any]:
    """A device as lists show it."""
    return {
        "name": row.name,
        "site": row.site,
        "wave": row.wave,
        "state": row.state.value,
        "health": row.health.value,
        "image": row.image,
        "target": row.target,
        "updatingTo": row.updating_to,
        "holds": {track: reason.value for track, reason in row.holds.items()},
        "lastSeen": moment(row.last_seen),
        "healthSince": moment(row.health_since),
        "imageSince": moment(row.image_since),
        "worse": row.worse,
        "conflict": row.conflict,
        "suspended": row.suspended,
        "pinned": row.pinned,
        "flagged": row.flagged,
        "apps": {name: {"running": app.running, "target": app.target} for name, app in row.apps.items()},
    }


def slots(row: DeviceRow) -> dict[str, Any]:
    """What a device's slots hold."""
    return {"running": row.image, "inactive": row.inactive, "previous": row.previous}


def site(row: SiteRow) -> dict[str, Any]:
    """A site as lists show it."""
    return {
        "name": row.name,
        "wave": row.wave,
        "state": row.state.value,
        "devices": row.devices,
        "counts": {state.value: count for state, count in row.counts.items()},
        "lab": row.lab,
        "suspended": row.suspended,
        "timezone": row.timezone,
    }


def holds(board: Board, cursor: str | None = None, limit: int = MOST) -> dict[str, Any]:
    """`GET /v1/holds`: a page of holds in the plan's order."""
    page, onward = page_of([_key(one.hold) for one in board.holds], cursor, limit)
    rows = []
    for one in board.holds[page]:
        hold = one.hold
        rows.append(
            {
                "reason": hold.reason.value,
                "wave": hold.wave,
                "image": hold.image,
                "app": hold.app,
                "release": hold.release,
                "count": one.count,
                "devices": list(board.of_hold(one, SHOWN)),
                "until": moment(hold.until),
                "message": hold.message,
            }
        )
    return {**reading(board, "Holds"), "holds": rows, "next": onward}


def _key(hold: Hold) -> str:
    return json.dumps([hold.reason.value, hold.wave, hold.image, hold.app, hold.release, moment(hold.until)])


def explanation(said: Any) -> Mapping[str, Any]:
    """An explanation as a program reads it. Which lines of git ask for what is known where the fleet repo is."""
    shown: Mapping[str, Any] = said.to_dict({})
    return shown
