"""What the pages of releases say, from the documents that the API gives of them: in the order a person reads, sizes in words. Pure.

Called by `pages_releases`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.controller.board import Board

_UNITS = ("B", "kB", "MB", "GB", "TB")
_MOST_COMPARED = 12


@dataclass(frozen=True, slots=True)
class Line:
    """A release in a list. `devices` run it; `waves` ask for it; `proven` and `failed` are waves with a verdict that counts."""

    release: str
    version: str
    state: str | None
    size: str | None
    digest: str | None
    devices: int
    waves: tuple[str, ...]
    proven: tuple[str, ...]
    failed: tuple[str, ...]
    withdrawn: str | None
    named: bool
    before: str | None
    """The release before it of which there is an artifact: what it is compared with. None: there is none, or it is an app's."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The page of all releases: the image's, and each app's, the newest first."""

    images: tuple[Line, ...]
    apps: Mapping[str, tuple[Line, ...]]


def listed_of(documents: Sequence[Mapping[str, Any]]) -> Listed:
    """The page from `releases` of `GET /v1/releases`."""
    lines = [line_of(one, documents) for one in documents]
    apps: dict[str, list[Line]] = {}
    for one, line in zip(documents, lines, strict=True):
        if one["app"] is not None:
            apps.setdefault(one["app"], []).append(line)
    images = tuple(line for one, line in zip(documents, lines, strict=True) if one["app"] is None)
    return Listed(images, {app: tuple(several) for app, several in apps.items()})


def line_of(one: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]) -> Line:
    """A release among all of them."""
    older = None
    if one["app"] is None and _built(one):
        names = [other["release"] for other in documents if _built(other)]
        older = next(iter(names[names.index(one["release"]) + 1 :]), None)
    withdrawn = one["withdrawn"]
    return Line(
        release=one["release"],
        version=one["release"].partition("@")[2] or one["release"],
        state=one["state"],
        size=None if one["size"] is None else size(one["size"]),
        digest=one["digest"],
        devices=one["devices"],
        waves=tuple(one["waves"]),
        proven=tuple(one["proofs"]),
        failed=tuple(one["failures"]),
        withdrawn=str(withdrawn) if withdrawn else None,
        named=one["named"],
        before=older,
    )


def compared_with(release: str, documents: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Other releases of the image that a release can be compared with, the newest first."""
    mine = next((one for one in documents if one["release"] == release), None)
    if mine is None or not _built(mine):
        return ()
    return tuple(one["release"] for one in documents if _built(one) and one["release"] != release)[:_MOST_COMPARED]


def _built(one: Mapping[str, Any]) -> bool:
    return one["app"] is None and one["state"] not in (None, "absent")


@dataclass(frozen=True, slots=True)
class Where:
    """How many of a wave's devices run a release; no wave: devices in none."""

    wave: str | None
    devices: int
    of: int | None


def running_of(board: Board, running: Mapping[str, int]) -> tuple[Where, ...]:
    """Where a release runs, in the order of the waves."""
    sizes = {wave.name: wave.devices for wave in board.waves}
    order = [*sizes, *sorted(name for name in running if name not in sizes)]
    return tuple(Where(name or None, running[name], sizes.get(name)) for name in order if running.get(name))


def size(count: int) -> str:
    """`1.8 GB`: of bytes, by thousands."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 99.5 else f"{value:.2g} {_UNITS[unit]}"
