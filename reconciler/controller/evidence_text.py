"""Texts of evidence: what a stranger says, made harmless; tables; and how much fits. Pure. Called by `evidence`.

What a device says of itself goes into a commit's message and a pull request, where a forge looks for mentions, for words that
close an issue or skip a check, for links and for HTML. None of it must be found in a device's words: as code in the pull
request, and with other signs for those that would start something.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from reconciler.model.scalars import format_instant

MOST_TEXT = 120
_FULL_WIDTH = str.maketrans({"@": "＠", "#": "＃"})
_IN_CODE = str.maketrans({"`": "'", "|": "¦", "\\": "/"})
_IN_COMMIT = str.maketrans({"[": "(", "]": ")"})
_ISSUE = re.compile(r"\bGH-(?=\d)", re.IGNORECASE)


def plain(text: str, most: int = MOST_TEXT) -> str:
    """A stranger's text on one line, cut, without what mentions somebody or names an issue."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line if len(line) <= most else f"{line[:most]}…"
    return _ISSUE.sub("GH ", line).replace("://", ":/ /").translate(_FULL_WIDTH)


def in_commit(text: str, most: int = MOST_TEXT) -> str:
    """The same for a commit's message, where `[skip ci]` is an order."""
    return plain(text, most).translate(_IN_COMMIT)


def code(text: str, most: int = MOST_TEXT) -> str:
    """The same as code: a forge looks at nothing in it. What would end the code or the cell is shown otherwise."""
    shown = plain(text, most).translate(_IN_CODE)
    return f"`{shown}`" if shown else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown, a line at a time."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def when(before: str, instant: datetime | None) -> str:
    """`before` and an instant; nothing where there is none."""
    return f"{before}{format_instant(instant)}" if instant is not None else ""


def some(words: Sequence[str], most: int) -> str:
    """The first of them, and how many more."""
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")


def fitting(blocks: Iterable[Sequence[str]], most: int) -> Iterator[Sequence[str]]:
    """The first blocks that have `most` characters in all, as a forge counts them (one beyond the first 65,536 is two)."""
    for block in blocks:
        most -= sum(len(line.encode("utf-16-le", "surrogatepass")) // 2 + 1 for line in block)
        if most < 0:
            return
        yield block
