"""The picture that `reconciler status` shows: a `Status` as Rich renderables. Pure: no clock, no store, no terminal.

Everything that it says in colour it also says in words, and nothing is wider than the terminal: waves become a table
where there is room and a short block each where there is not. Texts from elsewhere are shown without control
characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reconciler.controller.status import Status
from reconciler.controller.words import REASONS, clean, countdown, duration
from reconciler.model.scalars import parse_instant
from reconciler.ports import ConditionRow, Intent

__all__ = ["WIDE", "bar", "clean", "view"]

WIDE = 84
"""Columns from which waves fit into a table."""
_BAR = 12
_DEVICES = 6
_COLOURS = {
    "complete": "green",
    "soaking": "cyan",
    "rolling": "cyan",
    "rolling-back": "yellow",
    "failed": "bold red",
    "unresolved": "bold yellow",
    "paused": "yellow",
}


def view(status: Status, width: int, plain_ascii: bool = False) -> RenderableType:
    """The whole picture, for a terminal of `width` columns."""
    parts: list[RenderableType] = [_head(status)]
    plan = status.plan
    if plan is None:
        parts.append(Text("\nNo plan yet: `reconciler run` makes one at its first tick.", "yellow"))
    else:
        parts += _section("Waves", _waves(plan.get("waves", []), status.at, width, plain_ascii))
        parts += _section("Holds", _lines(_hold(hold, status.at) for hold in plan.get("holds", [])))
        parts += _section("Flagged devices", _lines(_flag(flag, status.at) for flag in plan.get("flagged", [])))
    parts += _section("Open actions", _lines(_intent(intent, status.at) for intent in status.open_actions))
    parts += _section("Conditions", _lines(_condition(row, status.at) for row in status.conditions))
    return Group(*parts)


def _head(status: Status) -> Text:
    commit = f"commit {clean(status.commit)[:12]} in force" if status.commit else "no commit in force yet"
    head = Text(commit, "bold")
    plan = status.plan or {}
    if plan.get("at"):
        # The loop keeps a plan only where it says something new.
        unchanged = max(timedelta(), status.at - parse_instant(plan["at"])).total_seconds()
        head.append(f"; plan unchanged for {duration(unchanged)}", "not bold")
    if plan.get("nextChangeAt"):
        head.append(f"; next change {_until(plan['nextChangeAt'], status.at)}", "not bold")
    return head


def _section(title: str, body: RenderableType | None) -> list[RenderableType]:
    return [] if body is None else [Text(f"\n{title}", "bold"), body]


def _lines(lines: Iterator[Text]) -> RenderableType | None:
    found = [Padding(line, (0, 0, 0, 2), expand=False) for line in lines]
    return Group(*found) if found else None


def _until(instant: str, now: datetime) -> str:
    """`2026-01-17 01:30 UTC (in 23 h 10 min)`."""
    at = parse_instant(instant)
    return f"{at:%Y-%m-%d %H:%M} UTC ({countdown(at, now) if at > now else 'due'})"


# ---------------------------------------------------------------- waves


def bar(part: int, whole: int, plain_ascii: bool) -> str:
    """A progress bar of fixed width. It is full only when everything is done, and empty only when nothing is."""
    filled = 0 if whole <= 0 else part * _BAR // whole
    if 0 < part < whole:
        filled = min(max(filled, 1), _BAR - 1)
    full, empty = ("#", ".") if plain_ascii else ("█", "░")
    return full * filled + empty * (_BAR - filled)


def _rows(waves: list[Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any], int, int]]:
    """(wave, release, status, devices, offline) of every image and app that a wave asks for."""
    for wave in waves:
        devices, offline = int(wave.get("devices", 0)), int(wave.get("offline", 0))
        yield clean(wave["name"]), clean(wave.get("image") or "-"), wave, devices, offline
        for app, of_app in wave.get("apps", {}).items():
            yield "", f"{clean(app)} {clean(of_app.get('release'))}", of_app, devices, 0


def _notes(row: Mapping[str, Any], offline: int, now: datetime) -> Text:
    notes = Text()
    for count, word, style in (
        (int(row.get("failed", 0)), "failed", "bold red"),
        (offline, "offline", "yellow"),
        (int(row.get("inFlight", 0)), "in flight", "cyan"),
    ):
        if count:
            notes.append(", " if notes else "").append(f"{count} {word}", style)
    if row.get("soakEndsAt") and row.get("state") == "soaking":
        ends = parse_instant(row["soakEndsAt"])
        notes.append(", " if notes else "").append(f"soak ends {countdown(ends, now)}" if ends > now else "soak over")
    return notes


def _waves(waves: list[Mapping[str, Any]], now: datetime, width: int, plain_ascii: bool) -> RenderableType | None:
    if not waves:
        return None
    if width < WIDE:
        return Group(*(Padding(block, (0, 0, 0, 2), expand=False) for block in _blocks(waves, now, plain_ascii)))
    table = Table(box=box.ASCII2 if plain_ascii else box.SIMPLE_HEAD, pad_edge=False, expand=False)
    for title in ("wave", "release", "state", "on release"):
        table.add_column(title, no_wrap=title != "release", overflow="fold")
    table.add_column("healthy", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for name, release, row, devices, offline in _rows(waves):
        state = str(row.get("state", ""))
        done = f"{bar(int(row.get('onRelease', 0)), devices, plain_ascii)} {row.get('onRelease', 0)}/{devices}"
        style = _COLOURS.get(state, "")
        table.add_row(
            Text(name), Text(release), Text(state, style), Text(done), Text(str(row.get("healthy", 0))),
            _notes(row, offline, now),
        )  # fmt: skip
    return table


def _blocks(waves: list[Mapping[str, Any]], now: datetime, plain_ascii: bool) -> Iterator[Text]:
    for name, release, row, devices, offline in _rows(waves):
        state = str(row.get("state", ""))
        block = Text(f"{name} {release}: " if name else f"  {release}: ", "bold" if name else "")
        block.append(state, _COLOURS.get(state, ""))
        block.append(f"\n  {bar(int(row.get('onRelease', 0)), devices, plain_ascii)} ", "not bold")
        block.append(f"{row.get('onRelease', 0)}/{devices} on release, {row.get('healthy', 0)} healthy", "not bold")
        notes = _notes(row, offline, now)
        if notes:
            block.append(", ").append_text(notes)
        yield block


# ---------------------------------------------------------------- lines


def _hold(hold: Mapping[str, Any], now: datetime) -> Text:
    reason = str(hold.get("reason"))
    what = hold.get("image") or (f"{hold['app']} {hold.get('release')}" if hold.get("app") else "")
    line = Text(f"{clean(hold.get('wave') or 'fleet')} {clean(what)}".strip() + ": ", "bold")
    line.append(REASONS.get(reason, reason), "red" if reason == "gate-failed" else "not bold")
    devices = [clean(device) for device in hold.get("devices", [])]
    if devices:
        more = f" and {len(devices) - _DEVICES} more" if len(devices) > _DEVICES else ""
        line.append(f"; {', '.join(devices[:_DEVICES])}{more}", "not bold")
    if hold.get("until"):
        line.append(f"; until {_until(str(hold['until']), now)}", "not bold")
    line.append(f" [{clean(reason)}]", "dim not bold")
    return line


def _flag(flag: Mapping[str, Any], now: datetime) -> Text:
    since = duration(max(timedelta(), now - parse_instant(flag["at"])).total_seconds())
    return Text(f"{clean(flag['device'])}: failed on {clean(flag['release'])} for {since}", "red")


def _intent(intent: Intent, now: datetime) -> Text:
    line = Text(clean(intent.key), "bold")
    line.append(f"; written {countdown(intent.created_at, now)}", "not bold")
    if intent.attempts:
        line.append(f"; tried {intent.attempts} time{'s' if intent.attempts > 1 else ''}", "yellow not bold")
    if intent.not_before is not None and intent.not_before > now:
        line.append(f", again {countdown(intent.not_before, now)}", "not bold")
    if intent.last_error:
        line.append(f": {clean(intent.last_error)}", "yellow not bold")
    return line


def _condition(row: ConditionRow, now: datetime) -> Text:
    style = {"True": "green", "False": "bold red"}.get(row.status, "yellow")
    line = Text(f"{clean(row.type)} ", "bold").append(row.status, style)
    line.append(f" {clean(row.reason)} for {duration(max(0.0, (now - row.since).total_seconds()))}", "not bold")
    return line.append(f": {clean(row.message)}", "not bold") if row.message else line
