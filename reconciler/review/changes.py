"""What a merge changes in the desired state: every field with its old and its new value, and where it stands. Pure.

Compares documents as they were written (`model_dump`), so that a field added to a model is compared without a word here. What a
change means for devices is `review.moves`' to say. Called by `review.make` and `review.asked`. Source: design §3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from pydantic import BaseModel

from reconciler.repo.load import Entry, LoadResult
from reconciler.repo.parse import Parsed
from reconciler.repo.reader import Where, locate, nearest
from reconciler.review.sides import Sides

MOST_LOCATED = 2_000
"""Documents whose lines are looked up; of a change to more of them, the rest is told with the file alone."""
_MOST_VALUE = 300
Value = Any


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `what` is `added`, `removed` or `changed`; `field` is empty for a whole document or wave.

    `kind` is Fleet, Waves, Wave, Image, App, Site or Recipe; `path` and `line` stand in the head, of what is removed in the base.
    """

    kind: str
    subject: str
    what: str
    field: str
    before: str | None
    after: str | None
    path: str
    line: int | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind,
            "name": self.subject,
            "what": self.what,
            "field": self.field or None,
            "from": self.before,
            "to": self.after,
            "file": self.path,
            "line": self.line,
        }

    @property
    def subject_field(self) -> str:
        """What is changed, for people: `wave canary: image`, or `site SITE-2855 added`."""
        kind = self.kind.lower()
        who = kind if self.subject in (kind, "fleet", "waves") else f"{kind} {self.subject}"
        return f"{who}: {self.field}" if self.field else f"{who} {self.what}"

    @property
    def sentence(self) -> str:
        """The same with its values: `wave canary: image v1.4.1 → v1.4.2`."""
        if not self.field:
            return self.subject_field
        if self.kind == "Recipe":
            return f"{self.subject_field} changed"
        of_lists = [
            text for text in (self.before, self.after) if text is not None and text.startswith(("less ", "more "))
        ]
        if of_lists:
            return f"{self.subject_field} {', '.join(of_lists)}"
        return f"{self.subject_field} {self.before or 'none'} → {self.after or 'none'}"


class Half(Protocol):
    """What is compared of a side. Documents that are the same on both sides may be left out of both."""

    @property
    def label(self) -> str: ...
    @property
    def result(self) -> LoadResult: ...
    @property
    def files(self) -> Mapping[str, Entry]: ...
    @property
    def read(self) -> Callable[[str], bytes]: ...


def changes_of(sides: Sides) -> tuple[Change, ...]:
    """Every change, the rollout first, then the fleet, releases, recipes and sites."""
    return changes_between(sides.base, sides.head, sides.below)


def changes_between(base: Half | None, head: Half, below: str = "") -> tuple[Change, ...]:
    """The same of two halves; `below` is put before the paths of files."""
    return tuple(_Comparison(base, head, below).changes())


class _Comparison:
    def __init__(self, base: Half | None, head: Half, below: str) -> None:
        self.base, self.head, self.below = base, head, below
        self.located = 0
        self._places = lru_cache(maxsize=64)(self._spots)

    def changes(self) -> Iterator[Change]:
        yield from self._waves()
        yield from self._documents("Fleet")
        yield from self._documents("Image")
        yield from self._recipes()
        yield from self._documents("App")
        yield from self._documents("Site")

    def _parsed(self, side: Half | None, kind: str) -> Mapping[str, Parsed]:
        return {} if side is None else _by_name(side.result, kind)

    def _documents(self, kind: str) -> Iterator[Change]:
        """Documents of a kind, by name: a file that moved and says the same is no change."""
        before, after = self._parsed(self.base, kind), self._parsed(self.head, kind)
        single = kind in ("Fleet", "Waves")
        for name in sorted(before.keys() | after.keys()):
            old, new = before.get(name), after.get(name)
            subject = "fleet" if single else name
            if old is not None and new is not None:
                if old is not new and old.blob != new.blob:
                    yield from self._fields(kind, subject, (old, new), (old.spec, new.spec), ("spec",))
            elif new is not None:
                yield self._whole(kind, subject, "added", new)
            elif old is not None:
                yield self._whole(kind, subject, "removed", old)

    def _whole(self, kind: str, subject: str, what: str, document: Parsed, where: Where = ()) -> Change:
        side = self.head if what == "added" else self.base
        path, line = self._place(side, document, where)
        return Change(kind, subject, what, "", None, None, path, line)

    def _waves(self) -> Iterator[Change]:
        """Waves by name; `order` and the waves' own order are the rollout's."""
        old_document = next(iter(self._parsed(self.base, "Waves").values()), None)
        new_document = next(iter(self._parsed(self.head, "Waves").values()), None)
        if new_document is None:
            # Left out of both halves: it is the same.
            return
        if old_document is None:
            for number, wave in enumerate(new_document.spec.waves):
                yield self._whole("Wave", wave.name, "added", new_document, ("spec", "waves", number))
            return
        if old_document.blob == new_document.blob:
            return
        both = (old_document, new_document)
        old, new = (document.spec for document in both)
        before = {wave.name: (number, wave) for number, wave in enumerate(old.waves)}
        after = {wave.name: (number, wave) for number, wave in enumerate(new.waves)}
        for name, (number, wave) in after.items():
            if name not in before:
                yield self._whole("Wave", name, "added", new_document, ("spec", "waves", number))
            else:
                yield from self._fields("Wave", name, both, (before[name][1], wave), ("spec", "waves", number))
        for name, (number, _) in before.items():
            if name not in after:
                yield self._whole("Wave", name, "removed", old_document, ("spec", "waves", number))
        if old.order != new.order:
            yield self._change("Waves", "waves", both, "order", (old.order, new.order), ("spec", "order"))
        kept = [[name for name in names if name in before and name in after] for names in (before, after)]
        if kept[0] != kept[1]:
            yield self._change(
                "Waves", "waves", both, "waves", (" → ".join(kept[0]), " → ".join(kept[1])), ("spec", "waves")
            )

    def _fields(
        self,
        kind: str,
        subject: str,
        documents: tuple[Parsed, Parsed],
        specs: tuple[BaseModel, BaseModel],
        where: Where,
    ) -> Iterator[Change]:
        """The fields that differ, one level down where a field is a mapping with free keys."""
        old, new = (spec.model_dump(mode="json", by_alias=True) for spec in specs)
        for key in new:
            for path, before, after in _unlike((key,), old.get(key), new.get(key)):
                yield self._change(kind, subject, documents, ".".join(path), (before, after), (*where, *path))

    def _change(
        self,
        kind: str,
        subject: str,
        documents: tuple[Parsed, Parsed],
        field: str,
        values: tuple[Value, Value],
        where: Where,
    ) -> Change:
        path, line = self._place(self.head, documents[1], where)
        return Change(kind, subject, "changed", field, *_told(*values), path, line)

    def _place(self, side: Half | None, document: Parsed, where: Where) -> tuple[str, int | None]:
        shown = f"{self.below}{document.path}"
        if side is None:
            return shown, None
        spots = self._places(side.label, side is self.head, document.path, document.blob)
        return shown, nearest(spots, where)[0].line if spots is not None else None

    def _spots(self, label: str, head: bool, path: str, blob: str) -> Any:
        del label, path
        if self.located >= MOST_LOCATED:
            return None
        self.located += 1
        side = self.head if head else self.base
        return locate(side.read(blob)) if side is not None else None

    def _recipes(self) -> Iterator[Change]:
        """Recipes of releases that are not published yet, or might be built: what is in them goes into the image."""
        base = self.base
        if base is None:
            return
        old, new = base.files, self.head.files
        differ = [
            path
            for path in sorted(old.keys() | new.keys())
            if path.count("/") > 1 and path.startswith("images/") and _blob(old, path) != _blob(new, path)
        ]
        folders: dict[str, list[str]] = {}
        for path in differ:
            folders.setdefault("/".join(path.split("/")[:2]), []).append(path)
        for folder, paths in folders.items():
            names = ", ".join(path.removeprefix(f"{folder}/") for path in paths[:5])
            more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
            yield Change("Recipe", folder, "changed", f"{names}{more}", None, None, f"{self.below}{paths[0]}", 1)


def _blob(files: Mapping[str, Any], path: str) -> tuple[str, str] | None:
    entry = files.get(path)
    return (entry.blob, entry.mode) if entry is not None else None


def _by_name(result: LoadResult, kind: str) -> dict[str, Parsed]:
    documents = result.state.fleet.documents[kind]
    if kind in ("Fleet", "Waves"):
        return dict.fromkeys((kind,), document) if (document := result.state.fleet.single(kind)) is not None else {}
    return {document.name: document for document in documents.values()}


def _unlike(path: tuple[str, ...], before: Value, after: Value) -> Iterator[tuple[tuple[str, ...], Value, Value]]:
    """Places at which two values differ. A window, a pin or a tunnel is one thing; a list is one thing."""
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict) and path[-1] in _FREE:
        for key in sorted(before.keys() | after.keys()):
            yield from _unlike((*path, key), before.get(key), after.get(key))
    else:
        yield path, before, after


_FREE = frozenset({"packages", "apps", "releases", "labels", "base", "rollback"})


def _told(before: Value, after: Value) -> tuple[str | None, str | None]:
    """Two values as text. Of two long lists, what only one of them holds."""
    if isinstance(before, list) and isinstance(after, list) and len(before) + len(after) > 8:
        gone = [item for item in before if item not in after]
        come = [item for item in after if item not in before]
        if gone or come:
            return (f"less {text_of(gone)}" if gone else None), (f"more {text_of(come)}" if come else None)
    return text_of(before), text_of(after)


def text_of(value: Value) -> str | None:
    """A value as a person would write it; None for none."""
    if value is None or isinstance(value, str):
        text = value
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, dict) and value.keys() == {"start", "end"}:
        text = f"{value['start']}–{value['end']}"
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        text = ", ".join(value) if value else "none"
    else:
        text = json.dumps(value, ensure_ascii=False)
    if text is not None and len(text) > _MOST_VALUE:
        return f"{text[:_MOST_VALUE]}… ({len(text)} characters)"
    return text


def of_kind(changes: Iterable[Change], *kinds: str) -> list[Change]:
    """The changes of some kinds, in order."""
    return [change for change in changes if change.kind in kinds]
