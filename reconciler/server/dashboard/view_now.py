"""What the front page says, made from a board: a few plain sentences, a row a wave, what holds it, and what is due. Pure.

Counts and states are the board's own; nothing is computed twice. Called by `pages_now`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

from reconciler.controller.board import Board, DeviceState
from reconciler.controller.conditions import troubled
from reconciler.controller.words import REASONS
from reconciler.model.plan import Hold, Reason, WaveState, WaveStatus
from reconciler.server.dashboard.marks import count
from reconciler.server.dashboard.view_ahead import Until, follows, places_of, until_of
from reconciler.server.dashboard.view_tonight import Due, Tonight, listed, subject, tonight_of
from reconciler.server.dashboard.view_trouble import Trouble
from reconciler.server.foreseen import Outlook

MOST_HOLDS = 20

_MOVING = (WaveState.ROLLING, WaveState.ROLLING_BACK)
_QUIET = (WaveState.COMPLETE, WaveState.IDLE)
_FOR_A_PERSON = (
    Reason.GATE_FAILED,
    Reason.GATE_UNRESOLVED,
    Reason.ATTEMPTS_EXHAUSTED,
    Reason.UNKNOWN_IMAGE,
    Reason.IDENTITY_CONFLICT,
    Reason.NO_ROLLBACK_IMAGE,
    Reason.TAG_DRIFT,
    Reason.WITHDRAWN,
)
"""Reasons that do not go away by waiting."""
_NEVER_SEEN = f"/devices?state={DeviceState.NEVER.value}"
_STATES = {
    Reason.OFFLINE: DeviceState.SILENT,
    Reason.IN_PROGRESS: DeviceState.UPDATING,
    Reason.ATTEMPTS_EXHAUSTED: None,
    Reason.GATE_UNRESOLVED: DeviceState.SILENT,
}
"""The state by which the devices of a hold are listed, where it is not `held`. None: any."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """Something that the page begins with; `tone` is a class of the stylesheet, `href` where a person reads on."""

    tone: str
    shape: str
    text: str
    href: str | None = None


@dataclass(frozen=True, slots=True)
class WaveLine:
    """A wave with the image it asks for, or with one of its apps (`app`). `quiet` are its apps that need no line of their own."""

    wave: str
    app: str | None
    release: str | None
    state: WaveState
    devices: int
    on_release: int
    healthy: int
    failed: int
    offline: int
    in_flight: int
    soak_ends_at: datetime | None
    quiet: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """`v1.4.2`, or `video-ingest 2.8.0`."""
        return " ".join(part for part in (self.app, self.release) if part) or "no image"

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """What the progress bar is made of: healthy on the release, failed on it, and on it but not judged."""
        return (
            ("good", self.healthy),
            ("bad", self.failed),
            ("busy", max(0, self.on_release - self.healthy - self.failed)),
        )

    @property
    def said(self) -> str:
        """The bar in words."""
        return f"{self.on_release:,} of {self.devices:,} on it, {self.healthy:,} healthy, {self.failed:,} failed"


@dataclass(frozen=True, slots=True)
class HoldLine:
    """Why something wanted is not done, in words, and where its devices are listed."""

    reason: Reason
    wave: str | None
    subject: str
    words: str
    message: str
    count: int
    until: Until
    href: str | None
    for_a_person: bool

    @property
    def ends(self) -> str:
        """`, until 2026-03-15 20:15 UTC`, or nothing."""
        if self.until.at is None:
            return ""
        return f", {'likely ' if self.until.likely else ''}until {self.until.at:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True, slots=True)
class Now:
    """The front page."""

    lead: tuple[Sentence, ...]
    waves: tuple[WaveLine, ...]
    holds: tuple[HoldLine, ...]
    more_holds: int
    tonight: Tonight
    trouble: Trouble


def see(board: Board, now: datetime, acknowledged: int | None, outlook: Outlook, ailing: Trouble) -> Now:
    """Make it. `acknowledged` is how many of the board's flags a person has acknowledged; None: the store does not say now."""
    waves = tuple(line for wave in board.waves for line in wave_lines(wave))
    holds = hold_lines(board, outlook, now)
    return Now(
        lead=(
            *_for_a_person(board, holds, acknowledged),
            *_in_trouble(ailing),
            *_never_seen(board),
            *_moving(board, waves, holds),
        ),
        waves=waves,
        holds=tuple(holds[:MOST_HOLDS]),
        more_holds=max(0, len(holds) - MOST_HOLDS),
        tonight=tonight_of(board, list(_soaks(board, waves, now)), outlook, now),
        trouble=ailing,
    )


def wave_lines(wave: WaveStatus) -> Iterator[WaveLine]:
    """A wave's line, then one a app that is not simply where it should be."""
    loud = {app: of for app, of in wave.apps.items() if of.state not in _QUIET}
    quiet = tuple(f"{app} {of.release}" for app, of in sorted(wave.apps.items()) if app not in loud)
    yield WaveLine(
        wave.name, None, wave.image, wave.state, wave.devices, wave.on_release, wave.healthy, wave.failed, wave.offline,
        wave.in_flight, _soak(wave.state, wave.soak_ends_at), quiet,
    )  # fmt: skip
    for app, of in sorted(loud.items()):
        yield WaveLine(
            wave.name, app, of.release, of.state, wave.devices, of.on_release, of.healthy, of.failed, 0, 0,
            _soak(of.state, of.soak_ends_at),
        )  # fmt: skip


def _soak(state: WaveState, ends: datetime | None) -> datetime | None:
    return ends if state is WaveState.SOAKING else None


# ---------------------------------------------------------------- what holds


def hold_lines(board: Board, outlook: Outlook, now: datetime, wave: str | None = None) -> list[HoldLine]:
    """Holds in words (of one wave), those for a person first, then by how many devices they are about."""
    ahead = places_of(outlook)
    lines = [
        _hold(one.hold, one.count, until_of(one.hold, ahead, now))
        for one in board.holds
        if wave is None or one.hold.wave == wave
    ]
    return sorted(lines, key=lambda line: (not line.for_a_person, -line.count, line.wave or "", line.subject))


def _hold(hold: Hold, number: int, until: Until) -> HoldLine:
    query = {"wave": hold.wave} if hold.wave is not None else {}
    state = _STATES.get(hold.reason, DeviceState.HELD)
    if state is not None:
        query |= {"state": state.value}
    return HoldLine(
        reason=hold.reason,
        wave=hold.wave,
        subject=subject(hold),
        words=REASONS[hold.reason.value],
        message=hold.message,
        count=number,
        until=until,
        href=f"/devices?{urlencode(query)}" if number else None,
        for_a_person=hold.reason in _FOR_A_PERSON,
    )


# ---------------------------------------------------------------- the first sentences


def _for_a_person(board: Board, holds: Sequence[HoldLine], acknowledged: int | None) -> Iterator[Sentence]:
    wrong = troubled(board.conditions)
    known = [row.type for row in wrong if row.status != "Unknown"]
    if known:
        said = count(len(known), "condition of the controller is", "conditions of the controller are")
        yield Sentence("bad", "◆", f"{said} not as it should be: {', '.join(known)}.", "#conditions")
    if board.refused is not None:
        yield Sentence("bad", "◆", f"The branch's head {board.refused[0][:12]} is not acted on.", "#refused")
    stopped = [line for line in holds if line.reason is Reason.GATE_FAILED]
    for release in dict.fromkeys(line.subject for line in stopped):
        failed = [wave.name for wave in board.waves if failed_on(wave, release.replace(" ", "@"))]
        where = f": {listed('wave', failed)} failed on it" if failed else ""
        yield Sentence("bad", "◆", f"{release} is stopped in every wave{where}.", "/flagged")
    flags = len(board.flagged)
    if flags:
        open_flags = flags - min(acknowledged or 0, flags)
        if acknowledged is None:
            seen = ""
        elif open_flags == 0:
            seen = "; somebody has acknowledged it" if flags == 1 else "; somebody has acknowledged each"
        elif open_flags == flags:
            seen = ", and nobody has acknowledged that"
        else:
            seen = f", {open_flags:,} of them not acknowledged"
        what = "device is flagged: it failed on its release"
        text = f"{count(flags, what, 'devices are flagged: they failed on their releases')}{seen}."
        yield Sentence("bad" if open_flags else "warn", "◆", text, "/flagged")
    others = [line for line in holds if line.for_a_person and line.reason is not Reason.GATE_FAILED]
    for reason in dict.fromkeys(line.reason for line in others):
        number = sum(line.count for line in others if line.reason is reason)
        about = f"{count(number, 'device')}: " if number else ""
        yield Sentence("warn", "△", f"{about}{REASONS[reason.value]}.".capitalize(), "#holds")


def _in_trouble(ailing: Trouble) -> Iterator[Sentence]:
    if any(kind.state is not DeviceState.FAILED for kind in ailing.kinds):
        said = count(ailing.total, "device is in trouble", "devices are in trouble")
        yield Sentence("warn", "△", f"{said}: {ailing.said}.", "#trouble")


def _never_seen(board: Board) -> Iterator[Sentence]:
    if number := board.counts[DeviceState.NEVER]:
        said = count(number, "device has never reported: enrol it", "devices have never reported: enrol them")
        yield Sentence("off", "□", f"{said}, or take {'it' if number == 1 else 'them'} out of git.", _NEVER_SEEN)


def failed_on(wave: WaveStatus, release: str) -> bool:
    """Whether a wave's gate failed on the release that it asks for: `v1.4.2`, or `video-ingest@2.8.0`."""
    status = wave.of(release)
    return status is not None and status.state is WaveState.FAILED


def _moving(board: Board, waves: Sequence[WaveLine], holds: Sequence[HoldLine]) -> Iterator[Sentence]:
    if board.rows is None:
        return
    moving = [line for line in waves if line.state in _MOVING]
    for line in moving[:3]:
        yield _rolling(line, holds)
    soaking = [line for line in waves if line.state is WaveState.SOAKING]
    for line in soaking[:2]:
        ends = f" until {line.soak_ends_at:%Y-%m-%d %H:%M} UTC" if line.soak_ends_at is not None else ""
        yield Sentence("busy", "◐", f"Wave {line.wave} soaks {line.subject}{ends}.", f"/waves/{line.wave}")
    if moving or soaking:
        return
    waiting = [line for line in holds if not line.for_a_person and line.count]
    if waiting:
        most = max(waiting, key=lambda line: line.count)
        alike = [line for line in waiting if (line.words, line.subject) == (most.words, most.subject)]
        # Of several waves only what holds all of them has one end.
        ends = most.ends if len(alike) == 1 else ""
        number = sum(line.count for line in alike)
        text = f"Nothing moves: {count(number, 'device is', 'devices are')} held, {most.words}{ends}."
        yield Sentence("wait", "■", text, "#holds")
    elif board.devices_in_all == 0:
        yield Sentence("off", "□", "Git names no devices yet.")
    elif not holds:
        yield Sentence("good", "●", "Every device that answers runs what git asks for.")
    else:
        yield Sentence("wait", "■", "Nothing moves.", "#holds")


def _rolling(line: WaveLine, holds: Sequence[HoldLine]) -> Sentence:
    """A wave on its way: how far it is, and what keeps it where nothing is in flight."""
    verb = "goes back to" if line.state is WaveState.ROLLING_BACK else "moves to"
    text = f"Wave {line.wave} {verb} {line.subject}: {line.on_release:,} of {count(line.devices, 'device')} on it"
    keeps = [hold for hold in holds if (hold.wave, hold.subject) == (line.wave, line.subject) and hold.count]
    if line.in_flight and line.app is None:
        return Sentence("busy", "▶", f"{text}, {line.in_flight:,} in flight.", f"/waves/{line.wave}")
    if not keeps or line.on_release >= line.devices:
        return Sentence("busy", "▶", f"{text}.", f"/waves/{line.wave}")
    most = max(keeps, key=lambda hold: hold.count)
    kept = f"nothing is in flight: for {count(most.count, 'device')} {most.words}{most.ends}"
    return Sentence("wait", "■", f"{text}, and {kept}.", f"/waves/{line.wave}")


def _soaks(board: Board, waves: Sequence[WaveLine], now: datetime) -> Iterator[Due]:
    for line in waves:
        if line.soak_ends_at is not None and line.soak_ends_at > now:
            text = f"the soak of wave {line.wave} on {line.subject} ends"
            release = (line.release or "") if line.app is None else f"{line.app}@{line.release}"
            yield Due(line.soak_ends_at, text, f"if it stays healthy; {follows(board.waves, line.wave, release)}")
