"""What happened in a demo, wave by wave: read from the store's proofs and the controller's log. Pure but for reading both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from reconciler.model.observed import Snapshot, Verdict
from reconciler.model.scalars import parse_instant


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the controller's log."""

    at: datetime
    event: str
    fields: Mapping[str, Any]


def read_log(path: Path) -> list[Line]:
    """The log's lines, in order; what is no line of ours (a traceback) is left out, and so is a line cut by a kill."""
    out = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            fields = json.loads(text)
            out.append(Line(parse_instant(fields.pop("at")), str(fields.pop("event")), fields))
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
    return out


@dataclass(frozen=True, slots=True)
class Row:
    """A wave and a release: when its first and last device was told to run it, and what came of it."""

    wave: str
    release: str
    devices: int
    first: datetime | None
    last: datetime | None
    outcome: str


def rows(
    waves: Sequence[str], releases: Sequence[str], wave_of: Mapping[str, str], log: Iterable[Line], seen: Snapshot
) -> list[Row]:
    """A row for each release and each wave, in the order given. A release is `v1.4.2`, or `app@version` by its digest."""
    told: dict[tuple[str, str], dict[str, datetime]] = {}
    for line in log:
        words = str(line.fields.get("action", "")).split() if line.event == "action" else []
        parts = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        device = parts.get("device", "")
        if words[:1] in (["flash"], ["restart"]) and device in wave_of:
            key = (wave_of[device], parts["to"])
            told.setdefault(key, {}).setdefault(device, line.at)
    out = []
    for release in releases:
        for wave in waves:
            at = sorted(told.get((wave, release), {}).values())
            outcome = _outcome(wave, release, seen)
            out.append(Row(wave, release, len(at), at[0] if at else None, at[-1] if at else None, outcome))
    return out


def _outcome(wave: str, release: str, seen: Snapshot) -> str:
    failed = _of(seen.failures, wave, release)
    if failed is not None:
        return f"gate failed {when(failed.at)}"
    proof = _of(seen.proofs, wave, release)
    return f"proven {when(proof.at)}" if proof is not None else "never reached"


def _of(verdicts: Sequence[Verdict], wave: str, release: str) -> Verdict | None:
    return next((verdict for verdict in verdicts if verdict.wave == wave and verdict.key == release), None)


def when(at: datetime | None) -> str:
    """An instant for a person, UTC."""
    return f"{at:%a %d %b %H:%M}" if at is not None else "-"


def table(found: Sequence[Row]) -> str:
    """The rows as text, with a gap between releases."""
    head = ("release", "wave", "devices", "first told", "last told", "outcome")
    lines = [
        (row.release, row.wave, str(row.devices) if row.devices else "-", when(row.first), when(row.last), row.outcome)
        for row in found
    ]
    first, *rest = aligned((head, *lines))
    out, before = [first], ""
    for line, text in zip(lines, rest, strict=True):
        if line[0] != before:
            out.append("")
        before = line[0]
        out.append(text)
    return "\n".join(out)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
