"""A review for a terminal: the summary, then the details as plain tables. Pure; called by `cli.diff`.

What strangers wrote cannot steer the terminal: characters that do not print are shown escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reconciler.repo.finding import one_line
from reconciler.review.make import Review
from reconciler.review.sections import Section, sections
from reconciler.review.summary import summary

MOST_ROWS = 20
MOST_DIFFS = 5
MOST_DIFF_LINES = 60
_WIDEST = 60


def as_text(review: Review) -> str:
    """The whole text, ending in a newline."""
    first, *rest = summary(review)
    lines = [one_line(first), *(f"  {one_line(line)}" for line in rest)]
    for section in sections(review):
        lines += ["", section.title, *_section(section)]
    return "\n".join(lines) + "\n"


def _section(section: Section) -> Iterator[str]:
    rows = [[one_line(cell) for cell in row] for row in section.rows[:MOST_ROWS]]
    if rows:
        yield from _table([list(section.header), *rows])
    yield from _left(len(section.rows) - len(rows), "rows")
    yield from (f"  {one_line(note)}" for note in section.notes[:MOST_ROWS])
    yield from _left(len(section.notes) - MOST_ROWS, "lines")
    for title, diff in section.diffs[:MOST_DIFFS]:
        yield f"  {one_line(title)}"
        lines = diff.splitlines()
        yield from (f"    {one_line(line)}" for line in lines[:MOST_DIFF_LINES])
        yield from _left(len(lines) - MOST_DIFF_LINES, "lines of this diff")
    yield from _left(len(section.diffs) - MOST_DIFFS, "groups")


def _left(number: int, what: str) -> Iterator[str]:
    if number > 0:
        yield f"  … {number:,} more {what} (--output json has all)"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns padded to their widest cell; the last is not padded, and a very wide one pushes no other."""
    widths = [max(min(len(row[at]), _WIDEST) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  " + "  ".join([*cells, row[-1]]).rstrip()
