"""How a page comes about: it is given the newest board, who asks, and the frame that every page stands in.

`Pages.page` makes a page's values and its HTML in a worker thread, and says in plain words what is missing where nothing was
planned yet or a system does not answer. Decides nothing of what a page says. Called by the `pages_*` modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from reconciler.controller.board import Board
from reconciler.ports import PortError
from reconciler.server.access import ROUTES, Caller
from reconciler.server.answers import Refusal, refusal_of
from reconciler.server.dashboard.shell import Shell
from reconciler.server.foreseen import Forecasts
from reconciler.server.options import Options

T = TypeVar("T")
Values = Mapping[str, Any]

NAVIGATION: tuple[tuple[str, str], ...] = (
    ("/", "Now"),
    ("/rollout", "Rollout"),
    ("/sites", "Sites"),
    ("/devices", "Devices"),
    ("/flagged", "Flagged"),
    ("/releases", "Releases"),
    ("/commits", "Commits"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around a page: where it is, the instant it is made at, the board it is made from (None: there is none yet),
    whether it follows what happens, what was typed into the search, and the number of the newest forecast."""

    path: str
    now: datetime
    board: Board | None
    live: bool = True
    q: str = ""
    forecast: int = 0

    @property
    def navigation(self) -> tuple[tuple[str, str, str], ...]:
        """(address, name, `aria-current` or nothing) of each page that is served."""
        return tuple(
            (
                path,
                name,
                "page" if path == self.path else "true" if path != "/" and self.path.startswith(path + "/") else "",
            )
            for path, name in NAVIGATION
            if f"GET {path}" in ROUTES
        )


class Pages:
    """Makes pages for one service."""

    def __init__(self, options: Options, shell: Shell, forecasts: Forecasts) -> None:
        self.options, self.forecasts, self._shell = options, forecasts, shell

    async def page(
        self,
        request: Request,
        caller: Caller,
        template: str,
        make: Callable[[Board], Values],
        *,
        live: bool = True,
        unplanned: bool = False,
        q: str = "",
    ) -> Response:
        """A page. `make` gives the template's values from the newest board, in a worker thread; it may raise `Refusal`, PortError.

        Where nothing was planned yet the page says so, and `make` is not called (`unplanned`: it is, once there is a board).
        The template gets `frame` and `caller` (with `caller.csrf`) besides.
        """
        board = None if self.options.boards is None else self.options.boards.latest()
        frame = Frame(request.url.path, self.options.now(), board, live, q, self.forecasts.number)

        def render() -> Response:
            if board is None or (board.rows is None and not unplanned):
                return self._shell.render("nothing.html", caller=caller, frame=frame)
            try:
                return self._shell.render(template, caller=caller, frame=frame, **make(board))
            except PortError as error:
                return self._refused(caller, frame, refusal_of(error))
            except Refusal as refusal:
                return self._refused(caller, frame, refusal)

        return await run_in_threadpool(render)

    def _refused(self, caller: Caller, frame: Frame, refusal: Refusal) -> Response:
        headers = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
        return self._shell.render(
            "error.html", refusal.status, headers=headers, caller=caller, frame=frame, refusal=refusal
        )


def known(read: Callable[[], T]) -> T | None:
    """What a system says, None where it does not answer now: for pages that are worth showing without it."""
    try:
        return read()
    except PortError as error:
        refusal_of(error)
        return None
