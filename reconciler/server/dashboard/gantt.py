"""Where everything lies in the picture of the rollout: lanes, bars, marks, ticks, in units of its view box. Pure.

Bars carry words where there is room; everything is in the table below the picture as well. Called by `pages_rollout`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from reconciler.controller.words import clean
from reconciler.server.dashboard.marks import word
from reconciler.server.dashboard.view_rollout import Lane, Rollout, Span

WIDTH, LEFT, TOP, BOTTOM = 1000.0, 150.0, 34.0, 22.0
LANE, BAR = 44.0, 20.0
_LETTER = 6.2
"""About how wide a letter of the small type is."""
_SIGN = 9.0
"""Half as wide as a mark, with some air."""
_THINNEST = 2.0
_NAME = 21
"""Letters of a lane's name that there is room for."""
_STEPS = (
    *(timedelta(minutes=count) for count in (5, 10, 15, 30)),
    *(timedelta(hours=count) for count in (1, 2, 3, 6, 12)),
    *(timedelta(days=count) for count in (1, 2, 7, 14, 28)),
)
_TICKS = 14
_MOST_COMMITS = 40
_MARKS = {"proven": "◆", "complete": "●", "stopped": "✕"}
_SAID = {"proven": "soak passed", "complete": "complete", "stopped": "gate failed"}


@dataclass(frozen=True, slots=True)
class Bar:
    """A span. `text` is what fits into it, `title` all of it; `tone` a class."""

    x: float
    width: float
    tone: str
    ahead: bool
    text: str
    text_x: float
    title: str


@dataclass(frozen=True, slots=True)
class Sign:
    """A mark: one character at a place."""

    x: float
    shape: str
    what: str
    ahead: bool
    title: str


@dataclass(frozen=True, slots=True)
class Track:
    """A lane, from `y` downwards."""

    y: float
    name: str
    under: str
    title: str
    bars: tuple[Bar, ...]
    signs: tuple[Sign, ...]
    windows: tuple[tuple[float, float, str], ...]
    """x, width and words of windows that are to open; none where they would be too thin to be seen."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A line across, with a label."""

    x: float
    label: str
    day: str


@dataclass(frozen=True, slots=True)
class Gantt:
    """The picture."""

    width: float
    height: float
    tracks: tuple[Track, ...]
    ticks: tuple[Tick, ...]
    commits: tuple[tuple[float, str], ...]
    now: float
    bottom: float


def gantt_of(rollout: Rollout) -> Gantt:
    """Lay a rollout out. Lanes of which nothing would be seen are left out."""
    scale = _Scale(rollout.since, rollout.until)
    tracks: list[Track] = []
    for lane in rollout.lanes:
        track = _track(lane, len(tracks), scale, _windows(rollout, lane.wave, scale))
        if track.bars or track.signs:
            tracks.append(track)
    bottom = TOP + LANE * len(tracks)
    commits = tuple((_round(scale.x(at)), sha[:12]) for at, sha in rollout.commits)
    return Gantt(
        WIDTH,
        bottom + BOTTOM,
        tuple(tracks),
        tuple(_ticks(scale)),
        commits[-_MOST_COMMITS:],
        _round(scale.x(rollout.now)),
        bottom,
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    since: datetime
    until: datetime

    def x(self, at: datetime) -> float:
        """Where an instant lies, at an edge where it lies beyond."""
        part = (at - self.since) / (self.until - self.since)
        return LEFT + (WIDTH - LEFT) * min(max(part, 0.0), 1.0)


def _round(value: float) -> float:
    return round(value, 1)


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _windows(rollout: Rollout, wave: str, scale: _Scale) -> tuple[tuple[float, float, str], ...]:
    foreseen = rollout.outlook.foreseen
    found = []
    for opens, closes in foreseen.windows.get(wave, ()) if foreseen is not None else ():
        left, right = scale.x(max(opens, rollout.now)), scale.x(closes)
        if closes > rollout.now and opens < scale.until:
            found.append((_round(left), _round(right - left), f"window open {_at(opens)} to {_at(closes)}"))
    whole = [width for x, width, _ in found[1:-1]] or [width for _, width, _ in found]
    return tuple(found) if min(whole, default=0.0) >= _THINNEST else ()


def _track(lane: Lane, number: int, scale: _Scale, windows: tuple[tuple[float, float, str], ...]) -> Track:
    wave = clean(lane.wave)
    under = "image" if lane.app is None else clean(lane.app)
    signs = tuple(
        Sign(
            _round(scale.x(mark.at)),
            _MARKS[mark.what],
            mark.what,
            mark.ahead,
            f"{clean(mark.release)}: {_SAID[mark.what]} {'expected ' if mark.ahead else ''}{_at(mark.at)}",
        )
        for mark in lane.marks
        if scale.since <= mark.at <= scale.until
    )
    marked = [sign.x for sign in signs]
    bars = tuple(bar for span in lane.spans if (bar := _bar(span, scale, marked)) is not None)
    return Track(
        TOP + LANE * number, _short(wave, _NAME), _short(under, _NAME + 3), f"{wave}, {under}", bars, signs, windows
    )


def _bar(span: Span, scale: _Scale, marked: Sequence[float]) -> Bar | None:
    until = span.until or scale.until
    if until <= scale.since or span.since >= scale.until:
        return None
    left, right = scale.x(span.since), scale.x(until)
    width = max(right - left, 1.5)
    release, state = clean(span.release), word(span.state)
    version = release.partition("@")[2] or release
    said = f"{release}: {state} {'expected ' if span.ahead else ''}from {_at(span.since)}"
    said += f" until {_at(span.until)}" if span.until is not None else ", with no end in sight"
    texts = (f"{version} {state}", state, version)
    # Beside a mark at its beginning, and before one at its end.
    text_x = left + (11 if any(abs(x - left) < _SIGN for x in marked) else 4)
    room = right - text_x - (_SIGN if any(abs(x - right) < _SIGN for x in marked) else 4)
    text = next((text for text in texts if len(text) * _LETTER <= room), "")
    return Bar(_round(left), _round(width), span.state, span.ahead, text, _round(text_x), said)


def _at(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _ticks(scale: _Scale) -> Iterator[Tick]:
    """Round instants: a label each, and the day where it changes."""
    length = scale.until - scale.since
    step = next((step for step in _STEPS if length / step <= _TICKS), timedelta(days=91))
    at = scale.since.replace(hour=0, minute=0, second=0, microsecond=0)
    if step >= timedelta(days=7):
        at -= timedelta(days=at.weekday())
    at += step * max(0, -(-(scale.since - at) // step))
    before = None
    while at <= scale.until:
        day = f"{at:%a} {at.day} {at:%b}"
        label = f"{at:%H:%M}" if step < timedelta(days=1) else ""
        room = (WIDTH - scale.x(at)) / _LETTER - 1
        # Words that would be cut at the edge are left out; the line stays.
        yield Tick(_round(scale.x(at)), label * (len(label) <= room), day * (day != before and len(day) <= room))
        before = day
        at += step


def spoken(rollout: Rollout, tracks: Sequence[Track]) -> str:
    """One sentence about the picture, for who does not see it."""
    return (
        f"{len(tracks)} lanes from {_at(rollout.since)} to {_at(rollout.until)}; now is {_at(rollout.now)}. "
        "Waves of which nothing is to be seen then are left out; the table below has them all, in words."
    )
