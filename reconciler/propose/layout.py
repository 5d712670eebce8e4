"""Where everything of a YAML document stands: a tree of spans over its text, for edits by position.

Decides nothing about meaning and changes nothing. Reads with the same parser as `repo.reader`, so that an edit never sees
another document than the loader does. Used by `propose.edit` alone. Source: YAML 1.1 as libyaml reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from yaml._yaml import CParser
from yaml.events import (
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

_SURROGATES = re.compile(rb"(?<!\\)((?:\\\\)*)\\u(?:d[89ab][0-9a-f]{2})\\u(?:d[c-f][0-9a-f]{2})", re.IGNORECASE)
_BREAK = re.compile("[\r\n\x85\u2028\u2029]")


@dataclass(slots=True)
class Node:
    """A scalar, a mapping or a list. `start` and `end` count characters of the text; what follows the last one is not in it.

    `style` is a scalar's quote or block sign, None where it is plain. A mapping has its keys in `keys`, with `items` their
    values; a list has `items` alone. `flow` containers are written with brackets.
    """

    kind: str
    start: int
    end: int
    style: str | None = None
    flow: bool = False
    keys: list[Node] = field(default_factory=list)
    items: list[Node] = field(default_factory=list)
    text: str = ""

    @property
    def empty(self) -> bool:
        """Whether this is a value that is not written at all, as in `image:`."""
        return self.kind == "scalar" and self.start == self.end

    def index(self, key: str) -> int | None:
        """The number of a mapping's entry, or None."""
        return next((number for number, node in enumerate(self.keys) if node.text == key), None)

    def span(self, number: int) -> tuple[int, int]:
        """Where an entry begins and ends: key and value of a mapping's, the item of a list's."""
        value = self.items[number]
        if self.kind != "mapping":
            return value.start, value.end
        key = self.keys[number]
        return key.start, max(key.end, value.end)


def layout(data: bytes) -> tuple[str, Node]:
    """The text of a document that `repo.reader.read` accepts, and its tree of spans."""
    text = data.decode("utf-8")
    # Two escapes for one character are what libyaml refuses; any two of the same length will do, positions are all we want.
    plain = _SURROGATES.sub(rb"\1\\u0041\\u0041", data)
    next_event: Callable[[], Any] = CParser(plain).get_event
    return text, _tree(next_event, text)


def _tree(next_event: Callable[[], Any], text: str) -> Node:
    top = Node("sequence", 0, 0)
    stack = [top]
    pending: list[bool] = [False]  # whether the open mapping waits for a value
    while (event := next_event()) is not None:
        kind = event.__class__
        if kind is MappingEndEvent or kind is SequenceEndEvent:
            done = stack.pop()
            pending.pop()
            done.end = event.end_mark.index if done.flow else max((done.end, *(node.end for node in done.items)))
            continue
        if kind is ScalarEvent:
            node = _scalar(event, text)
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            name = "mapping" if kind is MappingStartEvent else "sequence"
            node = Node(name, event.start_mark.index, event.start_mark.index, flow=bool(event.flow_style))
        else:
            continue
        holder = stack[-1]
        if holder.kind == "mapping" and not pending[-1]:
            holder.keys.append(node)
            pending[-1] = True
            continue
        holder.items.append(node)
        pending[-1] = False
        if kind is not ScalarEvent:
            stack.append(node)
            pending.append(False)
    return top.items[0]


def _scalar(event: Any, text: str) -> Node:
    start, end = event.start_mark.index, event.end_mark.index
    style = event.style or None
    if style in ("|", ">"):
        # Its event ends where the next line with something on it begins.
        end = start + len(text[start:end].rstrip())
    return Node("scalar", start, end, style, text=event.value)


def line_start(text: str, at: int) -> int:
    """Where the line that holds `at` begins."""
    while at > 0 and not _BREAK.match(text[at - 1]):
        at -= 1
    return at


def line_end(text: str, at: int) -> int:
    """Where the line that holds `at` ends: at its line break, or at the end of the text."""
    found = _BREAK.search(text, at)
    return found.start() if found else len(text)


def after_break(text: str, at: int) -> int:
    """Behind the line break that stands at `at`, if one does."""
    if text.startswith("\r\n", at):
        return at + 2
    return at + 1 if at < len(text) else at


def line_break(text: str, at: int) -> str:
    """The line break to write beside position `at`: that of its line, or of the text."""
    end = line_end(text, at)
    here = text[end : after_break(text, end)]
    return here if here in ("\r\n", "\r", "\n") else "\r\n" if "\r\n" in text else "\n"
