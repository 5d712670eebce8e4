"""Pages that show commands with their output: runs the commands, and puts in what they print. Used by `make docs` and its test.

In a page, a `diff` block that begins with `--- FILE` is applied to that file; the commands of a `console` block (lines after
`$ `) are run, in order, in a folder with a copy of the example fleet and its snapshot. `make` and `git` are shown, not run; in
the pages of `fill_in_clone` the folder is a clone with a bare remote, and `git` is run too.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from reconciler.cli.main import main as reconciler

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```(console|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COPIED = ("fleet", "schemas", "docs/tutorial/observed.json")
_NOT_RUN = ("make ", "git ")


class PageError(Exception):
    """A page's block cannot be carried out."""


def fill(text: str) -> str:
    """The page with what its commands print now."""
    return _filled(text, None)[0]


def fill_with(text: str, file: str) -> tuple[str, str]:
    """The page, and a file that its commands write."""
    page, made = _filled(text, file)
    if made is None:
        raise PageError(f"no command of the page writes {file}")
    return page, made


def _filled(text: str, file: str | None) -> tuple[str, str | None]:
    with tempfile.TemporaryDirectory(prefix="page-") as name:
        for item in _COPIED:
            source, target = ROOT / item, Path(name) / item
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        with contextlib.chdir(name):
            page = _BLOCK.sub(_carried_out, text)
            made = Path(file) if file is not None else None
            return page, made.read_text(encoding="utf-8") if made is not None and made.exists() else None


_GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{role}_NAME": "Ada" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_EMAIL": "ada@example.org" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_DATE": "2026-01-14T09:00:00Z" for role in ("AUTHOR", "COMMITTER")},
}
_FOUND_ELSEWHERE = ("GITHUB_TOKEN", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")


def fill_in_clone(text: str) -> str:
    """Like `fill`, in a clone with a bare remote and the snapshot beside it. Hashes of commits are shown as `…`."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="page-") as name:
        clone = Path(name) / "clone"
        shutil.copytree(ROOT / "fleet", clone / "fleet")
        shutil.copytree(ROOT / "schemas", clone / "schemas")
        shutil.copy(ROOT / "docs/tutorial/observed.json", name)
        (clone / "docs/tutorial").mkdir(parents=True)
        shutil.copy(ROOT / "docs/tutorial/observed.json", clone / "docs/tutorial")
        for variable in _FOUND_ELSEWHERE:
            os.environ.pop(variable, None)
        os.environ.update(_GIT)
        try:
            with contextlib.chdir(clone):
                for command in ("init -q --bare -b main ../fleet.git", "init -q -b main", "add -A", "commit -q -m Start",
                                "remote add origin ../fleet.git", "push -q -u origin main"):  # fmt: skip
                    subprocess.run(["git", *command.split()], check=True, capture_output=True)
                return _BLOCK.sub(lambda block: _HASH.sub("…", _carried_out(block, git=True)), text)
        finally:
            os.environ.clear()
            os.environ.update(before)


_HASH = re.compile(
    r"\b[0-9a-f]{40}\b|\b(?=[0-9a-f]*[0-9])[0-9a-f]{12}\b|\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*[0-9])[0-9a-f]{7,10}\b"
)


def _carried_out(block: re.Match[str], git: bool = False) -> str:
    kind, body = block.groups()
    if kind == "diff":
        if body.startswith("--- "):
            _apply(body)
        return block[0]
    out = []
    for command in _commands(body):
        out += [f"$ {line}" if number == 0 else line for number, line in enumerate(command.splitlines())]
        out += _run(command.replace("\\\n", " "), git).splitlines()
    return "```console\n" + "\n".join(out) + "\n```"


def _commands(body: str) -> list[str]:
    """The commands of a console block; a line that ends with a backslash goes on in the next."""
    commands: list[str] = []
    continued = False
    for line in body.splitlines():
        if continued:
            commands[-1] += "\n" + line
        elif line.startswith("$ "):
            commands.append(line[2:])
        else:
            continue
        continued = line.endswith("\\")
    return commands


def _run(command: str, git: bool = False) -> str:
    """What a command prints, on both streams. The program itself is run in this process, which is faster."""
    if command.startswith(_NOT_RUN) and not (git and command.startswith("git ")):
        return ""
    first, pipe, rest = command.partition(" | ")
    words = shlex.split(first)
    if words[0] == "cd":
        os.chdir(words[1])
        return ""
    if words[0] != "reconciler":
        return _shell(command, "")
    printed, before = io.StringIO(), (sys.argv, os.environ.get("COLUMNS"))
    sys.argv, os.environ["COLUMNS"] = words, "100"
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), contextlib.suppress(SystemExit):
            reconciler()
    finally:
        sys.argv = before[0]
        os.environ.pop("COLUMNS") if before[1] is None else os.environ.update(COLUMNS=before[1])
    return _shell(rest, printed.getvalue()) if pipe else printed.getvalue()


def _shell(command: str, given: str) -> str:
    done = subprocess.run(["bash", "-c", command], input=given, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise PageError(f"{command}: {done.stderr or done.stdout}")
    return done.stdout


def _apply(body: str) -> None:
    """Replace the lines that a diff takes away by those that it adds, at the one place where they stand."""
    name, _, changes = body.removeprefix("--- ").partition("\n")
    lines = changes.splitlines()
    old = "\n".join(line[1:] for line in lines if line[:1] in (" ", "-")) + "\n"
    new = "\n".join(line[1:] for line in lines if line[:1] in (" ", "+")) + "\n"
    path = Path(name.strip())
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise PageError(f"the lines of the diff stand {text.count(old)} times in {name}:\n{old}")
    path.write_text(text.replace(old, new), encoding="utf-8")
