"""The routes of the rollout: waves, devices, sites, holds, releases, commits, events, and the stream of what happens.

Reads the newest board and the store; decides nothing and writes nothing. Every answer has an ETag and is not sent twice; lists that
grow with the fleet or with time are given in pages. Who may use a route stands in `access.ROUTES`. Called by `server.app`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from reconciler.controller.ailing import ailing_lines
from reconciler.controller.board import Asked, Board, DeviceRow, DeviceState
from reconciler.controller.boards import AmbiguousName, Boards, Explanation, UnknownName
from reconciler.model.events import Event, EventKind, HealthChange
from reconciler.model.observed import DeviceObservation, Health
from reconciler.model.scalars import format_instant
from reconciler.ports import PortError
from reconciler.server import api_documents as documents
from reconciler.server import facts
from reconciler.server.access import Caller, Callers
from reconciler.server.answers import Refusal, refusal_of
from reconciler.server.commits import commit_entry, with_before
from reconciler.server.documents import Responses, answers
from reconciler.server.foreseen import Forecasts
from reconciler.server.options import Options
from reconciler.server.paging import Cursor, Limit, cursor_of, name_behind, number_behind, tagged
from reconciler.server.releases import Releases
from reconciler.server.stream import Stream

T = TypeVar("T")

_RECENT = 20
_HEALTH = 50
# PostgreSQL takes no NUL in a text.
Word = Annotated[str | None, Query(max_length=192, pattern=r"^[^\x00]*$")]
Last = Annotated[str | None, Header(alias="last-event-id", max_length=40)]
After = Annotated[int | None, Query(ge=0, le=1 << 62, description="As `Last-Event-ID`")]


def serve_api(app: FastAPI, options: Options, callers: Callers, forecasts: Forecasts) -> Stream:
    """Add all of them; returns the stream of events that one of them hands out."""
    stream = Stream(options, forecasts)
    _serve_waves(app, options, callers)
    _serve_devices(app, options, callers)
    _serve_sites(app, options, callers)
    _serve_releases(app, options, callers)
    _serve_commits(app, options, callers)
    _serve_events(app, options, callers, stream)
    return stream


async def _made(make: Callable[[], T]) -> T:
    """In a worker thread; a store that does not answer is a 503."""
    try:
        return await run_in_threadpool(make)
    except PortError as error:
        raise refusal_of(error) from None


def newest(options: Options) -> Board:
    """The board. Refusal 503: nothing was planned yet."""
    board = None if options.boards is None else options.boards.latest()
    if board is None:
        raise Refusal(503, "nothing is known of the rollout yet", "wait for the first tick", retry_after_s=5)
    return board


def planned(options: Options) -> Board:
    """The board, where single devices are known. Refusal 503: nothing was planned since the controller started."""
    board = newest(options)
    if board.rows is None and board.as_of is not None:
        raise Refusal(
            503,
            "the controller has not planned since it started, so single devices are not known",
            "see the conditions of GET /v1/waves for what it lacks; waves and holds are there as of its last plan",
            retry_after_s=30,
        )
    return board


def _boards(options: Options) -> Boards:
    newest(options)
    assert options.boards is not None
    return options.boards


def _serve_waves(app: FastAPI, options: Options, callers: Callers) -> None:
    by_reader = [Depends(callers.reader)]

    @app.get("/v1/waves", dependencies=by_reader, responses=answers(documents.WavesDocument, 400))
    async def get_waves(request: Request, limit: Limit = 100, cursor: Cursor = None) -> Response:
        return tagged(request, await _made(lambda: facts.waves(newest(options), cursor, limit)))

    @app.get("/v1/holds", dependencies=by_reader, responses=answers(documents.HoldsDocument, 400))
    async def get_holds(request: Request, limit: Limit = 100, cursor: Cursor = None) -> Response:
        return tagged(request, await _made(lambda: facts.holds(newest(options), cursor, limit)))


def _serve_devices(app: FastAPI, options: Options, callers: Callers) -> None:
    by_reader = [Depends(callers.reader)]

    @app.get("/v1/devices", dependencies=by_reader, responses=answers(documents.DevicesDocument, 400))
    async def get_devices(
        request: Request,
        wave: Word = None,
        site: Word = None,
        state: DeviceState | None = None,
        health: Health | None = None,
        release: Word = None,
        flagged: bool | None = None,
        q: Annotated[str, Query(max_length=63, description="A part of a device's or a site's name")] = "",
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        asked, after = Asked(wave, site, state, health, release, flagged, q), name_behind(cursor)

        def make() -> dict[str, Any]:
            board = planned(options)
            rows = board.devices(asked, after=after, limit=limit + 1)
            page = rows[:limit]
            return {
                **facts.reading(board, "Devices"),
                "total": board.count(asked),
                "devices": [facts.device(row) for row in page],
                "next": cursor_of(page[-1].name) if len(rows) > limit else None,
            }

        return tagged(request, await _made(make))

    @app.get("/v1/devices/{name}", dependencies=by_reader, responses=answers(documents.DeviceDocument, 404))
    async def get_device(request: Request, name: str) -> Response:
        return tagged(request, await _made(lambda: device_document(options, name)))

    @app.get("/v1/explain/{name}", dependencies=by_reader, responses=answers(documents.ExplanationDocument, 400, 404))
    async def get_explanation(
        request: Request,
        name: str,
        kind: Annotated[documents.Kind | None, Query(description="What `name` is, where several share it")] = None,
    ) -> Response:
        def make() -> dict[str, Any]:
            try:
                said = _boards(options).explain(name, kind)
            except UnknownName as error:
                raise Refusal(404, str(error), "see GET /v1/devices, /v1/sites and /v1/waves") from None
            except AmbiguousName as error:
                raise Refusal(400, str(error), "send `kind`") from None
            return {**facts.explanation(said), "text": [*said.lines(), *ailing_lines(options.store, said)]}

        return tagged(request, await _made(make))


@dataclass(frozen=True, slots=True)
class DeviceKnown:
    """Everything about one device: its row on the board, why it is there, what it last said, what happened to it."""

    board: Board
    row: DeviceRow
    said: Explanation
    seen: DeviceObservation | None
    events: Sequence[Event]
    health: Sequence[HealthChange]


def device_known(options: Options, name: str) -> DeviceKnown:
    """Read it. Refusal 404: git names none that is called so; 503: nothing was planned yet. PortError: the store is away."""
    board, store = planned(options), options.store
    row = board.device(name)
    if row is None:
        raise Refusal(404, "no such device", "GET /v1/devices lists those that the fleet repo names")
    try:
        said = _boards(options).explain(name, "device")
    except UnknownName:
        # The next tick has begun, and its commit names the device no more.
        raise Refusal(404, "no such device", "GET /v1/devices lists those that the fleet repo names") from None
    seen = store.observation(name)
    return DeviceKnown(
        board,
        row,
        said,
        None if seen is None else seen[0],
        store.events(device=name, limit=_RECENT, newest_first=True),
        store.health_log(name, _HEALTH),
    )


def device_document(options: Options, name: str) -> dict[str, Any]:
    """`GET /v1/devices/{name}`."""
    found = device_known(options, name)
    seen = found.seen
    return {
        **facts.reading(found.board, "Device"),
        "device": facts.device(found.row),
        "slots": facts.slots(found.row),
        "explanation": facts.explanation(found.said),
        "observation": None
        if seen is None
        else seen.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"boot", "rival"}),
        "events": [event.to_dict() for event in found.events],
        "health": [change.to_dict() for change in found.health],
    }


def _serve_sites(app: FastAPI, options: Options, callers: Callers) -> None:
    @app.get(
        "/v1/sites", dependencies=[Depends(callers.reader)], responses=answers(documents.SitesDocument, 400)
    )  # fmt: skip
    async def get_sites(
        request: Request,
        wave: Word = None,
        state: DeviceState | None = None,
        q: Annotated[str, Query(max_length=63, description="A part of the name")] = "",
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        after = name_behind(cursor)

        def make() -> dict[str, Any]:
            board = planned(options)
            rows = board.sites(wave=wave, state=state, q=q, after=after, limit=limit + 1)
            page = rows[:limit]
            return {
                **facts.reading(board, "Sites"),
                "sites": [facts.site(row) for row in page],
                "next": cursor_of(page[-1].name) if len(rows) > limit else None,
            }

        return tagged(request, await _made(make))


def _serve_releases(app: FastAPI, options: Options, callers: Callers) -> None:
    by_reader, releases = [Depends(callers.reader)], Releases(options)

    @app.get("/v1/releases", dependencies=by_reader, responses=answers(documents.ReleasesDocument, 400))
    async def get_releases(request: Request, limit: Limit = 100, cursor: Cursor = None) -> Response:
        return tagged(request, await _made(lambda: releases.listed(newest(options), cursor, limit)))

    @app.get("/v1/releases/{release}", dependencies=by_reader, responses=answers(documents.ReleaseDocument, 404))
    async def get_release(request: Request, release: str) -> Response:
        return tagged(request, await _made(lambda: releases.one(newest(options), release)))

    @app.get(
        "/v1/releases/{before}/diff/{after}",
        dependencies=by_reader,
        responses=answers(documents.PackageDiffDocument, 404),
    )
    async def get_diff(request: Request, before: str, after: str) -> Response:
        return tagged(request, await _made(lambda: releases.diff(newest(options), before, after)))


def _serve_commits(app: FastAPI, options: Options, callers: Callers) -> None:
    @app.get(
        "/v1/commits", dependencies=[Depends(callers.reader)], responses=answers(documents.CommitsDocument, 400)
    )  # fmt: skip
    async def get_commits(request: Request, limit: Limit = 20, cursor: Cursor = None) -> Response:
        before = number_behind(cursor)

        def make() -> dict[str, Any]:
            board = newest(options)
            rows = options.store.accepted_commits(before=before, limit=limit + 1)
            page = rows[:limit]
            return {
                **facts.reading(board, "Commits"),
                "commits": [
                    commit_entry(options, board, row.sha, format_instant(row.at), before, row.number)
                    for row, before in with_before(rows, page)
                ],
                "refused": facts.refused(board),
                "next": cursor_of(page[-1].number) if len(rows) > limit else None,
            }

        return tagged(request, await _made(make))


def _serve_events(app: FastAPI, options: Options, callers: Callers, stream: Stream) -> None:
    @app.get(
        "/v1/events", dependencies=[Depends(callers.reader)], responses=answers(documents.EventsDocument, 400)
    )  # fmt: skip
    async def get_events(
        request: Request,
        kind: Annotated[list[EventKind] | None, Query(description="One or several")] = None,
        wave: Word = None,
        device: Word = None,
        commit: Word = None,
        after: Annotated[int | None, Query(ge=0, le=1 << 62, description="Oldest first, behind this number")] = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        behind = number_behind(cursor)

        def make() -> dict[str, Any]:
            newer = behind if behind is not None and after is not None else after
            rows = options.store.events(
                after=newer or 0,
                before=behind if after is None else None,
                limit=limit + 1,
                kinds=kind or (),
                wave=wave,
                device=device,
                commit=commit,
                newest_first=after is None,
            )
            page = rows[:limit]
            return {
                "apiVersion": "fleet/v1",
                "kind": "Events",
                "events": [event.to_dict() for event in page],
                "next": cursor_of(page[-1].id or 0) if len(rows) > limit else None,
                "last": options.store.last_event(),
            }

        return tagged(request, await _made(make))

    by_reader, by_page = Depends(callers.reader), Depends(callers.page)
    told: Responses = {200: {"description": "Events as they happen", "content": {"text/event-stream": {}}}}

    async def listen(caller: Caller, last: str | None, after: int | None) -> Response:
        seen = int(last) if last is not None and last.isascii() and last.isdigit() and len(last) < 19 else after
        try:
            return await stream.answer(seen, lambda: callers.still(caller), caller.token_hash)
        except PortError as error:
            raise refusal_of(error) from None

    @app.get("/v1/events/stream", response_class=Response, responses=answers(None, 400) | told)
    async def get_stream(last: Last = None, after: After = None, caller: Caller = by_reader) -> Response:
        return await listen(caller, last, after)

    # The same for pages: on loopback they are read without a login.
    @app.get("/events/stream", include_in_schema=False)
    async def get_page_stream(last: Last = None, after: After = None, caller: Caller = by_page) -> Response:
        return await listen(caller, last, after)
