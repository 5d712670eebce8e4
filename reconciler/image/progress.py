"""Which stage a build is in, and since when: told to whoever listens, and written to the build's log.

A stage that raises is named by its own error; this only keeps time. Called by `image.builder`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

STAGES = ("packages", "setup", "check", "sysprep", "pack", "gate", "artifact")
Hear = Callable[[str, float], None]
"""Hears a stage's name as it begins, and the seconds since the build began; `done` at the end."""


class Progress:
    """The course of one build: `now` is the stage under way, `times` the seconds that each finished one took."""

    def __init__(self, hear: Hear | None, log: Path) -> None:
        self._hear, self._log, self._began = hear, log, time.monotonic()
        self.times: dict[str, float] = {}
        self.now = STAGES[0]

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Everything within is this stage."""
        began, self.now = time.monotonic(), name
        self._tell(name, f"=== stage {name}, after {began - self._began:.1f} s")
        yield
        self.times[name] = time.monotonic() - began

    def done(self) -> None:
        """The build is finished."""
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.times.items())
        self._tell("done", f"=== done (seconds a stage: {stages})")

    def _tell(self, name: str, line: str) -> None:
        note(self._log, line)
        if self._hear is not None:
            self._hear(name, time.monotonic() - self._began)


def note(log: Path, text: str) -> None:
    """Add a line to a build's log."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")
