"""Waiting for what another process does. A machine with much to do takes its time: a limit only ends a test that would hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(what: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `what()` is true. AssertionError: it never was."""
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, f"not within {seconds:g} s"
        time.sleep(0.02)


def runs(pid: int | str) -> bool:
    """Whether a process runs: one that has ended, and only waits to be asked for its status, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
