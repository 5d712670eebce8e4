"""Which lines of the fleet repo an explanation speaks of, and which commits wrote them. Reads files and git; decides nothing.

Called by `explain`. One call of git a file, and only for lines that are shown with their author. Where git does not tell, the
explanation stays whole, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from reconciler.model.history import LineOrigin
from reconciler.planner.explain_values import Ask, Asked
from reconciler.ports import LineHistory, TerminalError, TransientError
from reconciler.repo.positions import Position, Positions, counterpart, line_of, lines_by_path
from reconciler.repo.reader import Where

_ALONE = re.compile(r"(?:- )?[A-Za-z]+: [^\s,{}\[\]#]+")
"""A line that holds one value and nothing else: who wrote the line set the value."""
Read = Callable[[], bytes]
MOST_STEPS = 24
"""Commits that are gone back over in one explanation; after that, who last touched the line is named."""
MOST_FILES = 8
"""Files whose history is asked for. An explanation of one name speaks of fewer; more would make it slow."""


@dataclass(frozen=True, slots=True)
class Repo:
    """A fleet repo's files and their history. `shown` is put before paths; `absent` says why there is no history."""

    files: Mapping[str, Read]
    history: LineHistory | None = None
    shown: str = ""
    absent: str | None = None


@dataclass(slots=True)
class Found:
    """What was found of the asks, and (`note`) why authors are missing."""

    places: dict[Ask, Asked] = field(default_factory=dict)
    note: str | None = None


def folder_repo(folder: Path, *, history: bool) -> Repo:
    """A fleet folder, with its history where it is in a git work tree."""
    from reconciler.adapters.git_blame import GitBlame, work_tree_of

    files = {name: partial((folder / name).read_bytes) for name in _documents(folder)}
    shown = "" if str(folder) == "." else f"{str(folder).rstrip('/')}/"
    if not history:
        return Repo(files, None, shown)
    if work_tree_of(folder) is None:
        return Repo(files, None, shown, f"{folder} is in no git work tree")
    return Repo(files, GitBlame(folder.absolute()), shown)


def mirror_repo(config: Path, commit: str, *, history: bool) -> Repo:
    """The controller's own mirror, at the commit in force."""
    from reconciler.adapters.git_blame import GitBlame
    from reconciler.controller.bootstrap import make_clock, make_git
    from reconciler.controller.settings import load_settings

    settings = load_settings(config)
    git = make_git(settings, make_clock(settings)[0].now)
    files = {entry.path: partial(git.blob, entry.blob) for entry in git.files(commit)}
    if not history:
        return Repo(files)
    state = settings.state.absolute() / "git"
    return Repo(files, GitBlame(state, state / "mirror.git", commit, settings.git.timeout))


def _documents(folder: Path) -> list[str]:
    """Files below a folder that are documents by their place."""
    from reconciler.repo.documents import FOLDERS, place_of

    found = []
    for below in ("", *FOLDERS):
        try:
            names = sorted(
                entry.name for entry in (folder / below).iterdir() if entry.is_file() and not entry.is_symlink()
            )
        except OSError:
            continue
        paths = [f"{below}/{name}" if below else name for name in names]
        found += [path for path in paths if place_of(path).kind is not None]
    return found


def find(repo: Repo, asks: Iterable[Ask], authored: Iterable[Ask]) -> Found:
    """Places of all `asks`, and the commits behind those that are also in `authored`."""
    positions = Positions(repo.files)
    at: dict[Ask, Position] = {}
    for ask in dict.fromkeys(asks):
        place = positions.where(ask.kind, ask.name, ask.where)
        if place is not None:
            at[ask] = place
    wanted = {ask: at[ask] for ask in authored if ask in at and at[ask].exact}
    found = Found({}, repo.absent if wanted else None)
    origins: dict[Ask, LineOrigin] = {}
    if repo.history is not None and wanted:
        try:
            origins, found.note = _origins(repo.files, repo.history, wanted)
        except (TerminalError, TransientError) as error:
            found.note = str(error)
    for ask, place in at.items():
        found.places[ask] = _asked(repo, place, origins.get(ask))
    return found


def _origins(
    files: Mapping[str, Read], history: LineHistory, wanted: Mapping[Ask, Position]
) -> tuple[dict[Ask, LineOrigin], str | None]:
    """The commit that set each value: one call a file, and more only for lines that hold more than the value."""
    lines = lines_by_path(wanted.values())
    asked = list(lines)[:MOST_FILES]
    by_line = {path: history.lines(path, lines[path]) for path in asked}
    out: dict[Ask, LineOrigin] = {}
    left = MOST_STEPS
    for ask, place in wanted.items():
        origin = by_line.get(place.path, {}).get(place.line)
        if origin is not None and not _ALONE.fullmatch(place.text):
            origin, left = _walked(history, origin, files[place.path](), ask.where, left)
        if origin is not None:
            out[ask] = origin
    rest = len(lines) - len(asked)
    return out, f"the history of {rest} more files was not asked for" if rest > 0 else None


def _walked(history: LineHistory, origin: LineOrigin, data: bytes, keys: Where, left: int) -> tuple[LineOrigin, int]:
    """Go back over commits that changed the line and not the value. `left` bounds the steps of all walks together."""
    while origin.before is not None and left > 0:
        left -= 1
        older = history.text(origin.before)
        way = counterpart(data, keys, older)
        if way is None:
            break
        line = line_of(older, way)
        origin = history.lines(origin.before, [line])[line]
        data, keys = older, way
    return origin, left


def _asked(repo: Repo, place: Position, origin: LineOrigin | None) -> Asked:
    note = None
    if origin is not None and origin.sha is None:
        note = "not committed yet"
    elif origin is not None and origin.oldest:
        note = "or by an older commit: the history here is cut off"
    return Asked(
        f"{repo.shown}{place.path}",
        place.line,
        place.text,
        place.exact,
        origin.sha if origin else None,
        origin.author if origin else None,
        origin.at if origin else None,
        origin.summary if origin else None,
        note,
    )
