"""The page of the controller itself: whether it ticks, what it can reach, which keys end when, and who listens.

Shows what the loop, the store and the service say of themselves: the same that `/readyz`, `/v1/status` and the metrics tell.
Decides nothing. Called by `dashboard.pages`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from reconciler.controller.board import Board
from reconciler.controller.chronicle import KEY_STAGES
from reconciler.controller.conditions import troubled
from reconciler.controller.pulse import Pulse
from reconciler.controller.words import duration
from reconciler.ports import Intent
from reconciler.server.access import Caller, Callers
from reconciler.server.dashboard.frame import Pages, known
from reconciler.server.options import Options

_SOON = max(KEY_STAGES)
"""From when on a key's end is a warning: its first notification is then."""
_MOST_ACTIONS = 20


@dataclass(frozen=True, slots=True)
class Loop:
    """The loop's own work since the process began. `ago` is how long ago the last tick without a failure ended, in real time; None:
    there was none. `busy` is for how long the tick under way has gone on, None where none is."""

    last_at: datetime | None
    ago: str | None
    failures: int
    ticks: int
    mean_ms: int
    busy: str | None


@dataclass(frozen=True, slots=True)
class Key:
    """A key that signs, and when it ends. `state` is `failed` (it has ended), `warning` (soon), or `good`."""

    purpose: str
    fingerprint: str
    ends_at: datetime
    state: str


def serve_controller(app: FastAPI, callers: Callers, pages: Pages, listeners: Callable[[], int]) -> None:
    """Add `GET /controller`. `listeners` is how many browsers and programs follow the stream now."""
    by_page = Depends(callers.page)

    @app.get("/controller", include_in_schema=False)
    async def get_controller(request: Request, caller: Caller = by_page) -> Response:
        def make(board: Board) -> dict[str, Any]:
            return controller_values(pages.options, board) | {
                "listeners": listeners(),
                "outlook": pages.forecasts.outlook(board),
            }

        return await pages.page(request, caller, "controller.html", make, unplanned=True)


def controller_values(options: Options, board: Board) -> dict[str, Any]:
    """What the page says, but for the stream."""
    actions: Sequence[Intent] | None = known(options.store.open_intents)
    expiring = None if options.pulse is None else options.pulse.expiring
    notified = sorted((target, outcome, number) for (target, outcome), number in options.notified().items() if number)
    return {
        "waits_for": ("the store",) if actions is None else tuple(options.not_ready()),
        "conditions": board.conditions,
        "wrong": {row.type for row in troubled(board.conditions)},
        "loop_": None if options.pulse is None else loop_of(options.pulse, options.wall()),
        "store": actions is not None,
        "actions": (actions or ())[:_MOST_ACTIONS],
        "more_actions": max(0, len(actions or ()) - _MOST_ACTIONS),
        "keys": None if expiring is None or expiring.keys is None else keys_of(expiring.keys, options.now()),
        "assignments": None if expiring is None else expiring.assignments,
        "notified": notified,
        "most_listeners": options.limits.stream_clients,
    }


def loop_of(pulse: Pulse, wall: datetime) -> Loop:
    """The loop by its pulse; `wall` is real time."""
    ticks = pulse.ticks()
    last = None if ticks.last_at is None else datetime.fromtimestamp(ticks.last_at, UTC)
    number = sum(ticks.counts)
    return Loop(
        last_at=last,
        ago=None if last is None else duration(max(0.0, (wall - last).total_seconds())),
        failures=ticks.failures,
        ticks=number,
        mean_ms=round(1000 * ticks.took_s / number) if number else 0,
        busy=duration(pulse.busy_s) if pulse.busy_s else None,
    )


def keys_of(found: Sequence[tuple[str, str, datetime]], now: datetime) -> tuple[Key, ...]:
    """Keys that end, the first to end first."""
    return tuple(
        Key(purpose, fingerprint, at, "failed" if at <= now else "warning" if at - now <= _SOON else "good")
        for purpose, fingerprint, at in sorted(found, key=lambda key: key[2])
    )
