"""The forecast behind the dashboard: from what is in force and observed now, to the end of what happens.

Everything in it is `simulate.forecast`'s; this only takes the store's word for what is observed, and tells the result in the
server's terms. A large fleet's is made in a process of its own at low priority, so that the loop keeps its core: it is sent both
desired and observed state on standard input and answers on standard output, and no user calls it. Called by `cli.run`.
"""

from __future__ import annotations

import bisect
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import IO, TYPE_CHECKING

from reconciler.model.desired import Desired
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.ports import TransientError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from reconciler.controller.board import Board
    from reconciler.ports import Export
    from reconciler.server.foreseen import Course, Foreseen, Moves
    from reconciler.simulate.trace import Trace

MANY = 2_000
"""Devices from which a forecast is made in a process of its own."""
_LONGEST_S = 900.0
_SHOWN = timedelta(days=14)
"""For how long windows are shown."""
_SAID = 200
_NEEDED_FOR = "showing what is to come"


@dataclass(frozen=True, slots=True)
class Request:
    """What a forecast is made from, but for the devices. Counts are of devices."""

    desired: Desired
    facts: Snapshot
    at: datetime
    silent: int
    critical: int


def foreseer(
    export: Callable[[], AbstractContextManager[Export]], now: Callable[[], datetime], many: int = MANY
) -> Callable[[Board], Foreseen]:
    """Forecasts from a board and what the store has on record of the devices. They raise TransientError: not now."""

    def foresee(board: Board) -> Foreseen:
        from reconciler.controller.board import DeviceState

        if board.desired is None or board.rows is None:
            raise TransientError("nothing was planned yet", needed_for=_NEEDED_FOR)
        silent, critical = int(board.rows.silent.sum()), board.counts[DeviceState.CRITICAL]
        at = max(board.at, now().replace(microsecond=0))
        request = Request(board.desired, board.observed, at, silent, critical + board.counts[DeviceState.FAILED])
        if board.devices_in_all >= many:
            return _aside(request, export)
        with export() as recorded:
            devices = list(recorded.devices)
        return foresee_here(request, devices)

    return foresee


def foresee_here(request: Request, devices: Iterable[str]) -> Foreseen:
    """Make one now. `devices` are JSON, each one device's observation."""
    from reconciler.server.foreseen import Foreseen
    from reconciler.simulate.forecast import forecast

    seen = tuple(DeviceObservation.model_validate_json(text) for text in devices)
    observed = request.facts.model_copy(update={"devices": seen, "at": request.at})
    trace = forecast(request.desired, observed, request.at, silent="stay")
    likely = earliest = _course(trace)
    if request.silent:
        earliest = _course(forecast(request.desired, observed, request.at, silent="return"))
    windows = _windows(request.desired, observed, request.at)
    moves = _moves(trace, windows)
    return Foreseen(
        request.at, request.desired.commit, request.silent, request.critical, likely, earliest, windows, moves
    )


def _windows(desired: Desired, observed: Snapshot, at: datetime) -> dict[str, tuple[tuple[datetime, datetime], ...]]:
    """When any site of a wave has its window open, for some days; spans that touch are one."""
    from reconciler.planner import waves_of_sites
    from reconciler.planner.windows import calendar, instant, micros

    shapes: dict[str, set[tuple[str, int, int]]] = {}
    for site, wave in waves_of_sites(desired, observed, at).items():
        spec = desired.sites[site]
        window = spec.window or desired.fleet.window
        shapes.setdefault(wave, set()).add((spec.timezone, window.start, window.end))
    since, until = micros(at), micros(at + _SHOWN)
    out = {}
    for wave, several in shapes.items():
        joined: list[tuple[int, int]] = []
        for opens, closes in sorted(span for shape in several for span in calendar(*shape).intervals(since, until)):
            if joined and opens <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(closes, joined[-1][1]))
            else:
                joined.append((opens, closes))
        out[wave] = tuple((instant(opens), instant(closes)) for opens, closes in joined)
    return out


def _moves(trace: Trace, windows: Mapping[str, Sequence[tuple[datetime, datetime]]]) -> tuple[Moves, ...]:
    """How many devices of each wave begin which release in which window. Each is counted once in a window, whatever is repeated."""
    from reconciler.server.foreseen import CONFIGURATION, NAMED, NEAR, Moves
    from reconciler.simulate.trace import Kind

    Place = tuple[str, str, tuple[datetime, datetime] | None]
    began: dict[Place, dict[str, datetime]] = {}
    arrived: dict[tuple[str, str], dict[str, datetime]] = {}
    site_of: dict[str, str] = {}
    for event in trace.events:
        if event.wave is None or event.device is None:
            continue
        if event.kind is Kind.TOLD and event.at < trace.started_at + NEAR:
            spans = windows.get(event.wave, ())
            number = bisect.bisect_right(spans, event.at, key=lambda span: span[0]) - 1
            window = spans[number] if number >= 0 and event.at < spans[number][1] else None
            there = began.setdefault((event.wave, event.key or CONFIGURATION, window), {})
            there.setdefault(event.device, event.at)
            site_of[event.device] = event.site or ""
        elif event.kind is Kind.ARRIVED and event.key is not None:
            arrived.setdefault((event.wave, event.key), {})[event.device] = event.at
    out = []
    for (wave, release, window), devices in began.items():
        seen = arrived.get((wave, release), {})
        ends = [seen[device] for device in devices if device in seen]
        last = max(ends or devices.values())
        sites = sorted({site_of[device] for device in devices} - {""})
        first = min(devices.values())
        out.append(
            Moves(wave, release, window, len(devices), len(ends), first, last, tuple(sites[:NAMED]), len(sites))
        )  # fmt: skip
    return tuple(sorted(out, key=lambda one: (one.first_at, one.wave, one.release)))


def _course(trace: Trace) -> Course:
    from reconciler.server.foreseen import Ahead, Barred, Course
    from reconciler.simulate.trace import Kind, calendar_of

    places = tuple(
        Ahead(
            wave=entry.wave,
            release=entry.key,
            devices=entry.devices,
            starts_at=entry.first_told_at,
            arrived_at=entry.last_arrived_at,
            proven_at=entry.proven_at,
            stopped_at=entry.stopped_at,
            moving=entry.arrived,
            barred=tuple(Barred(held.reason, held.message) for held in entry.held),
        )
        for entry in calendar_of(trace)
    )
    return Course(trace.ended_at, not any(event.kind is Kind.QUIET for event in trace.events), places)


# ---------------------------------------------------------------- aside


def _aside(request: Request, export: Callable[[], AbstractContextManager[Export]]) -> Foreseen:
    """In a child process. What it is sent and answers never leaves this machine, nor this user."""
    try:
        with tempfile.TemporaryFile() as file:
            pickle.dump(request, file, pickle.HIGHEST_PROTOCOL)
            with export() as recorded:
                for text in recorded.devices:
                    file.write(text.encode() + b"\n")
            file.seek(0)
            # -P: nothing of the folder that the service happens to be started in.
            command = [sys.executable, "-P", "-m", "reconciler.cli.foresee"]
            child = subprocess.run(command, stdin=file, capture_output=True, timeout=_LONGEST_S, check=False)
    except subprocess.TimeoutExpired:
        raise _unfinished(f"it took longer than {_LONGEST_S:g} s") from None
    except OSError as error:
        raise _unfinished(error.strerror or type(error).__name__) from error
    if child.returncode != 0:
        lines = child.stderr.decode("utf-8", "replace").split("\n")
        raise _unfinished(next((line.strip()[:_SAID] for line in reversed(lines) if line.strip()), "its process ended"))
    # What is read comes from the child that was just made of this very program.
    made: Foreseen = pickle.loads(child.stdout)  # noqa: S301
    return made


def _unfinished(why: str) -> TransientError:
    remedy = "it is tried again some minutes later"
    return TransientError(f"the forecast was not finished ({why})", needed_for=_NEEDED_FOR, remedy=remedy)


def _serve(source: IO[bytes], to: IO[bytes]) -> None:
    """The child's side. Who sends this is the program itself."""
    os.nice(10)
    request = pickle.load(source)  # noqa: S301
    pickle.dump(foresee_here(request, (line.decode() for line in source)), to, pickle.HIGHEST_PROTOCOL)


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
