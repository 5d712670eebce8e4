"""Columns over all site documents, kept up to date by what changed: what cross-file checks ask about a million sites.

Decides nothing; answers who claims a name or a device, which sites are lab or idle, and which windows exist. Updating copies
flat dictionaries and touches only changed documents, so a reload costs the change and not the fleet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from reconciler.model.desired import SiteSpec, Window
from reconciler.repo.parse import Parsed

Shape = tuple[str, int | None, int | None]
"""A time zone and a window of its own (minutes; None: the fleet's)."""


@dataclass(slots=True)
class Claims:
    """Who claims a word: nearly always one file; those claimed by several are in `several`."""

    one: dict[str, str] = field(default_factory=dict)
    several: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def copy(self) -> Claims:
        """A copy that can be changed without changing this."""
        return Claims(dict(self.one), dict(self.several))

    def add(self, word: str, path: str) -> None:
        """`path` claims `word`."""
        first = self.one.setdefault(word, path)
        if first != path:
            paths = tuple(sorted({*self.several.get(word, (first,)), path}))
            self.several[word] = paths
            self.one[word] = paths[0]

    def drop(self, word: str, path: str) -> None:
        """`path` claims `word` no more."""
        if word in self.several:
            left = tuple(other for other in self.several[word] if other != path)
            self.one[word] = left[0]
            if len(left) > 1:
                self.several[word] = left
            else:
                del self.several[word]
        elif self.one.get(word) == path:
            del self.one[word]


@dataclass(slots=True)
class SiteIndex:
    """See the module. Treat as frozen once built: `changed` makes the next one."""

    names: Claims = field(default_factory=Claims)
    devices: Claims = field(default_factory=Claims)
    specs: dict[str, SiteSpec] = field(default_factory=dict)
    lab: set[str] = field(default_factory=set)
    idle: dict[str, str] = field(default_factory=dict)
    pins: dict[str, str] = field(default_factory=dict)
    shapes: dict[Shape, int] = field(default_factory=dict)

    def changed(self, before: Iterable[Parsed], after: Iterable[Parsed], documents: Mapping[str, Parsed]) -> SiteIndex:
        """The index after `before` were replaced by `after`; `documents` are all Site documents by path, after the change."""
        new = SiteIndex(
            self.names.copy(),
            self.devices.copy(),
            dict(self.specs),
            set(self.lab),
            dict(self.idle),
            dict(self.pins),
            dict(self.shapes),
        )
        touched: dict[str, None] = {}
        for document in before:
            new._take_out(document)
            touched[document.name] = None
        for document in after:
            new._put_in(document)
            touched[document.name] = None
        for name in touched:
            new._settle(name, documents)
        return new

    def _take_out(self, document: Parsed) -> None:
        self.pins.pop(document.path, None)
        self.names.drop(document.name, document.path)
        spec = document.spec
        if spec is None:
            return
        for device in spec.devices:
            self.devices.drop(device, document.path)
        shape = shape_of(spec)
        self.shapes[shape] -= 1
        if not self.shapes[shape]:
            del self.shapes[shape]

    def _put_in(self, document: Parsed) -> None:
        path, spec = document.path, document.spec
        self.names.add(document.name, path)
        if spec is None:
            return
        for device in spec.devices:
            self.devices.add(device, path)
        shape = shape_of(spec)
        self.shapes[shape] = self.shapes.get(shape, 0) + 1
        if spec.pin is not None:
            self.pins[path] = spec.pin.image

    def _settle(self, name: str, documents: Mapping[str, Parsed]) -> None:
        """Facts of a site name, from the file that now claims it."""
        self.specs.pop(name, None)
        self.idle.pop(name, None)
        self.lab.discard(name)
        path = self.names.one.get(name)
        spec = documents[path].spec if path is not None else None
        if spec is None:
            return
        self.specs[name] = spec
        if spec.lab:
            self.lab.add(name)
        if spec.suspended:
            self.idle[name] = "suspended"
        elif spec.pin is not None and set(spec.pin.devices or spec.devices) >= set(spec.devices):
            self.idle[name] = "pinned"


def shape_of(spec: SiteSpec) -> Shape:
    """The zone and window that decide when a site's nights are."""
    window: Window | None = spec.window
    return (spec.timezone, None, None) if window is None else (spec.timezone, window.start, window.end)
