"""Calls git by an argument list, for the short commands at a prompt: importing GitPython costs them a tenth of a second.

Knows no command: callers give arguments, environment and words. What may run long, or inside the controller, goes through
`git_run`. Called by `git_trees`, `git_clone` and `git_blame`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reconciler.ports import TerminalError, TransientError


class Answer(NamedTuple):
    """What git said: its exit status, its output as bytes, its complaints as text."""

    status: int
    out: bytes
    err: str


def call(
    program: Sequence[str],
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    needed_for: str,
    timeout_s: float,
    remedy: str = "apt-get install git",
    folder: Path | None = None,
    stdin: bytes = b"",
) -> Answer:
    """Run `program` (git and its options) with the arguments and wait; no shell. Never raises for a status.

    TransientError: it did not end within `timeout_s`. TerminalError: it cannot be run; `remedy` says what to do then.
    """
    try:
        done = subprocess.run(
            [*program, *arguments],
            cwd=folder,
            input=stdin,
            capture_output=True,
            env=dict(env),
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TransientError(
            f"git {arguments[0]} did not end within {timeout_s:g} s", needed_for=needed_for, remedy="run it again"
        ) from None
    except OSError as error:
        absent = isinstance(error, FileNotFoundError) and error.filename == program[0]
        wrong = "the git program was not found" if absent else f"the git program cannot be run ({error.strerror})"
        raise TerminalError(wrong, needed_for=needed_for, remedy=remedy) from None
    return Answer(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))
