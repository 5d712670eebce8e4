"""The HTTP API: which routes there are, and who may use them. Built by `create_app`, run by `server.run`.

Devices (a bearer token each): `POST /v1/exchange`, `GET /v1/config`, `GET /v1/artifacts/{folder}/{file}`. Operators
(their own tokens): `GET /v1/plan`, `GET /v1/status`, `GET /v1/observed`, `GET /metrics`; with the scope `read`, all of these but
the metrics. Anybody: `GET /healthz`, `GET /readyz`. Nothing
here changes what is decided; a report is the only thing that is written. Source: design §5 and §6; the limits are
`options.Limits`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp

from reconciler.controller.reports import Received, Recorded, record
from reconciler.controller.status import status_of
from reconciler.ports import PortError, TransientError
from reconciler.server.answers import Guard, Refusal, refusal_of
from reconciler.server.batch import Batcher
from reconciler.server.exchange import exchange
from reconciler.server.limits import Lately, RateLimiter, read_body
from reconciler.server.metrics import CONTENT_TYPE, Metrics
from reconciler.server.observed import Exporter
from reconciler.server.options import Options
from reconciler.server.tokens import Scope, bearer, hash_token, is_among

T = TypeVar("T")


class Callers:
    """Who calls, and whether they may. Used as dependencies of the routes."""

    def __init__(self, options: Options) -> None:
        self._options = options
        limits = options.limits
        self._addresses = RateLimiter(*limits.per_address)
        self._refused = RateLimiter(*limits.refused_per_address)
        self._devices = RateLimiter(*limits.per_device)
        self._recognised = Lately()
        self._known: Batcher[str, str | None] = Batcher(self._look_up, batch=limits.batch, queue=limits.queue)

    async def device(self, request: Request) -> str:
        """The device whose token this is. Refusal 401 or 429."""
        token_hash = self._token_hash(request)
        try:
            device = await self._known.submit(token_hash)
        except PortError as error:
            raise refusal_of(error) from None
        if device is None:
            raise self._not_known(request)
        self._recognised.add(token_hash)
        self._devices.check(device)
        return device

    async def operator(self, request: Request) -> None:
        """An operator's token of every scope. Refusal 401, 403 (it may only read the rollout) or 429."""
        if await self._scope(request) is not Scope.ALL:
            raise Refusal(
                403, "this token may not read that", "use a token that `reconciler token operator` made without --scope"
            )

    async def reader(self, request: Request) -> None:
        """An operator's token, of any scope. Refusal 401 or 429."""
        await self._scope(request)

    async def _scope(self, request: Request) -> Scope:
        token_hash = self._token_hash(request)
        try:
            operators = await run_in_threadpool(self._options.operators)
            readers = await run_in_threadpool(self._options.readers)
        except PortError as error:
            raise refusal_of(error) from None
        # Both are compared, so that how long it takes says nothing.
        whole, narrow = is_among(token_hash, operators), is_among(token_hash, readers)
        if not whole and not narrow:
            raise self._not_known(request)
        self._recognised.add(token_hash)
        self._devices.check(token_hash)
        return Scope.ALL if whole else Scope.READ

    async def scraper(self, request: Request) -> None:
        """Whoever may read the metrics."""
        if self._options.metrics_open:
            await self.anybody(request)
        else:
            await self.operator(request)

    def _look_up(self, hashes: Sequence[str]) -> Sequence[str | None]:
        found = self._options.store.devices_of_tokens(hashes)
        return [found.get(token_hash) for token_hash in hashes]

    async def anybody(self, request: Request) -> None:
        """No token; but not without end. Refusal 429."""
        self._addresses.check(_address(request))

    def _token_hash(self, request: Request) -> str:
        address = _address(request)
        self._addresses.check(address)
        token = bearer(request.headers.get("authorization"))
        token_hash = hash_token(token) if token is not None else None
        # An address that has sent too many wrong tokens is not even looked up. It may be that of a whole site, or of a
        # proxy: whose token was right before is let through, or one stranger there would silence them all.
        if token_hash not in self._recognised:
            self._refused.check(address, take=False)
        if token_hash is None:
            raise self._not_known(request)
        return token_hash

    def _not_known(self, request: Request) -> Refusal:
        self._refused.wait_s(_address(request))
        remedy = (
            "send `Authorization: Bearer TOKEN`; `reconciler device enrol` makes a device's,"
            " `reconciler token operator` a person's"
        )
        return Refusal(401, "no valid token", remedy)


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else "unknown"


def create_app(options: Options) -> ASGIApp:
    """The app, with metrics and limiters of its own."""
    metrics = Metrics(options.store)
    limits = options.limits

    def write(batch: Sequence[Received]) -> Sequence[Recorded | Exception]:
        return record(options.store, batch, options.policy().stale_after_s)

    batcher = Batcher(write, batch=limits.batch, queue=limits.queue, worked=metrics.batch)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await batcher.drain()

    # No generated documents: they would describe the service to whoever finds it, and load scripts from elsewhere.
    app = FastAPI(title="reconciler", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    callers = Callers(options)
    _answer_errors(app)
    _serve_devices(app, options, callers, batcher, metrics)
    _serve_operators(app, options, callers, metrics)
    _serve_anybody(app, options, callers)
    return Guard(app, metrics, tls=options.tls)


def _answer_errors(app: FastAPI) -> None:
    async def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return error.answer()

    async def http_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        remedies = {404: "see the routes in the documentation", 405: "use the method that the route is made for"}
        remedy = remedies.get(error.status_code, "send the request as documented")
        return JSONResponse({"error": str(error.detail), "remedy": remedy}, error.status_code, error.headers)

    async def invalid(_request: Request, _error: Exception) -> Response:
        # The framework's own text would repeat what was sent.
        return Refusal(400, "the request is not valid", "send the request as documented").answer()

    async def failed(_request: Request, _error: Exception) -> Response:
        # What happened is logged by the guard, to which the framework hands the error on.
        return Refusal(500, "this service failed", "an operator finds the cause in the controller's log").answer()

    app.add_exception_handler(Exception, failed)
    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)


def _serve_devices(
    app: FastAPI, options: Options, callers: Callers, batcher: Batcher[Received, Recorded], metrics: Metrics
) -> None:
    by_token = Depends(callers.device)
    limits = options.limits

    @app.post("/v1/exchange")
    async def post_exchange(request: Request, device: str = by_token) -> Response:
        body = await read_body(request, limits.body_bytes, limits.body_timeout_s)
        answer = await exchange(options, batcher, metrics, device, body)
        return Response(answer.to_bytes(), media_type="application/json")

    @app.get("/v1/config")
    async def get_config(device: str = by_token) -> Response:
        try:
            config = await run_in_threadpool(options.config, device)
        except PortError as error:
            raise refusal_of(error) from None
        if config is None:
            raise Refusal(404, "the fleet repo names no such device", "add the device to its site, and merge")
        return Response(config.to_bytes(), media_type="application/json", headers={"cache-control": "no-store"})

    @app.api_route("/v1/artifacts/{folder}/{file}", methods=["GET", "HEAD"])
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

    @app.get("/v1/plan", dependencies=[Depends(callers.reader)])
    async def get_plan() -> Response:
        plan = await _from_store(options.store.last_plan)
        if plan is None:
            raise Refusal(404, "no plan yet", "wait for the first tick")
        return Response(plan, media_type="application/json")

    @app.get("/v1/status", dependencies=[Depends(callers.reader)])
    async def get_status() -> Response:
        return JSONResponse(await _from_store(lambda: status_of(options.store, options.now()).to_dict()))

    @app.get("/v1/observed", dependencies=[Depends(callers.reader)])
    async def get_observed(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        return await _from_store(lambda: exporter.answer(known))

    @app.get("/metrics", dependencies=[Depends(callers.scraper)])
    async def get_metrics() -> Response:
        return Response(await run_in_threadpool(metrics.text), media_type=CONTENT_TYPE)


async def _from_store(read: Callable[[], T]) -> T:
    try:
        return await run_in_threadpool(read)
    except PortError as error:
        raise refusal_of(error) from None


def _serve_anybody(app: FastAPI, options: Options, callers: Callers) -> None:
    @app.get("/healthz")
    async def get_health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", dependencies=[Depends(callers.anybody)])
    async def get_readiness() -> Response:
        def troubles() -> list[str]:
            try:
                options.store.last_good_commit()
            except PortError:
                return ["the store does not answer"]
            return list(options.not_ready())

        found = await run_in_threadpool(troubles)
        return JSONResponse({"status": "not ready" if found else "ok", "waitsFor": found}, 503 if found else 200)
