"""A review as the comment of a pull request: the summary first, the details folded, never more than a forge takes. Pure.

Everything that a stranger may have written (branch, author, reason, key, path, value) is escaped: no mention, no reference, no
link, no HTML and no table comes out of it, and nothing that does not print. What does not fit is left out with its count.
Called by `cli.diff`; posted by the workflow. Source: GitHub Flavored Markdown; a comment's limit is 65,536 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from reconciler.repo.finding import one_line
from reconciler.review.make import Review
from reconciler.review.sections import Section, sections
from reconciler.review.summary import summary

MOST_CHARACTERS = 60_000
_BUDGETS = ((200, 20, 200), (60, 8, 80), (20, 4, 40), (5, 1, 20), (2, 0, 0))
"""Rows of a table, diffs, lines of a diff: the first with which everything fits is taken."""
_MOST_CELL = 300
_MOST_LINE = 600
_SPECIAL = re.compile(r"([\\`*_{}\[\]|~$])")
_AT_START = re.compile(r"^([-+#=]|\d+(?=[.)]))")
"""What makes a heading, a list or a rule, where a line begins with it; anywhere else it is text."""
_BREAK = "\u200b"
_LINKS = (
    (re.compile(r"@(?=\w)"), f"@{_BREAK}"),
    (re.compile(r"#(?=\w)"), f"#{_BREAK}"),
    (re.compile(r"://"), f":{_BREAK}//"),
    (re.compile(r"\bwww\."), f"www{_BREAK}."),
    (re.compile(r"\bGH-(?=\d)", re.IGNORECASE), f"GH{_BREAK}-"),
)
"""What a forge makes links and mentions of, broken by a space of no width: it looks at the text after Markdown is undone."""


def as_markdown(review: Review) -> str:
    """The comment, below `MOST_CHARACTERS`, ending in a newline."""
    first, *rest = summary(review)
    head = [f"**{prose(first)}**", "", *(f"- {prose(line)}" for line in rest)]
    found = sections(review)
    for rows, diffs, lines in _BUDGETS:
        text = "\n".join([*head, *(line for section in found for line in _section(section, rows, diffs, lines))]) + "\n"
        if len(text) <= MOST_CHARACTERS:
            return text
    note = f"- {len(found)} parts of the details are left out; `reconciler diff --output json` has them"
    return "\n".join([*head, note])[:MOST_CHARACTERS] + "\n"


def prose(text: str) -> str:
    """Text that shows as it was written, and does nothing."""
    text = one_line(text)
    if len(text) > _MOST_LINE:
        text = f"{text[:_MOST_LINE]}…"
    for pattern, broken in _LINKS:
        text = pattern.sub(broken, text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _SPECIAL.sub(r"\\\1", text)
    return _AT_START.sub(lambda found: found[1] + "\\" if found[1].isdigit() else "\\" + found[1], text)


def code(text: str) -> str:
    """A word as code: nothing in it is looked at by a forge. A bar would end a table's cell, so it is shown broken."""
    text = one_line(text).replace("|", "¦").strip()
    if not text:
        return ""
    if len(text) > _MOST_CELL:
        text = f"{text[:_MOST_CELL]}… ({len(text)} characters)"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _section(section: Section, most_rows: int, most_diffs: int, most_lines: int) -> Iterator[str]:
    total = len(section.rows) or len(section.diffs) or len(section.notes)
    yield from ("", f"<details><summary>{section.title} ({total:,})</summary>", "")
    if section.rows:
        yield "| " + " | ".join(section.header) + " |"
        yield "|" + " --- |" * len(section.header)
        for row in section.rows[:most_rows]:
            yield "| " + " | ".join(_cell(cell) for cell in row) + " |"
        yield ""
    yield from _left(len(section.rows) - most_rows, "rows")
    yield from (f"- {prose(note)}" for note in section.notes[:most_rows])
    yield from _left(len(section.notes) - most_rows, "lines")
    for title, diff in section.diffs[:most_diffs]:
        yield from ("", prose(title), "", *fenced(diff.splitlines(), most_lines))
    yield from _left(len(section.diffs) - most_diffs, "groups")
    yield from ("", "</details>")


def _cell(text: str) -> str:
    """Numbers and dashes as they are, sentences as prose, the rest as code."""
    if re.fullmatch(r"[0-9,.]+|–", text):
        return text
    return prose(text).replace("\\|", "¦") if " " in text else code(text)


def fenced(lines: Sequence[str], most: int = 200) -> Iterator[str]:
    """A diff as a block of code that nothing in it can end."""
    shown = [one_line(line)[:_MOST_LINE] for line in lines[:most]]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (f"{fence}diff", *shown, fence)
    yield from _left(len(lines) - most, "lines of this diff")


def _left(number: int, what: str) -> Iterator[str]:
    if number > 0:
        yield f"- … {number:,} more {what} are left out; `reconciler diff --output json` has all"
