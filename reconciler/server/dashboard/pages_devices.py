"""Devices: the list with its filters, a page a device, and the search by name that stands on every page.

Called by `dashboard.pages`. What is said of a device is what `GET /v1/devices/{name}` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from fastapi import Depends, FastAPI, Request
from starlette.responses import RedirectResponse, Response

from reconciler.controller.ailing import ailing_lines
from reconciler.controller.board import Asked, Board, DeviceState
from reconciler.model.observed import Health
from reconciler.server import facts
from reconciler.server.access import ROUTES, Caller, Callers
from reconciler.server.answers import Refusal
from reconciler.server.api import device_known
from reconciler.server.dashboard.frame import Pages, known
from reconciler.server.dashboard.timeline import timeline
from reconciler.server.dashboard.view_ahead import places_of, until_of
from reconciler.server.dashboard.view_trouble import next_step, wrong
from reconciler.server.flags import acknowledged_of, flags_on
from reconciler.server.paging import cursor_of, name_behind

E = TypeVar("E", bound=StrEnum)

ROWS = 50
_FOUND = 20
_WORD = 192
_PART = 63


def serve_devices(app: FastAPI, callers: Callers, pages: Pages) -> None:
    """Add `GET /devices`, `GET /devices/{name}` and `GET /search`."""
    by_page, options = Depends(callers.page), pages.options

    def waiting(board: Board, query: Mapping[str, str]) -> dict[str, Any]:
        found, now = listed(board, query), options.now()
        ahead = places_of(pages.forecasts.outlook(board))
        until = {
            row.name: {track: until_of(hold, ahead, now) for track, hold in board.holds_of(row.name).items()}
            for row in found["devices"]
            if row.holds
        }
        return found | {"until": until}

    @app.get("/devices", include_in_schema=False)
    async def get_devices(request: Request, caller: Caller = by_page) -> Response:
        query = dict(request.query_params)
        return await pages.page(request, caller, "devices.html", lambda board: waiting(board, query))

    @app.get("/devices/{name}", include_in_schema=False)
    async def get_device(request: Request, name: str, caller: Caller = by_page) -> Response:
        def make(board: Board) -> dict[str, Any]:
            if board.device(name) is None:
                raise Refusal(
                    404, "no such device", "search for a part of its name: git names no device that is called so"
                )
            found = device_known(options, name)
            flags = [flag for flag in flags_on(board) if flag.device == name]
            given = known(lambda: options.access.acknowledgements(name)) if flags else ()
            return {
                "device": found.row,
                "site_page": site_page,
                "said": facts.explanation(found.said),
                "text": "\n".join(
                    [*found.said.lines(), *(known(lambda: ailing_lines(options.store, found.said)) or ())]
                ),
                "seen": found.seen,
                "events": found.events,
                "health": found.health,
                "wrong": wrong(found.row, next(iter(found.health), None)),
                "step": next_step(found.board, found.row),
                "timeline": timeline(found.health, options.now()),
                "flags": flags,
                "acknowledged": acknowledged_of(flags, given or ()),
            }

        return await pages.page(request, caller, "device.html", make)

    @app.get("/search", include_in_schema=False)
    async def get_search(request: Request, caller: Caller = by_page) -> Response:
        q = request.query_params.get("q", "").strip()[:_PART]
        board = None if options.boards is None else options.boards.latest()
        where = exactly(board, q) if board is not None and q else None
        if where is not None:
            return RedirectResponse(where, 303)
        return await pages.page(request, caller, "search.html", lambda board: searched(board, q), q=q)


def exactly(board: Board, q: str) -> str | None:
    """The page of the one thing that is called so, or that alone has it in its name."""
    for name in (q, q.upper()):
        if board.device(name) is not None:
            return f"/devices/{quote(name, safe='')}"
        if board.site(name) is not None:
            return site_page(name)
    if any(wave.name == q for wave in board.waves):
        return f"/waves/{quote(q, safe='')}"
    if board.desired is not None and q in board.desired.images:
        return f"/releases/{quote(q, safe='')}"
    devices = board.devices(Asked(q=q), limit=2)
    if len(devices) == 1 and not board.sites(q=q, limit=1):
        return f"/devices/{quote(devices[0].name, safe='')}"
    return None


def site_page(name: str) -> str:
    """Where a site is shown."""
    return (
        f"/sites/{quote(name, safe='')}" if "GET /sites/{name}" in ROUTES else f"/devices?{urlencode({'site': name})}"
    )


def searched(board: Board, q: str) -> dict[str, Any]:
    """What the page of a search shows."""
    sites = board.sites(q=q, limit=_FOUND + 1) if q else ()
    devices = board.devices(Asked(q=q), limit=_FOUND) if q else ()
    return {
        "sites": sites[:_FOUND],
        "more_sites": len(sites) > _FOUND,
        "devices": devices,
        "total": board.count(Asked(q=q)) if q else 0,
        "site_page": site_page,
    }


def listed(board: Board, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of the list of devices. Refusal 400: the query asks for what there is not."""
    word = {
        name: query.get(name, "").strip() for name in ("wave", "site", "state", "health", "release", "flagged", "q")
    }
    if any(len(value) > _WORD for value in word.values()) or len(word["q"]) > _PART:
        raise Refusal(400, "a word of the search is too long", "search for a shorter part of the name")
    if word["flagged"] not in ("", "true", "false"):
        raise Refusal(400, "`flagged` is true or false", "choose from the list")
    asked = Asked(
        wave=word["wave"] or None,
        site=word["site"] or None,
        state=_one_of(DeviceState, word["state"]),
        health=_one_of(Health, word["health"]),
        release=word["release"] or None,
        flagged={"true": True, "false": False}.get(word["flagged"]),
        q=word["q"],
    )
    after = name_behind(query.get("cursor") or None)
    rows = board.devices(asked, after=after, limit=ROWS + 1)
    filters = {name: value for name, value in word.items() if value}
    more = filters | {"cursor": cursor_of(rows[ROWS - 1].name)} if len(rows) > ROWS else None
    return {
        "word": word,
        "filtered": bool(filters),
        "first": None if after is None else f"/devices?{urlencode(filters)}" if filters else "/devices",
        "next": None if more is None else f"/devices?{urlencode(more)}",
        "devices": rows[:ROWS],
        "total": board.count(asked),
        "states": tuple(DeviceState),
        "healths": tuple(Health),
        "site_page": site_page,
    }


def _one_of(kind: type[E], text: str) -> E | None:
    try:
        return kind(text) if text else None
    except ValueError:
        raise Refusal(400, "there is no such state", "choose from the list") from None
