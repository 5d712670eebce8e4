"""YAML bytes → plain Python data, safely and at libyaml's speed; and, on request, where each key and value stands.

Decides what is acceptable as YAML at all (contract and design §3): one document, no anchors, aliases, tags, merge keys or
duplicate keys, bounded size and depth, plain UTF-8. Scalars stay text exactly as written (`02:00`, `v1.10`, `NO`); only a
plain empty value, `~` or `null` is None, and quotes keep those apart as text. What the data means is for others to say.

Works on libyaml's events in one loop: nothing recurses, so a bomb of brackets ends at the depth limit. Positions are found
in a second pass, and only where a problem is reported: 100,000 good files never pay for them. Opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from yaml._yaml import CParser
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from reconciler.repo.quick import quick

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_FAULTS = 500

Data = Any
"""What a document holds: dict (text keys), list, str, or None."""

Where = tuple[str | int, ...]
"""The way to a value: keys and list positions from the top."""

_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
_BOM_16 = (b"\xff\xfe", b"\xfe\xff")
_SURROGATES = re.compile(rb"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why bytes are refused as YAML, and where. Lines and columns count from 1."""

    line: int
    column: int
    message: str
    code: str = "yaml"


@dataclass(frozen=True, slots=True)
class Spot:
    """Where an entry stands: its key (a list item's own place, for want of a key) and its value."""

    key_line: int
    key_column: int
    line: int
    column: int


class Refused(Exception):
    """The bytes are no document that we read. Holds every fault found."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("; ".join(fault.message for fault in faults))


def read(data: bytes, *, max_bytes: int = MAX_BYTES) -> Data:
    """The data of the one document in `data`. Raises `Refused`, never anything else, whatever the bytes are."""
    _check_bytes(data, max_bytes)
    plain = quick(data)
    return plain if plain is not None else read_whole(data)


def read_whole(data: bytes) -> Data:
    """The same by the whole parser, which reads all of YAML. `data` is known to be text of a bearable size."""
    faults: list[Fault] = []
    try:
        value = _build(CParser(_join_surrogates(data)).get_event, faults)
    except yaml.YAMLError as error:
        raise Refused(*faults, _syntax(error, data)) from None
    if faults:
        raise Refused(*faults)
    return value


def _check_bytes(data: bytes, max_bytes: int) -> None:
    """Size and encoding. libyaml would guess at UTF-16; we do not."""
    if len(data) > max_bytes:
        raise Refused(
            Fault(
                1, 1, f"the file has {len(data)} bytes, more than {max_bytes}; split it, or move bulk elsewhere", "size"
            )
        )
    if data.startswith(_BOM_16):
        raise Refused(Fault(1, 1, "the file begins with a UTF-16 byte order mark; save it as UTF-8", "encoding"))
    if data.isascii():
        return
    if data.startswith(b"\xef\xbb\xbf"):
        raise Refused(Fault(1, 1, "the file begins with a byte order mark; save it as UTF-8 without BOM", "encoding"))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _place(data[: error.start].decode("utf-8"))
        wrong = data[error.start]
        raise Refused(
            Fault(line, column, f"byte 0x{wrong:02x} is not UTF-8; save the file as UTF-8", "encoding")
        ) from None
    found = _CONTROL.search(text)
    if found:
        raise Refused(_control(text, found))


def _control(text: str, found: re.Match[str]) -> Fault:
    line, column = _place(text[: found.start()])
    return Fault(line, column, f"control character U+{ord(found.group()):04X} in the file; remove it", "encoding")


def _place(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what follows `before`."""
    lines = re.split("\r\n|[\n\r\x85\u2028\u2029]", before)
    return len(lines), len(lines[-1]) + 1


def _join_surrogates(data: bytes) -> bytes:
    """JSON writes characters beyond U+FFFF as two escapes, which libyaml refuses; it reads the one long escape."""
    if b"\\ud" not in data and b"\\uD" not in data:
        return data

    def long(found: re.Match[bytes]) -> bytes:
        high, low = int(found.group(2), 16), int(found.group(3), 16)
        return found.group(1) + b"\\U%08x" % (0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))

    return _SURROGATES.sub(long, data)


def _at(event: Any, message: str, code: str = "yaml") -> Fault:
    mark = event.start_mark
    return Fault(mark.line + 1, mark.column + 1, message, code)


def _build(next_event: Callable[[], Any], faults: list[Fault]) -> Data:  # noqa: PLR0915 - one loop, for speed
    """The loop. `holder` is the open container; a mapping's pending key waits in `key`."""
    stack: list[tuple[Any, str | None]] = []
    root: list[Data] = []
    holder: Any = root
    key: str | None = None
    in_mapping = False
    while len(faults) < MAX_FAULTS:
        event = next_event()
        kind = event.__class__
        if kind is ScalarEvent:
            value = event.value
            if event.tag is not None or event.anchor is not None:
                _unwanted(event, faults)
            if in_mapping and key is None:
                key = _key(event, value, holder, faults)
                continue
            if not event.style and value in _NULLS:
                value = None
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            holder, key = stack.pop()
            in_mapping = holder.__class__ is dict
            continue
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            value = {} if kind is MappingStartEvent else []
            if event.tag is not None or event.anchor is not None:
                _unwanted(event, faults)
            if len(stack) >= MAX_DEPTH:
                raise Refused(*faults, _at(event, f"nested more than {MAX_DEPTH} deep; flatten it", "depth"))
            if in_mapping and key is None:
                raise Refused(*faults, _at(event, "a key is a mapping or a list; write text as the key", "key"))
        elif kind is AliasEvent:
            name = event.anchor
            faults.append(_at(event, f"alias *{name}: aliases are not allowed; write the value out", "alias"))
            if in_mapping and key is None:
                key = f"*{name}"
                continue
            value = None
        elif kind is StreamEndEvent or event is None:
            break
        else:
            if kind is DocumentStartEvent:
                _document(event, root, faults)
            continue
        if in_mapping:
            holder.setdefault(key, value)
            key = None
        else:
            holder.append(value)
        if kind is not ScalarEvent and kind is not AliasEvent:
            stack.append((holder, key))
            holder, key, in_mapping = value, None, kind is MappingStartEvent
    if not root and not faults:
        raise Refused(*faults, Fault(1, 1, "the file is empty; write a document, or remove the file", "empty"))
    return root[0] if root else None


def _document(event: Any, root: list[Data], faults: list[Fault]) -> None:
    if root:
        raise Refused(*faults, _at(event, "a second document begins here; write one document a file", "documents"))
    if event.tags:
        faults.append(_at(event, "%TAG directive: tags are not allowed; remove it", "tag"))


def _unwanted(event: Any, faults: list[Fault]) -> None:
    """Anchors and tags: harmless alone, but what they are for is not."""
    if event.anchor is not None:
        faults.append(_at(event, f"anchor &{event.anchor}: anchors are not allowed; write each value out", "anchor"))
    if event.tag is not None:
        faults.append(_at(event, f"tag {event.tag}: tags are not allowed; write the plain value", "tag"))


def _key(event: Any, value: str, holder: dict[str, Data], faults: list[Fault]) -> str:
    if value in holder:
        faults.append(_at(event, f"key {clip(value)} is written twice in one mapping; keep one", "duplicate-key"))
    elif value == "<<" and not event.style:
        faults.append(_at(event, "merge key <<: not allowed; write the keys out", "merge"))
    elif not value:
        faults.append(_at(event, "a key is empty; write its name before the ':'", "key"))
    return value


def clip(value: str, most: int = 80) -> str:
    """A value as a message shows it: quoted, escaped, and cut where it is long."""
    return repr(value) if len(value) <= most else f"{value[:most]!r}… ({len(value)} characters)"


_PLAIN_WORDS: tuple[tuple[str, str], ...] = (
    (
        "mapping values are not allowed",
        "a ':' where no key can stand; indent the keys of one mapping alike, and quote text that holds ': '",
    ),
    ("block sequence entries are not allowed", "a '-' where no list can begin; put the list on lines of its own"),
    (
        "cannot start any token",
        "a tab, or one of @ ` %, begins here; indent with spaces, and quote text that begins with such a character",
    ),
    ("could not find expected ':'", "a line that is no `key: value`; add the ':' and a space, or fix the indentation"),
    (
        "did not find expected key",
        "the indentation does not fit the lines above, or quotes are not closed; align the keys",
    ),
    (
        "did not find expected '-'",
        "a line that is no item of the list above; begin it with '- ', or fix the indentation",
    ),
    ("did not find expected ',' or ']'", "a list opened by '[' is not closed; add ']' or the missing ','"),
    ("did not find expected ',' or '}'", "a mapping opened by '{' is not closed; add '}' or the missing ','"),
    ("found unexpected end of stream", "quotes are opened and never closed; close them"),
    (
        "unknown escape character",
        "an unknown escape after '\\' in double quotes; double the '\\', or use single quotes",
    ),
    ("did not find expected <document start>", "text follows the end of the document; write one document a file"),
    ("did not find expected node content", "a value is missing here; write it, or close the bracket"),
    ("undefined tag handle", "tags are not allowed; write the plain value, quoted if it begins with '!'"),
    ("duplicate %", "a directive is written twice; remove directives"),
    ("tab character", "a tab in the indentation; indent with spaces"),
)

_UNCLOSED = ("found unexpected end of stream", "did not find expected ',' or", "could not find expected ':'")
"""Told where it began: the place at which libyaml gives up can be the end of the file."""


def _syntax(error: yaml.YAMLError, data: bytes) -> Fault:
    """libyaml's complaint in plain words, at its place."""
    if isinstance(error, yaml.reader.ReaderError):
        text = data.decode("utf-8", "replace")
        found = _CONTROL.search(text)
        return _control(text, found) if found else Fault(1, 1, f"not readable: {error.reason}", "encoding")
    mark: Any = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or error)
    words = next((ours for theirs, ours in _PLAIN_WORDS if theirs in problem), f"{problem}; fix the syntax")
    if any(sign in problem for sign in _UNCLOSED) and getattr(error, "context_mark", None) is not None:
        mark = error.context_mark  # type: ignore[attr-defined]
    if mark is not None and "expected node content" in problem and not data.decode("utf-8")[mark.index :].strip():
        mark, words = _last_opened(data), "a bracket is opened here and never closed; close it"
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    return Fault(line, column, f"not valid YAML: {words}", "syntax")


def _last_opened(data: bytes) -> Any:
    """The mark of the innermost list or mapping that is still open where the text breaks off."""
    marks: list[Any] = []
    next_event: Callable[[], Any] = CParser(_join_surrogates(data)).get_event
    try:
        while (event := next_event()) is not None:
            if event.__class__ in (MappingStartEvent, SequenceStartEvent):
                marks.append(event.start_mark)
            elif event.__class__ in (MappingEndEvent, SequenceEndEvent):
                marks.pop()
    except yaml.YAMLError:
        pass
    return marks[-1] if marks else None


def locate(data: bytes) -> dict[Where, Spot]:
    """Where every entry of a document that `read` accepts stands; of bytes that it refuses, what came before."""
    spots: dict[Where, Spot] = {}
    next_event: Callable[[], Any] = CParser(_join_surrogates(data)).get_event
    way: list[str | int] = []
    mappings: list[bool] = []
    key_mark: Any = None
    depth = 0
    try:
        while (event := next_event()) is not None:
            kind = event.__class__
            if kind is MappingEndEvent or kind is SequenceEndEvent:
                mappings.pop()
                depth -= 1
            elif kind is ScalarEvent or kind is MappingStartEvent or kind is SequenceStartEvent:
                mark = event.start_mark
                if mappings and mappings[-1] and key_mark is None:
                    if kind is not ScalarEvent:
                        break
                    way[depth - 1 :] = [event.value]
                    key_mark = mark
                    continue
                if mappings and not mappings[-1]:
                    last = way[depth - 1] if len(way) >= depth else -1
                    way[depth - 1 :] = [last + 1 if isinstance(last, int) else 0]
                empty = kind is ScalarEvent and not event.value and not event.style
                key_at = key_mark if key_mark is not None else mark
                at = key_at if empty else mark
                spot = Spot(key_at.line + 1, key_at.column + 1, at.line + 1, at.column + 1)
                spots.setdefault(tuple(way[:depth]), spot)
                key_mark = None
                if kind is not ScalarEvent:
                    if depth > MAX_DEPTH:
                        break
                    mappings.append(kind is MappingStartEvent)
                    depth += 1
                    way[depth - 1 :] = []
    except yaml.YAMLError:
        return spots  # the file changed under us, or is refused anyway: the nearest known place will do
    return spots


def nearest(spots: dict[Where, Spot], where: Where) -> tuple[Spot, bool]:
    """The spot of an entry, or of the closest entry around it; and whether it is the entry itself."""
    for length in range(len(where), -1, -1):
        spot = spots.get(where[:length])
        if spot is not None:
            return spot, length == len(where)
    return Spot(1, 1, 1, 1), False
