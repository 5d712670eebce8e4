"""The shell of every page: templates with their escaping, and static files under addresses that change with their bytes.

Decides nothing of what a page says. Templates are read from `templates/`, everything below `static/` is served by
`GET /static/{name}` to anybody: it holds nothing of a fleet. Each file's address carries a digest of it, so that a browser may
keep it for good. All files are read once, when the service starts. Called by `server.app` and by whoever renders a page.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from reconciler import __version__
from reconciler.server.access import Callers
from reconciler.server.answers import Refusal
from reconciler.server.dashboard.marks import furnish

HERE = Path(__file__).parent
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}


_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the order of what follows: a text must read as it is."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file: its bytes, media type, and a digest that stands in its address."""

    data: bytes
    media_type: str
    digest: str


class Shell:
    """Renders templates. Every value is escaped, without what would turn its order about; a name that a template misspells is an
    error and not a blank."""

    def __init__(self, folder: Path = HERE) -> None:
        self.assets = read_assets(folder / "static")
        self._environment = Environment(
            loader=FileSystemLoader(folder / "templates"),
            autoescape=True,
            finalize=_seen,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.globals.update(asset=self.address, version=__version__)
        furnish(self._environment)

    def address(self, name: str) -> str:
        """Where a static file is served. KeyError: there is none of this name."""
        return f"/static/{name}?v={self.assets[name].digest}"

    def render(
        self, template: str, status: int = 200, *, headers: Mapping[str, str] | None = None, **values: Any
    ) -> HTMLResponse:
        """A page. `caller` is who it is for (`access.Caller`), None where nobody has logged in; `frame` what stands around it
        (`frame.Frame`), None where nothing of a fleet does."""
        text = self._environment.get_template(template).render({"caller": None, "frame": None} | values)
        return HTMLResponse(text, status, headers)


def _seen(value: Any) -> Any:
    # Markup is of ours, and its values went through here or through `clean`.
    return _UNSEEN.sub("\ufffd", value) if value.__class__ is str else value


def read_assets(folder: Path) -> dict[str, Asset]:
    """Every file below a folder, by its path there. ValueError: one has no media type of those that are served."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            if path.suffix not in _TYPES:
                raise ValueError(f"{path} has no media type; add its ending to the shell's types")
            data = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            found[name] = Asset(data, _TYPES[path.suffix], hashlib.sha256(data).hexdigest()[:16])
    return found


def serve_assets(app: FastAPI, callers: Callers, shell: Shell) -> None:
    """Add `GET /static/{name}`."""

    @app.get("/static/{name:path}", include_in_schema=False, dependencies=[Depends(callers.anybody)])
    async def get_asset(name: str, request: Request) -> Response:
        asset = shell.assets.get(name)
        if asset is None:
            raise Refusal(404, "no such file here", "load the page again")
        tag = f'"{asset.digest}"'
        kept = "public, max-age=31536000, immutable" if request.query_params.get("v") == asset.digest else "no-cache"
        headers = {"etag": tag, "cache-control": kept}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(asset.data, media_type=asset.media_type, headers=headers)
