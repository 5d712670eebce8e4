"""A disk under power cuts: what a recorded run has changed, what of it is certain to last, and what may be left of the rest.

A model of what POSIX promises, and no more: data lasts once its file was synced, a name once its folder was. Everything else may
be there or not, each sector of a write and each change of a name by itself, in any order. A file system keeps more order than
that (a journal's), and a disk may have a cache that a sync empties: whatever survives this survives them. A sector of 512 bytes
is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

SECTOR = 512


@dataclass(slots=True)
class Write:
    """Bytes of a file. `data` None: the file gets `at` as its size."""

    at: int
    data: bytes | None

    def to(self, content: bytearray) -> None:
        if self.data is None:
            resize(content, self.at)
        else:
            resize(content, max(len(content), self.at))
            content[self.at : self.at + len(self.data)] = self.data

    def cuts(self) -> range:
        """Offsets in `data` at which a sector ends and another begins."""
        size = len(self.data or b"")
        return range(SECTOR - self.at % SECTOR, size, SECTOR)

    def pieces(self) -> Iterator[Write]:
        """Its sectors."""
        if self.data is None:
            yield self
            return
        ends = [0, *self.cuts(), len(self.data)]
        for begin, end in pairwise(ends):
            yield Write(self.at + begin, self.data[begin:end])


def resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


@dataclass(eq=False, slots=True)
class File:
    """`now` is what programs read, `kept` what is certain to last, `pending` what leads from the one to the other."""

    number: int
    now: bytearray = field(default_factory=bytearray)
    kept: bytearray = field(default_factory=bytearray)
    pending: list[Write] = field(default_factory=list)
    version: int = 0
    kept_version: int = 0

    def do(self, write: Write) -> None:
        write.to(self.now)
        self.version += 1
        self.pending.append(write)

    def keep(self, count: int) -> None:
        """The first `count` pending writes last from now on."""
        for write in self.pending[:count]:
            write.to(self.kept)
        del self.pending[:count]
        self.kept_version += 1


@dataclass(eq=False, slots=True)
class Link:
    target: str


@dataclass(eq=False, slots=True)
class Folder:
    number: int
    now: dict[str, Node] = field(default_factory=dict)
    kept: dict[str, Node] = field(default_factory=dict)


Node = File | Link | Folder


@dataclass(slots=True)
class Naming:
    """A change of names that happens as one: (folder, name, what it names from then on, or None), and what a name that
    goes must name to go."""

    edits: tuple[tuple[Folder, str, Node | None], ...]
    moved: Node | None = None

    def to(self, names: Callable[[Folder], dict[str, Node]]) -> None:
        for folder, name, node in self.edits:
            if node is not None:
                names(folder)[name] = node
            elif self.moved is None or names(folder).get(name) is self.moved:
                names(folder).pop(name, None)


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a file in a state. `key` tells contents apart; None: looked at, it has to be read."""

    key: object
    load: Callable[[], bytes]


@dataclass(slots=True)
class State:
    """What a power cut may leave: content by path, target by link's path, and folders. Valid until the disk changes."""

    files: dict[str, Content] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)

    def data(self, path: str) -> bytes | None:
        """The content of a file; links of the last component are followed. None: it is not there."""
        for _ in range(8):
            place, rest = path, ""
            while place and place not in self.links:
                place, _, last = place.rpartition("/")
                rest = f"/{last}{rest}"
            if not place:
                break
            path = os.path.normpath(f"{os.path.dirname(place)}/{self.links[place]}{rest}")
        found = self.files.get(path)
        return found.load() if found else None

    def write_to(self, root: Path) -> None:
        """Have this state below `root`, which does not exist yet."""
        root.mkdir(parents=True)
        for name in self.folders:
            (root / name).mkdir()
        for name, content in self.files.items():
            (root / name).write_bytes(content.load())
        for name, target in self.links.items():
            (root / name).symlink_to(target)


class Disk:
    """The files below a root, with what is pending. Paths are relative to it, "" being the root."""

    def __init__(self, root: Path) -> None:
        """All that is below `root` now lasts."""
        self._count = 0
        self.root = self._taken(root)
        self.pending: list[Naming] = []

    def _number(self) -> int:
        self._count += 1
        return self._count

    def _taken(self, path: Path) -> Folder:
        folder = self.new_folder()
        for entry in sorted(path.iterdir()):
            if entry.is_symlink():
                node: Node = Link(os.readlink(entry))
            elif entry.is_dir():
                node = self._taken(entry)
            else:
                data = entry.read_bytes()
                node = File(self._number(), bytearray(data), bytearray(data))
            folder.now[entry.name] = folder.kept[entry.name] = node
        return folder

    def new_file(self) -> File:
        return File(self._number())

    def new_folder(self) -> Folder:
        return Folder(self._number())

    def find(self, path: str) -> Node | None:
        """What a path names now; a link itself at its end, and what links lead to before it."""
        node: Node | None = self.root
        parts = [part for part in path.split("/") if part]
        for at, part in enumerate(parts):
            if isinstance(node, Link):
                before = "/".join(parts[: at - 1])
                node = self.find(os.path.normpath(f"{before}/{node.target}".lstrip("/")))
            node = node.now.get(part) if isinstance(node, Folder) else None
        return node

    def folder(self, path: str) -> tuple[Folder, str]:
        """The folder that holds a name, and the name."""
        parent, _, name = path.rpartition("/")
        found = self.find(parent)
        if isinstance(found, Link):
            found = self.find(os.path.normpath(f"{os.path.dirname(parent)}/{found.target}".lstrip("/")))
        if not isinstance(found, Folder):
            raise ValueError(f"{path} is in no folder that is known")
        return found, name

    # ------------------------------------------------------------ changes

    def name(self, naming: Naming) -> None:
        naming.to(lambda folder: folder.now)
        self.pending.append(naming)

    def touching(self, folder: Folder) -> list[Naming]:
        return [naming for naming in self.pending if any(edit[0] is folder for edit in naming.edits)]

    def keep_names(self, namings: list[Naming]) -> None:
        """These changes of names last from now on."""
        for naming in [naming for naming in self.pending if any(naming is one for one in namings)]:
            naming.to(lambda folder: folder.kept)
            self.pending.remove(naming)

    def keep_all(self) -> None:
        """As after an unmount."""
        for file in self._files(self.root, set()):
            file.keep(len(file.pending))
        self.keep_names(list(self.pending))

    def _files(self, folder: Folder, seen: set[int]) -> Iterator[File]:
        for node in [*folder.now.values(), *folder.kept.values()]:
            if isinstance(node, Link) or node.number in seen:
                continue
            seen.add(node.number)
            if isinstance(node, File):
                yield node
            else:
                yield from self._files(node, seen)

    # ------------------------------------------------------------ states

    def everything(self, instead: Mapping[int, Content] | None = None) -> State:
        """All that was done is on the disk; `instead` has other content for files by number."""
        given = instead or {}
        return self._state(lambda folder: folder.now, lambda file: given.get(file.number) or _now(file))

    def only_synced(self) -> State:
        """Nothing is on the disk that was not synced."""
        return self._state(lambda folder: folder.kept, _kept)

    def some(self, seed: str, share: float) -> State:
        """What was synced, and of everything else about a share."""
        chance = Random(seed)
        names: dict[int, dict[str, Node]] = {}

        def names_of(folder: Folder) -> dict[str, Node]:
            return names.setdefault(folder.number, dict(folder.kept))

        for naming in self.pending:
            if chance.random() < share:
                naming.to(names_of)
        return self._state(names_of, lambda file: _some(file, seed, share))

    def torn(self, file: File, write: Write, done: Collection[int]) -> State:
        """Everything before a write that is not done yet, and of it the sectors with these numbers."""

        def load() -> bytes:
            content = bytearray(file.now)
            for number, piece in enumerate(write.pieces()):
                if number in done:
                    piece.to(content)
            return bytes(content)

        return self.everything({file.number: Content(None, load)})

    def _state(self, names: Callable[[Folder], dict[str, Node]], content: Callable[[File], Content]) -> State:
        state = State()

        def walk(folder: Folder, path: str) -> None:
            for name, node in names(folder).items():
                place = f"{path}{name}"
                if isinstance(node, File):
                    state.files[place] = content(node)
                elif isinstance(node, Link):
                    state.links[place] = node.target
                else:
                    state.folders.append(place)
                    walk(node, f"{place}/")

        walk(self.root, "")
        return state


def _now(file: File) -> Content:
    return Content((file.number, file.version), lambda: bytes(file.now))


def _kept(file: File) -> Content:
    if not file.pending:
        return _now(file)
    return Content((file.number, "kept", file.kept_version), lambda: bytes(file.kept))


def _some(file: File, seed: str, share: float) -> Content:
    if not file.pending:
        return _now(file)

    def load() -> bytes:
        content, chance = bytearray(file.kept), Random(f"{seed} {file.number}")
        for write in file.pending:
            for piece in write.pieces():
                if chance.random() < share:
                    piece.to(content)
        return bytes(content)

    return Content(None, load)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
