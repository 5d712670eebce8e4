"""Which line of which file of a fleet repo holds a value: the way back from a model to its document. Pure: files are handed in.

Only the document that is asked for is read, by the place where its kind lives; a site whose file is named otherwise is looked for.
Called by `explain`. What a document means is not judged here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from reconciler.repo import reader
from reconciler.repo.documents import place_of
from reconciler.repo.finding import one_line
from reconciler.repo.reader import Data, Spot, Where

Read = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Position:
    """A value's place. `text` is its line, stripped; `exact` is False where only what surrounds it is written."""

    path: str
    line: int
    column: int
    text: str
    exact: bool


class Positions:
    """Places of values in the documents of one tree. `files`: path below the root → its bytes, read when they are needed."""

    def __init__(self, files: Mapping[str, Read]) -> None:
        self._files = files
        self._spots: dict[str, tuple[dict[Where, Spot], list[str]]] = {}
        self._names: dict[tuple[str, str], str | None] = {}

    def where(self, kind: str, name: str, keys: Where) -> Position | None:
        """The place of the value that `keys` lead to, from the top of a document. None: there is no such document."""
        path = self._path(kind, name)
        if path is None:
            return None
        spots, lines = self._read(path)
        spot, exact = reader.nearest(spots, keys)
        line = spot.key_line
        text = lines[line - 1].strip() if line <= len(lines) else ""
        return Position(path, line, spot.key_column, one_line(text), exact)

    def _read(self, path: str) -> tuple[dict[Where, Spot], list[str]]:
        found = self._spots.get(path)
        if found is None:
            data = self._files[path]()
            found = self._spots[path] = (reader.locate(data), data.decode("utf-8", "replace").splitlines())
        return found

    def _path(self, kind: str, name: str) -> str | None:
        """The file of a document. Fleet and Waves have no name to ask for: there is one of each."""
        key = (kind, name)
        if key not in self._names:
            self._names[key] = self._search(kind, name)
        return self._names[key]

    def _search(self, kind: str, name: str) -> str | None:
        alike = [(path, place_of(path)) for path in self._files]
        of_kind = [(path, place.stem) for path, place in alike if place.kind == kind]
        if not name:
            return min((path for path, _ in of_kind), default=None)
        # The file that is named like the document comes first; the name in the document counts.
        for path, _ in sorted(of_kind, key=lambda item: (item[1] != name, item[0])):
            if self._is_named(path, name):
                return path
        return None

    def _is_named(self, path: str, name: str) -> bool:
        try:
            tree = reader.read(self._files[path]())
        except (reader.Refused, OSError):
            return False
        metadata = tree.get("metadata") if isinstance(tree, dict) else None
        return isinstance(metadata, dict) and metadata.get("name") == name


def counterpart(new: bytes, keys: Where, old: bytes) -> Where | None:
    """The way to the same value in an older text of a document; None where it is not there, or is another value.

    Entries of a list are found by their `name`, or by what they are: a wave that was put before others moves none of them.
    """
    try:
        here, there = reader.read(new), reader.read(old)
    except reader.Refused:
        return None
    way: list[str | int] = []
    for key in keys:
        step = _step(here, key, there)
        if step is None:
            return None
        here, there = here[key], there[step]
        way.append(step)
    return tuple(way) if here == there else None


def _step(here: Data, key: str | int, there: Data) -> str | int | None:
    """The key in `there` that stands for `key` in `here`."""
    if isinstance(here, dict) and isinstance(there, dict) and isinstance(key, str):
        return key if key in here and key in there else None
    if isinstance(here, list) and isinstance(there, list) and isinstance(key, int) and key < len(here):
        item = here[key]
        name = item.get("name") if isinstance(item, dict) else None
        if name is None:
            return there.index(item) if item in there else None
        named = (n for n, other in enumerate(there) if isinstance(other, dict) and other.get("name") == name)
        return next(named, None)
    return None


def line_of(data: bytes, keys: Where) -> int:
    """The line of an entry, from 1."""
    return reader.nearest(reader.locate(data), keys)[0].key_line


def lines_by_path(positions: Iterable[Position]) -> dict[str, list[int]]:
    """The lines that are spoken of, by file, ascending: what the history is asked about."""
    out: dict[str, set[int]] = {}
    for position in positions:
        out.setdefault(position.path, set()).add(position.line)
    return {path: sorted(lines) for path, lines in sorted(out.items())}
