"""Answers of the HTTP service: errors as `{"error", "remedy"}`, headers on everything, and no trace of the inside.

`Guard` is the outermost layer: it counts, sets headers, and turns whatever escapes into a plain 500. It logs a
request's route, status and duration, never its token, body or query. Called by `server.app` alone.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any, Protocol

import structlog
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reconciler.ports import PortError, TransientError

_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not `no-referrer`: a browser would send `Origin: null` with the forms of our own pages, and they would be refused.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Nothing from elsewhere, and nothing that stands in the page itself: neither script nor style.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}
_log = structlog.get_logger("reconciler.server")


class Refusal(Exception):
    """A request that is not served: status, what is wrong, what to do."""

    def __init__(self, status: int, error: str, remedy: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.remedy, self.retry_after_s = status, error, remedy, retry_after_s

    def answer(self) -> Response:
        """As JSON, with the headers that belong to the status."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        if self.status == 401:
            headers["www-authenticate"] = 'Bearer realm="reconciler"'
        # What is left of a body that was refused is not read: the connection ends with it.
        if self.status in (408, 413) or self is TWO_LENGTHS:
            headers["connection"] = "close"
        return JSONResponse({"error": self.error, "remedy": self.remedy}, self.status, headers)


TWO_LENGTHS = Refusal(
    400, "the body has two lengths", "send Content-Length or Transfer-Encoding, as one program makes it, and not both"
)
"""RFC 9112, 6.1: a proxy before this service may believe the other one, and take what follows for another's request."""


def refusal_of(error: PortError) -> Refusal:
    """What a caller is told of a failure behind the service. The cause goes to the log: it is no caller's business."""
    _log.warning("not served", cause=str(error))
    if isinstance(error, TransientError):
        wait = max(1, int(error.retry_after_s or 5))
        return Refusal(503, "a system behind this service does not answer now", "try again", retry_after_s=wait)
    return Refusal(500, "a system behind this service refused", "an operator finds the cause in the controller's log")


class Counting(Protocol):
    """Where requests are counted."""

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request was answered."""


class Guard:
    """Outermost layer of the app."""

    def __init__(self, app: ASGIApp, counting: Counting, *, secure: bool) -> None:
        self._app, self._counting = app, counting
        self._headers = _HEADERS | ({"strict-transport-security": "max-age=31536000"} if secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (or the app's start and stop)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        names = {name for name, _ in scope["headers"]}
        try:
            if {b"content-length", b"transfer-encoding"} <= names:
                await TWO_LENGTHS.answer()(scope, receive, answering)
                return
            await self._app(scope, receive, answering)
        except Exception as error:  # noqa: BLE001  whatever it is, the caller sees none of it
            # The type and the place alone: the text of an error can repeat what was sent.
            _log.error("failed", route=_route(scope), error=type(error).__name__, at=_place(error))
            if status == 0:
                refusal = Refusal(500, "this service failed", "an operator finds the cause in the controller's log")
                await refusal.answer()(scope, receive, answering)
        finally:
            seconds = time.perf_counter() - started
            self._counting.request(_route(scope), str(scope["method"]), status, seconds)
            _log.debug("request", route=_route(scope), status=status, seconds=round(seconds, 4))


def _route(scope: MutableMapping[str, Any]) -> str:
    """The route's pattern, so that neither metrics nor logs grow with what callers ask for."""
    return str(getattr(scope.get("route"), "path", "unknown"))


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace is not None else "?"
