"""The pages of releases: all of them, one with its artifact and packages, and what differs between two.

What they say is what the API says of the same: `server.releases` makes both. Called by `dashboard.pages`.
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from reconciler.controller.board import Board
from reconciler.server.access import Caller, Callers
from reconciler.server.dashboard.frame import Pages, known
from reconciler.server.dashboard.view_releases import compared_with, line_of, listed_of, running_of, size
from reconciler.server.options import Options
from reconciler.server.releases import Releases

_LOOKED = 1000
"""Commits among which an artifact's is looked up."""


def serve_releases(app: FastAPI, callers: Callers, pages: Pages) -> None:
    """Add `GET /releases`, `GET /releases/{release}` and `GET /releases/{before}/diff/{after}`."""
    by_page, releases = Depends(callers.page), Releases(pages.options)

    @app.get("/releases", include_in_schema=False)
    async def get_releases(request: Request, caller: Caller = by_page) -> Response:
        def make(board: Board) -> dict[str, Any]:
            return {"listed": listed_of(releases.listed(board)["releases"])}

        return await pages.page(request, caller, "releases.html", make)

    @app.get("/releases/{release}", include_in_schema=False)
    async def get_release(request: Request, release: str, caller: Caller = by_page) -> Response:
        return await pages.page(
            request, caller, "release.html", lambda board: release_values(board, releases, release, pages.options)
        )

    @app.get("/releases/{before}/diff/{after}", include_in_schema=False)
    async def get_diff(request: Request, before: str, after: str, caller: Caller = by_page) -> Response:
        return await pages.page(
            request, caller, "release_diff.html", lambda board: {"diff": releases.diff(board, before, after)}
        )


def release_values(board: Board, releases: Releases, release: str, options: Options) -> dict[str, Any]:
    """One release. Refusal 404: nothing knows it."""
    said = releases.one(board, release)
    everything = releases.listed(board)["releases"]
    artifact = said["artifact"]
    return {
        "line": line_of(said["release"], everything),
        "app": said["release"]["app"],
        "running": running_of(board, said["running"]),
        "signature": said["signature"],
        "artifact": artifact,
        "packed": None if artifact is None else size(artifact["size"]),
        "unpacked": None if artifact is None else size(artifact["imageSize"]),
        "trouble": said["trouble"],
        "linked": artifact is not None and _was_in_force(options, artifact["commit"]),
        "compared": compared_with(release, everything),
    }


def _was_in_force(options: Options, sha: str | None) -> bool:
    """Whether there is a page of a commit. A build may be of one that never came into force by itself."""
    rows = known(lambda: options.store.accepted_commits(limit=_LOOKED))
    return any(row.sha == sha for row in rows or ())
