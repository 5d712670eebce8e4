"""From a change to a branch: start from the base, validate the whole, commit beside the work tree, push, never twice.

Decides on which branch a change is proposed, and that a repeat of it is not a second proposal: a branch of its name that holds
what this change would have written there is taken as it is; one that is merged or closed gives way to the next number; one with
other content is left alone. Called by the command line, which opens the pull request. Knows git through `propose.ports.Clone`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from reconciler.ports import TerminalError, TreeEntry
from reconciler.propose.base import Base, Change, Declined
from reconciler.propose.diff import unified
from reconciler.propose.ports import Clone
from reconciler.repo.problem import InvalidInput, Problem

Make = Callable[[Base, str], Change]
"""The change that was asked for, made from a fleet repo as it is in a commit."""

_MOST_BRANCHES = 20
_OTHER = "propose on another branch, with --branch NAME"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A validated change: the commit it starts from, what it does as a diff, and the warnings that it brings."""

    change: Change
    base: str
    diff: str
    warnings: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """Where a proposal stands: its branch and commit, whether they were there already, and then what its commit said if that was
    made on another day (`Change.dated`), for it holds what was asked for then.
    """

    branch: str
    commit: str
    existed: bool
    earlier: str | None = None


def base_of(clone: Clone, sha: str, where: str = "") -> Base:
    """The fleet repo as a commit holds it. Blobs of documents are read in one go."""
    entries = clone.files(sha)
    wanted = [entry.blob for entry in entries if document(entry)]
    blobs = dict(clone.blobs(wanted))

    def read(blob: str) -> bytes:
        if blob not in blobs:
            blobs.update(clone.blobs([blob]))
        return blobs[blob]

    return Base(entries, read, where)


def document(entry: TreeEntry) -> bool:
    """Whether a file may be a document: those are few and small, and worth reading in one go."""
    return (
        entry.path.endswith((".yaml", ".yml", ".json")) and entry.mode.startswith("100") and (entry.size or 0) < 1 << 20
    )


def prepare(clone: Clone, make: Make, where: str = "") -> Proposal:
    """The change on the base branch's head. InvalidInput: the fleet repo would not be valid; Declined: nothing to do."""
    sha = clone.base().sha
    base = base_of(clone, sha, where)
    base.must_be_fleet()
    change = make(base, sha)
    warnings = base.warnings_after(change)
    return Proposal(change, sha, shown(base, change, clone.below), tuple(warnings))


def shown(base: Base, change: Change, below: str = "") -> str:
    """A change as a diff."""
    before = {path: base.read(path) if path in base.entries else None for path in change.files}
    return unified(before, change.files, below)


def publish(
    clone: Clone,
    proposal: Proposal,
    make: Make,
    *,
    branch: str | None = None,
    push: bool = True,
    message: str | None = None,
    closed: Callable[[str], bool] = lambda _name: False,
) -> Published:
    """The proposal on a branch of its own: pushed, or kept in the clone. `closed` says whether a branch's pull request is over.

    Declined: a branch of this name holds something else. TransientError, TerminalError: as the clone raises them.
    """
    change = proposal.change
    if branch == clone.base_branch:
        raise Declined(
            f"a change is not put on {branch!r}, the branch in force, but proposed for it",
            remedy="name another branch with --branch",
        )
    for number in range(1, _MOST_BRANCHES):
        name = branch or (change.branch if number == 1 else f"{change.branch}-{number}")
        found = clone.branch(name, remote=push)
        over = (found is not None and clone.merge_base(found, proposal.base) == found) or (push and closed(name))
        if over and branch is None:
            continue
        if over:
            raise Declined(f"branch {name!r} is merged, or its pull request is closed", remedy=_OTHER)
        if found is None:
            break
        return _there(clone, name, found, proposal, make)
    else:
        raise Declined(f"{change.branch} and its next numbers are taken", remedy="name a branch with --branch")
    commit = clone.branch(name, remote=False) if push else None
    if commit is not None and not _holds(clone, commit, proposal.base, make):
        if clone.merge_base(commit, proposal.base) != commit:
            raise _taken(clone, name, commit)
        commit = None
    if commit is None:
        text = message or "\n\n".join(part for part in (change.title, change.body, _bullets(change.told)) if part)
        commit = clone.commit(proposal.base, change.files, change.modes, text + "\n")
    if not push:
        clone.keep(commit, name)
        return Published(name, commit, existed=False)
    try:
        clone.push(commit, name)
    except TerminalError:
        # Two people at once: who comes second goes on from what the first has pushed, if it is the same change.
        found = clone.branch(name, remote=True)
        if found is None:
            raise
        return _there(clone, name, found, proposal, make)
    return Published(name, commit, existed=False)


def _there(clone: Clone, name: str, found: str, proposal: Proposal, make: Make) -> Published:
    """A branch of the proposal's name that is there already. Declined: it holds something else."""
    if _holds(clone, found, proposal.base, make):
        return Published(name, found, existed=True)
    if proposal.change.dated:
        start = clone.merge_base(found, proposal.base)
        files = {path for path, _, _ in clone.changed(start, found)} if start is not None else None
        if files == {clone.below + path for path in proposal.change.files}:
            return Published(name, found, existed=True, earlier=clone.resolve(found).message)
    raise _taken(clone, name, found)


def _bullets(says: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in says)


def _holds(clone: Clone, found: str, base: str, make: Make) -> bool:
    """Whether a branch holds what this very change would have written at the commit where the branch began."""
    start = clone.merge_base(found, base)
    if start is None:
        return False
    fleet = base_of(clone, start)
    try:
        wanted = make(fleet, start)
    except (TerminalError, InvalidInput):
        return False
    written: dict[str, TreeEntry | None] = {path: after for path, _, after in clone.changed(start, found)}
    if set(written) != {clone.below + path for path in wanted.files}:
        return False
    blobs = clone.blobs(entry.blob for entry in written.values() if entry is not None)
    there: Mapping[str, bytes | None] = {
        path: None if entry is None else blobs[entry.blob] for path, entry in written.items()
    }
    return all(there[clone.below + path] == data for path, data in wanted.files.items())


def _taken(clone: Clone, name: str, found: str) -> Declined:
    commit = clone.resolve(found)
    title = commit.message.partition("\n")[0]
    return Declined(
        f"branch {name!r} exists with other content ({found[:12]} {title!r} by {commit.author})",
        remedy=f"{_OTHER}, or delete that one first",
    )


_GITHUB = re.compile(r"^(?:https://|ssh://git@|git@)(?P<host>github\.com)[:/](?P<name>[^/\s]+/[^/\s]+?)(?:\.git)?/?$")


def github_repository(url: str | None) -> str | None:
    """`owner/name` of a GitHub address, or None."""
    found = _GITHUB.match(url or "")
    return found["name"] if found else None
