"""Processes of containers and what they take of this machine's memory, seen from outside: /proc of the machine that they run on."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

_EVERY_S = 0.2


def children(pid: int) -> list[int]:
    """What a process has started; empty once it is gone."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        told = " ".join(Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks)
    except OSError:
        return []
    return [int(word) for word in told.split()]


def descendants(pid: int) -> list[int]:
    """A process's children, theirs, and so on."""
    found = children(pid)
    return found + [below for child in found for below in descendants(child)]


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended. One that has may wait for its parent to be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def memory(pid: int, line: str) -> int:
    """A process's `VmRSS` (now) or `VmHWM` (the most it ever was), in bytes; 0 once it is gone."""
    try:
        found = re.search(rf"^{line}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


class Watch:
    """The largest sums of resident sizes that were seen while this was open: looked at several times a second."""

    def __init__(self, agents: Mapping[str, int]) -> None:
        """`agents`: process ids by device."""
        self.agents = 0
        """All agents at one time, in bytes."""
        self.one = 0
        """One agent and all that it had started."""
        self.all = 0
        """All agents and all that they had started."""
        self._looked_at = dict(agents)
        self._turn, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def look_at(self, name: str, pid: int) -> None:
        """A device's agent from now on."""
        with self._turn:
            self._looked_at[name] = pid

    def forget(self, name: str) -> None:
        """A device's agent ends."""
        with self._turn:
            self._looked_at.pop(name, None)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_EVERY_S):
            with self._turn:
                pids = list(self._looked_at.values())
            own = {pid: memory(pid, "VmRSS") for pid in pids}
            whole = [own[pid] + sum(memory(below, "VmRSS") for below in descendants(pid)) for pid in pids]
            self.agents = max(self.agents, sum(own.values()))
            self.one = max(self.one, *whole)
            self.all = max(self.all, sum(whole))
