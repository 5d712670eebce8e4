"""A fleet repo in memory: commits over trees of bytes, pushed at virtual instants. Implements `ports.GitSource`.

Hashes of blobs are git's own; those of commits are made from what they hold, so the same history has the same hashes. Merges with
a rewrite are possible, and so is a remote that does not answer. A proposed revert is a branch, and is merged only where the
simulator pushes it. Called by the loop inside `simulate.controller`. Source: design §3, §4.7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import SequenceMatcher
from pathlib import Path

from reconciler.ports import Commit, TerminalError, TreeEntry
from reconciler.simulate.memory_ports import Reach

_REVERTING = "proposing a revert"


@dataclass(frozen=True, slots=True)
class _Node:
    commit: Commit
    files: Mapping[str, TreeEntry]


class MemoryGit:
    """`ports.GitSource`. `now` is the virtual clock: what is pushed later is not there yet.

    `documents_only`: the trees hold the fleet's documents and not the recipes beside them, so that an absent folder is exported
    as an empty one instead of being refused.
    """

    def __init__(self, now: Callable[[], datetime], *, branch: str = "main", documents_only: bool = False) -> None:
        self.reach = Reach(now, "git remote", "the branch's head")
        self.branches: dict[str, str] = {}
        """Branches besides the main one: proposed reverts."""
        self._now, self._branch, self._partial = now, branch, documents_only
        self._nodes: dict[str, _Node] = {}
        self._blobs: dict[str, bytes] = {}
        self._pushes: list[tuple[datetime, str]] = []

    # ------------------------------------------------ what is pushed

    def push(
        self,
        changes: Mapping[str, bytes | None],
        at: datetime,
        message: str = "Change the fleet",
        *,
        onto: str | None = None,
        author: str = "engineer <engineer@example.org>",
        signer: str | None = None,
    ) -> str:
        """Move the branch at an instant to a new commit: files changed (None: removed) on the commit pushed before it.

        `onto` names another parent: a rewrite, where the branch's head at that time does not come before it. Returns the hash.
        Pushes are made in the order of their instants.
        """
        parent = onto if onto is not None else (self._pushes[-1][1] if self._pushes else None)
        files = dict(self._nodes[parent].files) if parent is not None else {}
        for path, data in changes.items():
            if data is None:
                files.pop(path, None)
            else:
                files[path] = self._entry(path, data)
        sha = self._commit(files, (parent,) if parent is not None else (), at, message, author, signer)
        self.move(sha, at)
        return sha

    def move(self, sha: str, at: datetime) -> None:
        """Point the branch at a commit that is known, from an instant on: a fast-forward to a proposed revert, or a rewrite."""
        if self._pushes and at < self._pushes[-1][0]:
            raise ValueError(f"{at} is before the push at {self._pushes[-1][0]}; push in the order of time")
        self._node(sha)
        self._pushes.append((at, sha))

    def next_push_at(self, after: datetime) -> datetime | None:
        """The first push later than an instant."""
        return next((at for at, _ in self._pushes if at > after), None)

    @property
    def head(self) -> str:
        """The branch's head now. TerminalError: there is none yet."""
        found = [sha for at, sha in self._pushes if at <= self._now()]
        if not found:
            raise TerminalError(f"there is no branch {self._branch!r}", needed_for="the branch's head")
        return found[-1]

    def _entry(self, path: str, data: bytes) -> TreeEntry:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        self._blobs[blob] = data
        return TreeEntry(path, blob, "100644", len(data))

    def _commit(
        self,
        files: Mapping[str, TreeEntry],
        parents: tuple[str, ...],
        at: datetime,
        message: str,
        author: str,
        signer: str | None = None,
    ) -> str:
        text = "\0".join([*parents, at.isoformat(), author, message, *(f"{p} {files[p].blob}" for p in sorted(files))])
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._nodes[sha] = _Node(Commit(sha, author, message, at, signer, parents), files)
        return sha

    # ------------------------------------------------ the port

    def refresh(self) -> Commit:
        """The branch's head."""
        self.reach.check()
        return self._nodes[self.head].commit

    def commit(self, sha: str) -> Commit:
        """A commit by hash. TerminalError: unknown."""
        return self._node(sha).commit

    def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """Whether `descendant` follows from `ancestor`."""
        seen, ahead = set(), [self._node(descendant).commit.sha]
        while ahead:
            sha = ahead.pop()
            if sha == ancestor:
                return True
            if sha not in seen:
                seen.add(sha)
                ahead += self._nodes[sha].commit.parents
        return False

    def files(self, sha: str) -> Sequence[TreeEntry]:
        """Every entry of the commit's tree, sorted by path."""
        files = self._node(sha).files
        return [files[path] for path in sorted(files)]

    def changed(self, old: str, new: str) -> Mapping[str, TreeEntry | None]:
        """Paths that differ between two commits → the new entry, None where removed."""
        before, after = self._node(old).files, self._node(new).files
        out: dict[str, TreeEntry | None] = {path: e for path, e in after.items() if before.get(path) != e}
        return out | dict.fromkeys(before.keys() - after.keys())

    def blob(self, blob: str) -> bytes:
        """The bytes of a blob by hash."""
        if blob not in self._blobs:
            raise TerminalError(f"blob {blob} is not in the mirror", needed_for="reading the fleet")
        return self._blobs[blob]

    def export(self, sha: str, folder: str, to: Path) -> None:
        """Write a folder of a commit's tree below `to`. TerminalError: no such folder."""
        prefix = f"{folder.rstrip('/')}/"
        files = [entry for path, entry in self._node(sha).files.items() if path.startswith(prefix)]
        if not files and not self._partial:
            raise TerminalError(f"{sha[:12]} has no folder {folder}", needed_for="a build", remedy="commit the recipe")
        for entry in files:
            path = to / entry.path.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._blobs[entry.blob])

    def propose_revert(self, branch: str, of: str, title: str, evidence: str) -> str:
        """A branch with a revert of what commit `of` changed; the one that is there, where there is one."""
        self.reach.check()
        if branch == self._branch:
            raise TerminalError(f"a revert is not pushed to {branch!r}, the branch in force", needed_for=_REVERTING)
        if branch in self.branches:
            return self.branches[branch]
        head, bad = self.head, self.commit(of)
        if not bad.parents:
            raise TerminalError(f"commit {of} is the first of its repo and cannot be reverted", needed_for=_REVERTING)
        if not self.is_ancestor(of, head):
            raise TerminalError(f"commit {of} is not on branch {self._branch!r}", needed_for=_REVERTING)
        files = self._reverted(head, of, bad.parents[0])
        message = f"{' '.join(title.split())}\n\n{evidence.strip()}\n\nThis reverts commit {of}.\n"
        author = "reconciler <reconciler@localhost>"
        sha = self._commit(files, (head,), self._nodes[head].commit.committed_at, message, author)
        self.branches[branch] = sha
        return sha

    def _reverted(self, head: str, of: str, parent: str) -> Mapping[str, TreeEntry]:
        """The head's tree without what `of` changed. TerminalError: it does not apply, or nothing is left to revert."""
        before, after, now = (self._nodes[sha].files for sha in (parent, of, head))
        files, conflicts = dict(now), []
        for path in sorted({path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}):
            here, old, new = now.get(path), before.get(path), after.get(path)
            if here == new:
                back = old
            elif here == old:
                continue
            else:
                back = self._merged(here, new, old)
                if back is None:
                    conflicts.append(path)
                    continue
            if back is None:
                files.pop(path, None)
            else:
                files[path] = back
        conflicts += _in_the_way(files)
        if conflicts:
            raise TerminalError(
                f"the revert of {of[:12]} does not apply: {', '.join(sorted(conflicts))} changed since",
                needed_for=_REVERTING,
                remedy="write the revert by hand",
            )
        if files == now:
            raise TerminalError(
                f"what commit {of[:12]} changed is already undone at {head[:12]}", needed_for=_REVERTING
            )
        return files

    def _merged(self, here: TreeEntry | None, base: TreeEntry | None, other: TreeEntry | None) -> TreeEntry | None:
        if here is None or base is None or other is None:
            return None
        merged = merge(self._blobs[here.blob], self._blobs[base.blob], self._blobs[other.blob])
        return None if merged is None else self._entry(here.path, merged)

    def _node(self, sha: str) -> _Node:
        if sha not in self._nodes:
            raise TerminalError(f"{sha} is not in the mirror", needed_for="reading the fleet")
        return self._nodes[sha]


def merge(ours: bytes, base: bytes, theirs: bytes) -> bytes | None:
    """Three texts, line by line; None where both changed the same place, or places that touch."""
    texts = [text.splitlines(keepends=True) for text in (ours, base, theirs)]
    edits = sorted(
        (first, last, side, lines) for side in (0, 2) for first, last, lines in _edits(texts[1], texts[side])
    )
    out, at = [], 0
    for number, (first, last, side, lines) in enumerate(edits):
        following = edits[number + 1] if number + 1 < len(edits) else None
        if following is not None and following[0] <= last and following[2] != side:
            if following[:2] + following[3:] == (first, last, lines):
                continue
            return None
        out += [*texts[1][at:first], *lines]
        at = last
    return b"".join([*out, *texts[1][at:]])


def _edits(base: Sequence[bytes], text: Sequence[bytes]) -> Iterable[tuple[int, int, list[bytes]]]:
    """(first, last, lines): what stands in place of the base's lines [first, last)."""
    matcher = SequenceMatcher(None, base, text, autojunk=False)
    for tag, first, last, start, end in matcher.get_opcodes():
        if tag != "equal":
            yield first, last, list(text[start:end])


def _in_the_way(files: Mapping[str, TreeEntry]) -> list[str]:
    """Paths that are a file and a folder at once."""
    folders = {path[:end] for path in files for end, letter in enumerate(path) if letter == "/"}
    return [path for path in files if path in folders]
