"""A program beside the agent's loop: begun, looked at now and then, and killed with the job that began it.

Python 3.10, standard library only: runs as root on a device. Knows processes, not what they do. Called by `runtime` and
`containers`, whose jobs pass its waits on to the loop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from reconciler.agent.hardware import HardwareError
from reconciler.protocol import scratch

FIRST_LOOK_S = 0.02
LONGEST_LOOK_S = 1.0
MAX_OUTPUT = 1024 * 1024

T = TypeVar("T")


class NoAnswer(HardwareError):
    """The program did not end in its time, and was killed."""


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it wrote: at most a MiB of each, of errors the last."""

    status: int
    output: str
    errors: str

    def last_words(self) -> str:
        """The last line of its errors, else of its output."""
        lines = [line.strip() for line in (self.errors or self.output).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.status}"


def play(
    command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None
) -> Generator[float, None, Ended]:
    """Run a program; yields the seconds until it is looked at again. `environment` is added to the agent's own.

    Dropped between two looks, the program and its children are killed. HardwareError: it cannot be run. NoAnswer: it took
    longer than `limit_s`.
    """
    name = os.path.basename(command[0])
    with _file(name) as output, _file(name) as errors:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env={**os.environ, "LC_ALL": "C", **(environment or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise HardwareError(f"{name} cannot be run: {error.strerror}") from None
        ends, wait_s = time.monotonic() + limit_s, FIRST_LOOK_S
        try:
            while process.poll() is None:
                if time.monotonic() >= ends:
                    raise NoAnswer(f"{name} gave no answer within {limit_s:g} s")
                yield wait_s
                wait_s = min(wait_s * 1.5, LONGEST_LOOK_S)
        finally:
            if process.poll() is None:
                # The whole session: what hangs is often a child of the program.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - MAX_OUTPUT))
        said = [data.read(MAX_OUTPUT).decode("utf-8", "replace") for data in (output, errors)]
        return Ended(process.returncode, said[0], said[1])


def _file(name: str) -> BinaryIO:
    """Where a program writes. Not a pipe: nobody may be reading, and it would stand still."""
    try:
        return scratch.nameless_file()
    except OSError as error:
        raise HardwareError(
            f"{name} cannot be run: nothing can be written in {scratch.place()}: {error.strerror}"
        ) from None


def at_once(job: Generator[float, None, T]) -> T:
    """Play a short job to its end; for questions that are answered in a moment."""
    while True:
        try:
            wait_s = next(job)
        except StopIteration as end:
            found: T = end.value
            return found
        time.sleep(wait_s)
