"""Where entries of a valid JSON text stand: a second pass, taken only when something has to be reported.

Decides nothing and builds nothing: it walks the text with one stack, so memory does not grow with the text. Used by
`repo.snapshot`, whose files are far beyond what a fleet document may be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from json.decoder import scanstring as _scanstring  # type: ignore[attr-defined]

from reconciler.repo.reader import Spot, Where, nearest

_SPACE = re.compile(r"[ \t\n\r]*")
_ATOM = re.compile(r"[^\s,\]}]+")
_scan: Callable[[str, int, bool], tuple[str, int]] = _scanstring


@dataclass(slots=True)
class Found:
    """Places of entries, by the way to them."""

    spots: dict[Where, Spot] = field(default_factory=dict)

    def nearest(self, where: Where) -> tuple[Spot, bool]:
        """The place of an entry or of the closest one around it, and whether it is the entry itself."""
        return nearest(self.spots, where)


class Places:
    """A walk over a JSON text that is known to be valid."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._line, self._line_start, self._counted = 1, 0, 0

    def find(self, wanted: Collection[Where]) -> Found:
        """Places of the wanted entries and of all that hold them."""
        prefixes = {where[:length] for where in wanted for length in range(len(where) + 1)}
        found = Found()
        for way, key_at, value_at in self._entries():
            if way in prefixes and way not in found.spots:
                key, value = self._place(key_at), self._place(value_at)
                found.spots[way] = Spot(*key, *value)
                if len(found.spots) == len(prefixes):
                    break
        return found

    def repeated_keys(self, most: int) -> Iterator[tuple[str, int, int]]:
        """Keys that an object has twice, with line and column of the later one; `most` at most."""
        seen: list[set[Where]] = [set()]
        count = 0
        for way, key_at, _ in self._entries():
            del seen[len(way) + 1 :]
            while len(seen) <= len(way):
                seen.append(set())
            if way and isinstance(way[-1], str) and way in seen[len(way)]:
                yield str(way[-1]), *self._place(key_at)
                count += 1
                if count >= most:
                    return
            seen[len(way)].add(way)

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column, from 1. Asked in rising order, so that no line is counted twice."""
        if at < self._counted:
            self._line, self._line_start, self._counted = 1, 0, 0
        lines = self.text.count("\n", self._counted, at)
        if lines:
            self._line += lines
            self._line_start = self.text.rfind("\n", self._counted, at) + 1
        self._counted = at
        return self._line, at - self._line_start + 1

    def _entries(self) -> Iterator[tuple[Where, int, int]]:
        """Every value in the order of the text: the way to it, where its key begins, where it begins."""
        text, at = self.text, 0
        way: list[str | int] = []
        while True:
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
            if at >= len(text):
                return
            sign = text[at]
            if sign in "]}":
                way.pop()
                at += 1
                continue
            if sign == ",":
                if isinstance(way[-1], int):
                    way[-1] += 1
                at += 1
                continue
            key_at = at
            if way and isinstance(way[-1], str):
                key, at = _scan(text, at + 1, True)
                way[-1] = key
                at = _SPACE.match(text, _SPACE.match(text, at).end() + 1).end()  # type: ignore[union-attr]
                sign = text[at]
            yield tuple(way), key_at, at
            if sign in "{[":
                way.append("" if sign == "{" else 0)
                at += 1
            elif sign == '"':
                _, at = _scan(text, at + 1, True)
            else:
                at = _ATOM.match(text, at).end()  # type: ignore[union-attr]
