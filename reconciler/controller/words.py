"""How people say durations, instants and the reasons of holds: one wording for the terminal and for the dashboard's pages. Pure."""

from __future__ import annotations

from datetime import datetime

REASONS = {
    "image-not-ready": "the image is not built, signed and published yet",
    "withdrawn": "the release is withdrawn",
    "wave-waits": "an earlier wave comes first",
    "soaking": "the soak runs",
    "gate-failed": "too many devices failed: the release is stopped",
    "gate-unresolved": "too many devices are silent to judge",
    "outside-window": "the maintenance window is closed",
    "no-window": "there is no window in the coming night",
    "budget": "as many are in flight as allowed",
    "ahead": "on a higher release than the wave asks for",
    "in-progress": "being updated",
    "serialised": "another action on the device goes first",
    "offline": "silent: offered when the device reports",
    "attempts-exhausted": "failed as often as allowed",
    "tag-drift": "somebody else moved the tag",
    "paused": "paused in git",
    "frozen": "a freeze is on",
    "suspended": "the site is suspended",
    "unknown-image": "runs an image that git does not know",
    "identity-conflict": "two devices claim this name",
    "no-rollback-image": "the image to go back to is missing or does not verify",
}
"""Code of a hold's reason → plain words."""


def duration(seconds: float) -> str:
    """`40 s`, `5 min`, `2 h 5 min`, `3 d 4 h`: as people say it, at most two units, rounded down."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if hours == 0:
        return f"{minutes} min"
    if days == 0:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{days} d {hours % 24} h" if hours % 24 else f"{days} d"


def countdown(instant: datetime, now: datetime) -> str:
    """`in 2 h 5 min`, `now`, `5 min ago`."""
    seconds = (instant - now).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"


def clean(text: object) -> str:
    """One line without control characters: what devices and other systems wrote must not drive whatever shows it."""
    return "".join(char if char.isprintable() else " " for char in str(text)).strip()
