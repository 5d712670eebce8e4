"""Builds a revert in a bare repository, without a work tree, and pushes it to a branch of its own.

Path by path, for a commit C with first parent P, on the branch's head H: where H still holds what C wrote, P's entry
comes back; where H holds P's already, nothing; else the three are merged (git-merge-file), and a conflict ends it with
the paths named. The commit is a function of H, C and the message, so that a repeat after a kill makes the same one.
Called by `git_source.GitMirror` alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.adapters.git_remote import explain_failure, printable
from reconciler.adapters.git_run import GitProgram, Result
from reconciler.ports import TerminalError, TransientError, TreeEntry

if TYPE_CHECKING:
    from reconciler.adapters.git_source import GitMirror

NEEDED_FOR = "proposing a revert"
_REGULAR = frozenset({"100644", "100755"})
_WHO = "reconciler"
_MAIL = "reconciler@localhost"


class Revert:
    """One proposal on a mirror."""

    def __init__(self, source: GitMirror, git: GitProgram, mirror: Path) -> None:
        self._source, self._git, self._mirror = source, git, mirror

    def propose(self, branch: str, of: str, title: str, evidence: str) -> str:
        """The commit now at `branch` on the remote: the one found there, else a new one, pushed."""
        if branch == self._source.branch:
            raise TerminalError(
                f"a revert is not pushed to {branch!r}, the branch in force",
                needed_for=NEEDED_FOR,
                remedy="use revert/RELEASE",
            )
        existing = self._on_remote(branch)
        if existing is not None:
            return existing
        head = self._source.refresh().sha
        with self._source.locked():
            commit = self._commit(head, of, title, evidence)
            # The lease says: only where no such branch is there. Two proposals at once make one.
            ref = f"refs/heads/{branch}"
            pushed = self._git.run(
                "push", "--quiet", "--no-verify", "--no-follow-tags", "--no-recurse-submodules",
                f"--force-with-lease={ref}:",
                "--end-of-options", self._source.remote.url, f"{commit}:{ref}", git_dir=self._mirror,
            )  # fmt: skip
        if pushed.status != 0:
            existing = self._on_remote(branch)
            if existing is None:
                raise self._failed(pushed, branch)
            return existing
        return commit

    def _on_remote(self, branch: str) -> str | None:
        ref = f"refs/heads/{branch}"
        listed = self._git.run("ls-remote", "--quiet", "--end-of-options", self._source.remote.url, ref)
        if listed.status != 0:
            raise explain_failure(
                listed.err, url=self._source.remote.url, branch=self._source.branch, needed_for=NEEDED_FOR
            )
        for line in listed.text.splitlines():
            sha, _, name = line.partition("\t")
            if name == ref:
                return sha
        return None

    def _failed(self, pushed: Result, branch: str) -> TerminalError | TransientError:
        if "remote rejected" in pushed.err or "cannot lock ref" in pushed.err or "protected branch" in pushed.err:
            return TerminalError(
                f"the remote rejected branch {branch!r} ({printable(pushed.err)})",
                needed_for=NEEDED_FOR,
                remedy="let the controller's user push branches under revert/",
            )
        error = explain_failure(pushed.err, url=self._source.remote.url, branch=branch, needed_for=NEEDED_FOR)
        return error if isinstance(error, TerminalError | TransientError) else TransientError(str(error))

    def _commit(self, head: str, of: str, title: str, evidence: str) -> str:
        bad = self._source.parsed(of)
        if not bad.parents:
            raise TerminalError(
                f"commit {of} is the first of its repo and cannot be reverted",
                needed_for=NEEDED_FOR,
                remedy="write the revert by hand",
            )
        if not self._source.is_ancestor(of, head):
            raise TerminalError(
                f"commit {of} is not on branch {self._source.branch!r}",
                needed_for=NEEDED_FOR,
                remedy="nothing is left to revert there",
            )
        message = f"{' '.join(title.split())}\n\n{evidence.strip()}\n\nThis reverts commit {of}.\n"
        with tempfile.TemporaryDirectory(prefix="reconciler-revert-") as scratch:
            changes = self._changes(head, of, bad.parents[0], Path(scratch))
            tree = self._tree(head, changes, Path(scratch))
            at = f"{int(self._source.commit(head).committed_at.timestamp())} +0000"
            who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER")
                   for key, value in (("NAME", _WHO), ("EMAIL", _MAIL), ("DATE", at))}  # fmt: skip
            with _as_file(Path(scratch) / "message", message.encode("utf-8")) as path, path.open("rb") as stdin:
                out = self._git.must("commit-tree", "-p", head, tree, git_dir=self._mirror, stdin=stdin, env=who)
        return out.decode("ascii").strip()

    def _changes(self, head: str, of: str, parent: str, scratch: Path) -> list[tuple[str, TreeEntry | None]]:
        """Paths → the entries that the revert gives them. TerminalError: conflicts, or nothing left to revert."""
        now = {entry.path: entry for entry in self._source.files(head)}
        changes: list[tuple[str, TreeEntry | None]] = []
        conflicts: list[str] = []
        for path, before, after in self._source.differences(parent, of):
            here = now.get(path)
            if here == after:
                changes.append((path, before))
            elif here != before:
                merged = self._merge(here, after, before, scratch)
                if merged is None:
                    conflicts.append(path)
                else:
                    changes.append((path, merged))
        conflicts += _in_the_way(now, changes)
        if conflicts:
            raise TerminalError(
                f"the revert of {of[:12]} does not apply: {', '.join(sorted(conflicts))} changed since",
                needed_for=NEEDED_FOR,
                remedy="write the revert by hand",
            )
        if all(now.get(path) == entry for path, entry in changes):
            raise TerminalError(
                f"what commit {of[:12]} changed is already undone at {head[:12]}",
                needed_for=NEEDED_FOR,
                remedy="nothing is left to do",
            )
        return changes

    def _merge(
        self, here: TreeEntry | None, base: TreeEntry | None, other: TreeEntry | None, scratch: Path
    ) -> TreeEntry | None:
        """Three regular files → the merged entry, None on conflict."""
        if here is None or base is None or other is None:
            return None
        if not {here.mode, base.mode, other.mode} <= _REGULAR:
            return None
        names = []
        for label, entry in (("ours", here), ("base", base), ("theirs", other)):
            (scratch / label).write_bytes(self._source.blob(entry.blob))
            names.append(str(scratch / label))
        merged = self._git.run("merge-file", "-p", "-q", *names)
        if merged.status != 0:
            return None
        with _as_file(scratch / "merged", merged.out) as path, path.open("rb") as stdin:
            blob = self._git.must("hash-object", "-w", "--stdin", "--no-filters", git_dir=self._mirror, stdin=stdin)
        mode = other.mode if here.mode == base.mode else here.mode
        return TreeEntry(here.path, blob.decode("ascii").strip(), mode)

    def _tree(self, head: str, changes: list[tuple[str, TreeEntry | None]], scratch: Path) -> str:
        """The head's tree with the changes, written through an index of its own."""
        env = {"GIT_INDEX_FILE": str(scratch / "index")}
        self._git.must("read-tree", head, git_dir=self._mirror, env=env)
        # Removals first: a file may come back where a folder was.
        ordered = sorted(changes, key=lambda change: (change[1] is not None, change[0]))
        lines = [
            f"0 {'0' * 40}\t{path}" if entry is None else f"{entry.mode} {entry.blob}\t{path}"
            for path, entry in ordered
        ]
        with (
            _as_file(scratch / "changes", b"".join(line.encode() + b"\0" for line in lines)) as path,
            path.open("rb") as stdin,
        ):
            result = self._git.run("update-index", "-z", "--index-info", git_dir=self._mirror, stdin=stdin, env=env)
        if result.status != 0:
            raise TerminalError(
                f"the revert does not apply ({printable(result.err)})",
                needed_for=NEEDED_FOR,
                remedy="write the revert by hand",
            )
        return self._git.must("write-tree", git_dir=self._mirror, env=env).decode("ascii").strip()


def _in_the_way(now: dict[str, TreeEntry], changes: list[tuple[str, TreeEntry | None]]) -> list[str]:
    """Paths that come back where a folder has come to be, or below what has become a file. git would drop the latter."""
    left = now.keys() - {path for path, entry in changes if entry is None}
    folders = {path[:end] for path in left for end, letter in enumerate(path) if letter == "/"}
    return [
        path
        for path, entry in changes
        if entry is not None
        and (path in folders or any(path[:end] in left for end, letter in enumerate(path) if letter == "/"))
    ]


@contextmanager
def _as_file(path: Path, data: bytes) -> Iterator[Path]:
    """A file that git reads as its standard input."""
    path.write_bytes(data)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
