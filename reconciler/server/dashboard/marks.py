"""Small parts that every page shows alike: instants, states by word and shape, progress bars. Markup, no facts.

Called by templates: `{{ at | moment }}`, `{{ at | away }}`, `{{ state | mark }}`, `{{ bar(parts, whole, label) }}`. Everything
that is said by colour or shape is said in words too. What comes in is escaped here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any

from jinja2 import Environment, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from reconciler.controller.words import REASONS, clean, countdown, duration
from reconciler.model.scalars import format_instant, parse_instant
from reconciler.server.access import ROUTES

UNKNOWN = Markup('<span class="none">not known</span>')
_INSTANT = re.compile(r"\b(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(?:\.\d+)?Z")
_BAR = 200
"""Units of a bar's width."""

MARKS: Mapping[str, tuple[str, str, str]] = {
    # Devices and sites.
    "failed": ("bad", "◆", "failed"),
    "critical": ("bad", "▲", "critical"),
    "silent": ("off", "○", "silent"),
    "never-seen": ("off", "□", "never seen"),
    "updating": ("busy", "▶", "updating"),
    "held": ("wait", "■", "held"),
    "warning": ("warn", "△", "warning"),
    "good": ("good", "●", "good"),
    # Waves.
    "idle": ("off", "□", "idle"),
    "waiting": ("wait", "■", "waiting"),
    "rolling": ("busy", "▶", "rolling"),
    "soaking": ("busy", "◐", "soaking"),
    "complete": ("good", "●", "complete"),
    "unresolved": ("warn", "△", "unresolved"),
    "rolling-back": ("warn", "◀", "rolling back"),
    "paused": ("wait", "‖", "paused"),
    # Health, and checks.
    "ok": ("good", "●", "ok"),
    "unknown": ("off", "○", "unknown"),
    # Artifacts, signatures.
    "absent": ("off", "□", "absent"),
    "built": ("wait", "■", "built"),
    "signed": ("busy", "▶", "signed"),
    "published": ("good", "●", "published"),
    "accepted": ("good", "●", "accepted"),
    "refused": ("bad", "◆", "refused"),
    "withdrawn": ("warn", "△", "withdrawn"),
    # Events.
    "commit-accepted": ("good", "●", "commit"),
    "commit-refused": ("bad", "◆", "head refused"),
    "wave-opened": ("busy", "▶", "wave opened"),
    "wave-soaking": ("busy", "◐", "soak began"),
    "wave-soaked": ("good", "●", "soaked"),
    "wave-complete": ("good", "●", "complete"),
    "gate-failed": ("bad", "◆", "gate failed"),
    "revert-proposed": ("warn", "◀", "revert proposed"),
    "device-flagged": ("bad", "◆", "flagged"),
    "device-recovered": ("good", "●", "recovered"),
    "condition-changed": ("warn", "△", "condition"),
    "key-expiring": ("warn", "△", "key expires"),
    "assignment-expiring": ("warn", "△", "assignment expires"),
    "flag-acknowledged": ("off", "□", "acknowledged"),
}
"""State → its tone (a class of the stylesheet), its shape, its words. Others are shown as they are, with the shape of `unknown`."""


def tone(state: object) -> str:
    """The class of a state's colour: `bad`, `warn`, `busy`, `wait`, `good` or `off`."""
    return MARKS.get(_word(state), ("off", "", ""))[0]


def shape(state: object) -> str:
    """A state's shape: one character."""
    return MARKS.get(_word(state), ("off", "○", ""))[1]


def word(state: object) -> str:
    """A state in plain words."""
    text = _word(state)
    return MARKS[text][2] if text in MARKS else clean(text)


def mark(state: object, said: object = None) -> Markup:
    """A state with its shape; `said` stands for its words."""
    return Markup('<span class="mark {}"><span class="shape" aria-hidden="true">{}</span> {}</span>').format(
        tone(state), shape(state), word(state) if said is None else said
    )


def _word(state: object) -> str:
    return str(state.value) if isinstance(state, Enum) else str(state)


def moment(at: datetime | None) -> Markup:
    """An instant, in UTC to the minute."""
    if at is None:
        return UNKNOWN
    return Markup('<time datetime="{}">{}</time>').format(_machine(at), f"{at:%Y-%m-%d %H:%M} UTC")


def told(text: str) -> str:
    """What the controller says, its instants as pages write them: `2026-03-15 20:15 UTC`. The text of commands keeps seconds."""
    return _INSTANT.sub(r"\1 \2 UTC", clean(text))


@pass_context
def away(context: Context, at: datetime | None) -> Markup:
    """How far away an instant is: `in 2 h 5 min`, `5 min ago`. The page's script keeps it true."""
    if at is None:
        return UNKNOWN
    text = Markup('<time datetime="{}" data-away title="{}">{}</time>')
    return text.format(_machine(at), f"{at:%Y-%m-%d %H:%M} UTC", countdown(at, now_of(context)))


@pass_context
def lasting(context: Context, since: datetime | None) -> Markup:
    """How long something has lasted: `5 min`."""
    if since is None:
        return UNKNOWN
    text = Markup('<time datetime="{}" data-lasting title="since {}">{}</time>')
    seconds = max(0.0, (now_of(context) - since).total_seconds())
    return text.format(_machine(since), f"{since:%Y-%m-%d %H:%M} UTC", duration(seconds))


def now_of(context: Context) -> datetime:
    """The instant that a page is made at."""
    at = context["frame"].now
    assert isinstance(at, datetime)
    return at


def _machine(at: datetime) -> str:
    return format_instant(at.replace(microsecond=0))


def bar(parts: Iterable[tuple[str, int]], whole: int, label: str) -> Markup:
    """A progress bar: (tone, count) from the left, of `whole`. A part that is not nothing is never too thin to be seen."""
    out, left = [], 0.0
    for kind, count in parts:
        if count > 0 and whole > 0:
            width = min(max(count * _BAR / whole, 2.0), _BAR - left)
            out.append(
                Markup('<rect class="{}" x="{}" y="0" width="{}" height="10"/>').format(
                    kind, f"{left:.4g}", f"{max(width, 0.0):.4g}"
                )
            )
            left += width
    return Markup(
        '<svg class="bar" viewBox="0 0 200 10" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="rest" x="0" y="0" width="200" height="10"/>{}</svg>'
    ).format(label, Markup("").join(out))


def reason(code: object) -> str:
    """A hold's reason in plain words."""
    text = _word(code)
    return REASONS.get(text, clean(text))


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 device`, `1,204 devices`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def dated(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Documents whose `since` is an instant again."""
    return [{**row, "since": parse_instant(row["since"])} for row in rows]


def served(route: str) -> bool:
    """Whether there is such a page."""
    return route in ROUTES


def furnish(environment: Environment) -> None:
    """Give all of it to templates."""
    environment.filters.update(
        instant=parse_instant,
        dated=dated,
        moment=moment,
        machine=_machine,
        away=away,
        lasting=lasting,
        mark=mark,
        tone=tone,
        shape=shape,
        word=word,
        reason=reason,
        clean=clean,
        told=told,
    )
    environment.globals.update(bar=bar, counted=count, served=served)
