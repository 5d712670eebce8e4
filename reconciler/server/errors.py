"""What a caller is told when something is wrong: JSON for programs, a page for browsers, a login where that is what lacks.

Turns exceptions of the routes into answers; decides nothing else. The framework's own words are not passed on: they would repeat
what was sent. Called by `server.app`.
"""

from __future__ import annotations

from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from reconciler.server.access import LogInFirst
from reconciler.server.answers import Refusal
from reconciler.server.dashboard.frame import Frame
from reconciler.server.dashboard.shell import Shell
from reconciler.server.options import Options
from reconciler.server.sessions import safe_next

_PROGRAMS = ("/v1/", "/metrics", "/healthz", "/readyz", "/static/")
_REMEDIES = {
    404: "there is nothing at this address; the HTTP API in the documentation has the routes",
    405: "use the method that the route is made for",
}


def answer_errors(app: FastAPI, options: Options, shell: Shell) -> None:
    """Add the handlers."""

    def told(request: Request, refusal: Refusal) -> Response:
        answer = refusal.answer()
        if not _is_browser(request):
            return answer
        headers = {
            name: value for name, value in answer.headers.items() if name not in ("content-type", "content-length")
        }
        # A browser would answer the challenge with a box for name and password.
        headers.pop("www-authenticate", None)
        frame = Frame(request.url.path, options.now(), None, live=False)
        return shell.render("error.html", refusal.status, headers=headers, refusal=refusal, frame=frame)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return told(request, error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        remedy = _REMEDIES.get(error.status_code, "send the request as documented")
        answer = told(request, Refusal(error.status_code, str(error.detail), remedy))
        for name, value in (error.headers or {}).items():
            answer.headers[name] = value
        return answer

    async def invalid(request: Request, _error: Exception) -> Response:
        return told(request, Refusal(400, "the request is not valid", "send the request as documented"))

    async def failed(request: Request, _error: Exception) -> Response:
        # What happened is logged by the guard, to which the framework hands the error on.
        return told(request, Refusal(500, "this service failed", "an operator finds the cause in the controller's log"))

    async def log_in_first(request: Request, _error: Exception) -> Response:
        if not _is_browser(request):
            return Refusal(401, "no valid token", "send `Authorization: Bearer TOKEN`").answer()
        if request.method != "GET":
            return RedirectResponse("/login", 303)
        query = f"?{request.url.query}" if request.url.query else ""
        path = safe_next(f"{request.url.path}{query}")
        if request.headers.get("sec-fetch-site") == "cross-site":
            return shell.render("again.html", path=path)
        return RedirectResponse(f"/login?next={quote(path, safe='')}", 303)

    app.add_exception_handler(Exception, failed)
    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(LogInFirst, log_in_first)


def _is_browser(request: Request) -> bool:
    """Whether a person looks at the answer."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(_PROGRAMS)
