"""Pages and tags of what operators read: opaque cursors, and answers that are not sent twice. Knows nothing of what is in them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Query, Request
from starlette.responses import Response

from reconciler.server.answers import Refusal

MOST = 1000
Limit = Annotated[int, Query(ge=1, le=MOST, description="Rows of a page")]
Cursor = Annotated[str | None, Query(max_length=400, description="`next` of the page before")]

_HEADERS = {"cache-control": "private, no-cache"}


def cursor_of(value: str | int) -> str:
    """An opaque cursor behind a name or a number."""
    return base64.urlsafe_b64encode(f"1{value}".encode()).decode().rstrip("=")


def name_behind(cursor: str | None) -> str | None:
    """What `cursor_of` was made of. Refusal 400: it is no cursor."""
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        text = ""
    if not text.startswith("1"):
        raise Refusal(400, "this is no cursor", "send `next` of the page before, or begin without it")
    return text[1:]


def number_behind(cursor: str | None) -> int | None:
    """The same of a number."""
    name = name_behind(cursor)
    if name is None:
        return None
    if not (name.isascii() and name.isdigit() and len(name) < 19):
        raise Refusal(400, "this is no cursor", "send `next` of the page before, or begin without it")
    return int(name)


def page_of(keys: Sequence[str], cursor: str | None, limit: int) -> tuple[slice, str | None]:
    """Where a page of a list in its own order lies, and the cursor behind it (None: there is no more). `keys` name the rows.

    A page follows the row that the page before ended with; where that row is gone by now, its place. Refusal 400: no cursor.
    """
    first = 0
    if cursor is not None:
        place, _, digest = (name_behind(cursor) or "").partition(".")
        if not (place.isascii() and place.isdigit() and len(place) < 10 and len(digest) == _DIGEST):
            raise Refusal(400, "this is no cursor", "send `next` of the page before, or begin without it")
        number = int(place)
        if number >= len(keys) or _digest(keys[number]) != digest:
            number = next((at for at, key in enumerate(keys) if _digest(key) == digest), number - 1)
        first = number + 1
    until = first + limit
    onward = cursor_of(f"{until - 1}.{_digest(keys[until - 1])}") if until < len(keys) else None
    return slice(first, until), onward


_DIGEST = 16


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:_DIGEST]


def tagged(request: Request, document: Mapping[str, Any]) -> Response:
    """The document with its ETag; 304 where the caller's `If-None-Match` names it."""
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = _HEADERS | {"etag": tag}
    if matches(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def matches(known: str, tag: str) -> bool:
    """Whether an If-None-Match header names the tag; compared weakly, as RFC 9110 asks for it."""
    words = [word.strip().removeprefix("W/") for word in known.split(",")]
    return tag.removeprefix("W/") in words or known.strip() == "*"
