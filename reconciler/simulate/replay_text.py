"""A replay for people and as JSON: what was recorded, beside what the policy would have decided. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from reconciler.model.scalars import format_instant
from reconciler.simulate.replay import Replay
from reconciler.simulate.summary import had_something_to_do, spoken
from reconciler.simulate.timeline import lines, when
from reconciler.simulate.trace import Entry, Event, Kind

OPEN_LOOP = (
    "open-loop: devices did what they were told then, and not what this policy would have told them; "
    "once the two differ, what follows is what the policy makes of a fleet that went the other way"
)
_MOST_HELD = 10


def as_text(found: Replay, title: str, *, timeline: bool = True, table: bool = True) -> str:
    """Both sides of each wave, who would have been held, and the timeline of what would have been decided."""
    out = [*_summary(found, title)] if table else []
    if timeline:
        out += ([""] if out else []) + [
            f"timeline of what would have been decided (UTC, {found.decided.started_at:%Y})"
        ]
        out += [f"  {line}" for line in lines(event for event in found.decided.events if event.kind in _TOLD)]
    return "\n".join(out) + "\n"


_TOLD = (Kind.TOLD, Kind.PROVEN, Kind.STOPPED, Kind.TIMED_OUT)


def _summary(found: Replay, title: str) -> Iterator[str]:
    trace = found.decided
    yield title
    span = f"{trace.started_at:%Y-%m-%d %H:%M} to {trace.ended_at:%Y-%m-%d %H:%M} UTC"
    long = spoken(trace.ended_at - trace.started_at)
    yield f"  recorded {found.lines} snapshots of {found.devices} devices, {span} ({long})"
    yield f"  {OPEN_LOOP}"
    yield ""
    rows = [("wave", "release", "", "first start", "devices", "outcome")]
    for decided, recorded in found.rows:
        if had_something_to_do(decided) or had_something_to_do(recorded):
            rows.append((decided.wave, decided.key, "recorded", *_side(recorded, found.recorded.events)))
            rows.append(("", "", "would have", *_side(decided, trace.events)))
    if len(rows) == 1:
        yield "  nothing to do: every wave ran what this policy asks for"
    else:
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        for row in rows:
            yield "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    yield from _held(found)


def _side(entry: Entry, events: Any) -> tuple[str, str, str]:
    told = {e.device for e in events if e.kind is Kind.TOLD and (e.wave, e.key) == (entry.wave, entry.key)}
    if entry.stopped_at is not None:
        outcome = f"gate failed {when(entry.stopped_at)}"
    elif entry.proven_at is not None:
        outcome = f"proven {when(entry.proven_at)}"
    elif entry.held:
        message = entry.held[0].message.removeprefix(f"wave {entry.wave!r}: ").partition(";")[0]
        outcome = f"{entry.held[0].reason}: {message}"
    else:
        outcome = "-"
    return when(entry.first_told_at), f"{len(told)} of {entry.devices}", outcome


def _held(found: Replay) -> Iterator[str]:
    if not found.held:
        yield "  every device that was started would have been started by this policy too, by then"
        return
    yield f"  {len(found.held)} devices were started that this policy would not have started by then:"
    groups = Counter((held.key, held.reason) for held in found.held)
    for (key, reason), count in list(groups.items())[:_MOST_HELD]:
        mine = [held for held in found.held if (held.key, held.reason) == (key, reason)]
        names = ", ".join(held.device for held in mine[:3]) + (f" and {count - 3} more" if count > 3 else "")
        yield f"    {when(mine[0].at)}  {key}: {reason}: {names}"


def as_json(found: Replay, title: str) -> str:
    """The document `kind: Replay`."""
    tree = {
        "apiVersion": "fleet/v1",
        "kind": "Replay",
        "title": title,
        "note": OPEN_LOOP,
        "startedAt": format_instant(found.decided.started_at),
        "endedAt": format_instant(found.decided.ended_at),
        "snapshots": found.lines,
        "devices": found.devices,
        "waves": [
            {
                "wave": decided.wave,
                "release": decided.key,
                "decided": _entry(decided, False),
                "recorded": _entry(recorded, True),
            }
            for decided, recorded in found.rows
        ],
        "held": [
            {"at": format_instant(one.at), "device": one.device, "release": one.key, "reason": one.reason}
            for one in found.held
        ],
        "decided": [event.to_dict() for event in _in_order(found.decided.events)],
        "recorded": [event.to_dict() for event in _in_order(found.recorded.events)],
    }
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _entry(entry: Entry, recorded: bool) -> dict[str, Any]:
    # A decision has no arrivals, and of the record nobody knows what held it.
    out = ("wave", "release", "held") if recorded else ("wave", "release", "lastArrivedAt", "arrived")
    return {name: value for name, value in entry.to_dict().items() if name not in out}


def _in_order(events: Any) -> list[Event]:
    return sorted(events, key=lambda event: event.at)
