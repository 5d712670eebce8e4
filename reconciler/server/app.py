"""The HTTP service: which parts it is made of, and the routes of devices, operators and monitors. Built by `create_app`.

Who may use a route stands in `access.ROUTES`. Devices (a bearer token each) report and fetch; operators read, by token or by a
browser's session; anybody may ask whether the service is there. Nothing here changes what is decided: reports,
acknowledgements of flags, sessions and the audit log are all that is written. Desired state is changed by git alone. Run by
`server.run`. Source: design §5 and §6; the limits are `options.Limits`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from fastapi import Depends, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from reconciler.controller.reports import Received, Recorded, record
from reconciler.controller.status import status_of
from reconciler.model.observed import Snapshot
from reconciler.ports import PortError, TransientError
from reconciler.server.access import Callers, check_routes
from reconciler.server.answers import Guard, Refusal, refusal_of
from reconciler.server.api import serve_api
from reconciler.server.audit import Audit, serve_audit
from reconciler.server.batch import Batcher
from reconciler.server.dashboard.pages import serve_pages
from reconciler.server.dashboard.shell import Shell, serve_assets
from reconciler.server.documents import (
    ConfigAnswer,
    ExchangeAnswer,
    Health,
    PlanDocument,
    Readiness,
    Responses,
    StatusDocument,
    answers,
    json_body,
)
from reconciler.server.errors import answer_errors
from reconciler.server.exchange import exchange
from reconciler.server.flags import FlagDesk, serve_flag_forms, serve_flags
from reconciler.server.foreseen import Forecasts
from reconciler.server.limits import read_body
from reconciler.server.login import serve_login
from reconciler.server.metrics import CONTENT_TYPE, Metrics
from reconciler.server.observed import Exporter
from reconciler.server.openapi import serve_description
from reconciler.server.options import Options

T = TypeVar("T")


def create_app(options: Options) -> ASGIApp:
    """The app, with metrics and limiters of its own."""
    metrics = Metrics(options)
    limits = options.limits

    def write(batch: Sequence[Received]) -> Sequence[Recorded | Exception]:
        with metrics.recording():
            return record(options.store, batch, options.policy().stale_after_s)

    batcher = Batcher(write, batch=limits.batch, queue=limits.queue, worked=metrics.batch)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await batcher.drain()

    app = make_routes(options, metrics, batcher, lifespan)
    return Guard(app, metrics, secure=options.secure)


def make_routes(
    options: Options,
    metrics: Metrics,
    batcher: Batcher[Received, Recorded],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """All routes, held to the table of who may use them. `access.Unstated`: one is not in it."""
    # The framework's own pages about the API would be given to whoever finds the service, and load scripts from elsewhere.
    # Nor is a path with a slash too many redirected: the address would be made of `Host`, and lose TLS behind a proxy.
    app = FastAPI(
        title="reconciler",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    callers, audit, shell = Callers(options), Audit(options), Shell()
    desk = FlagDesk(options, audit)
    answer_errors(app, options, shell)
    _serve_devices(app, options, callers, batcher, metrics)
    _serve_operators(app, options, callers, metrics)
    _serve_anybody(app, options, callers)
    serve_assets(app, callers, shell)
    serve_login(app, options, callers, shell, audit)
    forecasts = Forecasts(options.foresee)
    serve_pages(app, options, callers, shell, forecasts, lambda: stream.clients)
    serve_flags(app, options, callers, desk)
    serve_flag_forms(app, callers, desk)
    serve_audit(app, options, callers)
    stream = serve_api(app, options, callers, forecasts)
    metrics.listening(lambda: stream.clients)
    serve_description(app, options, callers)
    check_routes(app)
    return app


def _serve_devices(
    app: FastAPI, options: Options, callers: Callers, batcher: Batcher[Received, Recorded], metrics: Metrics
) -> None:
    by_token = Depends(callers.device)
    limits = options.limits

    report = json_body({"type": "object", "description": "The report, as the agent makes it"}, required=True)

    @app.post("/v1/exchange", responses=answers(ExchangeAnswer, 400, 408, 413, 415), openapi_extra=report)
    async def post_exchange(request: Request, device: str = by_token) -> Response:
        body = await read_body(request, limits.body_bytes, limits.body_timeout_s)
        answer = await exchange(options, batcher, metrics, device, body)
        return Response(answer.to_bytes(), media_type="application/json")

    @app.get("/v1/config", responses=answers(ConfigAnswer, 404))
    async def get_config(device: str = by_token) -> Response:
        try:
            config = await run_in_threadpool(options.config, device)
        except PortError as error:
            raise refusal_of(error) from None
        if config is None:
            raise Refusal(404, "the fleet repo names no such device", "add the device to its site, and merge")
        return Response(config.to_bytes(), media_type="application/json", headers={"cache-control": "no-store"})

    file_of: Responses = {
        200: {"content": {"application/octet-stream": {}}},
        206: {"description": "The range that was asked for"},
    }

    @app.head("/v1/artifacts/{folder}/{file}", include_in_schema=False)
    @app.get(
        "/v1/artifacts/{folder}/{file}", response_class=FileResponse, responses=answers(None, 400, 404, 416) | file_of
    )
    async def get_artifact(folder: str, file: str, _device: str = by_token) -> Response:
        absent = Refusal(404, "no such artifact here", "fetch from the addresses in the last answer")
        if options.artifact is None:
            raise absent
        try:
            path = await run_in_threadpool(options.artifact, folder, file)
        except TransientError as error:
            raise refusal_of(error) from None
        except PortError:
            raise absent from None
        # What is published never changes, and holds nothing of a site.
        headers = {"cache-control": "private, max-age=3600", "accept-ranges": "bytes"}
        return FileResponse(path, media_type="application/octet-stream", headers=headers)


def _serve_operators(app: FastAPI, options: Options, callers: Callers, metrics: Metrics) -> None:
    exporter = Exporter(options)

    @app.get("/v1/plan", dependencies=[Depends(callers.reader)], responses=answers(PlanDocument, 404))
    async def get_plan() -> Response:
        plan = await _from_store(options.store.last_plan)
        if plan is None:
            raise Refusal(404, "no plan yet", "wait for the first tick")
        return Response(plan, media_type="application/json")

    @app.get("/v1/status", dependencies=[Depends(callers.reader)], responses=answers(StatusDocument))
    async def get_status() -> Response:
        return JSONResponse(await _from_store(lambda: status_of(options.store, options.now()).to_dict()))

    same: Responses = {304: {"description": "The caller's `If-None-Match` names the present one"}}

    @app.get("/v1/observed", dependencies=[Depends(callers.reader)], responses=answers(Snapshot) | same)
    async def get_observed(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        return await _from_store(lambda: exporter.answer(known))

    text: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", dependencies=[Depends(callers.scraper)], response_class=PlainTextResponse, responses=text)
    async def get_metrics() -> Response:
        return Response(await run_in_threadpool(metrics.text), media_type=CONTENT_TYPE)


async def _from_store(read: Callable[[], T]) -> T:
    try:
        return await run_in_threadpool(read)
    except PortError as error:
        raise refusal_of(error) from None


def _serve_anybody(app: FastAPI, options: Options, callers: Callers) -> None:
    @app.get("/healthz", responses=answers(Health))
    async def get_health() -> Response:
        return JSONResponse({"status": "ok"})

    waits: Responses = {503: {"model": Readiness, "description": "It waits for something"}}

    @app.get("/readyz", dependencies=[Depends(callers.anybody)], responses=answers(Readiness) | waits)
    async def get_readiness() -> Response:
        def troubles() -> list[str]:
            try:
                options.store.last_good_commit()
            except PortError:
                return ["the store does not answer"]
            return list(options.not_ready())

        found = await run_in_threadpool(troubles)
        return JSONResponse({"status": "not ready" if found else "ok", "waitsFor": found}, 503 if found else 200)
