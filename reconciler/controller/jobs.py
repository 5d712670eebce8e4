"""Long work beside the loop: builds take minutes, and reports, gates and rollbacks do not wait for them.

One thread, one job at a time, oldest first. It knows no action and no store: it calls what it is handed and keeps the
outcome until the loop collects it. Every job is an open intent in the journal, so one that is killed is started again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from reconciler.model.plan import ActionKind
from reconciler.ports import Intent, PortError, TerminalError, TransientError


@dataclass(frozen=True, slots=True)
class Finished:
    """A job's outcome: `detail` of success, or the error."""

    intent: Intent
    detail: str = ""
    error: PortError | None = None


class Worker(Protocol):
    """Who does the work: a thread (`Jobs`), or virtual time."""

    def submit(self, intent: Intent, work: Callable[[], str]) -> None:
        """Start the work when its turn comes. An intent that waits, runs or is not collected yet is not taken twice."""

    def collect(self) -> list[Finished]:
        """What has finished since the last call. Called by the loop alone."""

    def holds(self, intent: Intent) -> bool:
        """Whether the intent waits, runs, or is not collected yet."""

    @property
    def busy(self) -> bool:
        """Whether anything waits, runs, or is not collected yet."""


class Jobs:
    """Runs work in a thread of its own. `inline` runs it at once instead, for one single pass (`run --once`)."""

    def __init__(
        self, wake: Callable[[], None], working: Callable[[], AbstractContextManager[None]], *, inline: bool = False
    ) -> None:
        self._wake, self._working, self._inline = wake, working, inline
        self._waiting: queue.SimpleQueue[tuple[Intent, Callable[[], str]] | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._held: set[int] = set()
        self._holding: dict[int, AbstractContextManager[None]] = {}
        self._thread: threading.Thread | None = None

    def submit(self, intent: Intent, work: Callable[[], str]) -> None:
        """Start the work when its turn comes. An intent that waits, runs or is not collected yet is not taken twice."""
        if intent.id in self._held:
            return
        self._held.add(intent.id)
        if self._inline:
            self._finished.put(run(intent, work))
            return
        # Held from here on, not from when the thread gets to it: a stepped clock must not jump in between.
        hold = self._working()
        hold.__enter__()
        self._holding[intent.id] = hold
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
            self._thread.start()
        self._waiting.put((intent, work))

    def collect(self) -> list[Finished]:
        """What has finished since the last call. Called by the loop alone."""
        out: list[Finished] = []
        while True:
            try:
                done = self._finished.get_nowait()
            except queue.Empty:
                return out
            self._held.discard(done.intent.id)
            hold = self._holding.pop(done.intent.id, None)
            if hold is not None:
                hold.__exit__(None, None, None)
            out.append(done)

    def holds(self, intent: Intent) -> bool:
        """Whether the intent waits, runs, or is not collected yet."""
        return intent.id in self._held

    @property
    def busy(self) -> bool:
        """Whether anything waits, runs, or is not collected yet."""
        return bool(self._held)

    def stop(self, timeout_s: float) -> None:
        """Start nothing more, and wait for what runs; what does not end in time dies with the process."""
        if self._thread is not None:
            # The thread may take the last one meanwhile: what was there a moment ago need not be there now.
            with suppress(queue.Empty):
                while True:
                    self._waiting.get_nowait()
            self._waiting.put(None)
            self._thread.join(timeout_s)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            self._finished.put(run(*item))
            self._wake()


class Underway:
    """What the job that runs says of itself, for people: written by the job's thread, read by the loop's.

    `wake` is called when a stage begins, and `tell` with what `text` says then, for who waits for a single pass. The seconds
    are real ones: how long a person has been waiting.
    """

    def __init__(self, wake: Callable[[], None] | None = None, tell: Callable[[str], object] | None = None) -> None:
        self._wake, self._tell = wake, tell
        self._lock = threading.Lock()
        self._what, self._stage, self._since = "", "", 0.0

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """For as long as the work takes: `building v1.4.2`."""
        with self._lock:
            self._what, self._stage, self._since = what, "", time.monotonic()
        if self._tell is not None:
            self._tell(what)
        try:
            yield
        finally:
            with self._lock:
                self._what = self._stage = ""

    def stage(self, name: str, elapsed_s: float) -> None:
        """The work has come to a stage, or goes on in it; `elapsed_s` since the work began."""
        with self._lock:
            new = bool(self._what) and name != self._stage
            self._stage, self._since = name, time.monotonic() - elapsed_s
        if new and self._wake is not None:
            self._wake()
        if new and self._tell is not None:
            self._tell(self.text())

    def text(self) -> str:
        """`building v1.4.2: stage setup, 35 s so far`; empty where nothing runs."""
        with self._lock:
            if not self._what:
                return ""
            stage = f": stage {self._stage}" if self._stage else ""
            return f"{self._what}{stage}, {time.monotonic() - self._since:.0f} s so far"


class PacedJobs:
    """`Jobs` under a clock that can be made to wait: each kind of work takes its time before its effect is there."""

    def __init__(self, jobs: Jobs, spend: Callable[[float], None], durations_s: Mapping[ActionKind, int]) -> None:
        self._jobs, self._spend, self._durations = jobs, spend, durations_s

    def submit(self, intent: Intent, work: Callable[[], str]) -> None:
        """Start the work when its turn comes, once its time has passed."""
        seconds = self._durations.get(intent.action.kind, 0)

        def paced() -> str:
            if seconds:
                self._spend(seconds)
            return work()

        self._jobs.submit(intent, paced)

    def collect(self) -> list[Finished]:
        """What has finished since the last call."""
        return self._jobs.collect()

    def holds(self, intent: Intent) -> bool:
        """Whether the intent waits, runs, or is not collected yet."""
        return self._jobs.holds(intent)

    @property
    def busy(self) -> bool:
        """Whether anything waits, runs, or is not collected yet."""
        return self._jobs.busy


def run(intent: Intent, work: Callable[[], str]) -> Finished:
    """Do a job's work; whatever it raises becomes its outcome."""
    try:
        return Finished(intent, work())
    except PortError as error:
        return Finished(intent, error=error)
    except OSError as error:
        # A full disk is no defect, and passes.
        return Finished(
            intent,
            error=TransientError(
                f"{error.strerror or type(error).__name__} ({error.filename or 'a file'})",
                needed_for=intent.key,
                remedy="see that this machine has room, and that the folders in the settings are writable for this user",
            ),
        )
    except Exception as error:  # noqa: BLE001 - a defect in one action must not stop the others, nor be silent
        kind = type(error).__name__
        return Finished(
            intent,
            error=TerminalError(
                f"unexpected {kind}", needed_for=intent.key, remedy="this is a defect of the reconciler; see its log"
            ),
        )
