"""The fleet repo that a change starts from, the change, and the judgement of both together.

Decides whether a change may be written at all: the whole fleet repo is loaded as it would be afterwards, and any error in it
is an error of the change, with its place. Files come from a commit or from a work tree; nothing here opens or writes one.
Called by the command line and by whoever else proposes a change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.model.desired import AppSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.ports import TerminalError
from reconciler.repo.documents import home_of
from reconciler.repo.folder import File
from reconciler.repo.load import Blob, Entry, LoadResult, load_changed, load_tree
from reconciler.repo.parse import Parsed
from reconciler.repo.problem import InvalidInput, Problem
from reconciler.repo.reader import Data, read


class Declined(TerminalError):
    """What was asked for would do nothing, or would not do what it says. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Move:
    """One value that a change moves: what it is, and what stood and will stand there (None: nothing)."""

    what: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        return f"{self.what}: {self.old or 'not pinned'} → {self.new or 'not pinned'}"


@dataclass(frozen=True, slots=True)
class Change:
    """Files of the fleet repo with their new bytes (None: removed), paths below its folder.

    `title` is the commit's first line, `says` what a reader of the commit must know, a sentence each, `moves` the values that it
    moves (a pull request shows them as a table), `hints` what only who asked for it may want to do, `branch` the branch it is
    proposed on. `modes` are git modes where they change too. `dated`: the same wish makes other bytes on another day, so that a
    branch with the same files is taken for this proposal whatever they hold.
    """

    title: str
    branch: str
    files: Mapping[str, bytes | None]
    says: tuple[str, ...] = ()
    body: str = ""
    hints: tuple[str, ...] = ()
    modes: Mapping[str, str] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()
    dated: bool = False

    @property
    def told(self) -> tuple[str, ...]:
        """`says` and `moves`, a line each."""
        return (*self.says, *map(str, self.moves))


class Base:
    """A fleet repo as it stands: its files, and what they say. Broken documents count for nothing, and are not hidden.

    `where` stands before paths in problems: the folder as the user named it.
    """

    def __init__(self, entries: Sequence[Entry], blob: Blob, where: str = "") -> None:
        self.entries: Mapping[str, Entry] = {entry.path: entry for entry in entries}
        self._blob, self.where = blob, where
        self.loaded: LoadResult = load_tree(entries, blob)

    def must_be_fleet(self) -> None:
        """Declined: neither of the two documents that every fleet repo has is there, so this is the wrong folder."""
        if not any(path.partition(".")[0] in ("fleet", "waves") for path in self.entries):
            raise Declined(
                f"{self.where or 'this folder'} is no fleet repo: it has no fleet.yaml and no waves.yaml",
                remedy="name the fleet repo's folder with --fleet",
            )

    def read(self, path: str) -> bytes:
        """The bytes of a file."""
        return self._blob(self.entries[path].blob)

    def data(self, path: str) -> Data:
        """A document as plain data. InvalidInput: it cannot be read."""
        return read(self.read(path))

    def _named(self, kind: str) -> dict[str, Parsed]:
        return self.loaded.state.fleet.by_name(kind)

    def must_be_sound(self, kind: str, name: str) -> None:
        """InvalidInput: there is a document of this kind and name, and it is broken."""
        document = self._named(kind).get(name)
        if document is not None and document.spec is None:
            raise InvalidInput(self.shown([one for one in document.problems if one.severity == "error"]))

    def path(self, kind: str, name: str) -> str:
        """The file of the document of this kind and name."""
        return self._named(kind)[name].path

    def single(self, kind: str) -> tuple[str, Any]:
        """Path and spec of the one Fleet or Waves document. InvalidInput: it is missing or broken."""
        document = self.loaded.state.fleet.single(kind)
        if document is None or document.spec is None:
            raise InvalidInput(self.shown(self.loaded.errors))
        return document.path, document.spec

    @property
    def waves(self) -> WavesSpec:
        """The rollout."""
        spec: WavesSpec = self.single("Waves")[1]
        return spec

    def images(self) -> dict[str, ImageSpec]:
        """Releases of the image whose documents are sound, lowest path first."""
        return {name: parsed.spec for name, parsed in self._named("Image").items() if parsed.spec is not None}

    def apps(self) -> dict[str, AppSpec]:
        """Apps whose documents are sound."""
        return {name: parsed.spec for name, parsed in self._named("App").items() if parsed.spec is not None}

    def sites(self) -> dict[str, SiteSpec]:
        """Sites whose documents are sound."""
        return {name: parsed.spec for name, parsed in self._named("Site").items() if parsed.spec is not None}

    def site(self, name: str) -> Parsed | None:
        """One site's document."""
        return self._named("Site").get(name)

    def shown(self, problems: Sequence[Problem]) -> list[Problem]:
        """Problems with their paths as the user knows them."""
        return [replace(problem, path=self.where + problem.path) for problem in problems]

    def warnings_after(self, change: Change) -> list[Problem]:
        """Warnings that the change brings. InvalidInput: the fleet repo would not be valid with it; every error is named."""
        blobs: dict[str, bytes] = {}
        changed: dict[str, Entry | None] = {}
        for path, data in change.files.items():
            if data is None:
                changed[path] = None
                continue
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            blobs[blob] = data
            old = self.entries.get(path)
            changed[path] = File(path, blob, change.modes.get(path, old.mode if old else "100644"), len(data))
        after = load_changed(self.loaded, changed, _first(blobs, self._blob))
        if after.errors:
            raise InvalidInput(self.shown(after.errors))
        before = {(problem.path, problem.message) for problem in self.loaded.problems}
        return self.shown([problem for problem in after.problems if (problem.path, problem.message) not in before])


def _first(blobs: Mapping[str, bytes], others: Callable[[str], bytes]) -> Callable[[str], bytes]:
    return lambda name: blobs[name] if name in blobs else others(name)


def new_path(base: Base, kind: str, name: str) -> str:
    """Where a new document goes: in the folder of its kind, named as most of its neighbours are. Declined: it is taken."""
    neighbours = sorted(path for path in base.entries if path.startswith(home_of(kind)) and path.count("/") == 1)
    suffix = ".yml" if neighbours and all(path.endswith(".yml") for path in neighbours) else ".yaml"
    path = f"{home_of(kind)}{name}{suffix}"
    if path in base.entries:
        raise Declined(f"{path} is there already", remedy="edit that file, or choose another name")
    return path


def listed(lines: Sequence[str], most: int = 5) -> str:
    """A list in a sentence, cut where it is long."""
    shown = ", ".join(lines[:most])
    return f"{shown} and {len(lines) - most} more" if len(lines) > most else shown
