"""What a commit asked for, against the one in force before it: the changes of its documents, as the review of its merge told them.

Only what differs between the two commits is read and parsed, however large the fleet is. Reads commits through the mirror
(`ports.GitSource`), writes nothing, remembers what it found: a commit never changes. Called by `cli.run`. Source: design §3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from reconciler.ports import GitSource
from reconciler.repo.load import Entry, LoadResult, load_tree
from reconciler.review.changes import Change, changes_between

_REMEMBERED = 512


@dataclass(frozen=True, slots=True)
class _Half:
    """The documents of a commit that differ from the other's."""

    label: str
    result: LoadResult
    files: Mapping[str, Entry]
    read: Callable[[str], bytes]


def askers(git: GitSource) -> Callable[[str, str], tuple[Change, ...] | None]:
    """(the commit before, the commit) → what the second changed; None where a document of them cannot be read by this version.

    Errors are those of GitSource: the mirror knows one of the commits no more, or is damaged.
    """

    @lru_cache(maxsize=_REMEMBERED)
    def asked(before: str, sha: str) -> tuple[Change, ...] | None:
        base, head = _half(git, sha, before), _half(git, before, sha)
        documents = [
            one for half in (base, head) for kind in half.result.state.fleet.documents.values() for one in kind.values()
        ]
        if any(one.spec is None for one in documents):
            return None
        return changes_between(base, head)

    return asked


def _half(git: GitSource, other: str, sha: str) -> _Half:
    """What `sha` has in the places where the other commit differs."""
    files = {path: entry for path, entry in git.changed(other, sha).items() if entry is not None}
    return _Half(sha, load_tree(tuple(files.values()), git.blob), files, git.blob)
