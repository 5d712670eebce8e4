"""Who asks, and what they may: the one table of routes, and the dependencies by which routes hold to it.

`ROUTES` says of every route who may use it; `check_routes` compares it with the app when it is built, so that a route which
states nothing, or something else than its dependency, is never served. `Callers` recognises devices by their tokens, and
operators by a token, by a browser's session, or on loopback by being there. It decides nothing of what is answered, and writes
only when a token or session was last used. Called by `server.app` and by the modules that add routes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from reconciler.model.access import Scope, covers
from reconciler.model.scalars import format_instant
from reconciler.ports import PortError
from reconciler.server.answers import Refusal, refusal_of
from reconciler.server.batch import Batcher
from reconciler.server.here import from_here
from reconciler.server.limits import Lately, RateLimiter, network_of
from reconciler.server.options import Options
from reconciler.server.sessions import CSRF_FIELD, CSRF_HEADER, check_csrf, check_origin, read_form, session_id
from reconciler.server.tokens import bearer, csrf_token, find, hash_token

T = TypeVar("T")

_USED_COARSE = timedelta(hours=1)
"""How far behind a token's last use may be: a write an hour, not a request."""
_SEEN_COARSE_S = 300.0
_SAFE = ("GET", "HEAD", "OPTIONS")


class Need(StrEnum):
    """Who may use a route."""

    ANYBODY = "anybody"
    DEVICE = "device"
    """A device's own token."""
    PAGE = "page"
    """Scope `read`; on loopback anybody. A browser without a session is led to the login."""
    READ = "read"
    METRICS = "metrics"
    """Scope `metrics`; on loopback anybody."""
    ACKNOWLEDGE = "acknowledge"
    ALL = "all"


ROUTES: Mapping[str, Need] = {
    "GET /healthz": Need.ANYBODY,
    "GET /readyz": Need.ANYBODY,
    "GET /static/{name:path}": Need.ANYBODY,
    "GET /login": Need.ANYBODY,
    "POST /login": Need.ANYBODY,
    # It ends the session that the browser shows, if it shows one.
    "POST /logout": Need.ANYBODY,
    "POST /v1/exchange": Need.DEVICE,
    "GET /v1/config": Need.DEVICE,
    "GET /v1/artifacts/{folder}/{file}": Need.DEVICE,
    "GET /account": Need.PAGE,
    "GET /": Need.PAGE,
    "GET /waves/{name}": Need.PAGE,
    "GET /devices": Need.PAGE,
    "GET /devices/{name}": Need.PAGE,
    "GET /search": Need.PAGE,
    "GET /flagged": Need.PAGE,
    "GET /rollout": Need.PAGE,
    "GET /sites": Need.PAGE,
    "GET /sites/{name}": Need.PAGE,
    "GET /releases": Need.PAGE,
    "GET /releases/{release}": Need.PAGE,
    "GET /releases/{before}/diff/{after}": Need.PAGE,
    "GET /commits": Need.PAGE,
    "GET /commits/{sha}": Need.PAGE,
    "GET /controller": Need.PAGE,
    "POST /flags/{device}/acknowledge": Need.ACKNOWLEDGE,
    "POST /flags/{device}/take-back": Need.ACKNOWLEDGE,
    "GET /v1/plan": Need.READ,
    "GET /v1/status": Need.READ,
    "GET /v1/observed": Need.READ,
    "GET /v1/flags": Need.READ,
    "GET /v1/waves": Need.READ,
    "GET /v1/holds": Need.READ,
    "GET /v1/devices": Need.READ,
    "GET /v1/devices/{name}": Need.READ,
    "GET /v1/explain/{name}": Need.READ,
    "GET /v1/sites": Need.READ,
    "GET /v1/releases": Need.READ,
    "GET /v1/releases/{release}": Need.READ,
    "GET /v1/releases/{before}/diff/{after}": Need.READ,
    "GET /v1/commits": Need.READ,
    "GET /v1/events": Need.READ,
    "GET /v1/events/stream": Need.READ,
    "GET /events/stream": Need.PAGE,
    "GET /v1/openapi.json": Need.READ,
    "GET /metrics": Need.METRICS,
    "POST /v1/flags/{device}/acknowledge": Need.ACKNOWLEDGE,
    "DELETE /v1/flags/{device}/acknowledge": Need.ACKNOWLEDGE,
    "GET /v1/audit": Need.ALL,
}
"""Method and path → who may use it. HEAD is as GET. Every route stands here, or the app is not built."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An operator who asks. `csrf` is the form token of their session, `ends_at` the instant at which their token expires."""

    name: str
    scopes: frozenset[Scope]
    via: Literal["token", "session", "loopback"]
    address: str = ""
    token_hash: str = ""
    session_hash: str = ""
    csrf: str = ""
    ends_at: datetime | None = None

    def may(self, scope: Scope) -> bool:
        """Whether a page should offer what needs this scope."""
        return covers(self.scopes, scope)


@dataclass(frozen=True, slots=True)
class Posted:
    """A form that an operator sent, and whose it is known to be."""

    caller: Caller
    fields: Mapping[str, str]


class LogInFirst(Exception):
    """A browser asks for a page and shows no session."""


class Unstated(Exception):
    """The app has a route about which `ROUTES` says nothing, or something else. A defect of ours, found at the start."""


@dataclass(frozen=True, slots=True)
class _Token:
    """An operator's token as it was found; `wrong` says why it is not good any more."""

    name: str
    scopes: frozenset[Scope]
    ends_at: datetime | None = None
    wrong: str | None = None


class Callers:
    """Who calls, and whether they may. Its methods are dependencies of the routes."""

    def __init__(self, options: Options) -> None:
        self._options = options
        limits = options.limits
        self._addresses = RateLimiter(*limits.per_address)
        self._refused = RateLimiter(*limits.refused_per_address)
        self._each = RateLimiter(*limits.per_device)
        self._recognised = Lately()
        self._known: Batcher[str, str | None] = Batcher(self._look_up, batch=limits.batch, queue=limits.queue)

    # ------------------------------------------------------------ dependencies

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
        self._each.check(device)
        return device

    async def reader(self, request: Request) -> Caller:
        """Scope `read`, by token or session. Refusal 401, 403 or 429."""
        return self._allowed(request, await self.caller(request), Scope.READ)

    async def page(self, request: Request) -> Caller:
        """The same for a page; on loopback without TLS anybody. `LogInFirst`: a browser without a session."""
        caller = await self.caller(request) or self._anybody_here(request)
        if caller is None and "authorization" not in request.headers:
            raise LogInFirst
        return self._allowed(request, caller, Scope.READ)

    async def scraper(self, request: Request) -> Caller:
        """Scope `metrics`; on loopback without TLS anybody. Refusal 401, 403 or 429."""
        return self._allowed(request, await self.caller(request) or self._anybody_here(request), Scope.METRICS)

    async def acknowledger(self, request: Request) -> Caller:
        """Scope `acknowledge`. Refusal 401, 403 or 429."""
        return self._allowed(request, await self.caller(request), Scope.ACKNOWLEDGE)

    async def acknowledging_form(self, request: Request) -> Posted:
        """The same for a page's form, with the session's form token in it. `LogInFirst`: the session has ended."""
        posted = await self.form(request)
        if posted is None:
            raise LogInFirst
        self._allowed(request, posted.caller, Scope.ACKNOWLEDGE)
        return posted

    async def operator(self, request: Request) -> Caller:
        """A token of every scope. Refusal 401, 403 or 429."""
        return self._allowed(request, await self.caller(request), Scope.ALL)

    async def anybody(self, request: Request) -> None:
        """No token; but not without end. Refusal 429."""
        self._addresses.check(_source(request))

    # ------------------------------------------------------------ recognising

    async def caller(self, request: Request) -> Caller | None:
        """Who sends a token, or a browser's session; None: neither, or a session that has ended. Refusal 401 or 429.

        A session that changes anything must prove that a page of ours does it: Refusal 403.
        """
        if "authorization" in request.headers:
            return await self._of_token(request, self._token_hash(request))
        self._addresses.check(_source(request))
        sent = session_id(request, self._options)
        caller = await self._in_session(request, sent) if sent is not None else None
        if caller is not None and sent is not None and request.method not in _SAFE:
            check_origin(request, self._options)
            check_csrf(request.headers.get(CSRF_HEADER, ""), sent)
        return caller

    async def form(self, request: Request) -> Posted | None:
        """A form of a session, from a page of ours; None: no session. Refusal 403 (not from our page), 400, 408, 413, 415."""
        self._addresses.check(_source(request))
        sent = session_id(request, self._options)
        caller = await self._in_session(request, sent) if sent is not None else None
        if caller is None or sent is None:
            return None
        check_origin(request, self._options)
        fields = await read_form(request, self._options.limits.body_timeout_s)
        check_csrf(fields.get(CSRF_FIELD, ""), sent)
        return Posted(caller, fields) if await self.still(caller) else None

    async def _in_session(self, request: Request, sent: str) -> Caller | None:
        caller = await self._threaded(lambda: self._by_session(sent, address_of(request)))
        if caller is not None:
            self._each.check(caller.session_hash)
        return caller

    async def hold(self, caller: Caller) -> None:
        """Refusal 401: what a caller is known by has ended since, while the body of the request came."""
        if not await self.still(caller):
            raise Refusal(401, "no valid token", "it has ended while this was sent: make another, or log in again")

    async def still(self, caller: Caller) -> bool:
        """Whether a caller may go on: for answers that last, asked now and then. Counts as no use and as no request."""
        if caller.via == "loopback":
            return True
        now, access = self._options.wall(), self._options.access

        def look() -> bool:
            token = self._token(caller.token_hash, now)
            if token is None or token.wrong is not None:
                return False
            if caller.via == "token":
                return True
            session, times = access.session(caller.session_hash), self._options.sessions
            # Who looks at a page that goes on is there: idle time does not run out under it.
            return session is not None and session.valid(now, idle_s=times.longest_s, longest_s=times.longest_s)

        return await self._threaded(look)

    async def check_login(self, request: Request, token: str) -> Caller:
        """The operator of a token that is typed into a form. Refusal 401, 403 or 429, counted like any other token's."""
        source, token_hash = _source(request), hash_token(token)
        self._addresses.check(source)
        if token_hash not in self._recognised:
            self._refused.check(source, take=False)
        return self._allowed(request, await self._of_token(request, token_hash), Scope.READ)

    async def _of_token(self, request: Request, token_hash: str) -> Caller:
        now = self._options.wall()
        token = await self._threaded(lambda: self._token(token_hash, now, use=True))
        if token is None:
            raise self._not_known(request)
        if token.wrong is not None:
            self._refused.wait_s(_source(request))
            remedy = f"make another with `reconciler token operator {token.name} --replace`"
            raise Refusal(401, f"this token {token.wrong}", remedy)
        self._recognised.add(token_hash)
        self._each.check(token_hash)
        return Caller(token.name, token.scopes, "token", address_of(request), token_hash, ends_at=token.ends_at)

    def _token(self, token_hash: str, now: datetime, *, use: bool = False) -> _Token | None:
        """In a worker thread. Both places are asked, so that how long it takes says nothing of either."""
        access = self._options.access
        kept, written = access.operator(token_hash), find(token_hash, self._options.operators())
        if kept is None:
            return _Token(written.name, written.scopes) if written is not None else None
        if kept.revoked_at is not None:
            return _Token(kept.name, kept.scopes, wrong=f"was revoked at {_shown(kept.revoked_at)}")
        if not kept.valid(now):
            expired = kept.expires_at or now
            return _Token(kept.name, kept.scopes, wrong=f"expired at {_shown(expired)}")
        if use and (kept.last_used_at is None or now - kept.last_used_at >= _USED_COARSE):
            _note(lambda: access.use_operator(token_hash, now))
        return _Token(kept.name, kept.scopes, kept.expires_at)

    def _by_session(self, sent: str, address: str) -> Caller | None:
        now, access, times = self._options.wall(), self._options.access, self._options.sessions
        session_hash = hash_token(sent)
        session = access.session(session_hash)
        if session is None or not session.valid(now, idle_s=times.idle_s, longest_s=times.longest_s):
            return None
        token = self._token(session.token_hash, now, use=True)
        if token is None or token.wrong is not None:
            return None
        if now - session.seen_at >= timedelta(seconds=min(_SEEN_COARSE_S, times.idle_s / 10)):
            _note(lambda: access.use_session(session_hash, now))
        return Caller(
            token.name,
            token.scopes,
            "session",
            address,
            session.token_hash,
            session_hash,
            csrf_token(sent),
            token.ends_at,
        )

    def _anybody_here(self, request: Request) -> Caller | None:
        """On loopback, without TLS and without a public address: whoever is on this machine."""
        if not self._options.local or not from_here(request):
            return None
        return Caller("anybody", frozenset({Scope.READ, Scope.METRICS}), "loopback", address_of(request))

    def _allowed(self, request: Request, caller: Caller | None, wanted: Scope) -> Caller:
        if caller is None:
            self._refused.check(_source(request), take=False)
            raise self._not_known(request)
        if not covers(caller.scopes, wanted):
            remedy = f"use a token with the scope `{wanted}`: `reconciler token operator NAME --scope {wanted}`"
            raise Refusal(403, f"this token lacks the scope `{wanted}`", remedy)
        return caller

    def _look_up(self, hashes: Sequence[str]) -> Sequence[str | None]:
        found = self._options.store.devices_of_tokens(hashes)
        return [found.get(token_hash) for token_hash in hashes]

    def _token_hash(self, request: Request) -> str:
        source = _source(request)
        self._addresses.check(source)
        token = bearer(request.headers.get("authorization"))
        token_hash = hash_token(token) if token is not None else None
        # An address that has sent too many wrong tokens is not even looked up. It may be that of a whole site, or of a
        # proxy: whose token was right before is let through, or one stranger there would silence them all.
        if token_hash not in self._recognised:
            self._refused.check(source, take=False)
        if token_hash is None:
            raise self._not_known(request)
        return token_hash

    def _not_known(self, request: Request) -> Refusal:
        self._refused.wait_s(_source(request))
        remedy = (
            "send `Authorization: Bearer TOKEN`; `reconciler device enrol` makes a device's,"
            " `reconciler token operator` a person's"
        )
        return Refusal(401, "no valid token", remedy)

    async def _threaded(self, work: Callable[[], T]) -> T:
        try:
            return await run_in_threadpool(work)
        except PortError as error:
            raise refusal_of(error) from None


_KEPT_BY: Mapping[Callable[..., object], frozenset[Need]] = {
    Callers.device: frozenset({Need.DEVICE}),
    Callers.reader: frozenset({Need.READ}),
    Callers.page: frozenset({Need.PAGE}),
    Callers.scraper: frozenset({Need.METRICS}),
    Callers.acknowledger: frozenset({Need.ACKNOWLEDGE}),
    Callers.acknowledging_form: frozenset({Need.ACKNOWLEDGE}),
    Callers.operator: frozenset({Need.ALL}),
}


def check_routes(app: FastAPI) -> None:
    """Hold the app's routes to `ROUTES`. `Unstated`: one is not there, or its dependency asks for something else."""
    for key, route in stated(app):
        need = ROUTES.get(key)
        if need is None:
            raise Unstated(f"{key} says nowhere who may use it: give it a line in `server.access.ROUTES`")
        if not isinstance(route, APIRoute):
            raise Unstated(f"{key} is no route of the framework's own, so nothing holds it to `ROUTES`")
        kept = _asked_by(route.dependant)
        if kept != (frozenset() if need is Need.ANYBODY else frozenset({need})):
            raise Unstated(f"{key} is for {need} in `ROUTES`, and its dependencies ask for {sorted(kept) or 'nothing'}")


def stated(app: FastAPI) -> Iterator[tuple[str, object]]:
    """Every method and path of the app as `ROUTES` has them, with the route."""
    for route in app.routes:
        methods = sorted(
            {"GET" if method == "HEAD" else method for method in getattr(route, "methods", None) or ("ANY",)}
        )
        for method in methods:
            yield f"{method} {getattr(route, 'path', '?')}", route


def _asked_by(dependant: Dependant) -> frozenset[Need]:
    found: frozenset[Need] = frozenset()
    for below in dependant.dependencies:
        found |= _KEPT_BY.get(getattr(below.call, "__func__", below.call), frozenset()) | _asked_by(below)  # type: ignore[arg-type]
    return found


def address_of(request: Request) -> str:
    """Where a request comes from. A proxy's word for it is not taken."""
    return request.client.host if request.client is not None else "unknown"


def _note(use: Callable[[], None]) -> None:
    """Write a use down. Where the store reads and does not write (its disk is full), people must still be shown that."""
    with suppress(PortError):
        use()


def _source(request: Request) -> str:
    """What limits are counted by."""
    return network_of(address_of(request))


def _shown(at: datetime) -> str:
    return format_instant(at.replace(microsecond=0))
