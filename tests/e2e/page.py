"""Carries out a page as its reader would: its commands in order, in one folder, and what they print held to what the page shows.

In a page, a `console` block holds commands (after `$ `; a here-document goes on to its `EOF`) and what they print. One that ends
with `--follow` is the first terminal's: it goes on beside the others, and every `text` block is what it prints next. A line `…`
stands for any number of lines, and one that ends in ` …` for any end of a line. Hashes of commits and fingerprints differ
from run to run, and are compared by their being there. `make` is shown, not run.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(console|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HASH = re.compile(r"\b[0-9a-fA-F]{7,40}\b")
_NOT_RUN = ("make ", "export ")
_FOLLOWS = "--follow"
_LONGEST_S = 150.0
_REST = "It is "
"""How the first terminal's last line begins when it waits for its reader."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command with what the page shows of it; or, without a command, what the first terminal prints."""

    command: str | None
    shown: tuple[str, ...]


def steps(text: str) -> Iterator[Step]:
    """Everything that a page has done, in order."""
    for kind, body in _BLOCK.findall(text):
        lines = body.splitlines()
        if kind == "text":
            yield Step(None, tuple(lines))
            continue
        command: list[str] = []
        shown: list[str] = []
        for number, line in enumerate(lines):
            if line.startswith("$ ") and not _open(command):
                if command:
                    yield Step("\n".join(command), tuple(shown))
                command, shown = [line[2:]], []
            elif _open(command):
                command.append(line)
            else:
                assert command, f"line {number} of a console block belongs to no command: {line}"
                shown.append(line)
        yield Step("\n".join(command), tuple(shown))


def _open(command: Sequence[str]) -> bool:
    """Whether a command goes on in the next line."""
    if not command:
        return False
    return command[-1].endswith("\\") or ("<<'EOF'" in command[0] and command[-1] != "EOF")


def same(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether what was printed is what is shown."""
    if not shown:
        return not printed
    if shown[0].strip() == "…":
        return any(same(shown[1:], printed[skipped:]) for skipped in range(len(printed) + 1))
    return bool(printed) and _line(shown[0], printed[0]) and same(shown[1:], printed[1:])


def _line(shown: str, printed: str) -> bool:
    shown, printed = _HASH.sub("#", shown.rstrip()), _HASH.sub("#", printed.rstrip())
    if shown.endswith(" …"):
        return printed.startswith(shown.removesuffix(" …").rstrip())
    return shown == printed


class Terminals:
    """Two shells in one folder."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._folder, self._env = folder, {**env, "COLUMNS": "100"}
        self._log = folder / "first-terminal"
        self._first: subprocess.Popen[bytes] | None = None
        self._read = 0

    def run(self, command: str) -> list[str]:
        """Run a command in the second terminal, on both streams. It must not fail."""
        if command.startswith(_NOT_RUN):
            return []
        if command.rsplit(maxsplit=1)[-1] == _FOLLOWS:
            with open(self._log, "wb") as log:
                self._first = subprocess.Popen(
                    shlex.split(command),
                    cwd=self._folder,
                    env=self._env,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                )
            return []
        # Where the shell ends is where the next one starts.
        there = self._folder / "there"
        self._folder.joinpath("there").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-c", f"set -eo pipefail\n{command}\npwd >{shlex.quote(str(there))}"],
            cwd=self._folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=_LONGEST_S,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        self._folder = Path(there.read_text().strip())
        return done.stdout.splitlines()

    def next_of_first(self) -> list[str]:
        """What the first terminal has printed since the last call, once it waits for its reader again."""
        give_up = time.monotonic() + _LONGEST_S
        while True:
            lines = self._log.read_text().splitlines()[self._read :]
            if lines and lines[-1].startswith(_REST):
                self._read += len(lines)
                return [line for line in lines if line]
            assert self._first is not None and self._first.poll() is None, "\n".join(["the demo has ended", *lines])
            assert time.monotonic() < give_up, "\n".join(["the demo is not done", *lines])
            time.sleep(0.2)

    def close(self) -> int | None:
        """Ctrl-C in the first terminal. Returns its exit code."""
        if self._first is None:
            return None
        if self._first.poll() is None:
            self._first.send_signal(signal.SIGINT)
        try:
            return self._first.wait(60)
        except subprocess.TimeoutExpired:
            self._first.kill()
            return self._first.wait()


def environment(programs: Path) -> dict[str, str]:
    """What a reader's shell has: the program, a name for commits, and no settings of this machine."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "RECONCILER"))}
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in _READER.items()}
    return (
        env | who | {"PATH": f"{programs}:{env['PATH']}", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    )


_READER = {"NAME": "Ada Reader", "EMAIL": "ada@reader.example"}
