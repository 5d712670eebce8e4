"""Whether a request that came over loopback was made on this machine: for where pages ask for no token.

Pure: reads a request's headers and believes nothing that speaks for the caller. The peer's address says nothing here, since a
browser's and a proxy's requests come from loopback too, whoever is behind them. Called by `server.access`.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from reconciler.server.run import is_loopback

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::\d{1,5})?", re.IGNORECASE)
_OF_PROXIES = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
)


def from_here(request: Request) -> bool:
    """Whether nothing speaks against it: its `Host` is this machine's, no proxy passed it on, no other site's page made it."""
    headers = request.headers
    # A page of another site whose name was pointed here has that name in `Host`. The header itself is judged: of one that it
    # cannot read, the framework makes the address that it listens on.
    host = _HOST.fullmatch(headers.get("host", ""))
    if host is None or not is_loopback((host[1] or host[2]).lower()):
        return False
    if any(name in headers for name in _OF_PROXIES):
        return False
    # A link may lead here; an image, a script or a stream of another site's page may not.
    by_page = headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    return by_page or headers.get("sec-fetch-mode") == "navigate"
