"""Who wrote which line of a fleet repo, asked of the git program: `ports.LineHistory` over a work tree, or the mirror's commit.

One call of `git blame` a file, by argv, under the rules of `git_run`: no shell, no prompt, no pager, no hook, no text
conversion, none of the user's or the system's configuration, no GIT_* variable from outside. GitPython is not used: loading it
takes longer than the call. What the lines mean is not judged here. Called by `explain`. Source: git-blame(1), "The Porcelain
Format".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from reconciler.adapters.git_argv import Answer, call
from reconciler.adapters.git_remote import check_sha, printable
from reconciler.model.history import LineOrigin, PastFile
from reconciler.ports import TerminalError

NEEDED_FOR = "naming the commit and the author that asked for it"
_ENV = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "LC_ALL": "C",
}
_CONFIG = ("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.attributesFile=/dev/null", "protocol.allow=never")
_UNCOMMITTED = ("no such path", "no such ref: HEAD", "bad revision 'HEAD'")
"""What git says of a file, or a branch, of which nothing is committed yet."""


def work_tree_of(folder: Path) -> Path | None:
    """The git work tree that a folder is in, or None. Only looks; git itself may still refuse it."""
    here = folder.absolute()
    return next((place for place in (here, *here.parents) if (place / ".git").exists()), None)


@dataclass(frozen=True, slots=True)
class GitBlame:
    """Lines of files below `folder`, a work tree or a part of one; with `git_dir` and `commit`: of a bare repository's commit."""

    folder: Path
    git_dir: Path | None = None
    commit: str | None = None
    timeout_s: float = 20.0
    program: Sequence[str] = field(default=("git",))

    def lines(self, file: str | PastFile, numbers: Sequence[int]) -> Mapping[int, LineOrigin]:
        """Line numbers → the commits that wrote them (port). Spaces alone count for nothing."""
        if not numbers:
            return {}
        ranges = [f"-L{number},{number}" for number in numbers]
        commit, path = (file.sha, file.path) if isinstance(file, PastFile) else (self.commit, file)
        at = [check_sha(commit)] if commit is not None else []
        from_top = isinstance(file, PastFile)
        done = self._run("blame", "--porcelain", "-w", "--no-textconv", *ranges, *at, "--", path, from_top=from_top)
        if done.status == 0:
            return dict(_origins(done.out, cut=self._is_cut()))
        said = done.err
        if commit is None and any(sign in said for sign in _UNCOMMITTED):
            return {number: LineOrigin(None) for number in numbers}
        if "dubious ownership" in said:
            raise TerminalError(
                f"git does not trust {str(self.folder)!r}: it belongs to another user",
                needed_for=NEEDED_FOR,
                remedy="run as its owner",
            )
        raise _failed("blame", said)

    def text(self, file: PastFile) -> bytes:
        """A file's bytes at a commit (port)."""
        done = self._run("cat-file", "blob", f"{check_sha(file.sha)}:{file.path}", from_top=True)
        if done.status != 0:
            raise _failed("cat-file", done.err)
        return done.out

    def _is_cut(self) -> bool:
        """Whether the clone is shallow. Git calls the first commit of all a boundary too: that word alone is not enough."""
        if self.git_dir is not None:
            return (self.git_dir / "shallow").exists()
        top = work_tree_of(self.folder)
        place = top / ".git" if top is not None else self.folder
        if place.is_file():  # a work tree beside its repository: `gitdir: REPO/.git/worktrees/NAME`
            place = Path(place.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).parent.parent
        return (place / "shallow").exists()

    def _run(self, *arguments: str, from_top: bool) -> Answer:
        where = [f"--git-dir={self.git_dir}"] if self.git_dir is not None else []
        config = [part for setting in _CONFIG for part in ("-c", setting)]
        top = work_tree_of(self.folder) if from_top and self.git_dir is None else None
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        return call(
            [*self.program, "--no-pager", *where, *config],
            arguments,
            env={**env, **_ENV},
            needed_for=NEEDED_FOR,
            timeout_s=self.timeout_s,
            folder=top or self.folder,
        )


def _failed(what: str, said: str) -> TerminalError:
    return TerminalError(
        f"git {what} failed ({printable(said) or 'no reason given'})",
        needed_for=NEEDED_FOR,
        remedy=f"try `git {what}` on the file by hand",
    )


def _origins(out: bytes, *, cut: bool) -> Iterator[tuple[int, LineOrigin]]:
    """The porcelain format: a header a line, what is known of a commit at its first line, then the line after a tab."""
    known: dict[str, dict[str, str]] = {}
    sha, number = "", 0
    for line in out.decode("utf-8", "replace").split("\n"):
        if line.startswith("\t"):
            yield number, _origin(sha, known[sha], cut=cut)
            sha = ""
        elif sha:
            key, _, value = line.partition(" ")
            known[sha][key] = value
        elif line:
            sha, _, rest = line.partition(" ")
            number = int(rest.split(" ")[1])
            known.setdefault(sha, {})


def _origin(sha: str, of: Mapping[str, str], *, cut: bool) -> LineOrigin:
    commit, _, path = of.get("previous", "").partition(" ")
    # A name with odd characters is written in quotes; its past is not looked for.
    before = PastFile(commit, path) if path and not path.startswith('"') else None
    if not sha.strip("0"):
        return LineOrigin(None, before=before)
    at = datetime.fromtimestamp(int(of["author-time"]), UTC) if "author-time" in of else None
    return LineOrigin(sha, of.get("author"), at, of.get("summary"), cut and "boundary" in of, before)
