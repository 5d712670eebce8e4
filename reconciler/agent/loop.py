"""The agent's loop: the only place that reads the clock and sleeps. Steps the agent when something is due.

Python 3.10, standard library only: runs as root on a device. Between two steps it tells the service manager that it is
alive, answers whoever asks at the console, and notices that somebody has set the clock. Decides nothing about releases.
Called by `main` and `console`.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from types import FrameType
from typing import Any

from reconciler.agent import VERSION
from reconciler.agent.agent import Agent
from reconciler.agent.control import Control
from reconciler.agent.device import Life
from reconciler.agent.machine import PHASES, State
from reconciler.agent.notify import Notifier
from reconciler.protocol.canonical import format_instant
from reconciler.protocol.report import Refusal

LONGEST_SLEEP_S = 60.0
SET_CLOCK_S = 2.0
"""A clock that runs so much apart from the machine's own count of seconds was set. One that is slewed never does."""
ONCE_STEPS = 1000
TIDY_EVERY_S = 3600.0
"""How often memory is tidied. It takes some milliseconds."""


class Steady:
    """Notices that the clock was set, by a count that nobody sets."""

    def __init__(self) -> None:
        self._last: tuple[datetime, float] | None = None

    def moved(self, now: datetime, count_s: float) -> timedelta | None:
        """By how much the clock was set since the last call; None: it was not. `count_s` only ever rises."""
        last, self._last = self._last, (now, count_s)
        if last is None:
            return None
        by = (now - last[0]) - timedelta(seconds=count_s - last[1])
        return by if abs(by) > timedelta(seconds=SET_CLOCK_S) else None


class Tidy:
    """Has Python let go of what it keeps for later.

    It does so by itself when many more objects are there than before, which an agent at rest never comes to. Until then it keeps
    freed tuples for reuse, up to 2000 of each length: some 0.3 KiB a report, 0.8 MiB in all.
    """

    def __init__(self) -> None:
        self._last_s: float | None = None

    def at(self, count_s: float) -> None:
        """Tidy if it is due: at first, which frees what starting has left, then every hour. `count_s` only ever rises."""
        if self._last_s is None or count_s - self._last_s >= TIDY_EVERY_S:
            self._last_s = count_s
            gc.collect()


class Journal:
    """Tells on standard error, which is the journal of a service, what is wrong with the machine: once, until it is over."""

    def __init__(self) -> None:
        self._told: frozenset[str] = frozenset()

    def tell(self, refusals: Iterable[Refusal]) -> None:
        """`refusals` are those that stand now."""
        faults = [item.reason for item in refusals if item.code == "device-fault"]
        for reason in faults:
            if reason not in self._told:
                # Nobody who reads it is no reason to stop.
                with suppress(OSError):
                    print(f"edge-agent: device-fault: {reason}", file=sys.stderr, flush=True)
        self._told = frozenset(faults)


def utc_now() -> datetime:
    """The present instant."""
    return datetime.now(timezone.utc)


def run(life: Life, notifier: Notifier, control: Control | None) -> int:
    """Until SIGTERM or SIGINT. A step is never cut short by them; the state would survive it, but nothing is gained."""
    wake, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    stop = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    before = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    longest = min(LONGEST_SLEEP_S, (notifier.watchdog_s or 2 * LONGEST_SLEEP_S) / 3)
    steady, journal, tidy = Steady(), Journal(), Tidy()
    notifier.ready()
    try:
        while not stop:
            now = utc_now()
            by = steady.moved(now, time.monotonic())
            if by is not None:
                life.clock_moved(by)
            due = life.step(now)
            notifier.alive()
            notifier.status(described(life))
            journal.tell(life.agent.notes.refusals())
            tidy.at(time.monotonic())
            # Never long at a time: the clock may be set while the agent sleeps.
            wait_s = min(max((due - utc_now()).total_seconds(), 0.0), longest)
            listened = [wake] if control is None else [wake, control.fileno()]
            ready, _, _ = select.select(listened, [], [], 0 if stop else wait_s)
            if control is not None and control.fileno() in ready:
                control.serve(lambda question: answer(life, question))
        notifier.stopping()
    finally:
        signal.set_wakeup_fd(before)
        os.close(wake)
        os.close(wakes)
    return 0


def once(life: Life, notifier: Notifier) -> None:
    """Steps that are due now, until the next one lies in the future."""
    for _ in range(ONCE_STEPS):
        due = life.step(utc_now())
        notifier.alive()
        if life.is_over or due > utc_now() + timedelta(seconds=1):
            return


def described(life: Life) -> str:
    """What the agent does, in a line."""
    agent, wakes_at = life.agent, life.agent.work_wakes_at
    work = agent.work
    text = work.state.name.lower() + (f" {work.target}" if work.target and work.state is not State.IDLE else "")
    if wakes_at is not None and work.state is State.WRITTEN and wakes_at > utc_now():
        text += f", reboots not before {format_instant(wakes_at.replace(microsecond=0))}"
    return text if agent.reached or not agent.exchanges else f"{text}; {agent.unreached_because}"


def answer(life: Life, question: Mapping[str, Any]) -> dict[str, Any]:
    """What a command on the console is told. Unknown questions get an answer too: it may be a newer command."""
    kind = question.get("ask")
    if kind == "apply":
        life.call_in()
    elif kind == "rollback":
        why_not = life.agent.stuck_because or life.agent.work.go_back()
        if why_not is not None:
            return {"error": why_not}
    elif kind != "status":
        return {"error": f"this agent (version {VERSION}) does not know {str(kind)[:40]!r}"}
    return standing(life)


def at_rest(agent: Agent, now: datetime) -> bool:
    """Whether nothing goes on before a report, or an instant that lies ahead, is due."""
    if agent.stuck_because is not None:
        return True
    wakes_at, state = agent.work_wakes_at, agent.work.state
    if state is State.WRITTEN and wakes_at is None:
        return False
    return state in (State.IDLE, State.WRITTEN) and (wakes_at is None or wakes_at > now + timedelta(seconds=1))


def standing(life: Life) -> dict[str, Any]:
    """How the agent stands, as JSON."""
    agent = life.agent
    work = agent.work
    return {
        "pid": os.getpid(),
        "version": VERSION,
        "state": work.state.name.lower(),
        "phase": PHASES[work.state],
        "target": work.target if work.state is not State.IDLE else None,
        "exchanges": agent.exchanges,
        "reached": agent.reached,
        "because": None if agent.reached else agent.unreached_because,
        "reportsAt": _whole(agent.reports_at),
        "wakesAt": _whole(agent.work_wakes_at),
        "atRest": at_rest(agent, utc_now()),
        "leaving": agent.leaving,
        "refusals": [
            {"code": item.code, "reason": item.reason, "serial": list(item.serial) if item.serial else None}
            for item in agent.notes.refusals()
        ],
    }


def _whole(at: datetime | None) -> str | None:
    return format_instant(at.replace(microsecond=0)) if at is not None else None
