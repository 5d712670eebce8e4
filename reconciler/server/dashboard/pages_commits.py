"""The pages of commits: those that came into force, and what each one asked for and did. Called by `dashboard.pages`.

What git knows of a commit may be missing (the mirror was made anew, or is damaged); what the store knows is shown all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from reconciler.controller.board import Board
from reconciler.model.events import Event, EventKind
from reconciler.model.scalars import format_instant
from reconciler.ports_events import AcceptedCommit
from reconciler.server.access import Caller, Callers
from reconciler.server.answers import Refusal
from reconciler.server.commits import Askers, asked_for, commit_entry, with_before
from reconciler.server.dashboard.frame import Pages, known
from reconciler.server.dashboard.view_commits import asked_of, paths_of
from reconciler.server.options import Options
from reconciler.server.paging import Cursor, cursor_of, number_behind

_PAGE = 20
_EVENTS = 300
_LATER = 20
"""Later commits under which what a commit asked for is followed."""
_LOOKED = 1000
"""Commits among which one that is asked for is looked up."""


def serve_commits(app: FastAPI, callers: Callers, pages: Pages) -> None:
    """Add `GET /commits` and `GET /commits/{sha}`."""
    by_page, options = Depends(callers.page), pages.options

    @app.get("/commits", include_in_schema=False)
    async def get_commits(request: Request, cursor: Cursor = None, caller: Caller = by_page) -> Response:
        before = number_behind(cursor)
        return await pages.page(
            request, caller, "commits.html", lambda board: list_values(board, options, before), unplanned=True
        )

    @app.get("/commits/{sha}", include_in_schema=False)
    async def get_commit(request: Request, sha: str, caller: Caller = by_page) -> Response:
        return await pages.page(
            request, caller, "commit.html", lambda board: commit_values(board, options, sha), unplanned=True
        )


def list_values(board: Board, options: Options, before: int | None) -> dict[str, Any]:
    """A page of the list, newest first."""
    rows = options.store.accepted_commits(before=before, limit=_PAGE + 1)
    page = rows[:_PAGE]
    return {
        "commits": [
            (row.at, commit_entry(options, board, row.sha, format_instant(row.at), before, row.number))
            for row, before in with_before(rows, page)
        ],
        "refused": board.refused if before is None else None,
        "first": before is None,
        "next": f"/commits?cursor={cursor_of(page[-1].number)}" if len(rows) > _PAGE else None,
    }


def commit_values(board: Board, options: Options, sha: str) -> dict[str, Any]:
    """One commit. Refusal 404: it never came into force, and was never refused."""
    absent = Refusal(404, "no such commit", "the list has those that came into force; git has the others")
    if not sha.isalnum():
        raise absent
    rows = options.store.accepted_commits(limit=_LOOKED)
    place = next((number for number, row in enumerate(rows) if row.sha == sha), None)
    events = options.store.events(commit=sha, limit=_EVENTS + 1, newest_first=True)
    refused = board.refused if board.refused is not None and board.refused[0] == sha else None
    if place is None and not events and refused is None and sha != board.commit:
        raise absent
    refusals = [event for event in events if event.kind is EventKind.COMMIT_REFUSED]
    row = rows[place] if place is not None else None
    before = rows[place + 1].sha if place is not None and place + 1 < len(rows) else None
    askers = Askers(options, sha, None if row is None else row.number, asked_for(options, before, sha))
    own = [event for event in events[:_EVENTS] if not askers.earlier(event.release)]
    return {
        "sha": sha,
        "row": row,
        "entry": commit_entry(options, board, sha, "", before, None if row is None else row.number),
        "until": rows[place - 1].at if place else None,
        "refused": refused[1] if refused is not None else refusals[0].message if refusals and row is None else None,
        "asked": asked_of(board, sha, events),
        "before": before,
        "paths": _changed(options, before, sha, row),
        "events": own,
        "of_earlier": _of_earlier(askers, events[:_EVENTS]),
        "later": _later(options, rows, place),
        "more": len(events) > _EVENTS,
    }


def _of_earlier(askers: Askers, events: Sequence[Event]) -> dict[tuple[str, str | None], list[Event]]:
    """(a release, the commit that asked for it) → what happened of it under a later one."""
    found: dict[tuple[str, str | None], list[Event]] = {}
    asked_by: dict[str, str | None] = {}
    for event in events:
        if event.release is not None and askers.earlier(event.release):
            if event.release not in asked_by:
                asked_by[event.release] = askers.of(event.release)
            found.setdefault((event.release, asked_by[event.release]), []).append(event)
    return found


def _later(options: Options, rows: Sequence[AcceptedCommit], place: int | None) -> list[tuple[str, list[Event]]]:
    """What happened of what a commit asked for while later ones were in force: (the later one, events), the newest first."""
    found = []
    for number in range(max(0, (place or 0) - _LATER), place or 0):
        row, before = rows[number], rows[number + 1].sha
        askers = Askers(options, row.sha, row.number, asked_for(options, before, row.sha))
        events = options.store.events(commit=row.sha, limit=_EVENTS, newest_first=True)
        mine = [
            event
            for (_, by), some in _of_earlier(askers, events).items()
            if by == rows[place or 0].sha
            for event in some
        ]
        if mine:
            found.append((row.sha, sorted(mine, key=lambda event: -(event.id or 0))))
    return found


def _changed(options: Options, before: str | None, sha: str, row: AcceptedCommit | None) -> Any:
    """What it changed against the commit in force before it; None: not known."""
    changed = options.changed
    if before is None or row is None or changed is None:
        return None
    found = known(lambda: changed(before, sha))
    return None if found is None else paths_of(found)
