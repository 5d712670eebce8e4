"""How long GitHub lets a text be, and how a longer one is cut. Pure. Called by `forge_github` and by the command that posts.

Limits: a comment or a pull request's body 65,536 characters, a title 256, a status' description 140; what is longer is
answered with 422 and not taken.
"""

from __future__ import annotations

MAX_BODY = 65_536
MAX_TITLE = 256
MAX_DESCRIPTION = 140
_ROOM = 200
"""Kept free for what closes a text that was cut."""


def one_line(text: str, most: int = MAX_DESCRIPTION) -> str:
    """On one line, `most` characters at most."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if _length(line) <= most else _cut(line, most - 1).rstrip() + "…"


def fit(
    text: str, most: int = MAX_BODY, note: str = "The rest is left out: it is longer than a comment may be."
) -> str:
    """Markdown of `most` characters at most: cut at the end of a line, what stands open is closed, and a note says so."""
    text = text.replace("\r\n", "\n").replace("\x00", "\N{REPLACEMENT CHARACTER}")
    if _length(text) <= most:
        return text
    kept = _cut(text, most - _ROOM - _length(note))
    kept = kept[: kept.rfind("\n") + 1] or kept
    closing = ""
    if fence := _open_fence(kept):
        closing += f"{fence}\n"
    closing += "</details>\n" * min(8, max(0, kept.count("<details") - kept.count("</details>")))
    return f"{kept.rstrip()}\n{closing}\n{note}\n"


def _open_fence(text: str) -> str:
    """The fence of a code block that is not closed, or nothing."""
    fence = ""
    for line in text.splitlines():
        mark = line.lstrip()
        if fence:
            if mark.startswith(fence) and not mark.strip(fence[0]).strip():
                fence = ""
        elif mark.startswith(("```", "~~~")):
            fence = mark[: len(mark) - len(mark.lstrip(mark[0]))]
    return fence[:64]


def _length(text: str) -> int:
    """As GitHub may count: a character beyond the first 65,536 as two."""
    return len(text) + sum(1 for c in text if ord(c) > 0xFFFF)


def _cut(text: str, most: int) -> str:
    used = 0
    for number, c in enumerate(text):
        used += 2 if ord(c) > 0xFFFF else 1
        if used > most:
            return text[:number]
    return text
