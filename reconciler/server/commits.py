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
_SOUGHT = 50
"""Older commits among which the one is sought that asked for a release."""


def with_before(
    rows: Sequence[AcceptedCommit], page: Sequence[AcceptedCommit]
) -> Iterator[tuple[AcceptedCommit, str | None]]:
    """Each commit of a page with the one in force before it (None: it is the first). `rows` have one more, if there is one."""
    for number, row in enumerate(page):
        yield row, rows[number + 1].sha if number + 1 < len(rows) else None


def commit_entry(
    options: Options, board: Board, sha: str, at: str, before: str | None, number: int | None
) -> dict[str, Any]:
    """A commit that came into force, with what git knows of it, what it asked for, and how much happened under it. `number` is
    its own among those that came into force; None: it did not."""
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
        "releases": _by_release(events, Askers(options, sha, number, asked)),
    }


class Askers:
    """Which commit asked for what is under way while one is in force (`sha`, the `number`-th; None: it never was)."""

    def __init__(self, options: Options, sha: str, number: int | None, asked: Sequence[Intent] | None) -> None:
        self._options, self._sha, self._number, self._asked = options, sha, number, asked
        self._older: Sequence[AcceptedCommit] | None = None

    def earlier(self, release: str | None) -> bool:
        """Whether a commit before it asked for a release, as far as git tells."""
        return release is not None and self._asked is not None and not asks_for(release, self._asked)

    def of(self, release: str | None) -> str | None:
        """The commit that asked for a release, the newest of those that did. The first on record asked for all that was under way
        then. None: not known."""
        if release is None or self._number is None:
            return None
        if self._asked is not None and not self.earlier(release):
            return self._sha
        older = self._before()
        if not older:
            return self._sha
        if self._asked is None:
            return None
        for place, row in enumerate(older[:_SOUGHT]):
            if place + 1 == len(older):
                return row.sha
            asked = asked_for(self._options, older[place + 1].sha, row.sha)
            if asked is None or asks_for(release, asked):
                return None if asked is None else row.sha
        return None

    def _before(self) -> Sequence[AcceptedCommit]:
        if self._older is None:
            self._older = self._options.store.accepted_commits(before=self._number, limit=_SOUGHT + 1)
        return self._older


def _by_release(events: Sequence[Event], askers: Askers) -> list[dict[str, Any]]:
    """The events by the release that they are about, those about none last: a commit that asks for something else changes
    nothing of a release that is under way. `earlier`: a commit before this one asked for it; `askedBy`: which."""
    counts: dict[str | None, Counter[str]] = {}
    for event in events:
        counts.setdefault(event.release, Counter())[event.kind.value] += 1
    order = sorted(counts, key=lambda release: (release is None, release or ""))
    return [
        {
            "release": release,
            "earlier": askers.earlier(release),
            "askedBy": askers.of(release),
            "events": dict(sorted(counts[release].items())),
        }
        for release in order
    ]


def asks_for(release: str, asked: Sequence[Intent]) -> bool:
    """Whether changes of the desired state ask for a release."""
    # A whole version, not the beginning of another one: v1.4.2 is no part of v1.4.20.
    version = re.compile(rf"(?<![\w.+-]){re.escape(release.rpartition('@')[2])}(?![\w.+-])")
    changes = [intent.to_dict() for intent in asked]
    # What a whole new wave asks for is not told by its change.
    return any(
        change["what"] == "added"
        if change["kind"] == "Wave" and change["field"] is None
        else version.search(change["to"] or "")
        for change in changes
    )


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
