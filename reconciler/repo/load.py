"""A fleet repo's files → `Desired`, or every problem in it. Loading executes nothing that the repo holds, and follows no link.

Decides which files are documents, parses each blob once, has the documents checked together, and joins them. Three ways in:
`load_folder` for a work tree, `load_tree` for a commit, `load_changed` for the commit after one that is loaded: it looks at
nothing but what changed. Called by the command line and by the controller. Source: design §3.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from reconciler.model.desired import Desired
from reconciler.repo.check import Fleet, check_fleet
from reconciler.repo.documents import KINDS, NEEDED, place_of
from reconciler.repo.finding import Finding, placed
from reconciler.repo.parse import Parsed, parse
from reconciler.repo.paths import looked_at, path_fault, peek, shown
from reconciler.repo.problem import Problem
from reconciler.repo.reader import MAX_BYTES
from reconciler.repo.site_index import SiteIndex

if TYPE_CHECKING:
    from reconciler.repo.folder import Files

_MANY = 2_000
Blob = Callable[[str], bytes]


class Entry(Protocol):
    """A file of a tree: `ports.TreeEntry`, or anything like it."""

    @property
    def path(self) -> str: ...
    @property
    def blob(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def size(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class State:
    """Everything read so far: what `load_changed` starts from. Never changed once made."""

    fleet: Fleet
    strays: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    troubled: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)


def _nothing() -> State:
    return State(Fleet({kind: {} for kind in KINDS}, SiteIndex()))


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What was loaded. `desired` is None when any problem is an error. `scenarios` are the valid Scenario documents."""

    desired: Desired | None
    problems: tuple[Problem, ...]
    scenarios: tuple[Parsed, ...]
    state: State = field(default_factory=_nothing, repr=False, compare=False)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that are errors."""
        return tuple(problem for problem in self.problems if problem.severity == "error")


class LoadCache:
    """Parsed documents by path and blob, so that a blob is parsed once. Keeps what the last two loads used."""

    def __init__(self) -> None:
        self._now: dict[tuple[str, str], Parsed] = {}
        self._before: dict[tuple[str, str], Parsed] = {}

    def turn(self) -> None:
        """A new load begins: what the load before the last used is forgotten."""
        self._before, self._now = self._now, {}

    def learn(self, documents: Iterable[Parsed]) -> None:
        """Documents that are parsed already, for the load that begins next."""
        self._now.update(((document.path, document.blob), document) for document in documents)

    def parsed(self, path: str, blob: str, read: Blob) -> Parsed:
        """The document of a blob at a path, parsed if it never was."""
        key = (path, blob)
        found = self._now.get(key) or self._before.get(key)
        if found is None:
            found = parse(path, blob, read(blob))
        self._now[key] = found
        return found


def load_tree(entries: Sequence[Entry], blob: Blob, cache: LoadCache | None = None) -> LoadResult:
    """Load a commit's tree. `blob` gives the bytes of a blob by hash; paths in problems are the tree's own.

    Raises what `blob` raises; every fault of the input is a problem in the result.
    """
    if cache is not None:
        cache.turn()
    return _judged(_advanced(_nothing(), {entry.path: entry for entry in entries}, blob, cache), blob)


def load_changed(previous: LoadResult, changed: Mapping[str, Entry | None], blob: Blob) -> LoadResult:
    """Load the tree that follows from `previous` by `changed` (None: removed). Costs what changed; same result as `load_tree`."""
    return _judged(_advanced(previous.state, changed, blob, None), blob)


def load_folder(root: Path | str, *, scenarios: bool = True) -> LoadResult:
    """Load a fleet repo's work tree. Paths in problems are `root` as given and the file below it.

    `scenarios=False` leaves tests/ unread, for callers that only plan.
    """
    # All that is made here stays until the end: looking through it for garbage would be a tenth of the time.
    collected = gc.isenabled()
    gc.disable()
    try:
        return _folder_loaded(root, scenarios)
    finally:
        if collected:
            gc.enable()


def _folder_loaded(root: Path | str, scenarios: bool) -> LoadResult:
    from reconciler.repo.folder import folder_entries

    root = Path(root)
    found = folder_entries(root, scenarios=scenarios)
    if found.problems and not found.entries:
        return LoadResult(None, tuple(found.problems), ())
    result = load_tree(found.entries, found.read, _read_ahead(found))
    if found.problems:
        result = replace(result, problems=tuple(sorted((*result.problems, *found.problems))))
    named = tuple(replace(problem, path=str(root / problem.path)) for problem in result.problems)
    valid = all(problem.severity == "warning" for problem in named)
    return replace(result, problems=named, desired=result.desired if valid else None)


def _read_ahead(found: Files) -> LoadCache | None:
    """The documents of a large folder, parsed by several processes; None where one is as fast."""
    if len(found.entries) < _MANY:
        return None
    from reconciler.repo.divided import Task, parse_divided, processes

    sites = [e for e in found.entries if place_of(e.path).kind == "Site" and not _strays(e, "Site", found.read)]
    number = processes(len(sites))
    if number == 1:
        return None
    cache = LoadCache()
    cache.learn(parse_divided([Task(e.path, e.blob, found.contents[e.blob]) for e in sites], number))
    return cache


def _advanced(state: State, changed: Mapping[str, Entry | None], blob: Blob, cache: LoadCache | None) -> State:
    """The state after some files changed. Copies the dictionaries of the kinds that did, and nothing deeper."""
    documents: dict[str, dict[str, Parsed]] = {}
    strays, troubled = dict(state.strays), dict(state.troubled)
    old_sites: list[Parsed] = []
    new_sites: list[Parsed] = []
    for path, entry in changed.items():
        kind = place_of(path).kind
        strays.pop(path, None)
        if kind is None and (entry is None or not looked_at(path)):
            continue
        before: Parsed | None = None
        if kind is not None:
            troubled.pop(path, None)
            before = state.fleet.documents[kind].get(path)
            if kind not in documents:
                documents[kind] = dict(state.fleet.documents[kind])
            documents[kind].pop(path, None)
            if before is not None and kind == "Site":
                old_sites.append(before)
        if entry is None:
            continue
        problems = _strays(entry, kind, blob)
        if problems:
            strays[path] = problems
        elif kind is not None:
            parsed = cache.parsed(path, entry.blob, blob) if cache else parse(path, entry.blob, blob(entry.blob))
            documents[kind][path] = parsed
            if parsed.problems:
                troubled[path] = parsed.problems
            if kind == "Site":
                new_sites.append(parsed)
    every = {**state.fleet.documents, **documents}
    sites = state.fleet.sites
    if old_sites or new_sites:
        sites = sites.changed(old_sites, new_sites, every["Site"])
    return State(Fleet(every, sites), strays, troubled)


def _strays(entry: Entry, kind: str | None, blob: Blob) -> tuple[Problem, ...]:
    """Problems of a path before its bytes count: links, odd names, too large; documents where none is read."""
    fault = path_fault(entry.path, entry.mode, kind)
    if fault is not None:
        return (Problem(shown(entry.path), 1, 1, fault, "error", "path"),)
    if entry.size is not None and entry.size > MAX_BYTES and kind is not None:
        message = f"the file has {entry.size} bytes, more than {MAX_BYTES}; split it, or move bulk elsewhere"
        return (Problem(shown(entry.path), 1, 1, message, "error", "size"),)
    if kind is None and entry.mode.startswith("100") and (entry.size is None or entry.size <= MAX_BYTES):
        misplaced = peek(entry.path, lambda: blob(entry.blob))
        if misplaced is not None:
            return (Problem(shown(entry.path), 1, 1, misplaced, "warning", "misplaced"),)
    return ()


def _judged(state: State, blob: Blob) -> LoadResult:
    """Check the documents together, find the places of what was found, and join what is valid."""
    problems: list[Problem] = [p for several in state.strays.values() for p in several]
    problems += [p for several in state.troubled.values() for p in several]
    found: dict[str, list[Finding]] = {}
    for path, finding in check_fleet(state.fleet):
        found.setdefault(path, []).append(finding)
    by_path = {path: document for kind in state.fleet.documents.values() for path, document in _some(kind, found)}
    for path, findings in found.items():
        document = by_path.get(path)
        problems += placed(path, blob(document.blob) if document is not None else b"", findings)
    ordered = tuple(sorted(problems))
    scenarios = tuple(d for _, d in sorted(state.fleet.documents["Scenario"].items()) if d.spec is not None)
    if any(problem.severity == "error" for problem in ordered):
        return LoadResult(None, ordered, scenarios, state)
    return LoadResult(_joined(state.fleet), ordered, scenarios, state)


def _some(documents: Mapping[str, Parsed], paths: Iterable[str]) -> Iterator[tuple[str, Parsed]]:
    return ((path, documents[path]) for path in paths if path in documents)


def _joined(fleet: Fleet) -> Desired:
    single: dict[str, Any] = {}
    for kind in NEEDED:
        document = fleet.single(kind)
        assert document is not None, f"{kind} is missing and nobody said so"
        single[kind] = document.spec
    return Desired(
        fleet=single["Fleet"],
        waves=single["Waves"],
        images={name: document.spec for name, document in fleet.by_name("Image").items()},
        apps={name: document.spec for name, document in fleet.by_name("App").items()},
        sites=fleet.sites.specs,
    )


def with_config(desired: Desired, secret_versions: Mapping[str, str]) -> Desired:
    """`desired` with the digest of every site's rendered configuration, over the given versions of the secrets."""
    from reconciler.repo.render import config_digests

    return replace(desired, config=config_digests(desired.sites, desired.fleet, secret_versions))
