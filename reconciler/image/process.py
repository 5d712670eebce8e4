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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reconciler.ports import TerminalError, TransientError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OUTPUT_LIMIT = 1 << 20
LEAST_ROOM = 4 << 20
"""Bytes: with less than this free, a stage that failed is taken to have failed for want of room."""
AMPLE_ROOM = 2 << 30
"""Bytes: with more than this free, what a log says of room is not about the disk: a script has filled a folder in memory."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors that mean the same: no room."""
_APT_FULL = b"You don't have enough free space in"
_END_S = 10.0


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


def bound(argv: Sequence[str]) -> list[str]:
    """A command of ours that dies with the builder, however that ends: nobody would take what it makes. Where the machine
    has no setpriv, it goes on to its end, and nothing waits for it."""
    return [*_bond(), *argv]


@cache
def _bond() -> tuple[str, ...]:
    return ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv", path=PATH) else ()


def kill_left(scratch: Path) -> None:
    """Kill what a killed build left running, every process whose home lies in its scratch folder, and see it end."""
    told = f"HOME={scratch}/home".encode()
    deadline = time.monotonic() + _END_S
    while killed := [pid for pid in _with_environment(told) if _kill(pid)]:
        if time.monotonic() > deadline:  # stuck in the kernel: it writes to nothing that the next build uses
            return
        time.sleep(0.01 * len(killed))


def _with_environment(entry: bytes) -> list[int]:
    """Processes that were started with an entry in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return found


def _kill(pid: int) -> bool:
    """Kill a process; whether we may."""
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def failed(stage: str, why: str, log: Path, *folders: Path) -> TerminalError | TransientError:
    """The error of a stage that failed. A full disk is no fault of the recipe, and passes: it is asked for room.

    `folders` are those that the stage writes to beside the work folder, in which the log is.
    """
    return no_room(stage, why, log, *folders) or TerminalError(
        f"stage {stage!r} of the build failed: {why}",
        needed_for="building the image",
        remedy=f"see {log}; correct the recipe, the release's document, or where the mirrors are",
    )


def no_room(stage: str, why: str, log: Path, *folders: Path, certain: bool = False) -> TransientError | None:
    """The error of a stage that failed for want of room: a disk is full now, or the end of the log says that one was, or
    it is `certain`. None: it failed of something else."""
    work = log.parent.parent
    full = next((folder for folder in (work, *folders) if is_full(folder)), None)
    if full is None and not certain and (not _said_full(log) or all(room(at) > AMPLE_ROOM for at in (work, *folders))):
        return None
    named = f"the disk of {full}" if full else f"a disk ({', '.join(str(folder) for folder in (work, *folders))})"
    return TransientError(
        f"stage {stage!r} of the build failed: no space left on {named} ({why})",
        needed_for="building the image",
        remedy="make room there, or name another folder (builder.work, builder.cache); it is tried again",
    )


def is_full(folder: Path) -> bool:
    """Whether the disk that a folder is on, or will be, has no room, for files or for their number."""
    return room(folder) < LEAST_ROOM


def room(folder: Path) -> int:
    """Bytes that are free on the disk that a folder is on, or will be; none, where it takes no more files."""
    # os.path: a folder that is closed to this user is none.
    at = os.statvfs(next((path for path in (folder, *folder.parents) if os.path.isdir(path)), "/"))
    return 0 if at.f_files > 0 and at.f_favail == 0 else at.f_bavail * at.f_frsize


def _said_full(log: Path) -> bool:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
        told = file.read().rpartition(b"=== ")[2]
        return any(sign in told for sign in (*(os.strerror(number).encode() for number in FULL), _APT_FULL))
    return False


def _last_line(log: Path) -> str:
    """The last line in a log that says something, fit for a message; our own headings do not."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    last = lines[-1] if lines and not lines[-1].startswith("=== ") else "it said nothing"
    return "".join(letter if letter.isprintable() else " " for letter in last)[:200]
