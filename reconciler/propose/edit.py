"""Edits of one document: bytes in, bytes out, and nothing changes but the lines that must.

Decides where a value goes and how its neighbours have it written: block or brackets, YAML or JSON, quotes, line breaks.
Comments, order, blank lines and alignment of everything else stay, since no other byte is touched. Afterwards the document is
read again: it must hold what was asked and else what it held before, or the edit is refused (`CannotEdit`). Whether the
result is a valid fleet repo is `propose.base`'s to say. Opens no file.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.ports import TerminalError
from reconciler.propose.layout import Node, after_break, layout, line_break, line_end, line_start
from reconciler.propose.scalar import Value, block, text_written, written
from reconciler.repo.reader import Data, Refused, Where, read


class CannotEdit(TerminalError):
    """The document is written in a way in which the change cannot be made without touching more than it."""


@dataclass(frozen=True, slots=True)
class Set:
    """Give the entry at `where` a value. A new key comes after the last of `after` that its mapping has, else at the end."""

    where: Where
    value: Value
    after: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Remove:
    """Take an entry of a mapping away, with the lines that it alone stands on."""

    where: Where


@dataclass(frozen=True, slots=True)
class Append:
    """Put a text at the end of the list at `where`."""

    where: Where
    value: str


Edit = Set | Remove | Append
Splice = tuple[int, int, str]


def edited(data: bytes, *edits: Edit) -> bytes:
    """The document after the edits, in their order. `data` is one that `repo.reader.read` accepts.

    CannotEdit: a place that an edit names is not there, or the change would touch something else.
    """
    wanted = read(data)
    for edit in edits:
        text, root = layout(data)
        data = _spliced(text, _splices(text, root, edit)).encode("utf-8")
        wanted = _applied(wanted, edit)
        try:
            found = read(data)
        except Refused as error:
            raise _cannot((edit,), "it would not be readable any more") from error
        if found != wanted:
            raise _cannot((edit,), "something else would change with it")
    return data


def _cannot(edits: Sequence[Edit], why: str) -> CannotEdit:
    names = ", ".join(".".join(str(part) for part in edit.where) for edit in edits)
    return CannotEdit(
        f"{names} cannot be edited as the document is written: {why}",
        needed_for="a change of the smallest size",
        remedy="write its mapping as `key: value` lines, or make this change by hand",
    )


def _spliced(text: str, splices: Sequence[Splice]) -> str:
    # From the end on, so that places stay true; what is put in at one place keeps its order.
    for _, (start, end, new) in sorted(enumerate(splices), key=lambda item: (item[1][0], item[0]), reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _applied(data: Data, edit: Edit) -> Data:
    """The same edit on plain data: what reading the new text must give."""
    data = copy.deepcopy(data)
    holder = data
    way = edit.where if isinstance(edit, Append) else edit.where[:-1]
    for part in way:
        holder = holder[part]
    if isinstance(edit, Append):
        holder.append(edit.value)
    elif isinstance(edit, Remove):
        del holder[edit.where[-1]]
    else:
        holder[edit.where[-1]] = _plain(edit.value)
    return data


def _plain(value: Value) -> Data:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value if isinstance(value, str) else list(value)


def _splices(text: str, root: Node, edit: Edit) -> list[Splice]:
    try:
        if isinstance(edit, Append):
            return _append(text, _at(root, edit.where), edit.value)
        holder, key = _at(root, edit.where[:-1]), edit.where[-1]
        if holder.kind != "mapping":
            raise KeyError(f"mapping that holds {key}")
        number = holder.index(str(key))
        if isinstance(edit, Remove):
            if number is None:
                raise KeyError(key)
            return _remove(text, holder, number)
        if number is None:
            return _insert(text, holder, str(key), edit.value, edit.after)
        return _replace(text, holder, number, edit.value)
    except (KeyError, IndexError, AttributeError) as error:
        raise _cannot((edit,), f"there is no {error}") from None


def _at(root: Node, where: Where) -> Node:
    node = root
    for part in where:
        number = part if isinstance(part, int) else node.index(part)
        if number is None:
            raise KeyError(part)
        node = node.items[number]
    return node


# ---------------------------------------------------------------- a value in the place of another


def _replace(text: str, holder: Node, number: int, value: Value) -> list[Splice]:
    old, key = holder.items[number], holder.keys[number]
    style = old.style if old.style in ('"', "'") else key.style
    if old.kind == "scalar" and isinstance(value, (str, bool)):
        quoted = old.style in ('"', "'")
        new = written(str(_plain(value)) if quoted else value, flow=holder.flow, style=style)
        return [(old.start, old.end, _spaced(text, old.start, new) if old.empty else new)]
    new = written(value, flow=True, style=style)
    if old.flow or old.kind == "scalar":
        return [(old.start, old.end, _spaced(text, old.start, new) if old.empty else new)]
    # A block below its key: the value goes beside the key, before a comment there, and the block's lines go.
    first, last = line_start(text, old.start), after_break(text, line_end(text, old.end))
    colon = text.index(":", key.end) + 1
    if first <= colon:
        return [(old.start, old.end, new)]
    return [(colon, colon, " " + new), (first, last, "")]


def _spaced(text: str, at: int, new: str) -> str:
    return new if at and text[at - 1].isspace() else " " + new


# ---------------------------------------------------------------- a new entry


def _insert(text: str, holder: Node, key: str, value: Value, after: Sequence[str]) -> list[Splice]:
    if holder.empty:
        raise KeyError(f"mapping in which {key} could stand")
    found = [number for number in map(holder.index, after) if number is not None]
    number = found[-1] if found else len(holder.keys) - 1
    if holder.flow:
        style = holder.keys[0].style if holder.keys else ('"' if text.lstrip().startswith("{") else None)
        gap = text[holder.keys[0].end : holder.items[0].start] if holder.keys else ": "
        gap = gap if gap.strip() == ":" and gap.isprintable() else ": "
        entry = text_written(key, flow=True, style=style) + gap + written(value, flow=True, style=style)
        return _into_brackets(text, holder, number, entry)
    end = line_end(text, holder.span(number)[1])
    eol = line_break(text, holder.start)
    indent = " " * (holder.keys[0].start - line_start(text, holder.keys[0].start))
    step = " " * _step(text, holder)
    return [(end, end, eol + block(key, value, indent, step, eol))]


def _step(text: str, holder: Node) -> int:
    """How far this document indents: as its own nested mappings do, else two spaces."""
    column = holder.keys[0].start - line_start(text, holder.keys[0].start)
    for item in holder.items:
        if item.kind == "mapping" and not item.flow and item.keys:
            return max(1, item.keys[0].start - line_start(text, item.keys[0].start) - column)
    return 2


def _append(text: str, holder: Node, value: str) -> list[Splice]:
    if holder.kind != "sequence":
        raise KeyError("list to add to")
    last = len(holder.items) - 1
    if holder.flow:
        style = holder.items[last].style if holder.items else None
        return _into_brackets(text, holder, last, text_written(value, flow=True, style=style))
    end = line_end(text, holder.span(last)[1])
    indent = " " * (holder.start - line_start(text, holder.start))
    style = holder.items[last].style
    style = style if style in ('"', "'") else None
    return [(end, end, f"{line_break(text, holder.start)}{indent}- {text_written(value, style=style)}")]


def _into_brackets(text: str, holder: Node, number: int, entry: str) -> list[Splice]:
    """A new entry after entry `number` of what stands in brackets: on a line of its own where its neighbours do so."""
    if not holder.items:
        return [(holder.start + 1, holder.start + 1, entry)]
    start, end = holder.span(number)
    first, stop = line_start(text, start), line_end(text, end)
    comma, rest = _comma(text, end)
    own_line = first > holder.start and not text[first:start].strip() and _nothing_follows(text[rest:stop])
    if not own_line:
        wide = comma is None or text[rest : rest + 1].isspace()
        compact = not wide or (len(holder.items) == 1 and ": " not in entry and ":" in entry)
        return [(end, end, ("," if compact else ", ") + entry)]
    new = line_break(text, start) + text[first:start] + entry
    if comma is None:
        return [(end, end, ","), (stop, stop, new)]
    return [(stop, stop, new + ",")]


def _comma(text: str, end: int) -> tuple[int | None, int]:
    """Where the comma behind an entry stands, if one does, and where what follows it begins."""
    at = end
    while at < len(text) and text[at].isspace():
        at += 1
    return (at, at + 1) if text.startswith(",", at) else (None, end)


def _nothing_follows(rest: str) -> bool:
    return not rest.strip() or (rest[:1].isspace() and rest.strip().startswith("#"))


# ---------------------------------------------------------------- an entry less


def _remove(text: str, holder: Node, number: int) -> list[Splice]:
    start, end = holder.span(number)
    first, stop = line_start(text, start), line_end(text, end)
    alone = not text[first:start].strip()
    if not holder.flow:
        if not alone:
            raise KeyError("line of its own for it")
        return [(first, after_break(text, stop), "")]
    last = number == len(holder.items) - 1
    comma, rest = _comma(text, end)
    before: list[Splice] = []
    if last and number and comma is None:
        previous, _ = _comma(text, holder.span(number - 1)[1])
        assert previous is not None
        before = [(previous, previous + 1, "")]
    if alone and first > holder.start and _nothing_follows(text[rest:stop]):
        return [*before, (first, after_break(text, stop), "")]
    if not last:
        return [(start, holder.span(number + 1)[0], "")]
    if number:
        return [(holder.span(number - 1)[1], end, "")]
    return [(start, end if comma is None else rest, "")]


def value_at(data: Data, where: Where) -> Any:
    """The value at a place of what `read` gave, or None."""
    for part in where:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data
