"""Finds and runs the programs of a build: an empty environment, a process group of its own, a time limit, and a log.

A recipe's script sees PATH, LANG, HOME and TMPDIR in the scratch folder, and what its stage gives it: no credential, no
agent socket, no token of ours. What it may read of the machine is for the system to limit: run the builder as a user of
its own, or have it build a distribution (`image.sandbox`). Called by the stages.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.ports import TerminalError, TransientError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OUTPUT_LIMIT = 1 << 20
LEAST_ROOM = 4 << 20
"""Bytes: with less than this free, a stage that failed is taken to have failed for want of room."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a build's programs run: the scratch folder, the log they append to, and seconds that each may take."""

    scratch: Path
    log: Path
    timeout_s: float

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of a program."""
        home = self.scratch / "home"
        home.mkdir(exist_ok=True)
        return {"PATH": PATH, "LANG": "C", "LC_ALL": "C", "HOME": str(home), "TMPDIR": str(home), **extra}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended. `out` is its standard output, cut at a limit; `last` the last line it wrote to the log."""

    status: int
    out: bytes
    last: str


def program(name: str, package: str, needed_for: str) -> str:
    """Path of a program of this machine. TerminalError: not installed; names the Debian package."""
    path = shutil.which(name, path=PATH)
    if path is None:
        raise TerminalError(f"{name} is not installed", needed_for=needed_for, remedy=f"apt-get install {package}")
    return path


def run(
    where: Surroundings,
    stage: str,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    most: int = OUTPUT_LIMIT,
    logged: bool = True,
) -> Ended:
    """Run a program of a stage and wait for it. Whatever its status; TerminalError: not started, or out of time.

    Its whole process group is killed at the end, so that nothing a script left running goes on. `most` bytes of its
    standard output are kept, and unless `logged` is false they go into the log too.
    """
    out_path = where.scratch / f"{stage}.out"
    with where.log.open("ab") as log, out_path.open("wb") as out:
        log.write(f"=== {stage}: {' '.join(argv)}\n".encode())
        log.flush()
        try:
            child = subprocess.Popen(
                list(argv),
                cwd=where.scratch,
                env=where.environment(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
                umask=0o022,
            )
        except OSError as error:
            raise failed(stage, f"{argv[0]} cannot be run ({error.strerror})", where.log) from None
        try:
            status = child.wait(where.timeout_s)
        except subprocess.TimeoutExpired:
            raise failed(stage, f"did not end within {where.timeout_s:g} s", where.log) from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    with out_path.open("rb") as file:
        data = file.read(most)
    if logged:
        with where.log.open("ab") as log:
            log.write(data)
    return Ended(status, data, _last_line(where.log))


def kill_left(scratch: Path) -> None:
    """Kill what a killed build left running: every process whose home lies in its scratch folder."""
    told = f"HOME={scratch}/home".encode()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if told in (place / "environ").read_bytes().split(b"\0"):
                os.kill(int(place.name), signal.SIGKILL)


def failed(stage: str, why: str, log: Path) -> TerminalError | TransientError:
    """The error of a stage that failed. A full disk is no fault of the recipe, and passes: it is asked for room."""
    if _no_room(log):
        return TransientError(
            f"stage {stage!r} of the build failed: no space left on the disk of {log.parent.parent} ({why})",
            needed_for="building the image",
            remedy="make room there, or name another folder in builder.work; it is tried again",
        )
    return TerminalError(
        f"stage {stage!r} of the build failed: {why}",
        needed_for="building the image",
        remedy=f"see {log}, and correct the recipe",
    )


def _no_room(log: Path) -> bool:
    """Whether a program failed for want of room: the disk is full now, or the end of its log says that it was."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(log.parent).free < LEAST_ROOM:
            return True
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        return os.strerror(errno.ENOSPC).encode() in file.read()
    return False


def _last_line(log: Path) -> str:
    """The last line in a log that says something, fit for a message."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return "".join(letter if letter.isprintable() else " " for letter in lines[-1])[:200] if lines else ""
