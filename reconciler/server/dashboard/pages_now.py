"""The front page: what moves, what holds it, what needs a person, and what comes next. Called by `dashboard.pages`."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from reconciler.controller.board import Board
from reconciler.server.access import Caller, Callers
from reconciler.server.dashboard.frame import Pages


def serve_now(app: FastAPI, callers: Callers, pages: Pages) -> None:
    """Add `GET /`."""
    by_page = Depends(callers.page)

    def make(board: Board) -> dict[str, Any]:
        return {"waves": board.waves}

    @app.get("/", include_in_schema=False)
    async def get_now(request: Request, caller: Caller = by_page) -> Response:
        return await pages.page(request, caller, "now.html", make, unplanned=True)
