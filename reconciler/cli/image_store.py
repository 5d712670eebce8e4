"""The image store for commands: where it is, what it holds, and who needs what of it. Writes nothing but the mirror's folder.

`image list` and `image prune` read what it holds; `image upload` and `image sign` are told its place by `--store`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.model.scalars import format_instant

if TYPE_CHECKING:
    from reconciler.controller.settings import DirectoryPlace, S3Place, Settings
    from reconciler.image.retention import Fleet
    from reconciler.model.observed import Holding
    from reconciler.ports import ImageStore, Store

_RELEASE_FIELDS = ("image", "to")


@dataclass(frozen=True, slots=True)
class Needs:
    """The image store, what it holds, who needs what of it, and the instant at which that was read."""

    images: ImageStore
    holdings: tuple[Holding, ...]
    fleet: Fleet
    at: datetime


def read_needs(settings: Settings) -> Needs:
    """The store's releases and everybody's claims on them: the commit in force and the branch's head, every device on record,
    their assignments, and what the loop has under way.

    The head is asked for: a release that a merge of this minute names must stay. TransientError: a system did not answer.
    TerminalError: nothing is in force, or a claim cannot be read; nothing may be pruned then.
    """
    from reconciler.controller.bootstrap import make_clock, make_git, make_images, make_store
    from reconciler.image.retention import Fleet
    from reconciler.repo.load import load_tree

    clock, _ = make_clock(settings)
    store = make_store(settings, create=False)
    try:
        sha = store.last_good_commit()
        if sha is None:
            raise _unknown("no commit is in force", "start `reconciler run` first: it says what the fleet shall run")
        git = make_git(settings, clock.now)
        head = git.refresh().sha
        desired = []
        for commit in dict.fromkeys((sha, head)):
            loaded = load_tree(git.files(commit), git.blob)
            if loaded.desired is None:
                raise _unknown(
                    f"commit {commit[:12]} does not load: {loaded.errors[0]}", "correct it on the branch, then prune"
                )
            desired.append(replace(loaded.desired, commit=commit))
        devices = store.snapshot().devices
        names = {device.name for device in devices}
        names |= {name for each in desired for site in each.sites.values() for name in site.devices}
        fleet = Fleet(desired, devices, _assigned(store, names), _busy(store))
    finally:
        store.close()
    images = make_images(settings, clock.now)
    return Needs(images, tuple(images.holdings()), fleet, clock.now())


def _assigned(store: Store, names: set[str]) -> dict[str, str]:
    """Device → the release of its latest assignment, whether or not that has expired."""
    from reconciler.protocol.assignment import Assignment
    from reconciler.protocol.canonical import Malformed

    out = {}
    for name, row in store.assignments(sorted(names)).items():
        try:
            image = Assignment.from_bytes(row.document).image
        except Malformed as error:
            raise _unknown(
                f"the assignment of {name} cannot be read ({error})", "run the release that wrote it"
            ) from None
        if image is not None:
            out[name] = image.release
    return out


def _busy(store: Store) -> set[str]:
    """Releases that open intents are about."""
    fields = (intent.action.fields for intent in store.open_intents())
    return {release for each in fields for key in _RELEASE_FIELDS if (release := each.get(key)) is not None}


def place_of(place: str, region: str | None, endpoint: str | None) -> DirectoryPlace | S3Place:
    """Where an image store is, as `--store` names it: s3://BUCKET/PREFIX/, or its folder, which is there."""
    from reconciler.controller.settings import DirectoryPlace, S3Place

    if place.startswith("s3://"):
        return S3Place(type="s3", url=place, region=region, endpoint=endpoint)
    if not Path(place).is_dir():
        raise click.UsageError(f"--store: there is no folder {place}")
    return DirectoryPlace(type="directory", path=Path(place))


def _unknown(wrong: str, remedy: str) -> Exception:
    from reconciler.ports import TerminalError

    return TerminalError(wrong, needed_for="knowing which releases are needed", remedy=remedy)


def as_document(holding: Holding) -> dict[str, Any]:
    """A release in the store, for `--output json`."""
    return {
        "release": holding.release,
        "state": "removing" if holding.removing else holding.state.value,
        "folders": list(holding.folders),
        "bytes": holding.size,
        "digest": holding.digest,
        "publishedAt": format_instant(holding.published_at) if holding.published_at is not None else None,
    }


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:,.1f} MB"
