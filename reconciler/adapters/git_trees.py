"""Reads commits of the repository around a fleet folder, as a reviewer has it on this machine: objects alone, by argv git.

What this promises: no shell, no hook, no filter, no pager, no network (also of a partial clone), none of the user's or the
system's git configuration, no GIT_* variable from outside, and nothing written. A revision reaches git on its standard input,
never in its argv. What it does not judge: what the documents say. GitPython is not loaded: it costs a short command a tenth of
a second. Implements `review.ports.Revisions`; called by `cli.diff`. Source: git-cat-file(1), git-ls-tree(1), gitrevisions(7).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from reconciler.adapters.git_argv import Answer, call
from reconciler.adapters.git_objects import parse_commit
from reconciler.adapters.git_remote import printable
from reconciler.ports import Branch, Commit, TerminalError, TreeEntry

NEEDED_FOR = "comparing two commits"
TIMEOUT_S = 60.0
_SHA = re.compile(r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$")
_ODD = re.compile(r"[\x00-\x1f\x7f]")
_MOST_REVISION = 1000


class GitTrees:
    """One repository, found from a folder in it. TerminalError: there is no git, or the folder is in no repository."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise TerminalError(
                f"there is no folder {folder}",
                needed_for=NEEDED_FOR,
                remedy="name the fleet repo's folder with --fleet",
            )
        self._folder = folder
        # Neither the user's configuration nor who owns the repository matters: what is called here runs no program.
        self._env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ALLOW_PROTOCOL": "none",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "LC_ALL": "C",
        }
        status, out, err = self._run("rev-parse", "--show-prefix", "--is-shallow-repository")
        if status != 0:
            raise TerminalError(
                f"{folder} is in no git repository that can be read ({printable(err)})",
                needed_for=NEEDED_FOR,
                remedy="name a folder of one with --fleet, or compare two folders: reconciler diff OLD/ NEW/",
            )
        *prefix, shallow = out.decode("utf-8", "surrogateescape").splitlines()
        self.below = prefix[0] if prefix else ""
        self.shallow = shallow == "true"

    def resolve(self, revision: str) -> Commit:
        """The commit that a revision names. TerminalError: it names none, or begins with `-`."""
        if not revision or revision.startswith("-") or _ODD.search(revision) or len(revision) > _MOST_REVISION:
            raise TerminalError(
                f"{revision[:80]!r} is no git revision",
                needed_for=NEEDED_FOR,
                remedy="write a branch, a tag, a hash, or HEAD~1",
            )
        _, out, err = self._run("cat-file", "--batch", stdin=f"{revision}^{{commit}}\n".encode())
        header, _, data = out.partition(b"\n")
        parts = header.split()
        if len(parts) != 3 or parts[1] != b"commit" or not _SHA.match(parts[0].decode("ascii", "replace")):
            raise self._unknown(revision, err)
        sha = parts[0].decode("ascii")
        try:
            parsed = parse_commit(data[: int(parts[2])])
        except (ValueError, KeyError, IndexError):
            raise TerminalError(
                f"commit {sha} is damaged", needed_for=NEEDED_FOR, remedy="run git fsck in the repository"
            ) from None
        return Commit(sha, parsed.author, parsed.message, parsed.committed_at, parents=parsed.parents)

    def _unknown(self, revision: str, err: str) -> TerminalError:
        remedy = "see git branch --all and git log for those that there are; fetch it first if it is a remote's"
        if self.shallow:
            remedy = "this is a shallow clone: fetch its history (git fetch --unshallow; in a workflow, fetch-depth: 0)"
        more = f" ({printable(err)})" if err.strip() else ""
        return TerminalError(f"{revision!r} names no commit here{more}", needed_for=NEEDED_FOR, remedy=remedy)

    def files(self, sha: str) -> Sequence[TreeEntry]:
        """Every file of the fleet folder in a commit, sorted by path; none where the commit has no such folder."""
        arguments = ["ls-tree", "-r", "-z", "-l", "--full-tree", "--end-of-options", _checked(sha)]
        out = self._must(*arguments, *([self.below] if self.below else []))
        entries = []
        for record in out.split(b"\0"):
            if record:
                meta, _, path = record.partition(b"\t")
                mode, _, blob, size = meta.decode("ascii").split()
                name = path.decode("utf-8", "backslashreplace").removeprefix(self.below)
                entries.append(TreeEntry(name, blob, mode, int(size) if size.isdigit() else None))
        entries.sort(key=lambda entry: entry.path)
        return entries

    def blobs(self, wanted: Iterable[str]) -> Mapping[str, bytes]:
        """The bytes of many blobs, read in one go. TerminalError: one is not there."""
        names = list(dict.fromkeys(_checked(name) for name in wanted))
        if not names:
            return {}
        out = self._must("cat-file", "--batch", "--buffer", stdin="".join(f"{name}\n" for name in names).encode())
        found: dict[str, bytes] = {}
        at = 0
        for name in names:
            end = out.find(b"\n", at)
            parts = out[at:end].split()
            if end < 0 or len(parts) != 3 or parts[1] != b"blob":
                raise TerminalError(
                    f"the repository cannot give object {name}",
                    needed_for=NEEDED_FOR,
                    remedy="fetch it (a partial clone lacks it: git fetch --refetch --no-filter), or run git fsck",
                )
            size = int(parts[2])
            found[name] = out[end + 1 : end + 1 + size]
            at = end + 2 + size
        return found

    def merge_base(self, one: str, other: str) -> str | None:
        """The commit from which two went apart; None where their history shows none."""
        status, out, err = self._run("merge-base", "--end-of-options", _checked(one), _checked(other))
        if status not in (0, 1):
            raise self._failed("merge-base", err)
        return out.decode("ascii").strip() or None

    def merged(self, base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
        """Three texts merged as git would; None where they conflict."""
        with tempfile.TemporaryDirectory(prefix="reconciler-merge-") as scratch:
            paths = [Path(scratch) / name for name in ("ours", "base", "theirs")]
            for path, data in zip(paths, (ours, base, theirs), strict=True):
                path.write_bytes(data)
            status, out, _ = self._run("merge-file", "-p", "-q", *(str(path) for path in paths))
        return out if status == 0 else None

    def unmerged(self, into: Sequence[str], pattern: str, heads: Sequence[str] = ()) -> Sequence[Branch]:
        """Branches, local and remote-tracking, that match a glob and have commits that none of `into` has, newest first; one a
        commit. What a remote has of a branch that stands at one of `heads` here is that branch, as it was pushed: left out."""
        ours: set[str] = set()
        for sha in heads:
            names = self._must("for-each-ref", f"--points-at={_checked(sha)}", "--format=%(refname)", "refs/heads/")
            ours.update(names.decode("utf-8", "backslashreplace").replace("refs/heads/", "").split("\n"))
        out = self._must(
            "for-each-ref",
            "--sort=-committerdate",
            "--format=%(objectname)%00%(refname)%00%(symref)",
            *(f"--no-merged={_checked(sha)}" for sha in into),
            "refs/heads/",
            "refs/remotes/",
        )
        found: dict[str, Branch] = {}
        for line in out.decode("utf-8", "backslashreplace").splitlines():
            sha, name, symref = line.split("\0")
            short = name.removeprefix("refs/heads/").removeprefix("refs/remotes/")
            remote = name.startswith("refs/remotes/")
            own = short.partition("/")[2] if remote else short
            if remote and own in ours:
                continue
            if not symref and (fnmatchcase(short, pattern) or fnmatchcase(own, pattern)):
                found.setdefault(sha, Branch(short, sha))
        return list(found.values())

    def _must(self, *arguments: str, stdin: bytes = b"") -> bytes:
        status, out, err = self._run(*arguments, stdin=stdin)
        if status != 0:
            raise self._failed(arguments[0], err)
        return out

    def _failed(self, what: str, err: str) -> TerminalError:
        return TerminalError(
            f"git {what} failed ({printable(err)})", needed_for=NEEDED_FOR, remedy="run git fsck in the repository"
        )

    def _run(self, *arguments: str, stdin: bytes = b"") -> Answer:
        # The repository may belong to another user (a container's checkout): no program of its configuration is run.
        return call(
            ["git", "--no-pager", "-c", "safe.directory=*", "-C", str(self._folder)],
            arguments,
            env=self._env,
            needed_for=NEEDED_FOR,
            timeout_s=TIMEOUT_S,
            remedy="apt-get install git, or compare two folders",
            stdin=stdin,
        )


def _checked(sha: str) -> str:
    if not _SHA.match(sha):
        raise TerminalError(f"{sha!r} is no object's hash", needed_for=NEEDED_FOR, remedy="resolve the revision first")
    return sha
