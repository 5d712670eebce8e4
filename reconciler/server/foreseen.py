"""What is to come, as pages show it: the newest forecast of the rollout, made aside and kept for a while.

A forecast is made by whatever `Options.foresee` is; this decides only when it is made anew: when the board has moved on and the
last one is not fresh any more, or another commit is in force. One is made at a time, in a thread of its own, so that neither the
loop nor a page waits for it for long. Whoever shows one is told when another is there. Called by the front page, the page of the
rollout, and the stream of what happens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from reconciler.controller.board import Board
from reconciler.ports import PortError


@dataclass(frozen=True, slots=True)
class Barred:
    """What stands in the way of something that the forecast sees no end of: the reason's code, and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """What comes of one wave and one release. Instants that have passed, or never come, are None."""

    wave: str
    release: str
    devices: int
    starts_at: datetime | None
    arrived_at: datetime | None
    """When the last device that moves has arrived."""
    proven_at: datetime | None
    stopped_at: datetime | None
    moving: int
    """Devices that arrive within the forecast."""
    barred: tuple[Barred, ...] = ()


@dataclass(frozen=True, slots=True)
class Course:
    """One forecast, to the end of what happens by itself."""

    ended_at: datetime
    cut_off: bool
    """Whether it was still going on when the forecast stopped looking."""
    places: tuple[Ahead, ...]


CONFIGURATION = "configuration"
"""The release of `Moves` that are of a site's configuration."""
NEAR = timedelta(hours=36)
"""How far ahead `Moves` are counted."""
NAMED = 4
"""Sites that `Moves` name."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Devices of one wave that begin a release in one window (None: outside of any), and how many of these arrive."""

    wave: str
    release: str
    window: tuple[datetime, datetime] | None
    begin: int
    arrive: int
    first_at: datetime
    """When the first begins."""
    last_at: datetime
    """When the last has arrived; where none does, when the last begins."""
    sites: tuple[str, ...] = ()
    """Names of the first `NAMED` of their sites, of `sites_in_all`."""
    sites_in_all: int = 0


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What is to come from `at` on, of a commit. `likely`: devices that are silent stay so; `earliest`: they answer at once. One
    value where none is silent."""

    at: datetime
    commit: str | None
    silent: int
    critical: int
    likely: Course
    earliest: Course
    windows: Mapping[str, tuple[tuple[datetime, datetime], ...]] = field(default_factory=dict)
    """Wave → when the window of any of its sites is open in the coming days."""
    moves: tuple[Moves, ...] = ()
    """What begins within `NEAR`, by instant, as it is likely."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """The newest forecast, and what is being done about it. `making`: another is being made; `trouble`: why there is none."""

    foreseen: Foreseen | None
    making: bool = False
    trouble: str | None = None


Foresee = Callable[[Board], Foreseen]
"""Makes a forecast from where a board stands. PortError: it cannot be made now."""


WAITING = 8
"""Callers that wait for a forecast at once. Each keeps one of some forty threads, by which devices' reports are recorded too."""


class Forecasts:
    """The newest forecast of one service. Safe from any thread; `clock` gives seconds of real time.

    One stays fresh for twenty times as long as it took to make, within `fresh_s`: making them is never much of a core's work.
    """

    def __init__(
        self,
        foresee: Foresee | None,
        *,
        fresh_s: tuple[float, float] = (10.0, 180.0),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._foresee, self._bounds, self._clock = foresee, fresh_s, clock
        self._fresh_s = fresh_s[0]
        self._changed = threading.Condition()
        self._foreseen: Foreseen | None = None
        self._of: tuple[str | None, int] | None = None
        """Commit and generation that the newest attempt was of."""
        self._tried_at = 0.0
        self._trouble: str | None = None
        self._making = False
        self._waiting = 0
        self._number = 0
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._next = 0

    @property
    def number(self) -> int:
        """Rises whenever an attempt has ended, well or not."""
        return self._number

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback`, from the thread that made it, whenever an attempt has ended; returns what ends that. It must return at
        once."""
        with self._changed:
            self._next += 1
            number = self._next
            self._callbacks[number] = callback

        def end() -> None:
            with self._changed, suppress(KeyError):
                del self._callbacks[number]

        return end

    def outlook(self, board: Board, wait_s: float = 0.0) -> Outlook:
        """The newest forecast; where it is too old, another is begun. `wait_s` is how long to wait for that, where there is none
        of the commit in force; where several wait already, nobody else does."""
        if self._foresee is None or board.rows is None:
            return Outlook(None)
        with self._changed:
            if not self._making and self._stale(board):
                self._making = True
                threading.Thread(target=self._make, args=(board,), name="forecast", daemon=True).start()
            if self._waiting < WAITING:
                self._waiting += 1
                try:
                    self._changed.wait_for(lambda: not self._making or self._known(board) is not None, wait_s)
                finally:
                    self._waiting -= 1
            known = self._known(board)
            return Outlook(known, self._making, None if known is not None or self._making else self._trouble)

    def _known(self, board: Board) -> Foreseen | None:
        """A forecast of another commit says nothing about this one."""
        return self._foreseen if self._foreseen is not None and self._foreseen.commit == board.commit else None

    def _stale(self, board: Board) -> bool:
        if self._of is None or self._of[0] != board.commit:
            return True
        # A board that says the same leads to the same, but for the time that has passed.
        age = self._clock() - self._tried_at
        return age >= (self._fresh_s if self._of[1] != board.generation else max(self._bounds[1], 10 * self._fresh_s))

    def _make(self, board: Board) -> None:
        foresee, made, trouble = self._foresee, None, None
        assert foresee is not None
        began = self._clock()
        try:
            made = foresee(board)
        except PortError as error:
            trouble = str(error)
        except Exception as error:  # noqa: BLE001  a page without a forecast is still a page
            trouble = f"it failed ({type(error).__name__})"
        with self._changed:
            self._making, self._trouble = False, trouble
            self._of, self._tried_at = (board.commit, board.generation), self._clock()
            least, most = self._bounds
            self._fresh_s = min(max(20 * (self._tried_at - began), least), most)
            if made is not None:
                self._foreseen = made
            self._number += 1
            self._changed.notify_all()
            waiting = list(self._callbacks.values())
        for callback in waiting:
            callback()
