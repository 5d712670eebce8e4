"""Two computations at once, the second in a child process: a forecast of a large fleet takes seconds, and machines have two cores.

Called by `cli.diff`. What the child cannot do is done here, so that an error is raised where it is understood.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


def side_by_side(one: Callable[[], T], other: Callable[[], T]) -> tuple[T, T]:
    """The results of both. Neither may have an effect: the second may run in a copy of this process, and may run twice."""
    if not hasattr(os, "fork") or (os.cpu_count() or 1) < 2:
        return one(), other()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _child(writing, other)
    os.close(writing)
    done = False
    try:
        first = one()
        with os.fdopen(reading, "rb", closefd=False) as pipe:
            data = pipe.read()
        done = True
    finally:
        os.close(reading)
        if not done:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    # What is read comes from the child that was just made of this very process.
    return first, (pickle.loads(data) if status == 0 else other())  # noqa: S301


def _child(writing: int, other: Callable[[], Any]) -> None:
    """Compute, hand over, and end without anything that an exit would do in the parent's name."""
    code = 1
    try:
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(other(), pipe, pickle.HIGHEST_PROTOCOL)
        code = 0
    except BaseException:  # noqa: BLE001, S110  the parent computes it again, and raises what there is to raise
        pass
    finally:
        os._exit(code)
