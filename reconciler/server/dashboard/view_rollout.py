"""What the page of the rollout says: what each wave did, where it stands, and what is to come. Pure values.

The past is folded from events, the present is the board's, the future the forecast's; nothing is decided or computed twice.
Drawn by `gantt`, made by `pages_rollout`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from reconciler.controller.board import Board
from reconciler.model.events import Event, EventKind
from reconciler.model.plan import AppStatus, Hold, WaveState, WaveStatus
from reconciler.server.foreseen import Ahead, Barred, Outlook

KINDS = (
    EventKind.COMMIT_ACCEPTED,
    EventKind.WAVE_OPENED,
    EventKind.WAVE_SOAKING,
    EventKind.WAVE_SOAKED,
    EventKind.WAVE_COMPLETE,
    EventKind.GATE_FAILED,
)
"""Events that the past is folded from."""
PASTS = (1, 7, 30, 90)
"""Days that a reader may choose to look back."""
_LONGEST_PAST = timedelta(days=30)
_USUAL_PAST = timedelta(days=7)
_LONGEST_AHEAD = timedelta(days=60)
_LEAST_AHEAD = timedelta(hours=12)
_UNDER_WAY = frozenset({WaveState.ROLLING, WaveState.SOAKING, WaveState.ROLLING_BACK, WaveState.UNRESOLVED})

Place = tuple[str, str]
"""A wave, and a release: `v1.4.2`, or `video-ingest@2.8.0`."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a wave does from an instant to another: a wave's state as a word. `ahead`: it is foreseen; `until` None: no end is."""

    state: str
    release: str
    since: datetime
    until: datetime | None
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """An instant in a lane: `proven`, `complete` or `stopped`."""

    what: str
    release: str
    at: datetime
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Lane:
    """A wave and its image, or one of its apps (`app`)."""

    wave: str
    app: str | None
    spans: tuple[Span, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class When:
    """An instant that has been, or is foreseen; `earliest` is what it would be if silent devices answered, where that differs."""

    at: datetime | None = None
    ahead: bool = False
    earliest: datetime | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """Why something wanted does not start now: the reason's code, how many devices it is about, and until when."""

    reason: str
    devices: int
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Row:
    """One wave and what it asks for. Counts are of devices."""

    wave: str
    release: str
    state: WaveState
    devices: int
    on_release: int
    healthy: int
    failed: int
    began: When
    arrived: When
    proven: When
    holds: tuple[Held, ...]
    barred: tuple[Barred, ...]
    """What stands in the way of a proof at the end of the forecast, where it sees none."""

    @property
    def settled(self) -> bool:
        """Whether nothing is left to come of it."""
        return self.state in (WaveState.COMPLETE, WaveState.IDLE) and not self.arrived.ahead

    @property
    def stuck(self) -> bool:
        """Whether it does not come to its proof by itself, as far as anybody can foresee."""
        return bool(self.barred) and self.proven.at is None and not self.settled

    @property
    def unsaid(self) -> tuple[Barred, ...]:
        """What stands in the way in the end, as far as no hold of now says it already."""
        said = {held.reason for held in self.holds}
        return tuple(one for one in self.barred if one.reason not in said) if self.stuck else ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """The whole page. `ends_at` is when the last wave is foreseen to be proven, None where one is not, or nothing is left."""

    now: datetime
    since: datetime
    until: datetime
    lanes: tuple[Lane, ...]
    rows: tuple[Row, ...]
    commits: tuple[tuple[datetime, str], ...]
    outlook: Outlook
    past_days: int | None

    @property
    def moving(self) -> tuple[Row, ...]:
        """Waves with something left to come: no proof yet, or devices that still move."""
        return tuple(row for row in self.rows if not row.settled)

    @property
    def stuck(self) -> tuple[Row, ...]:
        """Waves that do not come to their proof by themselves."""
        return tuple(row for row in self.rows if row.stuck)

    @property
    def ends_at(self) -> datetime | None:
        """When the last of those that move is proven (or, proven already, has all its devices), as the forecast has it."""
        ends = [row.proven.at if row.proven.at is None or row.proven.ahead else row.arrived.at for row in self.moving]
        known = [at for at in ends if at is not None]
        return max(known) if known and len(known) == len(ends) else None


def rollout_of(
    board: Board, events: Sequence[Event], outlook: Outlook, now: datetime, past_days: int | None = None
) -> Rollout:
    """The page from a board, the events of `KINDS` (oldest first) and the newest forecast. `past_days` None: what matters."""
    now = max(now, board.at)
    likely = {(one.wave, one.release): one for one in _places(outlook, "likely")}
    earliest = {(one.wave, one.release): one for one in _places(outlook, "earliest")}
    rows = tuple(_row(board, events, wave, app, likely, earliest) for wave, app in asked(board))
    lanes = _lanes(board, events, rows, likely, now)
    since = _since(lanes, rows, now, past_days)
    commits = [(event.at, event.commit) for event in events if event.kind is EventKind.COMMIT_ACCEPTED and event.commit]
    until = _until(lanes, since, now)
    shown = tuple(pair for pair in commits if since <= pair[0])
    return Rollout(now, since, until, lanes, rows, shown, outlook, past_days)


def asked(board: Board) -> Iterator[tuple[WaveStatus, str | None]]:
    """What every wave asks for: its image (None), and its apps."""
    for wave in board.waves:
        if wave.image is not None:
            yield wave, None
        for app in sorted(wave.apps):
            yield wave, app


def key_of(wave: WaveStatus, app: str | None) -> str:
    """The release that a wave asks for."""
    return wave.image or "" if app is None else f"{app}@{wave.apps[app].release}"


def app_of(release: str) -> str | None:
    """The app that a release is of; None: the image's."""
    app, at_sign, _ = release.partition("@")
    return app if at_sign else None


def _places(outlook: Outlook, course: str) -> Sequence[Ahead]:
    seen = outlook.foreseen
    return () if seen is None else (seen.likely if course == "likely" else seen.earliest).places


# ---------------------------------------------------------------- rows


def _row(
    board: Board,
    events: Sequence[Event],
    wave: WaveStatus,
    app: str | None,
    likely: Mapping[Place, Ahead],
    earliest: Mapping[Place, Ahead],
) -> Row:
    key, status = key_of(wave, app), wave if app is None else wave.apps[app]
    place = (wave.name, key)
    ahead, early = likely.get(place), earliest.get(place)
    proof = _proof(board, place)
    holds = tuple(
        Held(one.hold.reason.value, one.count, one.hold.until) for one in board.holds if _about(one.hold, place)
    )
    return Row(
        wave=wave.name,
        release=key,
        state=status.state,
        devices=wave.devices,
        on_release=status.on_release,
        healthy=status.healthy,
        failed=status.failed,
        began=_when(_last(events, EventKind.WAVE_OPENED, place), ahead, early, "starts_at"),
        arrived=_arrived(status, wave.devices, events, ahead, early),
        proven=When()
        if proof is None and status.state is WaveState.COMPLETE
        else _when(proof, ahead, early, "proven_at"),
        holds=holds,
        barred=ahead.barred if ahead is not None and proof is None and ahead.proven_at is None else (),
    )


def _arrived(
    status: WaveStatus | AppStatus, devices: int, events: Sequence[Event], ahead: Ahead | None, early: Ahead | None
) -> When:
    if status.on_release >= devices:
        return When()
    return _when(None, ahead, early, "arrived_at")


def _when(been: datetime | None, likely: Ahead | None, earliest: Ahead | None, name: str) -> When:
    if been is not None:
        return When(been)
    at: datetime | None = getattr(likely, name, None)
    first: datetime | None = getattr(earliest, name, None)
    return When(at, ahead=at is not None, earliest=first if first != at else None)


def _proof(board: Board, place: Place) -> datetime | None:
    found = [one.at for one in board.observed.proofs if (one.wave, one.key) == place and not one.closed]
    return max(found, default=None)


def _about(hold: Hold, place: Place) -> bool:
    key = hold.image if hold.app is None else f"{hold.app}@{hold.release}"
    return (hold.wave, key) == place


def _last(events: Sequence[Event], kind: EventKind, place: Place) -> datetime | None:
    return next(
        (event.at for event in reversed(events) if event.kind is kind and (event.wave, event.release) == place), None
    )


# ---------------------------------------------------------------- lanes


def _lanes(
    board: Board, events: Sequence[Event], rows: Sequence[Row], likely: Mapping[Place, Ahead], now: datetime
) -> tuple[Lane, ...]:
    """One for every wave and subject of which there is anything to draw, in the order of the waves."""
    of_row = {(row.wave, app_of(row.release)): row for row in rows}
    mine: dict[tuple[str, str | None], list[Event]] = {}
    for event in events:
        if event.wave is not None and event.release is not None:
            mine.setdefault((event.wave, app_of(event.release)), []).append(event)
    changes = [event.at for event in events if event.kind is EventKind.COMMIT_ACCEPTED]
    order = {wave.name: number for number, wave in enumerate(board.waves)}
    places = {*of_row, *(place for place in mine if place[0] in order)}
    out = []
    for wave, app in sorted(places, key=lambda place: (order[place[0]], place[1] is not None, place[1] or "")):
        row = of_row.get((wave, app))
        spans, marks = _past(mine.get((wave, app), ()), row, changes, now)
        if row is not None:
            _ahead(row, likely.get((wave, row.release)), now, spans, marks)
        out.append(Lane(wave, app, tuple(spans), tuple(marks)))
    return tuple(out)


def _past(
    events: Sequence[Event], row: Row | None, changes: Sequence[datetime], now: datetime
) -> tuple[list[Span], list[Mark]]:
    """What a lane's events say, up to now."""
    spans: list[Span] = []
    marks: list[Mark] = []
    doing: tuple[str, str, datetime] | None = None

    def end(at: datetime) -> None:
        if doing is not None and at > doing[2]:
            spans.append(Span(*doing, at))

    for event in events:
        release = event.release or ""
        end(event.at)
        if event.kind is EventKind.WAVE_OPENED:
            state = WaveState.ROLLING_BACK if event.reason == "going-back" else WaveState.ROLLING
            doing = (state.value, release, event.at)
        elif event.kind is EventKind.WAVE_SOAKING:
            doing = (WaveState.SOAKING.value, release, event.at)
        elif event.kind is EventKind.GATE_FAILED:
            doing = (WaveState.FAILED.value, release, event.at)
            marks.append(Mark("stopped", release, event.at))
        else:
            what = "proven" if event.kind is EventKind.WAVE_SOAKED else "complete"
            marks.append(Mark(what, release, event.at))
            # Devices that were silent may still be on their way.
            late = what == "proven" and row is not None and row.release == release and row.state in _UNDER_WAY
            doing = (WaveState.ROLLING.value, release, event.at) if late else None
    if doing is not None:
        wanted = row is not None and row.release == doing[1]
        began = doing[2]
        # A release that is asked for no more was so until the next commit, as far as the events say.
        end(now if wanted else min((at for at in changes if at > began), default=now))
    return spans, marks


def _ahead(row: Row, ahead: Ahead | None, now: datetime, spans: list[Span], marks: list[Mark]) -> None:
    """Add what is foreseen of a row."""
    if ahead is None:
        return
    at, release = now, row.release

    def add(state: WaveState, until: datetime | None) -> None:
        nonlocal at
        if until is None or until > at:
            spans.append(Span(state.value, release, at, until, ahead=True))
            at = until or at

    proven = row.proven.at if row.proven.ahead else None
    going = WaveState.ROLLING_BACK if row.state is WaveState.ROLLING_BACK else WaveState.ROLLING
    if ahead.starts_at is not None and row.began.ahead:
        add(WaveState.WAITING, ahead.starts_at)
    if ahead.arrived_at is not None:
        if proven is not None and proven < ahead.arrived_at:
            add(going, proven)
            marks.append(Mark("proven", release, proven, ahead=True))
            proven = None
        add(going, ahead.arrived_at)
    if proven is not None:
        add(WaveState.SOAKING, proven)
        if proven > now:
            marks.append(Mark("proven", release, proven, ahead=True))
    elif ahead.stopped_at is not None and ahead.stopped_at > now:
        marks.append(Mark("stopped", release, ahead.stopped_at, ahead=True))
    elif row.stuck:
        state = row.state if row.state in (WaveState.FAILED, WaveState.UNRESOLVED, WaveState.PAUSED) else None
        add(state or WaveState.WAITING, None)


# ---------------------------------------------------------------- time


def _since(lanes: Sequence[Lane], rows: Sequence[Row], now: datetime, past_days: int | None) -> datetime:
    if past_days is not None:
        return now - timedelta(days=past_days)
    # The first waves may be through with what later ones wait for: all of one rollout is shown.
    going_on = {row.release for row in rows if not row.settled}
    begun = [span.since for lane in lanes for span in lane.spans if not span.ahead and span.release in going_on]
    if not begun:
        return now - _USUAL_PAST
    length = now - min(begun)
    return now - min(max(length * 1.1, timedelta(hours=2)), _LONGEST_PAST)


def _until(lanes: Sequence[Lane], since: datetime, now: datetime) -> datetime:
    ends = [span.until for lane in lanes for span in lane.spans if span.ahead and span.until is not None]
    ends += [mark.at for lane in lanes for mark in lane.marks if mark.ahead]
    least = max(_LEAST_AHEAD, (now - since) / 6)
    length = max(max(ends) - now, least) if ends else least
    return now + min(length * 1.06, _LONGEST_AHEAD)
