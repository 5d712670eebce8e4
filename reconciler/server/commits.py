"""Commits that came into force, as the API and the pages show them: what git knows of each, what it asked for, what happened.

What git knows may be missing (the mirror was made anew, or is damaged); what the store knows is shown all the same. Decides
nothing. Called by `server.api` and by the pages of commits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from reconciler.controller.board import Board
from reconciler.model.events import Event
from reconciler.model.scalars import format_instant
from reconciler.ports import Commit, PortError
from reconciler.ports_events import AcceptedCommit
from reconciler.server.options import Intent, Options

MOST_ASKED = 100
_COUNTED = 1000


def with_before(
    rows: Sequence[AcceptedCommit], page: Sequence[AcceptedCommit]
) -> Iterator[tuple[AcceptedCommit, str | None]]:
    """Each commit of a page with the one in force before it (None: it is the first). `rows` have one more, if there is one."""
    for number, row in enumerate(page):
        yield row, rows[number + 1].sha if number + 1 < len(rows) else None


def commit_entry(options: Options, board: Board, sha: str, at: str, before: str | None) -> dict[str, Any]:
    """A commit that came into force, with what git knows of it, what it asked for, and how much happened under it."""
    known = _known(options, sha)
    events = options.store.events(commit=sha, limit=_COUNTED)
    asked = asked_for(options, before, sha)
    return {
        "commit": sha,
        "at": at,
        "inForce": sha == board.commit,
        "author": known.author if known is not None else None,
        "message": known.message if known is not None else None,
        "committedAt": format_instant(known.committed_at) if known is not None else None,
        "signer": known.signer if known is not None else None,
        "asked": None if asked is None else [{"text": one.sentence} | one.to_dict() for one in asked[:MOST_ASKED]],
        "askedInAll": None if asked is None else len(asked),
        "events": dict(sorted(Counter(event.kind.value for event in events).items())),
        "releases": _by_release(events, asked),
    }


def _by_release(events: Sequence[Event], asked: Sequence[Intent] | None) -> list[dict[str, Any]]:
    """The events by the release that they are about, those about none last: a commit that asks for something else changes
    nothing of a release that is under way. `earlier`: a commit before this one asked for it."""
    counts: dict[str | None, Counter[str]] = {}
    for event in events:
        counts.setdefault(event.release, Counter())[event.kind.value] += 1
    order = sorted(counts, key=lambda release: (release is None, release or ""))
    return [
        {
            "release": release,
            "earlier": release is not None and _earlier(release, asked),
            "events": dict(sorted(counts[release].items())),
        }
        for release in order
    ]


def _earlier(release: str, asked: Sequence[Intent] | None) -> bool:
    if asked is None:
        return False
    # A whole version, not the beginning of another one: v1.4.2 is no part of v1.4.20.
    version = re.compile(rf"(?<![\w.+-]){re.escape(release.rpartition('@')[2])}(?![\w.+-])")
    changes = [intent.to_dict() for intent in asked]
    # What a whole new document or wave asks for is not told by its change.
    return not any(change["field"] is None or version.search(change["to"] or "") for change in changes)


def asked_for(options: Options, before: str | None, sha: str) -> Sequence[Intent] | None:
    """What a commit asked for against the one in force before it; None: not known."""
    if before is None or options.asked is None:
        return None
    try:
        return options.asked(before, sha)
    except PortError:
        return None


def _known(options: Options, sha: str) -> Commit | None:
    if options.commit is None:
        return None
    try:
        return options.commit(sha)
    except PortError:
        return None
