"""Where a line of the fleet repo comes from: the commit that wrote it, and the file as it was before. Plain values.

Git tells (`ports.LineHistory`); `explain` shows it as "asked for by".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class PastFile:
    """A file as a commit has it; `path` is from the top of the repository."""

    sha: str
    path: str


@dataclass(frozen=True, slots=True)
class LineOrigin:
    """The commit that wrote a line as it stands. `sha` is None where it is not committed yet; `at` is when it was authored.

    `oldest`: history ends there (a shallow clone), so the line may be older. `before` is the file just before that commit.
    """

    sha: str | None
    author: str | None = None
    at: datetime | None = None
    summary: str | None = None
    oldest: bool = False
    before: PastFile | None = None
