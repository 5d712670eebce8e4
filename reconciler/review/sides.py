"""The two sides of a review: the fleet before the merge, and the fleet that the merge makes. Loads each document once.

Decides what "after the merge" is: HEAD as it is where it follows from BASE or goes back before it; where the two went apart,
BASE with what HEAD changed since, as the merge would make it. Reads commits through `Revisions` and folders through
`repo.folder`; writes nothing. Called by `cli.diff`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reconciler.model.desired import Desired
from reconciler.ports import Commit
from reconciler.repo.documents import FOLDERS, place_of
from reconciler.repo.folder import File, Files, folder_entries
from reconciler.repo.load import Entry, LoadResult, load_changed, load_tree
from reconciler.repo.paths import looked_at
from reconciler.repo.problem import InvalidInput, Problem
from reconciler.repo.reader import MAX_BYTES
from reconciler.review.ports import Revisions

Read = Callable[[str], bytes]

MOST_BACK = 20
"""Commits before a BASE that does not load, among which the one in force is looked for."""
NOTHING = ("4b825dc642cb6eb9a060e54bf8d69288fbee4904", "0" * 40)
"""The empty tree, and what a forge sends as "before" of a first push: a first commit is compared with nothing."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side, loaded. `label` is what a person calls it; `files` are its files by path below the fleet folder."""

    label: str
    commit: Commit | None
    desired: Desired
    result: LoadResult
    files: Mapping[str, Entry]
    read: Read


@dataclass(frozen=True, slots=True)
class Sides:
    """Both, and how they stand to each other: `follows`, `back` (HEAD is before BASE), `merged`, `unrelated`, `folders`, `first`.

    `below` is put before the paths of files where they are shown.
    """

    base: Side | None
    head: Side
    relation: str
    below: str

    def shown(self, path: str) -> str:
        """A path below the fleet folder as a person would open it."""
        return f"{self.below}{path}"


def from_revisions(trees: Revisions, base: str, head: str | None, folder: Path) -> Sides:
    """BASE against a commit, or (None) against the work tree at `folder` as it is.

    InvalidInput: documents of either side do not load, or the merge would conflict. TerminalError: no such commit.
    """
    nothing = base in NOTHING
    before = None if nothing else trees.resolve(base)
    after = trees.resolve(head) if head is not None else _tip(trees)
    base_files = _files(trees, before.sha) if before is not None else {}
    head_files: Mapping[str, Entry]
    read: Read
    if head is not None and after is not None:
        head_files = _files(trees, after.sha)
        read = _reader(trees)
        label, shown = _label(head, after), trees.below
    else:
        found = _work_tree(folder)
        head_files, read = {entry.path: entry for entry in found.entries}, found.read
        label, shown = "the work tree", "" if str(folder) == "." else f"{folder}/"
    relation = "first" if before is None else "follows"
    if before is not None and after is not None:
        head_files, read, relation = _after_merge(
            trees, (before, after), head is None, (base_files, head_files), read, shown
        )
    loaded = _in_force(trees, base, before, base_files)
    side = _head(loaded, head_files, read, label, after if head is not None else None, shown)
    return Sides(loaded, side, relation if loaded is not None else "first", shown)


def from_folders(old: Path, new: Path) -> Sides:
    """Two folders, as they are."""
    sides = []
    for folder in (old, new):
        found = _work_tree(folder)
        sides.append(({entry.path: entry for entry in found.entries}, found.read, f"{folder}/"))
    (files, read, shown), (new_files, new_read, new_shown) = sides
    base = _loaded(load_tree(list(files.values()), read), files, read, str(old), None, shown)
    return Sides(base, _head(base, new_files, new_read, str(new), None, new_shown), "folders", new_shown)


# ---------------------------------------------------------------- what a commit and a folder hold


def _tip(trees: Revisions) -> Commit | None:
    """The commit that the work tree stands on, if there is one yet."""
    from reconciler.ports import TerminalError

    try:
        return trees.resolve("HEAD")
    except TerminalError:
        return None


def _is_read(path: str) -> bool:
    """Files that loading looks at. Scenarios are not: they are run by `reconciler test`."""
    if path.startswith(("tests/", ".")) or "/." in path:
        return False
    return place_of(path).kind is not None or looked_at(path) or path in FOLDERS


def _files(trees: Revisions, sha: str) -> dict[str, Entry]:
    return {entry.path: entry for entry in trees.files(sha)}


def _reader(trees: Revisions) -> Read:
    """Blobs by hash, one at a time: for the few that changed."""
    known: dict[str, bytes] = {}

    def read(blob: str) -> bytes:
        if blob not in known:
            known.update(trees.blobs([blob]))
        return known[blob]

    return read


def _work_tree(folder: Path) -> Files:
    """The documents of a folder, and the recipes beside them."""
    found = folder_entries(folder, scenarios=False)
    if found.problems:
        raise InvalidInput(replace(problem, path=_at(folder, problem.path)) for problem in found.problems)
    known = {entry.path for entry in found.entries}
    for place, _, names in os.walk(folder / "images"):
        for name in names:
            path = Path(place) / name
            below = path.relative_to(folder).as_posix()
            if below not in known:
                found.entries.append(_recipe_file(path, below, found.contents))
    return found


def _recipe_file(path: Path, below: str, contents: dict[str, bytes]) -> File:
    """A file of a recipe, as a commit would have it. Its bytes are kept where somebody may look at them."""
    try:
        status = path.lstat()
        link = stat.S_ISLNK(status.st_mode)
        if not link and not stat.S_ISREG(status.st_mode):
            return File(below, "", "other", None)
        data = os.readlink(path).encode() if link else path.read_bytes()
    except OSError as error:
        message = f"cannot be read ({(error.strerror or 'error').lower()}); make it readable"
        raise InvalidInput([Problem(str(path), 1, 1, message, "error", "unreadable")]) from None
    blob = _blob(data)
    if len(data) <= MAX_BYTES:
        contents[blob] = data
    mode = "120000" if link else "100755" if status.st_mode & 0o100 else "100644"
    return File(below, blob, mode, len(data))


def _at(folder: Path, path: str) -> str:
    return path if path == str(folder) else str(folder / path)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _label(name: str, commit: Commit) -> str:
    return name if commit.sha.startswith(name) else f"{name} ({commit.sha[:10]})"


# ---------------------------------------------------------------- what the merge makes of them

_Trees = tuple[Mapping[str, Entry], Mapping[str, Entry]]


def _after_merge(
    trees: Revisions, commits: tuple[Commit, Commit], work_tree: bool, files: _Trees, read: Read, shown: str
) -> tuple[Mapping[str, Entry], Read, str]:
    """The files after the merge, how to read them, and how the two sides stand to each other."""
    before, after = commits
    fork = trees.merge_base(before.sha, after.sha)
    if fork is None:
        return files[1], read, "unrelated"
    if fork == before.sha:
        return files[1], read, "follows"
    if fork == after.sha and not work_tree:
        # Named on purpose: the fleet goes back to an older commit, as `git revert` of what came after it would do.
        return files[1], read, "back"
    if work_tree:
        files = (files[0], _beside(files[1], _files(trees, after.sha)))
    origin = _files(trees, fork)
    out, contents, problems = dict(files[0]), dict[str, bytes](), []
    own = _reader(trees)
    for path in sorted(origin.keys() | files[1].keys()):
        was, ours, theirs = (_same(side.get(path)) for side in (origin, files[0], files[1]))
        if theirs in (was, ours):
            continue
        if ours == was:
            _put(out, path, files[1].get(path))
            continue
        texts = [own(o.blob) if (o := side.get(path)) is not None else None for side in (origin, files[0])]
        entry = files[1].get(path)
        merged = None
        if entry is not None and texts[0] is not None and texts[1] is not None:
            merged = trees.merged(texts[0], texts[1], read(entry.blob))
        if merged is None:
            problems.append(_conflict(path, before))
            continue
        contents[_blob(merged)] = merged
        out[path] = File(path, _blob(merged), "100644", len(merged))
    if problems:
        raise InvalidInput(replace(problem, path=f"{shown}{problem.path}") for problem in problems)

    of_head = {entry.blob for entry in files[1].values()}

    def both(blob: str) -> bytes:
        return contents[blob] if blob in contents else (read if blob in of_head else own)(blob)

    return out, both, "merged"


def _beside(work: Mapping[str, Entry], commit: Mapping[str, Entry]) -> dict[str, Entry]:
    """A work tree's documents, with the commit's own files where the folder was not looked into."""
    out = {path: entry for path, entry in commit.items() if not _is_read(path) and not path.startswith("images/")}
    return {**out, **work}


def _same(entry: Entry | None) -> tuple[str, str] | None:
    return (entry.blob, entry.mode) if entry is not None else None


def _put(out: dict[str, Entry], path: str, entry: Entry | None) -> None:
    if entry is None:
        out.pop(path, None)
    else:
        out[path] = entry


def _conflict(path: str, base: Commit) -> Problem:
    message = (
        f"changed here and in {base.sha[:10]} at the same place, so the merge would conflict; "
        "bring the branch up to date (git merge or git rebase), and resolve it there"
    )
    return Problem(path, 1, 1, message, "error", "conflict")


# ---------------------------------------------------------------- loading


def _in_force(trees: Revisions, name: str, commit: Commit | None, files: Mapping[str, Entry]) -> Side | None:
    """BASE; where it does not load, the last commit before it that does: that one stays in force meanwhile (design §3)."""
    broken: InvalidInput | None = None
    for back in range(MOST_BACK + 1):
        told = f"{name}~{back}" if back else name
        try:
            side = _base(trees, told, commit, files)
        except InvalidInput as error:
            broken = broken or error
            if commit is None or not commit.parents or back == MOST_BACK:
                raise broken from None
            commit = trees.resolve(commit.parents[0])
            files = _files(trees, commit.sha)
            continue
        if broken is None or side is None:
            return side
        return replace(side, label=f"{side.label}, in force since {name} does not load")
    raise AssertionError("unreachable")


def _base(trees: Revisions, name: str, commit: Commit | None, files: Mapping[str, Entry]) -> Side | None:
    """BASE, loaded whole. None where there was no fleet yet."""
    if commit is None or not any(place_of(path).kind is not None for path in files):
        return None
    entries = [entry for path, entry in files.items() if _is_read(path)]
    known = dict(trees.blobs(_documents(entries)))
    late = _reader(trees)

    def read(blob: str) -> bytes:
        return known[blob] if blob in known else late(blob)

    label = _label(name, commit)
    return _loaded(load_tree(entries, read), files, read, label, commit, f"{name}:{trees.below}")


def _documents(entries: Iterable[Entry]) -> list[str]:
    regular = (entry for entry in entries if entry.mode.startswith("100") and (entry.size or 0) <= MAX_BYTES)
    return [entry.blob for entry in regular]


def _head(
    base: Side | None, files: Mapping[str, Entry], read: Read, label: str, commit: Commit | None, shown: str
) -> Side:
    """HEAD: only what differs from BASE is parsed."""

    if base is None:
        entries = [entry for path, entry in files.items() if _is_read(path)]
        return _loaded(load_tree(entries, read), files, read, label, commit, shown)
    of_base = {entry.blob for entry in base.files.values()}

    def both(blob: str) -> bytes:
        return base.read(blob) if blob in of_base else read(blob)

    result = load_changed(base.result, changed_files(base.files, files), both)
    return _loaded(result, files, both, label, commit, shown)


def changed_files(old: Mapping[str, Entry], new: Mapping[str, Entry]) -> dict[str, Entry | None]:
    """Documents that differ: path → the new entry, None where removed."""
    out: dict[str, Entry | None] = {path: None for path in old.keys() - new.keys() if _is_read(path)}
    for path, entry in new.items():
        before = old.get(path)
        if (before is None or before.blob != entry.blob or _kind(before) != _kind(entry)) and _is_read(path):
            out[path] = entry
    return dict(sorted(out.items()))


def _kind(entry: Entry) -> str:
    """Regular files are alike to loading, executable or not."""
    return entry.mode[:3]


def _loaded(
    result: LoadResult, files: Mapping[str, Entry], read: Read, label: str, commit: Commit | None, shown: str
) -> Side:
    if result.desired is None:
        raise InvalidInput(replace(problem, path=f"{shown}{problem.path}") for problem in result.errors)
    desired = replace(result.desired, commit=commit.sha) if commit is not None else result.desired
    return Side(label, commit, desired, result, files, read)


def new_warnings(sides: Sides) -> Sequence[Problem]:
    """Warnings of the head that the base did not have."""
    had: set[Any] = set()
    if sides.base is not None:
        had = {(problem.path, problem.code, problem.message) for problem in sides.base.result.problems}
    return [
        replace(problem, path=sides.shown(problem.path))
        for problem in sides.head.result.problems
        if (problem.path, problem.code, problem.message) not in had
    ]
