"""The clone that a person works in, as a proposal needs it: read at the base branch, committed to beside the work tree, pushed.

What this promises: the work tree, the index and the checked-out branch stay as they are (a commit is built through an index of its
own, from objects); nothing is ever pushed to the base branch or over a branch that is there. Reading goes through `GitTrees`, which
runs nothing of the user's; fetching, committing and pushing are the user's own git with the user's own configuration, for the
identity, the signing key and the credentials are theirs. Implements `propose.ports.Clone`. Source: git-commit-tree(1), git-push(1).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from reconciler.adapters.git_argv import Answer, call
from reconciler.adapters.git_objects import parse_raw_diff
from reconciler.adapters.git_remote import check_branch, explain_failure, printable
from reconciler.adapters.git_trees import GitTrees
from reconciler.ports import Commit, PortError, TerminalError, TransientError, TreeEntry

NEEDED_FOR = "proposing a change"
TIMEOUT_S = 300.0
_REMOTE = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")
_PASSWORD = re.compile(r"(https?://)[^@/\s]*@|(\w+://[^@/\s:]+):[^@/\s]*(?=@)")
# Where git is told which repository to work in: a hook or another tool may have set them for another one.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE",
              "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX", "GIT_LITERAL_PATHSPECS", "GIT_GRAFT_FILE")  # fmt: skip


class GitClone:
    """One clone, found from the fleet folder in it.

    `remote` is a remote's name, `base` the branch that proposals are for (the remote's default branch unless said). With `fetch`
    off the base is what was fetched last; where there is no such remote at all and `local` is set, it is the local branch.
    """

    def __init__(
        self, folder: Path, *, remote: str = "origin", base: str | None = None, fetch: bool = True, local: bool = False
    ) -> None:
        try:
            self._trees = GitTrees(folder)
        except TerminalError as error:
            remedy = "name the fleet repo's folder in a clone with --fleet; --write changes a folder that is in none"
            raise TerminalError(error.wrong, needed_for=NEEDED_FOR, remedy=remedy) from error
        self._folder = folder
        self._env = {key: value for key, value in os.environ.items() if key not in _ELSEWHERE} | {"LC_ALL": "C"}
        if not _REMOTE.match(remote):
            raise TerminalError(f"{remote!r} is no name of a remote", needed_for=NEEDED_FOR, remedy="see `git remote`")
        self.remote: str | None = remote if remote in self._must("remote").split() else None
        if self.remote is None and not local:
            known = ", ".join(self._must("remote").split())
            raise TerminalError(
                f"this clone has no remote {remote!r}",
                needed_for=NEEDED_FOR,
                remedy=(f"name one with --remote ({known})" if known else "add one with `git remote add`")
                + "; --no-push makes a branch in this clone alone",
            )
        self._fetch = fetch and self.remote is not None
        self.base_branch = check_branch(base) if base is not None else self._default_branch()
        self._base: Commit | None = None

    # ------------------------------------------------------------ reading

    @property
    def below(self) -> str:
        """The fleet folder's path in the repository (port)."""
        return self._trees.below

    @property
    def shallow(self) -> bool:
        """Whether the history here is cut off (port)."""
        return self._trees.shallow

    @property
    def base_name(self) -> str:
        """What the base is called here: `origin/main`, or `main` where there is no remote."""
        return f"{self.remote}/{self.base_branch}" if self.remote is not None else self.base_branch

    def url(self) -> str | None:
        """The address that is pushed to, without any credential in it; None where there is no remote."""
        if self.remote is None:
            return None
        return without_password(self._must("remote", "get-url", "--push", self.remote).strip())

    def base(self) -> Commit:
        """The head of the base branch, fetched once (port)."""
        if self._base is None:
            if self._fetch:
                self._fetched(self.base_branch)
            where = f"refs/remotes/{self.remote}" if self.remote is not None else "refs/heads"
            try:
                self._base = self._trees.resolve(f"{where}/{self.base_branch}")
            except TerminalError as error:
                raise TerminalError(
                    f"there is no branch {self.base_name!r} here",
                    needed_for=NEEDED_FOR,
                    remedy="name the branch in force with --base" + ("" if self._fetch else "; fetch it first"),
                ) from error
        return self._base

    def resolve(self, revision: str) -> Commit:
        """The commit that a revision names (port)."""
        try:
            return self._trees.resolve(revision)
        except TerminalError as error:
            raise TerminalError(error.wrong, needed_for=NEEDED_FOR, remedy=error.remedy) from error

    def files(self, sha: str) -> Sequence[TreeEntry]:
        """Every file of the fleet folder in a commit (port)."""
        return self._trees.files(sha)

    def blobs(self, wanted: Iterable[str]) -> Mapping[str, bytes]:
        """The bytes of many blobs (port)."""
        return self._trees.blobs(wanted)

    def merge_base(self, one: str, other: str) -> str | None:
        """The commit from which two went apart (port)."""
        return self._trees.merge_base(one, other)

    def merged(self, base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
        """Three texts merged as git would (port)."""
        return self._trees.merged(base, ours, theirs)

    def versions(self, path: str, sha: str) -> Sequence[tuple[str, bytes]]:
        """A file at each commit of the line of `sha` that changed it, newest first (port)."""
        out = self._must(
            "log", "--first-parent", "-m", "--raw", "-z", "--no-abbrev", "--no-renames", "--no-show-signature", "--no-color",
            "--no-ext-diff", "--format=%x01%H", "--end-of-options", sha, "--", f":(top,literal){self.below}{path}",
        )  # fmt: skip
        found = []
        for record in out.split("\x01")[1:]:
            commit = record[:40] if not re.match(r"[0-9a-f]{64}", record) else record[:64]
            raw = re.search(r":\d+ (\d+) [0-9a-f]+ ([0-9a-f]+) [A-Z]", record)
            if raw is not None and raw[1].startswith("100"):
                found.append((commit, raw[2]))
        blobs = self._trees.blobs(blob for _, blob in found)
        return [(commit, blobs[blob]) for commit, blob in found]

    def changed(self, old: str, new: str) -> Sequence[tuple[str, TreeEntry | None, TreeEntry | None]]:
        """What differs between two commits, by the repository's paths (port)."""
        status, out, err = self._run(
            "diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-renames", "--end-of-options", old, new
        )
        if status != 0:
            raise self._broken("diff-tree", err)
        return list(parse_raw_diff(out))

    # ------------------------------------------------------------ writing

    def commit(self, parent: str, files: Mapping[str, bytes | None], modes: Mapping[str, str], message: str) -> str:
        """A commit on `parent`, by the clone's own user, signed where the user's configuration signs commits (port)."""
        old = {entry.path: entry.mode for entry in self.files(parent)}
        lines = []
        # Removals first: a file may come where a folder was.
        for path, data in sorted(files.items(), key=lambda item: (item[1] is not None, item[0])):
            if data is None:
                lines.append(f"0 {'0' * len(parent)}\t{self.below}{path}")
                continue
            blob = self._must("hash-object", "-w", "--stdin", "--no-filters", stdin=data).strip()
            lines.append(f"{modes.get(path) or old.get(path) or '100644'} {blob}\t{self.below}{path}")
        with tempfile.TemporaryDirectory(prefix="reconciler-propose-") as scratch:
            index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
            self._must("read-tree", parent, env=index)
            records = "".join(f"{line}\0" for line in lines).encode("utf-8", "surrogateescape")
            self._must("update-index", "-z", "--index-info", stdin=records, env=index)
            tree = self._must("write-tree", env=index).strip()
        signed = self._run("config", "--type=bool", "--get", "commit.gpgSign")[1].strip() == b"true"
        arguments = ["commit-tree", *(["-S"] if signed else []), "-p", parent, "-F", "-", tree]
        status, out, err = self._run(*arguments, stdin=message.encode("utf-8"))
        if status != 0:
            raise self._not_committed(err, signed)
        return out.decode("ascii").strip()

    def branch(self, name: str, *, remote: bool) -> str | None:
        """Where a branch stands, on the remote or here (port)."""
        check_branch(name)
        if not remote:
            status, out, _ = self._run("rev-parse", "--verify", "--quiet", f"refs/heads/{name}^{{commit}}")
            return out.decode("ascii").strip() if status == 0 else None
        assert self.remote is not None
        ref = f"refs/heads/{name}"
        status, out, err = self._run("ls-remote", "--quiet", "--end-of-options", self.remote, ref)
        if status != 0:
            raise self._unreached(err, name)
        for line in out.decode("utf-8", "replace").splitlines():
            sha, _, found = line.partition("\t")
            if found == ref:
                self._fetched(name)
                return sha
        return None

    def push(self, sha: str, name: str) -> None:
        """Make a branch on the remote, only where none of this name is there (port)."""
        self._must_be_other(name)
        assert self.remote is not None
        ref = f"refs/heads/{name}"
        status, _, err = self._run(
            "push", "--quiet", "--no-follow-tags", "--no-recurse-submodules", f"--force-with-lease={ref}:",
            "--end-of-options", self.remote, f"{sha}:{ref}",
        )  # fmt: skip
        if status != 0:
            if "stale info" in err or "[rejected]" in err or "already exists" in err or "cannot lock ref" in err:
                raise TerminalError(
                    f"branch {name!r} has just appeared on {self.remote!r}",
                    needed_for=NEEDED_FOR,
                    remedy="run the same command again: it compares the two",
                )
            if "remote rejected" in err or "hook declined" in err or "pre-push" in err:
                raise TerminalError(
                    f"branch {name!r} was not accepted ({_safe(err)})",
                    needed_for=NEEDED_FOR,
                    remedy="push to a branch that you may make, with --branch, or ask for the right",
                )
            if "failed to push some refs" in err and "fatal:" not in err:
                raise TerminalError(
                    f"branch {name!r} was not pushed: a hook of this clone refused ({_safe(err)})",
                    needed_for=NEEDED_FOR,
                    remedy="see to what its pre-push hook says, or choose another branch with --branch",
                )
            raise self._unreached(err, name)

    def keep(self, sha: str, name: str) -> None:
        """Make a branch here (port)."""
        self._must_be_other(name)
        status, _, err = self._run("update-ref", "-m", "reconciler", f"refs/heads/{name}", sha, "0" * len(sha))
        if status != 0:
            raise TerminalError(
                f"branch {name!r} cannot be made here ({_safe(err)})",
                needed_for=NEEDED_FOR,
                remedy="choose --branch NAME",
            )

    # ------------------------------------------------------------ git

    def _must_be_other(self, name: str) -> None:
        if check_branch(name) == self.base_branch:
            raise TerminalError(
                f"a change is not put on {name!r}, the branch in force, but proposed for it",
                needed_for=NEEDED_FOR,
                remedy="name another branch with --branch",
            )

    def _default_branch(self) -> str:
        if self.remote is None:
            status, out, _ = self._run("symbolic-ref", "--quiet", "--short", "HEAD")
            main = self.branch_here("main") or self.branch_here("master")
            return main or (out.decode().strip() if status == 0 else "main")
        status, out, _ = self._run("symbolic-ref", "--quiet", f"refs/remotes/{self.remote}/HEAD")
        if status == 0:
            return check_branch(out.decode("utf-8", "replace").strip().removeprefix(f"refs/remotes/{self.remote}/"))
        if self._fetch:
            status, out, err = self._run("ls-remote", "--symref", "--quiet", "--end-of-options", self.remote, "HEAD")
            if status != 0:
                raise self._unreached(err, "HEAD")
            named = re.match(r"ref: refs/heads/(\S+)\tHEAD", out.decode("utf-8", "replace"))
            if named is not None:
                return check_branch(named[1])
        return "main"

    def branch_here(self, name: str) -> str | None:
        """The name, if there is a local branch of it."""
        return name if self._run("rev-parse", "--verify", "--quiet", f"refs/heads/{name}")[0] == 0 else None

    def _fetched(self, name: str) -> None:
        assert self.remote is not None
        status, _, err = self._run(
            "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--end-of-options",
            self.remote, f"+refs/heads/{name}:refs/remotes/{self.remote}/{name}",
        )  # fmt: skip
        if status != 0:
            raise self._unreached(err, name)

    def _unreached(self, err: str, branch: str) -> PortError:
        error = explain_failure(without_password(err), url=self.url() or "", branch=branch, needed_for=NEEDED_FOR)
        if isinstance(error, TransientError):
            remedy = "try again; --no-fetch --no-push prepares the branch in this clone meanwhile"
            return TransientError(error.wrong, needed_for=NEEDED_FOR, remedy=remedy)
        remedy = f"see that `git fetch {self.remote}` works in this clone; --base, --remote name others"
        return TerminalError(error.wrong, needed_for=NEEDED_FOR, remedy=remedy)

    def _not_committed(self, err: str, signed: bool) -> TerminalError:
        if "tell me who you are" in err or "ident name" in err or "auto-detect" in err:
            remedy = 'tell git who you are: git config user.name "NAME", git config user.email ADDRESS'
            return TerminalError("git does not know who commits", needed_for=NEEDED_FOR, remedy=remedy)
        if signed:
            remedy = "see that `git commit -S` works here, or set commit.gpgSign to false"
            return TerminalError(f"the commit could not be signed ({_safe(err)})", needed_for=NEEDED_FOR, remedy=remedy)
        return self._broken("commit-tree", err)

    def _broken(self, what: str, err: str) -> TerminalError:
        remedy = "run git fsck in the clone, and look for room on its disk"
        return TerminalError(f"git {what} failed ({_safe(err)})", needed_for=NEEDED_FOR, remedy=remedy)

    def _must(self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        status, out, err = self._run(*arguments, stdin=stdin, env=env)
        if status != 0:
            raise self._broken(arguments[0], err)
        return out.decode("utf-8", "surrogateescape")

    def _run(self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Answer:
        return call(
            ["git", "--no-pager", "-C", str(self._folder)],
            arguments,
            env={**self._env, **(env or {})},
            needed_for=NEEDED_FOR,
            timeout_s=TIMEOUT_S,
            stdin=stdin,
        )


def without_password(text: str) -> str:
    """Text without what an address in it may hold: a password, and over https a name too, since it may be a token."""
    return _PASSWORD.sub(lambda found: found[1] or found[2], text)


def _safe(err: str) -> str:
    """Git's words on one line, without a credential that an address may hold."""
    return printable(" ".join(without_password(err).split()))
