"""Reads the plain part of YAML that fleet documents are mostly written in, several times as fast as a whole parser.

A line is looked at once: fleets repeat most of theirs. Whatever is not surely plain (an anchor, a tag, an escape, text
over several lines, a key twice, a tab, what is not ASCII, any doubt about indentation) is left to `reader`, which reads all
of YAML and says what is wrong: None means "not for me", never "empty". What it does return is what `reader` would; a test
holds the two to each other. Pure; called by `reader.read`.
"""

from __future__ import annotations

import re
from typing import Any

Line = tuple[int, str | None, Any]
"""Indentation, key (None: an item of a list), value. `OPEN` as the value: it follows on deeper lines, or there is none."""

OPEN = object()
_SKIPPED: Line = (-1, None, None)
_MOST_LINES = 20_000
_DEEPEST = 12
_NULLS = frozenset(("~", "null", "Null", "NULL"))

_PLAIN = r"[A-Za-z0-9./_][A-Za-z0-9./_@+%~-]*"
_WORD = re.compile(rf"{_PLAIN}(?::[A-Za-z0-9./_@+%~-]+)*")
_QUOTED = re.compile(r"\"([ !#-\[\]-~]*)\"|'([ -&(-~]*)'")
_KEY = r"[A-Za-z][A-Za-z0-9_./-]*"
_ENTRY = re.compile(rf"( *)(?:({_KEY}):(?: +(\S.*?))?|- +(\S.*?)) *")
_COMMA = re.compile(", *")
_COMMENT = re.compile(r" +#")
_QUOTED_WORD = r"\"[A-Za-z0-9./_@+%~: -]*\""
_ITEM = rf"(?:{_PLAIN}|{_QUOTED_WORD})"
_ITEMS = re.compile(rf"\[ *{_ITEM}(?:, *{_ITEM})* *\]")
_PAIRS = re.compile(rf"\{{ *{_KEY}: +{_ITEM}(?:, *{_KEY}: +{_ITEM})* *\}}")
# The same in one look, for most lines: an entry whose value is a word, a list or a mapping.
_USUAL = re.compile(rf"( *)({_KEY}): +(?:({_WORD.pattern})|({_ITEMS.pattern})|({_PAIRS.pattern})) *")
_PAIR = re.compile(rf"({_KEY}): +({_ITEM})")
_known: dict[str, Line] = {}


def quick(data: bytes) -> dict[str, Any] | None:
    """The mapping that `data` holds, or None where only the whole reader can tell."""
    if not data.isascii():
        return None
    root: dict[str, Any] = {}
    # Open containers, outermost first: (indentation of its entries, the container).
    stack: list[tuple[int, Any]] = [(0, root)]
    # The key that waits for what follows it, where it stands, and how far it is indented.
    waiting: str | None = None
    known = _known.get
    for text in data.decode("ascii").split("\n"):
        line = known(text) or _look(text)
        if line is None:
            return None
        indent, key, value = line
        if indent < 0:
            continue
        if waiting is not None:
            above, holder = stack[-1]
            # A list may stand as deep as its key; a mapping stands deeper.
            if indent > above or (indent == above and key is None):
                opened: Any = [] if key is None else {}
                holder[waiting] = opened
                stack.append((indent, opened))
                if len(stack) > _DEEPEST:
                    return None
            waiting = None
        while stack[-1][0] > indent or (key is not None and stack[-1][1].__class__ is list):
            stack.pop()
            if not stack:
                return None
        above, holder = stack[-1]
        if indent != above:
            return None
        if value.__class__ is list or value.__class__ is dict:
            value = value.copy()
        if key is None:
            if holder.__class__ is not list:
                return None
            holder.append(value)
        elif holder.__class__ is not dict or key in holder:
            return None
        elif value is OPEN:
            holder[key] = None
            waiting = key
        else:
            holder[key] = value
    return root or None


def _look(text: str) -> Line | None:
    """One line, remembered; None where it is not plain."""
    if len(_known) >= _MOST_LINES:
        _known.clear()
    line = _parsed(text)
    if line is not None:
        _known[text] = line
    return line


def _parsed(text: str) -> Line | None:
    usual = _USUAL.fullmatch(text)
    if usual is not None:
        spaces, of, word, items, pairs = usual.groups()
        if word is not None:
            return len(spaces), of, None if word in _NULLS else word
        value = _items(items) if items is not None else _pairs(pairs)
        return None if value is OPEN else (len(spaces), of, value)
    bare = text.strip(" ")
    if not bare or (bare[0] == "#" and text.isprintable()):
        return (-2, None, None)
    comment = _COMMENT.search(text)
    if comment is not None:
        if '"' in text or "'" in text or not text.isprintable():
            return None
        text = text[: comment.start()]
    found = _ENTRY.fullmatch(text)
    if found is None:
        return None
    indent, key, of_key, of_item = found.groups()
    written = of_item if key is None else of_key
    if written is None:
        return len(indent), key, OPEN
    value = _value(written)
    if value is OPEN:
        return None
    return len(indent), key, value


def _value(text: str) -> Any:
    """A scalar as written, a flow list or mapping of plain words; OPEN where it is none of these."""
    if _WORD.fullmatch(text):
        return None if text in _NULLS else text
    quoted = _QUOTED.fullmatch(text)
    if quoted is not None:
        return quoted[1] if quoted[1] is not None else quoted[2]
    if _ITEMS.fullmatch(text):
        return _items(text)
    return _pairs(text) if _PAIRS.fullmatch(text) else OPEN


def _items(text: str) -> list[str | None]:
    """A flow list of words, as `_ITEMS` finds it."""
    items = _COMMA.split(text[1:-1].strip(" "))
    return items if '"' not in text and _NULLS.isdisjoint(items) else [_word(item) for item in items]


def _pairs(text: str) -> Any:
    """A flow mapping of words, as `_PAIRS` finds it; OPEN where a key is there twice."""
    pairs = _PAIR.findall(text)
    mapping = {key: _word(value) for key, value in pairs}
    return mapping if len(mapping) == len(pairs) else OPEN


def _word(text: str) -> str | None:
    """An item of a flow list or mapping: no comma can be in it."""
    if text[0] == '"':
        return text[1:-1]
    return None if text in _NULLS else text
