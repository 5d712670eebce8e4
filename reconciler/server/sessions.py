"""Browser sessions: the cookie, whether a request comes from a page of ours, and where a login may lead.

Pure: reads requests, writes headers, stores nothing. A session's id is 256 random bits in a cookie that scripts cannot read and
that other sites' pages never send; only its hash is kept. Every state-changing request of a session must come from our own
origin and carry the session's form token: each of the two alone would do. Called by `server.access` and `server.login`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from reconciler.server.answers import Refusal
from reconciler.server.limits import read_body
from reconciler.server.options import Options
from reconciler.server.tokens import csrf_token

CSRF_FIELD = "csrf"
CSRF_HEADER = "x-csrf-token"
FORM_BYTES = 16 * 1024
HOME = "/"
"""Where a login leads that was asked for by no page."""

_NEXT_CHARS = 2000
# Printable, and nothing that a browser would read as another address: `//host`, `/\\host`, tabs and line ends.
_OWN_PATH = re.compile(r"/(?![/\\])[!-\[\]-~]*")


def cookie_name(options: Options) -> str:
    """The cookie's name. `__Host-` makes the browser itself insist on TLS, on this host alone, and on the whole of it."""
    return "__Host-reconciler" if options.secure else "reconciler"


def session_id(request: Request, options: Options) -> str | None:
    """The id that a browser sent, None where it sent none."""
    return request.cookies.get(cookie_name(options)) or None


def set_cookie(response: Response, options: Options, value: str) -> None:
    """Give the browser its session."""
    response.set_cookie(
        cookie_name(options),
        value,
        max_age=int(options.sessions.longest_s),
        path="/",
        secure=options.secure,
        httponly=True,
        samesite="strict",
    )


def drop_cookie(response: Response, options: Options) -> None:
    """Take it back."""
    response.delete_cookie(cookie_name(options), path="/", secure=options.secure, httponly=True, samesite="strict")


def check_origin(request: Request, options: Options) -> None:
    """Refusal 403: a page of another site sent this. A program that sends no Origin is let through: it has no cookies to steal."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
    own = {f"{'https' if options.tls else 'http'}://{request.headers.get('host', '')}"}
    if options.public_url is not None:
        # As a browser writes it: in small letters, and without the port that goes without saying.
        parts = urlsplit(options.public_url.lower())
        own.add(f"{parts.scheme}://{parts.netloc.removesuffix(':443' if parts.scheme == 'https' else ':80')}")
    if (origin is None and site in ("none", "same-origin")) or origin in own:
        return
    remedy = (
        "send it from a page of this service; behind a proxy, set `server.publicUrl` to the address that browsers use"
    )
    raise Refusal(403, "another site sent this request", remedy)


def check_csrf(sent: str, session: str) -> None:
    """Refusal 403: not the form token of this session."""
    if not hmac.compare_digest(sent.encode(), csrf_token(session).encode()):
        raise Refusal(403, "the form is not of this session", "load the page again, and send the form from there")


async def read_form(request: Request, timeout_s: float) -> Mapping[str, str]:
    """A form's fields, the first of each name. Refusal 400, 408, 413, 415: it is none, or does not come."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refusal(415, "this is not a form", "send application/x-www-form-urlencoded")
    body = await read_body(request, FORM_BYTES, timeout_s)
    try:
        fields = parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=50, errors="strict")
    except ValueError:
        raise Refusal(400, "the form cannot be read", "send the page's own form") from None
    return dict(reversed(fields))


def safe_next(wanted: str | None) -> str:
    """Where to go after a login: a path of ours, or `HOME` where the one that is asked for might lead elsewhere."""
    text = wanted or ""
    return text if len(text) <= _NEXT_CHARS and _OWN_PATH.fullmatch(text) else HOME
