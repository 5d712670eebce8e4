"""The front page: what moves, what holds it, what needs a person, and what comes next; and a page a wave, which says why.

Called by `dashboard.pages`. What is said is made by `view_now` from the board, and by the planner's explanations.
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from reconciler.controller.board import Board
from reconciler.controller.boards import UnknownName
from reconciler.controller.conditions import troubled
from reconciler.model.events import HealthChange
from reconciler.server import facts
from reconciler.server.access import Caller, Callers
from reconciler.server.answers import Refusal
from reconciler.server.dashboard.frame import Pages, known
from reconciler.server.dashboard.view_ahead import likely_of
from reconciler.server.dashboard.view_now import hold_lines, see, wave_lines
from reconciler.server.dashboard.view_trouble import trouble
from reconciler.server.flags import acknowledged_of, flags_on

_EVENTS = 12
_OF_WAVE = 20
_MESSAGE = 600


def serve_now(app: FastAPI, callers: Callers, pages: Pages) -> None:
    """Add `GET /` and `GET /waves/{name}`."""
    by_page, options = Depends(callers.page), pages.options

    def log(name: str) -> HealthChange | None:
        return next(iter(known(lambda: options.store.health_log(name, 1)) or ()), None)

    def now_of(board: Board) -> dict[str, Any]:
        flags = flags_on(board)
        given = known(options.access.acknowledgements) if flags else ()
        acknowledged = None if given is None else len(acknowledged_of(flags, given))
        return {
            "now": see(board, options.now(), acknowledged, pages.forecasts.outlook(board), trouble(board, log)),
            "wrong": troubled(board.conditions),
            "events": known(lambda: options.store.events(limit=_EVENTS, newest_first=True)),
        }

    @app.get("/", include_in_schema=False)
    async def get_now(request: Request, caller: Caller = by_page) -> Response:
        return await pages.page(request, caller, "now.html", now_of, unplanned=True)

    @app.get("/waves/{name}", include_in_schema=False)
    async def get_wave(request: Request, name: str, caller: Caller = by_page) -> Response:
        def make(board: Board) -> dict[str, Any]:
            wave = next((wave for wave in board.waves if wave.name == name), None)
            absent = Refusal(404, "no such wave", "the front page lists those that there are")
            if wave is None or options.boards is None:
                raise absent
            try:
                said = options.boards.explain(name, "wave")
            except UnknownName:
                raise absent from None
            shown = facts.explanation(said)
            outlook = pages.forecasts.outlook(board)
            return {
                "wave": wave,
                "lines": tuple(wave_lines(wave)),
                "holds": hold_lines(board, outlook, options.now(), name),
                "said": shown,
                "likely": likely_of(outlook, shown, options.now()),
                "text": "\n".join(said.lines()),
                "events": known(lambda: options.store.events(wave=name, limit=_OF_WAVE, newest_first=True)),
            }

        return await pages.page(request, caller, "wave.html", make)
