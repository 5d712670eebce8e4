"""A problem of an input, with its place: what every check of a fleet document or a snapshot reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem. Lines and columns count from 1. The message names the key, the offending value, cause and remedy."""

    path: str
    line: int
    column: int
    message: str
    severity: Literal["error", "warning"] = "error"
    code: str = "invalid"

    def __str__(self) -> str:
        note = "warning: " if self.severity == "warning" else ""
        return f"{self.path}:{self.line}:{self.column}: {note}{self.message}"


class InvalidInput(Exception):
    """An input that cannot be used, with every problem found in it. The command line exits 1."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))
