"""Until when something waits, and what follows it: one rule for every page, from the plan's holds and the newest forecast. Pure.

What the clock alone decides is the plan's instant. Where the plan knows none, or the forecast a later one, the forecast's is told,
and that it is likely. Called by `view_now`, `view_tonight`, `pages_now` and `pages_devices`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from reconciler.model.plan import Hold, Reason, WaveStatus
from reconciler.model.scalars import parse_instant
from reconciler.server.foreseen import CONFIGURATION, Ahead, Outlook

_ITS_OWN = {Reason.OFFLINE: "it reports", Reason.IN_PROGRESS: "it is done"}
"""Reasons that end with the device itself: when its wave begins says nothing of them. What is waited for instead of an instant."""

Place = tuple[str, str]
"""A wave, and a release: `v1.4.2`, or `video-ingest@2.8.0`."""


@dataclass(frozen=True, slots=True)
class Until:
    """The end of a wait; `at` None: no instant is known. `likely`: it is the forecast's. `event`: what ends it instead."""

    at: datetime | None
    likely: bool = False
    event: str | None = None


def places_of(outlook: Outlook) -> Mapping[Place, Ahead]:
    """What is likely to come of each wave and release; nothing where there is no forecast."""
    seen = outlook.foreseen
    return {} if seen is None else {(one.wave, one.release): one for one in seen.likely.places}


def until_of(hold: Hold, ahead: Mapping[Place, Ahead], now: datetime) -> Until:
    """Until when a hold is likely to last."""
    at = hold.until if hold.until is not None and hold.until > now else None
    event = _ITS_OWN.get(hold.reason)
    if event is not None or hold.wave is None:
        return Until(at, event=event)
    place = ahead.get((hold.wave, release_of(hold)))
    starts = None if place is None else place.starts_at
    if starts is not None and starts > now and (at is None or starts > at):
        return Until(starts, likely=True)
    return Until(at)


def release_of(hold: Hold) -> str:
    """What a hold is about, as the forecast names it."""
    if hold.app is not None:
        return f"{hold.app}@{hold.release}" if hold.release else hold.app
    return hold.image or CONFIGURATION


def follows(waves: Sequence[WaveStatus], wave: str, release: str) -> str:
    """What a wave's proof of a release means for the wave after it: of the two alone, as the wave's own page has it."""
    names = [one.name for one in waves]
    if wave not in names or names.index(wave) + 1 >= len(waves):
        return "there is no wave after it"
    after = waves[names.index(wave) + 1]
    if after.of(release) is not None:
        return f"wave {after.name} may follow"
    app, at_sign, _ = release.partition("@")
    own = after.apps.get(app)
    said = after.image if not at_sign else None if own is None or own.release is None else f"{app} {own.release}"
    return (
        f"wave {after.name} asks for {said or 'nothing'}, and follows once git asks it for {release.replace('@', ' ')}"
    )


@dataclass(frozen=True, slots=True)
class Likely:
    """What the forecast has of one release in a wave: what is to come, with its instant, and when the next wave begins it."""

    said: tuple[tuple[str, datetime], ...] = ()
    next_at: datetime | None = None


def likely_of(outlook: Outlook, said: Mapping[str, Any], now: datetime) -> Mapping[str, Likely]:
    """By the subject of each part of a wave's explanation, given as its document."""
    ahead, out = places_of(outlook), {}
    for part in said["parts"]:
        release = part["release"] or "" if part["subject"] == "image" else f"{part['subject']}@{part['release']}"
        here, after = ahead.get((said["wave"], release)), ahead.get((part["next"]["wave"], release))
        told = () if here is None else (
            ("the next devices begin at", here.starts_at),
            ("the last are there at", here.arrived_at),
            ("the soak is over at", here.proven_at),
            ("the gate fails at", here.stopped_at),
        )  # fmt: skip
        starts = None if after is None or after.starts_at is None or after.starts_at <= now else after.starts_at
        at = part["next"]["at"]
        out[part["subject"]] = Likely(
            tuple((what, at) for what, at in told if at is not None and at > now),
            starts if starts is not None and (at is None or starts > parse_instant(at)) else None,
        )
    return out
