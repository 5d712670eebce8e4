"""The page of the rollout: what each wave did, where it stands, and what the forecast sees to come.

The forecast is made aside (`server.foreseen`): the page waits for it a moment where there is none of the commit in force, and else
shows the newest with its age. Called by `dashboard.pages`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request
from starlette.responses import Response

from reconciler.controller.board import Board
from reconciler.model.events import Event
from reconciler.server.access import Caller, Callers
from reconciler.server.dashboard.frame import Pages, known
from reconciler.server.dashboard.gantt import gantt_of, spoken
from reconciler.server.dashboard.view_rollout import KINDS, PASTS, rollout_of
from reconciler.server.foreseen import Forecasts
from reconciler.server.options import Options

_EVENTS = 1000
_WAIT_S = 1.5
Past = Annotated[Literal["auto", "1", "7", "30", "90"], Query()]


def serve_rollout(app: FastAPI, callers: Callers, pages: Pages) -> None:
    """Add `GET /rollout`."""
    by_page = Depends(callers.page)

    @app.get("/rollout", include_in_schema=False)
    async def get_rollout(request: Request, past: Past = "auto", caller: Caller = by_page) -> Response:
        days = None if past == "auto" else int(past)
        return await pages.page(
            request, caller, "rollout.html", lambda board: rollout_values(board, pages.options, pages.forecasts, days)
        )


def rollout_values(board: Board, options: Options, forecasts: Forecasts, past_days: int | None) -> dict[str, Any]:
    """What the template is given."""
    events = known(lambda: options.store.events(kinds=KINDS, limit=_EVENTS, newest_first=True))
    outlook = forecasts.outlook(board, _WAIT_S)
    oldest_first: list[Event] = list(reversed(events or ()))
    rollout = rollout_of(board, oldest_first, outlook, options.now(), past_days)
    gantt = gantt_of(rollout)
    cut = len(oldest_first) == _EVENTS and oldest_first[0].at > rollout.since
    return {
        "rollout": rollout,
        "gantt": gantt,
        "spoken": spoken(rollout, gantt.tracks),
        "pasts": PASTS,
        "history": "missing" if events is None else "cut" if cut else "whole",
    }
