"""The pages of sites: the grid by state, the same as a list, and one site. Called by `dashboard.pages`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request
from starlette.responses import Response

from reconciler.controller.ailing import ailing_lines
from reconciler.controller.board import Board, DeviceState
from reconciler.controller.boards import UnknownName
from reconciler.ports import PortError
from reconciler.server.access import Caller, Callers
from reconciler.server.answers import Refusal
from reconciler.server.dashboard.frame import Pages, known
from reconciler.server.dashboard.view_sites import Chosen, grid_of, site_of, waves_of
from reconciler.server.options import Options
from reconciler.server.paging import Cursor, cursor_of, name_behind

_PAGE = 100
Word = Annotated[str, Query(max_length=192)]
State = Annotated[DeviceState | Literal[""], Query()]
Part = Annotated[str, Query(max_length=63)]


def serve_sites(app: FastAPI, callers: Callers, pages: Pages) -> None:
    """Add `GET /sites` and `GET /sites/{name}`."""
    by_page = Depends(callers.page)

    @app.get("/sites", include_in_schema=False)
    async def get_sites(
        request: Request,
        wave: Word = "",
        state: State = "",
        q: Part = "",
        view: Annotated[Literal["grid", "list"], Query()] = "grid",
        cursor: Cursor = None,
        caller: Caller = by_page,
    ) -> Response:
        chosen = Chosen(wave or None, DeviceState(state) if state else None, q.strip())
        after = name_behind(cursor)
        if view == "grid":
            return await pages.page(
                request, caller, "sites.html", lambda board: {"grid": grid_of(board, chosen, after)}
            )  # fmt: skip
        return await pages.page(request, caller, "sites_list.html", lambda board: list_values(board, chosen, after))

    @app.get("/sites/{name}", include_in_schema=False)
    async def get_site(request: Request, name: str, caller: Caller = by_page) -> Response:
        return await pages.page(request, caller, "site.html", lambda board: site_values(board, name, pages.options))


def list_values(board: Board, chosen: Chosen, after: str | None) -> dict[str, Any]:
    """A page of the list."""
    rows = board.sites(wave=chosen.wave, state=chosen.state, q=chosen.q, after=after, limit=_PAGE + 1)
    page = rows[:_PAGE]
    onward = chosen.address(view="list", cursor=cursor_of(page[-1].name)) if len(rows) > _PAGE else None
    return {"chosen": chosen, "sites": page, "next": onward, "first": after is None, "waves": waves_of(board)}


def site_values(board: Board, name: str, options: Options) -> dict[str, Any]:
    """A site. Refusal 404: git names none that is called so."""
    boards = options.boards
    unknown = Refusal(404, "no such site", "see the list of sites for those that the fleet repo names")
    if boards is None or board.site(name) is None:
        raise unknown
    try:
        why = boards.explain(name, "site")
        said = [*why.lines(), *(known(lambda: ailing_lines(options.store, why)) or ())]
    except UnknownName:
        # The next tick has begun, and its commit names the site no more.
        raise unknown from None
    except PortError:
        said = []
    view = site_of(board, name, said)
    assert view is not None
    return {"view": view}
