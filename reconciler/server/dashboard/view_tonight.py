"""What the front page says of the next 24 hours: what begins where, what is proven, and what stays held and until when. Pure.

Where there is a forecast of the commit in force it is the forecast that is told, the same that the page of the rollout draws. Where
there is none, only what is due by the clock is told, and that it is no more than that. Called by `view_now`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from reconciler.controller.board import Board
from reconciler.controller.words import REASONS
from reconciler.model.plan import Hold, Reason
from reconciler.server.dashboard.marks import count
from reconciler.server.dashboard.view_ahead import Place, follows, places_of, release_of, until_of
from reconciler.server.foreseen import Ahead, Foreseen, Moves, Outlook

MOST_DUE = 10
MOST_STAYING = 6
AHEAD = timedelta(hours=24)
_WINDOWS = (Reason.OUTSIDE_WINDOW, Reason.NO_WINDOW)
_UNDER_WAY = (Reason.IN_PROGRESS,)


class Basis(StrEnum):
    """What is told rests on this."""

    FORECAST = "forecast"
    MAKING = "making"
    """None yet: one is being made."""
    FAILED = "failed"
    """None: it could not be made."""
    NONE = "none"
    """Nothing here makes forecasts."""


@dataclass(frozen=True, slots=True)
class Due:
    """Something that happens at an instant if nothing else comes between."""

    at: datetime
    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Stay:
    """Something wanted that does not begin within 24 hours: why, and until when (None: nothing is known of an end).

    `likely`: the end is the forecast's; else it is the earliest instant at which the reason can change."""

    wave: str
    subject: str
    words: str
    devices: int
    until: datetime | None
    likely: bool


@dataclass(frozen=True, slots=True)
class Tonight:
    """All of it. `trouble` says why there is no forecast, where that is known; `silent` devices are taken to stay so."""

    basis: Basis
    summary: str
    due: tuple[Due, ...]
    more_due: int
    stays: tuple[Stay, ...]
    more_stays: int
    later: Due | None
    foreseen_at: datetime | None = None
    silent: int = 0
    trouble: str | None = None


def tonight_of(board: Board, soaks: Sequence[Due], outlook: Outlook, now: datetime) -> Tonight:
    """Make it. `soaks` are the ends of soaks that are under way."""
    seen = outlook.foreseen
    if seen is None:
        due = sorted((*soaks, *windows_of(board, now), *changes_of(board, now)), key=_order)
        near = [one for one in due if one.at - now <= AHEAD]
        later = next((one for one in due if one.at - now > AHEAD), None)
        basis = Basis.MAKING if outlook.making else Basis.FAILED if outlook.trouble is not None else Basis.NONE
        return Tonight(
            basis, "", tuple(near[:MOST_DUE]), max(0, len(near) - MOST_DUE), (), 0, later, trouble=outlook.trouble
        )  # fmt: skip
    moves = [one for one in seen.moves if one.last_at >= now and one.first_at - now <= AHEAD]
    ahead = places_of(outlook)
    due = sorted((*_begins(moves, ahead, now), *_ends(board, seen, now), *changes_of(board, now)), key=_order)
    near = [one for one in due if one.at - now <= AHEAD]
    stays = list(_stays(board, {(one.wave, one.release) for one in moves}, ahead, now))
    return Tonight(
        Basis.FORECAST,
        _summary(moves),
        tuple(near[:MOST_DUE]),
        max(0, len(near) - MOST_DUE),
        tuple(stays[:MOST_STAYING]),
        max(0, len(stays) - MOST_STAYING),
        next((one for one in due if one.at - now > AHEAD), None),
        seen.at,
        seen.silent,
    )


def subject(hold: Hold) -> str:
    """What a hold is about: `v1.4.2`, `video-ingest 2.8.0`, or `configuration`."""
    return release_of(hold).replace("@", " ")


def _order(due: Due) -> tuple[datetime, str]:
    return due.at, due.text


def listed(what: str, names: Sequence[str]) -> str:
    """`wave lab`, `waves lab, canary, early and 2 more`."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{what}{'s' if len(names) > 1 else ''} {shown}"


def some(names: Sequence[str], in_all: int) -> str:
    """`SITE-1`, `SITE-1 and SITE-2`, `SITE-1, SITE-2 and 7 more sites`."""
    if in_all > len(names):
        return f"{', '.join(names)} and {count(in_all - len(names), 'more site')}"
    return " and ".join((", ".join(names[:-1]), names[-1]) if len(names) > 1 else names)


# ---------------------------------------------------------------- by the forecast


def _summary(moves: Sequence[Moves]) -> str:
    """One sentence: which releases begin on about how many devices, and where."""
    if not moves:
        return "Nothing is foreseen to begin."
    of: dict[str, list[Moves]] = {}
    for one in moves:
        of.setdefault(one.release, []).append(one)
    parts = [
        f"{release.replace('@', ' ')} on about {count(sum(one.begin for one in those), 'device')} "
        f"({listed('wave', list(dict.fromkeys(one.wave for one in those)))})"
        for release, those in of.items()
    ]
    more = f"; and {count(len(parts) - 3, 'other')}" if len(parts) > 3 else ""
    return f"Foreseen to begin: {'; '.join(parts[:3])}{more}."


def _begins(moves: Sequence[Moves], ahead: Mapping[Place, Ahead], now: datetime) -> Iterator[Due]:
    for one in moves:
        text = f"wave {one.wave}: about {count(one.begin, 'device')} begin {one.release.replace('@', ' ')}"
        if one.begin == 1:
            text = f"wave {one.wave}: about 1 device begins {one.release.replace('@', ' ')}"
        parts = [f"at {some(one.sites, one.sites_in_all)}"] if one.sites else []
        parts += [] if one.window is None else [f"in the window {_span(*one.window)}"]
        place = ahead.get((one.wave, one.release))
        if one.arrive:
            parts.append(f"the last of them there at {_moment(one.last_at)}")
        if place is not None and place.arrived_at is not None and place.arrived_at > one.last_at:
            parts.append(f"the whole wave by {_moment(place.arrived_at)}")
        yield Due(max(one.first_at, now), text, ", ".join(parts))


def _ends(board: Board, seen: Foreseen, now: datetime) -> Iterator[Due]:
    for place in seen.likely.places:
        subject_ = place.release.replace("@", " ")
        if place.proven_at is not None and place.proven_at > now:
            text = f"wave {place.wave} is through its soak of {subject_}"
            yield Due(place.proven_at, text, f"if it stays healthy; {follows(board.waves, place.wave, place.release)}")
        if place.stopped_at is not None and place.stopped_at > now:
            yield Due(place.stopped_at, f"the gate of wave {place.wave} fails for {subject_}")


def _stays(board: Board, moving: set[Place], ahead: Mapping[Place, Ahead], now: datetime) -> Iterator[Stay]:
    """Places with a hold that do not move: the reason of most devices, those without an end first."""
    of: dict[Place, list[tuple[Hold, int]]] = {}
    for one in board.holds:
        if one.hold.wave is not None and one.hold.reason not in _UNDER_WAY:
            of.setdefault((one.hold.wave, release_of(one.hold)), []).append((one.hold, one.count))
    found = []
    for place, holds in of.items():
        if place in moving:
            continue
        hold, _ = max(holds, key=lambda pair: pair[1])
        until = until_of(hold, ahead, now)
        devices = sum(number for _, number in holds)
        found.append(Stay(place[0], subject(hold), REASONS[hold.reason.value], devices, until.at, until.likely))
    order = {wave.name: number for number, wave in enumerate(board.waves)}
    return iter(sorted(found, key=lambda one: (one.until is not None, order.get(one.wave, -1), one.subject)))


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _span(opens: datetime, closes: datetime) -> str:
    return (
        f"{opens:%H:%M}–{closes:%H:%M} UTC"
        if opens.date() == closes.date()
        else f"{_moment(opens)} to {_moment(closes)}"
    )


# ---------------------------------------------------------------- by the clock


def windows_of(board: Board, now: datetime) -> Iterator[Due]:
    """Windows that open for devices which wait for one."""
    windows: dict[datetime, list[tuple[Hold, int]]] = {}
    for one in board.holds:
        hold = one.hold
        if hold.reason in _WINDOWS and hold.until is not None and hold.until > now:
            windows.setdefault(hold.until, []).append((hold, one.count))
    for at, those in windows.items():
        number = sum(many for _, many in those)
        names = list(dict.fromkeys(hold.wave for hold, _ in those if hold.wave))
        what = ", ".join(list(dict.fromkeys(subject(hold) for hold, _ in those))[:3])
        text = f"a maintenance window opens for {count(number, 'device')}"
        yield Due(at, text, f"{listed('wave', names)} may begin {what}" if names else f"{what} may begin")


def changes_of(board: Board, now: datetime) -> Iterator[Due]:
    """Other reasons that can change by the clock: freezes that end, and the like."""
    others: dict[tuple[datetime, Reason, str], int] = {}
    for one in board.holds:
        hold = one.hold
        if hold.until is None or hold.until <= now or hold.reason is Reason.SOAKING or hold.reason in _WINDOWS:
            continue
        key = (hold.until, hold.reason, f"{'wave ' + hold.wave if hold.wave else 'the fleet'}: {subject(hold)}")
        others[key] = others.get(key, 0) + one.count
    for (at, reason, about), number in others.items():
        said = f"{about} ({count(number, 'device')})" if number else about
        yield Due(at, f"this may change: {REASONS[reason.value]}", said)
