"""Whether the machine's clock is right, as its time service says: asks `chronyc`, and reads the answer.

Python 3.10, standard library and the program chronyc: runs as root on a device. Decides nothing: `work` decides what
may not begin by a clock that is not synchronised. Whatever goes wrong is a clock that is not: silence is never good
time. Called by hardware that has a clock of its own. Source: chrony's own `chronyc.c`, "tracking".
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from reconciler.agent.hardware import Clock

COMMAND = ("chronyc", "-n", "-c", "tracking")
TIMEOUT_S = 5.0
LARGEST_ERROR_S = 60.0
"""A clock that may be further off than this is not synchronised. Windows are hours long, starts are spread over minutes; a
device that lost its time server stays below it for about a week."""
_MAX_OUTPUT = 4096
_COLUMNS = 14
_SYNCHRONISED = ("Normal", "Insert second", "Delete second")
_ITSELF = "7F7F0101"
_UNKNOWN = Clock(False)


def ask(command: Sequence[str] = COMMAND, timeout_s: float = TIMEOUT_S) -> Clock:
    """The state of the clock now. Never raises: no program, no answer and no daemon are all a clock that nobody sets."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return _UNKNOWN
    return read(done.stdout[:_MAX_OUTPUT]) if done.returncode == 0 else _UNKNOWN


def read(output: bytes) -> Clock:
    """The line that `chronyc -c tracking` prints. Never raises.

    Its columns: reference, its name, stratum, time of the last update, offset (positive: the clock is slow), last and
    RMS offset, frequency, its rest, its skew, root delay, root dispersion, update interval, leap status.
    """
    columns = output.decode("ascii", "replace").strip().split(",")
    if len(columns) != _COLUMNS or columns[-1] not in _SYNCHRONISED:
        return _UNKNOWN
    try:
        stratum, offset, delay, dispersion = int(columns[2]), *(float(columns[place]) for place in (4, 10, 11))
    except ValueError:
        return _UNKNOWN
    error = abs(offset) + delay / 2 + dispersion
    # A clock that is its own reference agrees with itself, whatever it says. Written so that a NaN is refused, too.
    if columns[0] == _ITSELF or not 0 < stratum < 16 or not error <= LARGEST_ERROR_S:
        return _UNKNOWN
    return Clock(True, round(-offset, 6) + 0.0)
