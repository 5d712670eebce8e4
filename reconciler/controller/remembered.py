"""The board of a process that has not planned yet: waves, holds and flags as the last plan on record has them, and since when.

A controller that has just started may lack what it needs to plan, as an image store that does not answer; what stood before is
known all the same. Single devices are not: they are the planner's to judge. Decides nothing, reads nothing. Called by
`controller.boards`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from reconciler.controller.board import Board
from reconciler.model.observed import Snapshot
from reconciler.model.plan import AppStatus, DeviceFact, Hold, Reason, WaveState, WaveStatus
from reconciler.model.scalars import parse_instant
from reconciler.planner.groups import Held

NO_TRACK = -2
"""The track of a hold that is only remembered: no rows are known of it."""


def remembered(document: str | None, now: datetime) -> Board | None:
    """The board of a plan's JSON; None where there is none, or an older version's that cannot be read."""
    if document is None:
        return None
    try:
        plan = json.loads(document)
        return Board(
            generation=0,
            at=now,
            commit=plan["commit"],
            desired=None,
            observed=Snapshot(),
            waves=tuple(_wave(wave) for wave in plan["waves"]),
            holds=tuple(_held(hold) for hold in plan["holds"]),
            flagged=tuple(
                DeviceFact(one["device"], one["release"], parse_instant(one["at"])) for one in plan["flagged"]
            ),
            actions=(),
            conditions=(),
            refused=None,
            wake_at=None,
            rows=None,
            as_of=parse_instant(plan["at"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _instant(text: str | None) -> datetime | None:
    return None if text is None else parse_instant(text)


def _wave(row: Mapping[str, Any]) -> WaveStatus:
    return WaveStatus(
        name=row["name"],
        image=row["image"],
        state=WaveState(row["state"]),
        sites=row["sites"],
        devices=row["devices"],
        on_release=row["onRelease"],
        healthy=row["healthy"],
        failed=row["failed"],
        offline=row["offline"],
        in_flight=row["inFlight"],
        soak_ends_at=_instant(row["soakEndsAt"]),
        apps={name: _app(app) for name, app in row["apps"].items()},
    )


def _app(row: Mapping[str, Any]) -> AppStatus:
    return AppStatus(
        release=row["release"],
        state=WaveState(row["state"]),
        on_release=row["onRelease"],
        healthy=row["healthy"],
        failed=row["failed"],
        soak_ends_at=_instant(row["soakEndsAt"]),
    )


def _held(row: Mapping[str, Any]) -> Held:
    devices = tuple(row.get("devices", ()))
    hold = Hold(
        reason=Reason(row["reason"]),
        wave=row.get("wave"),
        image=row.get("image"),
        app=row.get("app"),
        release=row.get("release"),
        devices=devices,
        until=_instant(row.get("until")),
        message=row.get("message", ""),
    )
    return Held(hold, len(devices), NO_TRACK)
