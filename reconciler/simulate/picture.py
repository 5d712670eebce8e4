"""Draws a run: waves × time, with how many devices run each release, soaks, holds and windows; and the spread over many seeds.

Needs matplotlib, the extra `pictures`. The same run gives the same SVG bytes. Called by the command line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.model.desired import Desired
from reconciler.planner.windows import calendar, instant, micros
from reconciler.ports import TerminalError
from reconciler.simulate.trace import Event, Kind, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind eyes too. Releases also differ by hatch, so that print in grey will do.
_COLOURS = ("#9aa5b1", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_HATCHES = ("", "", "//", "..", "xx", "--", "\\\\", "++")
_STATES = {
    "soaking": "soaks",
    "waiting": "waits",
    "unresolved": "unresolved",
    "failed": "gate failed",
    "paused": "paused",
}
_MOST_BANDS = 400


@dataclass(frozen=True, slots=True)
class _Step:
    """How many devices of a wave ran a release, from an instant on."""

    at: datetime
    count: int


def draw(trace: Trace, desired: Desired, waves: Mapping[str, str], title: str) -> Figure:
    """One band a wave. `waves` is site → wave, for the windows. TerminalError: matplotlib is not installed."""
    figure, axes = _canvas(2.2 + 0.9 * max(len(desired.waves.waves), 1))
    names = [wave.name for wave in desired.waves.waves]
    sizes = {
        name: sum(len(desired.sites[s].devices) for s, w in waves.items() if w == name and s in desired.sites)
        for name in names
    }
    keys = sorted({event.key for event in trace.events if event.kind in (Kind.ARRIVED, Kind.TOLD) and event.key})
    for row, name in enumerate(reversed(names)):
        _windows(axes, row, name, trace, desired, waves)
        _counts(axes, row, name, max(sizes[name], 1), trace, keys)
        _states(axes, row, name, trace)
    for event in trace.events:
        if event.kind in (Kind.MERGED, Kind.REFUSED):
            axes.axvline(
                _x(event.at), color="#333333", linewidth=1, linestyle="-" if event.kind is Kind.MERGED else ":"
            )
    axes.set_yticks(range(len(names)), [f"{name}\n{sizes[name]} devices" for name in reversed(names)])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(_x(trace.started_at), _x(max(trace.ended_at, trace.started_at + timedelta(hours=1))))
    _dates(axes)
    axes.set_title(title, loc="left", fontsize=10)
    _legend(axes, keys)
    return figure


def draw_distribution(calendars: Mapping[str, Sequence[float]], exposures: Sequence[int], title: str) -> Figure:
    """Over many seeds: per wave and release the days until its proof, and the most devices ever on an unproven release."""
    figure, axes = _canvas(2.6 + 0.45 * max(len(calendars), 1), columns=2)
    left, right = axes
    names = list(calendars)
    filled = [name for name in names if calendars[name]]
    if filled:
        left.boxplot([calendars[name] for name in filled], orientation="horizontal", whis=(5, 95), tick_labels=filled)
        left.invert_yaxis()
    left.set_xlabel("days until proven (median, quartiles, 5 to 95 %)")
    left.set_title(title, loc="left", fontsize=10)
    right.hist(exposures, bins=min(20, max(1, len(set(exposures)))), color=_COLOURS[1])
    right.set_xlabel("most devices at once on an unproven release")
    right.set_ylabel("seeds")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write an SVG or a PNG, by the file's ending. TerminalError: another ending, or it cannot be written."""
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("svg", "png"):
        raise TerminalError(f"{path} is neither .svg nor .png", needed_for="the picture", remedy="name it so")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # No date and fixed identifiers: the same run is the same file.
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(temporary, format=kind, metadata=metadata, dpi=144)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TerminalError(f"{path} cannot be written ({error.strerror})", needed_for="the picture") from None


def _canvas(height: float, columns: int = 1) -> tuple[Figure, Any]:
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise TerminalError(
            "matplotlib is not installed",
            needed_for="pictures",
            remedy="install reconciler[pictures], or ask for text or JSON",
        ) from None
    mpl.rcParams["svg.hashsalt"] = "reconciler"
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(12, min(height, 40)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _x(at: datetime) -> float:
    return at.timestamp() / 86400


def _dates(axes: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_xlabel("UTC")


def _windows(axes: Axes, row: int, name: str, trace: Trace, desired: Desired, waves: Mapping[str, str]) -> None:
    """Pale bands where some site of the wave has its window open; left out where there would be too many to see."""
    places = set()
    for site, wave in waves.items():
        spec = desired.sites.get(site)
        if wave == name and spec is not None:
            window = spec.window or desired.fleet.window
            places.add((spec.timezone, window.start, window.end))
    since, until = micros(trace.started_at), micros(trace.ended_at)
    spans = [span for place in sorted(places) for span in calendar(*place).intervals(since, until)]
    if len(spans) <= _MOST_BANDS:
        bars = [(_x(instant(opens)), (closes - opens) / 86400e6) for opens, closes in spans]
        axes.broken_barh(bars, (row - 0.45, 0.9), facecolors="#eef2f6", zorder=0)


def _counts(axes: Axes, row: int, name: str, size: int, trace: Trace, keys: Sequence[str]) -> None:
    for number, key in enumerate(keys):
        steps = _steps(trace.events, name, key)
        if not steps:
            continue
        times = [_x(step.at) for step in steps] + [_x(trace.ended_at)]
        heights = [step.count / size for step in steps]
        tops = [row - 0.4 + 0.8 * height for height in (*heights, heights[-1])]
        axes.fill_between(
            times, [row - 0.4] * len(times), tops, step="post", color=_COLOURS[(number + 1) % len(_COLOURS)],
            hatch=_HATCHES[(number + 1) % len(_HATCHES)] or None, alpha=0.75, linewidth=0, zorder=2,
        )  # fmt: skip
        axes.annotate(
            f"{max(step.count for step in steps)}",
            (times[0], tops[0]),
            fontsize=7,
            xytext=(2, 2),
            textcoords="offset points",
        )


def _steps(events: Sequence[Event], wave: str, key: str) -> list[_Step]:
    there: set[str] = set()
    out: list[_Step] = []
    for event in events:
        if (
            event.wave != wave
            or event.key != key
            or event.device is None
            or event.kind not in (Kind.ARRIVED, Kind.LEFT)
        ):
            continue
        (there.add if event.kind is Kind.ARRIVED else there.discard)(event.device)
        out.append(_Step(event.at, len(there)))
    return out


def _states(axes: Axes, row: int, name: str, trace: Trace) -> None:
    """A thin line under the band says what the wave waited for, in words where there is room."""
    changes = [event for event in trace.events if event.kind is Kind.STATE and event.wave == name]
    whole = _x(trace.ended_at) - _x(trace.started_at) or 1.0
    for event, after in zip(changes, [*changes[1:], None], strict=True):
        word = _STATES.get(event.detail.partition(":")[0])
        until = trace.ended_at if after is None else after.at
        if word is None or until <= event.at:
            continue
        colour = (
            _COLOURS[6] if word in ("gate failed", "unresolved") else _COLOURS[3] if word == "soaks" else _COLOURS[0]
        )
        axes.plot(
            [_x(event.at), _x(until)],
            [row - 0.45, row - 0.45],
            color=colour,
            linewidth=3,
            solid_capstyle="butt",
            zorder=3,
        )
        if (_x(until) - _x(event.at)) / whole > 0.08:
            axes.annotate(
                word, (_x(event.at), row - 0.45), fontsize=7, xytext=(2, 4), textcoords="offset points", zorder=4
            )


def _legend(axes: Axes, keys: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=_COLOURS[(n + 1) % len(_COLOURS)],
            hatch=_HATCHES[(n + 1) % len(_HATCHES)] or None,
            alpha=0.75,
            label=key,
        )
        for n, key in enumerate(keys)
    ]
    handles.append(Patch(facecolor="#eef2f6", label="a window is open"))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
