"""Other branches that are not merged and touch what this merge touches: waves, sites, releases, apps. Reads commits only.

Of each branch it is compared what it changed since it went apart from BASE, file by file, and wave by wave. Called by
`cli.diff`. Source: design §4.1 (one pull request may raise one wave, or all).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.model.desired import WavesSpec
from reconciler.ports import Branch, TerminalError
from reconciler.repo.documents import place_of
from reconciler.repo.load import Entry
from reconciler.repo.parse import parse
from reconciler.review.changes import Change
from reconciler.review.ports import Revisions
from reconciler.review.sides import changed_files

MOST_BRANCHES = 30
"""Branches looked at, newest first."""


@dataclass(frozen=True, slots=True)
class Touched:
    """What a set of changes touches: waves, sites and apps by name, releases asked for by key."""

    waves: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()
    releases: frozenset[str] = frozenset()

    def __and__(self, other: Touched) -> Touched:
        return Touched(self.waves & other.waves, self.sites & other.sites, self.releases & other.releases)

    def __bool__(self) -> bool:
        return bool(self.waves or self.sites or self.releases)


@dataclass(frozen=True, slots=True)
class Overlap:
    """A branch, its tip, and what both touch."""

    branch: str
    sha: str
    author: str
    touched: Touched

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "branch": self.branch,
            "commit": self.sha,
            "author": self.author,
            "waves": sorted(self.touched.waves),
            "sites": sorted(self.touched.sites),
            "releases": sorted(self.touched.releases),
        }


@dataclass(frozen=True, slots=True)
class Overlaps:
    """All of them. `looked` branches were compared, `left_out` were not; `unread` says why there was nothing to compare."""

    found: tuple[Overlap, ...]
    looked: int
    left_out: int = 0
    unread: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "looked": self.looked,
            "leftOut": self.left_out,
            "unread": self.unread or None,
            "branches": [overlap.to_dict() for overlap in self.found],
        }


def touched_by(changes: Iterable[Change]) -> Touched:
    """What this merge touches."""
    waves: set[str] = set()
    sites: set[str] = set()
    releases: set[str] = set()
    for change in changes:
        if change.kind == "Wave":
            waves.add(change.subject)
            field, _, app = change.field.partition(".")
            if field == "image" and change.after is not None:
                releases.add(change.after)
            elif field == "apps" and app and change.after is not None:
                releases.add(f"{app}@{change.after}")
        elif change.kind == "Site":
            sites.add(change.subject)
        elif change.kind == "Image":
            releases.add(change.subject)
    return Touched(frozenset(waves), frozenset(sites), frozenset(releases))


def overlaps(trees: Revisions, base: str, heads: Sequence[str], pattern: str, ours: Touched) -> Overlaps:
    """Branches that overlap with `ours`. `heads` are commits that count as merged: BASE's and HEAD's own."""
    branches = trees.unmerged([base, *heads], pattern, [head for head in heads if head != base])
    found = []
    for branch in branches[:MOST_BRANCHES]:
        fork = trees.merge_base(base, branch.sha)
        if fork is None:
            continue
        both = ours & _touched(trees, fork, branch)
        if both:
            found.append(Overlap(branch.name, branch.sha, trees.resolve(branch.sha).author, both))
    return Overlaps(tuple(found), min(len(branches), MOST_BRANCHES), max(0, len(branches) - MOST_BRANCHES))


def _touched(trees: Revisions, fork: str, branch: Branch) -> Touched:
    try:
        old = {entry.path: entry for entry in trees.files(fork)}
        new = {entry.path: entry for entry in trees.files(branch.sha)}
    except TerminalError:  # a branch that cannot be read is no reason to review nothing
        return Touched()
    waves: set[str] = set()
    sites: set[str] = set()
    releases: set[str] = set()
    for path in changed_files(old, new):
        place = place_of(path)
        if place.kind == "Site":
            sites.add(place.stem)
        elif place.kind == "Image":
            releases.add(place.stem)
        elif place.kind == "Waves":
            before, after = (_waves(trees, path, side) for side in (old, new))
            for name in before.keys() | after.keys():
                if before.get(name) != after.get(name):
                    waves.add(name)
                    releases |= _asked(after, name) - _asked(before, name)
    return Touched(frozenset(waves), frozenset(sites), frozenset(releases))


def _asked(waves: Mapping[str, Any], name: str) -> set[str]:
    return set(waves[name][1]) if name in waves else set()


def _waves(trees: Revisions, path: str, files: Mapping[str, Entry]) -> dict[str, Any]:
    """Wave → (everything it says, the releases it asks for)."""
    entry = files.get(path)
    if entry is None:
        return {}
    spec = parse(path, entry.blob, trees.blobs([entry.blob])[entry.blob]).spec
    if not isinstance(spec, WavesSpec):
        return {}
    return {
        wave.name: (
            wave.model_dump(mode="json"),
            ([wave.image] if wave.image else []) + [f"{app}@{version}" for app, version in sorted(wave.apps.items())],
        )
        for wave in spec.waves
    }
