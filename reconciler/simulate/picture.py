"""Draws a run: waves over time, with how many devices run each release, soaks, holds and windows.

Needs matplotlib, the extra `pictures`. The same run gives the same SVG bytes. Called by the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from reconciler.model.desired import Desired
from reconciler.planner.windows import calendar, instant, micros
from reconciler.simulate.canvas import (
    BEFORE,
    FAILED,
    FAINT,
    HATCHES,
    INK,
    OPEN,
    RELEASES,
    ROLLS,
    SOAKS,
    UNRESOLVED,
    WAITS,
    WIDTH,
    canvas,
    titles,
)  # fmt: skip
from reconciler.simulate.trace import Event, Kind, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WORDS = {
    "soaking": ("soaks", SOAKS),
    "waiting": ("waits", WAITS),
    "rolling": ("rolls out", ROLLS),
    "rolling-back": ("goes back", "#CC79A7"),
    "unresolved": ("unresolved", UNRESOLVED),
    "failed": ("gate failed", FAILED),
    "paused": ("paused", FAILED),
}
_STOPS = "#eab795"
_EARLIER = frozenset({"wave-waits", "soaking", "gate-unresolved"})
"""What a wave waits for that lies in the waves before it."""
_LONGEST_WITH_WINDOWS = timedelta(days=60)
_LEFT = 1.2
"""Inches: about as much of the picture is left of the axes."""
_LOW, _HIGH, _STRIP = -0.22, 0.40, -0.31
"""Of a lane of height 1, around its middle: the area of counts, and the middle of the strip below it."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """One wave and one subject: the image, or an app."""

    wave: str
    subject: str
    size: int
    row: int


def draw(trace: Trace, desired: Desired, waves: Mapping[str, str], title: str, subtitle: str = "") -> Figure:
    """One lane a wave (a second one for an app that moves). `waves` is site → wave. TerminalError: matplotlib is not installed."""
    lanes = _lanes(trace, desired, waves)
    figure, axes = canvas(1.9 + 0.85 * len(lanes))
    keys = _keys(trace)
    begin, end = _span(trace)
    axes.set_xlim(_x(begin), _x(end))
    axes.set_ylim(-0.5, len(lanes) - 0.5)
    for lane in lanes:
        _windows(axes, lane, (begin, end), desired, waves)
        _counts(axes, lane, trace, keys, end)
        _states(axes, lane, trace)
        if lane.row:
            axes.axhline(lane.row - 0.5, color="#ffffff", linewidth=2, zorder=1)
    _instants(axes, trace, end)
    apps = len({lane.subject for lane in lanes}) > 1
    names = [
        f"{lane.wave}{f', {lane.subject}' if apps else ''}\n{lane.size} device{'s' * (lane.size != 1)}"
        for lane in lanes
    ]
    axes.set_yticks([lane.row for lane in lanes], names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    _dates(axes, begin, end)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    titles(figure, axes, title, subtitle, pad=20)
    _legend(figure, trace, keys)
    return figure


# ---------------------------------------------------------------- the frame


def _span(trace: Trace) -> tuple[datetime, datetime]:
    """What is shown: some time after the end too, so that what happened last can be seen."""
    length = max(trace.ended_at - trace.started_at, timedelta(hours=1))
    return trace.started_at, trace.ended_at + length / 30


def _x(at: datetime) -> float:
    return at.timestamp() / 86400


def _inches(axes: Axes, days: float) -> float:
    """About how wide so many days are drawn."""
    low, high = axes.get_xlim()
    return float(days / (high - low)) * (WIDTH - _LEFT)


def _fits(axes: Axes, text: str, days: float, points: float) -> bool:
    return _inches(axes, days) > len(text) * points * 0.6 / 72 + 0.06


def _subject(key: str) -> str:
    app, at_sign, _ = key.partition("@")
    return app if at_sign else "image"


def _keys(trace: Trace) -> list[str]:
    """Releases that devices came to, the image's first; what they ran before is the ground on which these are drawn."""
    seen: set[tuple[str | None, str]] = set()
    keys: dict[str, None] = {}
    before: set[str] = set()
    for event in trace.events:
        if event.key is None or event.kind not in (Kind.ARRIVED, Kind.LEFT):
            continue
        place = (event.device, _subject(event.key))
        if event.kind is Kind.ARRIVED:
            keys.setdefault(event.key)
        elif place not in seen:
            before.add(event.key)
        seen.add(place)
    return sorted((key for key in keys if key not in before), key=lambda key: "@" in key)


def _lanes(trace: Trace, desired: Desired, waves: Mapping[str, str]) -> list[_Lane]:
    """A lane for each wave and subject of which anything happened; the first wave is the highest."""
    moved = {_subject(event.key) for event in trace.events if event.kind in (Kind.TOLD, Kind.ARRIVED) and event.key}
    subjects = sorted(moved, key=lambda subject: (subject != "image", subject)) or ["image"]
    asked = {(wave, _subject(key)) for wave, key, _ in trace.asked}
    places = [
        (wave.name, subject)
        for wave in desired.waves.waves
        for subject in subjects
        if (wave.name, subject) in asked or len(subjects) == 1
    ]
    sizes: dict[str, int] = {}
    for site, wave in waves.items():
        if site in desired.sites:
            sizes[wave] = sizes.get(wave, 0) + len(desired.sites[site].devices)
    return [
        _Lane(wave, subject, sizes.get(wave, 0), len(places) - 1 - number)
        for number, (wave, subject) in enumerate(places)
    ]


def _dates(axes: Axes, begin: datetime, end: datetime) -> None:
    """A day's name under each day; hours where there are few days, and fewer days where there are many."""
    from matplotlib.ticker import FixedLocator

    days = (end - begin).total_seconds() / 86400
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    if days <= 3:
        every = timedelta(hours=1 if days <= 0.3 else 3 if days <= 1.2 else 6)
    else:
        every = timedelta(days=next(step for step in (1, 2, 7, 14, 28, 91, 10_000) if days / step <= 12))
        if every.days % 7 == 0:
            midnight -= timedelta(days=midnight.weekday())
    ticks = [at for number in range(400) if begin <= (at := midnight + every * number) <= end]
    labels: list[str] = []
    for at in ticks:
        first = not labels or at.hour == 0
        day = f"{at:%a} {at.day} {at:%b}" if days <= 32 else f"{at.day} {at:%b}"
        labels.append((f"{at:%H:%M}" + (f"\n{day}" if first else "")) if days <= 3 else day)
    axes.set_xticks([_x(at) for at in ticks], labels, fontsize=8)
    if 3 < days <= 120:
        night = [_x(midnight + timedelta(days=number)) for number in range(int(days) + 8)]
        axes.xaxis.set_minor_locator(FixedLocator([at for at in night if _x(begin) <= at <= _x(end)]))
    axes.grid(axis="x", which="major", color="#ffffff", linewidth=0.8, zorder=0.5)
    axes.set_facecolor("#f6f8fa")
    axes.set_xlabel(f"UTC, {begin:%Y}" if begin.year == end.year else f"UTC, {begin:%Y} to {end:%Y}", fontsize=9)


def _legend(figure: Figure, trace: Trace, keys: Sequence[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(label=f"on {key}", **_look(number)) for number, key in enumerate(keys)]
    handles.append(Patch(facecolor=BEFORE, label="on what they ran before"))
    handles.append(Patch(facecolor=OPEN, label="a window is open"))
    said = {event.detail.partition(":")[0] for event in trace.events if event.kind is Kind.STATE}
    handles += [
        Line2D([], [], color=colour, linewidth=4, label=word)
        for state, (word, colour) in _WORDS.items()
        if state in said
    ]
    kinds = {event.kind for event in trace.events}
    for kind, marker, colour, word in _MARKS:
        if kind in kinds:
            handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6, label=word))
    if any(_is_down(event) for event in trace.events):
        handles.append(Patch(facecolor="none", edgecolor=FAINT, hatch="////", label="the controller is down"))
    figure.legend(handles=handles, loc="outside lower left", ncols=7, fontsize=8, frameon=False)


_MARKS = (
    (Kind.PROVEN, "D", SOAKS, "proven"),
    (Kind.STOPPED, "X", FAILED, "stopped"),
    (Kind.ATTEMPT_FAILED, "v", INK, "an attempt failed"),
)


# ---------------------------------------------------------------- what is in a lane


def _windows(
    axes: Axes, lane: _Lane, span: tuple[datetime, datetime], desired: Desired, waves: Mapping[str, str]
) -> None:
    """Pale where some site of the wave has its window open; left out where the bands would be too thin to see."""
    if span[1] - span[0] > _LONGEST_WITH_WINDOWS:
        return
    places = set()
    for site, wave in waves.items():
        spec = desired.sites.get(site)
        if wave == lane.wave and spec is not None:
            window = spec.window or desired.fleet.window
            places.add((spec.timezone, window.start, window.end))
    since, until = micros(span[0]), micros(span[1])
    found = sorted(part for place in places for part in calendar(*place).intervals(since, until))
    bars = [
        (_x(instant(opens)), (closes - opens) / 86400e6)
        for opens, closes in _joined((max(opens, since), min(closes, until)) for opens, closes in found)
    ]
    axes.broken_barh(bars, (lane.row - 0.36, 0.86), facecolors=OPEN, linewidth=0, zorder=0.8)


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order of their beginning, those that touch as one."""
    out: list[tuple[int, int]] = []
    for opens, closes in spans:
        if out and opens <= out[-1][1]:
            out[-1] = (out[-1][0], max(closes, out[-1][1]))
        else:
            out.append((opens, closes))
    return out


def _look(number: int) -> dict[str, Any]:
    number %= len(RELEASES)
    return {"facecolor": RELEASES[number], "hatch": HATCHES[number] or None, "edgecolor": "#ffffff", "linewidth": 0}


def _counts(axes: Axes, lane: _Lane, trace: Trace, keys: Sequence[str], end: datetime) -> None:
    """How many devices run each release, one above the other; the rest run what they ran before."""
    if not lane.size:
        return
    mine = [key for key in keys if _subject(key) == lane.subject]
    scale = (_HIGH - _LOW) / lane.size
    moves = [
        event for event in trace.events
        if event.wave == lane.wave and event.key in mine and event.device and event.kind in (Kind.ARRIVED, Kind.LEFT)
    ]  # fmt: skip
    low, high = lane.row + _LOW, lane.row + _HIGH
    axes.fill_between([_x(trace.started_at), _x(end)], low, high, color=BEFORE, linewidth=0, zorder=1.5, alpha=0.7)
    times, there, heights = [trace.started_at], {key: set[str]() for key in mine}, {key: [0] for key in mine}
    for event in moves:
        assert event.key is not None and event.device is not None
        (there[event.key].add if event.kind is Kind.ARRIVED else there[event.key].discard)(event.device)
        times.append(event.at)
        for key in mine:
            heights[key].append(len(there[key]))
    xs = [*(_x(at) for at in times), _x(end)]
    below = [low] * len(xs)
    for key in mine:
        counts = [*heights[key], heights[key][-1]]
        above = [base + count * scale for base, count in zip(below, counts, strict=True)]
        axes.fill_between(xs, below, above, step="post", zorder=2, **_look(keys.index(key)))
        _number(axes, lane, xs, counts, (below, above))
        below = above


def _number(
    axes: Axes, lane: _Lane, xs: Sequence[float], counts: Sequence[int], edges: tuple[Sequence[float], Sequence[float]]
) -> None:
    """The most devices that ran it, written into its area where there is room, else beside it."""
    most = max(counts)
    if not most:
        return
    first = next(at for at, count in enumerate(counts) if count)
    at = counts.index(most)
    stop = next((n for n in range(at, len(counts)) if counts[n] < most), len(counts) - 1)
    text = f"{most} of {lane.size}" if most < lane.size else f"all {most}" if most > 1 else "1"
    low, high = edges[0][at], edges[1][at]
    if high - low > 0.2 and _fits(axes, text, xs[stop] - xs[at], 8):
        axes.text(
            (xs[at] + xs[stop]) / 2, (low + high) / 2, text, fontsize=8, color="#ffffff", ha="center", va="center",
            fontweight="bold", zorder=4, clip_on=True,
            bbox={"facecolor": INK, "alpha": 0.55, "linewidth": 0, "boxstyle": "round,pad=0.2"},
        )  # fmt: skip
        return
    place, side = (xs[first], "right") if _fits(axes, text, xs[first] - xs[0], 8) else (xs[stop], "left")
    axes.annotate(
        text, (place, lane.row + (_LOW + _HIGH) / 2), xytext=(-4 if side == "right" else 4, 0),
        textcoords="offset points", fontsize=8, color=INK, ha=side, va="center", zorder=4,
    )  # fmt: skip


def _spans(mine: Sequence[Event], begin: datetime, ended_at: datetime) -> list[tuple[str, str, float, float]]:
    """(what a wave does or waits for, its colour, from, to): states as words, those alike that follow each other as one."""
    spans: list[tuple[str, str, float, float]] = []
    # What is between two spans and too short to be seen does not part them.
    least = (_x(ended_at) - _x(begin)) / 250
    changes = [event for event in mine if event.kind is Kind.STATE]
    for event, after in zip(changes, [*changes[1:], None], strict=True):
        state, _, reason = event.detail.partition(": ")
        since, until = _x(event.at), _x(ended_at if after is None else after.at)
        if state not in _WORDS or until <= since:
            continue
        word, colour = _WORDS[state]
        if reason:
            word = "waits for earlier waves" if reason in _EARLIER else f"waits: {reason}"
        if spans and spans[-1][0] == word and spans[-1][3] >= since - least:
            since = spans.pop()[2]
        spans.append((word, colour, since, until))
    return spans


def _held(spans: Sequence[tuple[str, str, float, float]], stop: float | None) -> list[tuple[str, str, float, float]]:
    """The same, where nothing waits for earlier waves any more once the release is stopped."""
    out = []
    for word, colour, since, until in spans:
        if stop is None or colour != WAITS or until <= stop:
            out.append((word, colour, since, until))
            continue
        if since < stop:
            out.append((word, colour, since, stop))
        out.append(("held: the release is stopped", _STOPS, max(since, stop), until))
    return out


def _states(axes: Axes, lane: _Lane, trace: Trace) -> None:
    """A strip under the area: what the wave waits for, soaks and stops, in words where there is room; and the marks on it."""
    mine = [e for e in trace.events if e.wave == lane.wave and e.key is not None and _subject(e.key) == lane.subject]
    last = next((event.key for event in reversed(mine) if event.kind is Kind.STATE), None)
    stops = [_x(event.at) for event in trace.events if event.kind is Kind.STOPPED and event.key == last]
    spans = _held(_spans(mine, trace.started_at, trace.ended_at), min(stops, default=None))
    strip = lane.row + _STRIP
    for word, colour, since, until in spans:
        axes.broken_barh([(since, until - since)], (strip - 0.075, 0.15), facecolors=colour, linewidth=0, zorder=3)
        short = word.partition(" for ")[0].partition(":")[0]
        text = next((text for text in (word, short) if _fits(axes, text, until - since, 7)), "")
        ink = "#ffffff" if colour in (SOAKS, FAILED) else INK
        axes.text(
            (since + until) / 2,
            strip - 0.005,
            text,
            fontsize=7,
            ha="center",
            va="center",
            color=ink,
            zorder=4,
            clip_on=True,
        )
    for kind, marker, colour, _ in _MARKS:
        marks = [_x(event.at) for event in mine if event.kind is kind]
        height = lane.row + _HIGH + 0.03 if kind is Kind.ATTEMPT_FAILED else strip
        size = 18 if kind is Kind.ATTEMPT_FAILED else 40
        axes.scatter(
            marks,
            [height] * len(marks),
            marker=marker,
            s=size,
            color=colour,
            edgecolors="#ffffff",
            linewidths=0.8,
            zorder=5,
        )


def _is_down(event: Event) -> bool:
    return event.kind is Kind.FAULT and event.detail == "the controller is down"


def _instants(axes: Axes, trace: Trace, end: datetime) -> None:
    """Across all lanes: merges, the first stop of each release, and when the controller was away."""
    said: set[tuple[Kind, str | None]] = set()
    free_from = _x(trace.started_at) - 1
    for event in trace.events:
        word, colour, style = {
            Kind.MERGED: ("merge", INK, "-"), Kind.REFUSED: ("refused", INK, ":"), Kind.STOPPED: ("stopped", FAILED, "--"),
        }.get(event.kind, ("", "", ""))  # fmt: skip
        place = (event.kind, event.key if event.kind is Kind.STOPPED else event.detail)
        if not word or place in said:
            continue
        said.add(place)
        axes.axvline(_x(event.at), color=colour, linewidth=1.2, linestyle=style, zorder=3.5)
        if _x(event.at) >= free_from:
            axes.annotate(
                word, (_x(event.at), 1), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
                fontsize=8, color=colour, ha="left", annotation_clip=False,
            )  # fmt: skip
            low, high = axes.get_xlim()
            free_from = _x(event.at) + (len(word) + 2) * 8 * 0.6 / 72 / (WIDTH - _LEFT) * (high - low)
    since: datetime | None = None
    for event in trace.events:
        if _is_down(event):
            since = event.at
        elif since is not None and event.kind is Kind.FAULT and event.detail == "the controller is back":
            _away(axes, since, event.at)
            since = None
    if since is not None:
        _away(axes, since, end)


def _away(axes: Axes, since: datetime, until: datetime) -> None:
    axes.axvspan(
        _x(since), _x(until), facecolor="none", edgecolor=FAINT, hatch="////", linewidth=0, alpha=0.5, zorder=2.5
    )
