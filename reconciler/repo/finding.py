"""What a check found, before its place is looked up: positions are costly, and most documents have nothing to report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from reconciler.repo.problem import Problem
from reconciler.repo.reader import Where, locate, nearest

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of the entry at `where` of a document; `at_key` points at the key instead of the value."""

    where: Where
    message: str
    code: str
    severity: Severity = "error"
    at_key: bool = False


def placed(path: str, data: bytes, findings: Iterable[Finding]) -> Iterator[Problem]:
    """The findings of one document as problems with line and column. Reads the bytes once, and only if there are any."""
    spots = None
    for finding in findings:
        if spots is None:
            spots = locate(data)
        spot, exact = nearest(spots, finding.where)
        at_key = finding.at_key or not exact
        line, column = (spot.key_line, spot.key_column) if at_key else (spot.line, spot.column)
        yield Problem(path, line, column, one_line(finding.message), finding.severity, finding.code)


def one_line(message: str) -> str:
    """A message that stays on its line and cannot steer a terminal: what was written may hold any character."""
    if message.isprintable():
        return message
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "replace").decode()
        for character in message
    )
