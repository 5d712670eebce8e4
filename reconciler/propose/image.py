"""`image bump`: the document of a new release of the image, from that of an earlier one.

Decides the bytes: the earlier document's, comments included, with the release, the snapshot and the pins that were named
changed. Which versions are newest is told to it; whether the release can be built is the builder's to say. Pure.
Source: design §1 ("monthly rebuild"), §3.
"""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.model.desired import ImageSpec
from reconciler.model.scalars import release_key
from reconciler.propose.base import Base, Change, Declined, Move, new_path
from reconciler.propose.edit import Edit, Remove, Set, edited
from reconciler.propose.release import Wanted, find_release
from reconciler.repo.near import did_you_mean


class Unchanged(Declined):
    """A refreshed release would hold what the one that it is made from holds: there is nothing to propose."""


def bump(
    base: Base,
    release: str,
    source: str | None,
    packages: Mapping[str, str],
    snapshot: str | None = None,
    *,
    refreshed: bool = False,
) -> Change:
    """A new `images/RELEASE.yaml` from `source`, the highest release that is not withdrawn unless said.

    `refreshed` says that pins and snapshot were looked up, so that the same wish has another answer on another day.
    Declined: the release is no release, is taken, or is not higher than its source; or there is nothing to start from.
    Unchanged: it was looked up, and nothing is newer. Of a release that fixes nothing, neither pins nor snapshot, nobody can tell
    that: it is proposed anew, since the next build takes what the mirrors have then.
    """
    try:
        key = release_key(release)
    except ValueError as error:
        raise Declined(str(error)) from None
    images = base.images()
    taken = next((name for name in images if release_key(name) == key), None)
    if taken is not None:
        raise Declined(
            f"release {taken} is there already, in {base.path('Image', taken)}",
            remedy="a published release never changes: give this one a higher number",
        )
    old = source_release(base, source)
    if release_key(old) > key:
        raise Declined(
            f"{release} is lower than {old}, from which it would be made, and releases order by their numbers",
            remedy="give it a higher number, or name another --from",
        )
    spec, origin = images[old], base.path("Image", old)
    edits, moves = _edits(spec, packages, snapshot, origin)
    floating = (
        not spec.packages and not packages and (spec.base is None or spec.base.snapshot is None) and snapshot is None
    )
    if refreshed and not moves and not floating:
        raise Unchanged(
            f"nothing is newer than what {old} holds: {_holds(spec)}",
            remedy=f"no release is proposed; `reconciler image bump {release}` without --refresh makes one all the same",
        )
    says = [f"made from {old}"]
    says += [
        f"{name} was not pinned before{did_you_mean(name, spec.packages)}"
        for name in packages
        if spec.packages and name not in spec.packages
    ]
    hints = []
    if spec.withdrawn is not None:
        edits.append(Remove(("spec", "withdrawn")))
        says.append(f"{old} is withdrawn; the new release is not")
    if refreshed and floating:
        says.append("it fixes no version: its content is what the mirrors have when it is built")
    elif not moves:
        hints.append(f"same pins and snapshot as {old}; --package NAME=VERSION, --snapshot and --refresh change them")
    # Whoever reviews a refreshed release has not asked for it, and sees no hints.
    comments = f"comments are those of {old}: read them, they may tell of the old release"
    (says if refreshed else hints).append(comments)
    hints.append(f"it is built when a wave asks for it; after the merge: reconciler promote {release}")
    suffix = origin.rpartition(".")[2]
    path = new_path(base, "Image", release).rpartition(".")[0] + f".{suffix}"
    data = edited(base.read(origin), Set(("metadata", "name"), release), *edits)
    return Change(
        f"Add release {release}", f"image/{release}", {path: data}, tuple(says), hints=tuple(hints), moves=moves,
        dated=refreshed,
    )  # fmt: skip


def source_release(base: Base, named: str | None) -> str:
    """The release that a new one is made from: the highest that is not withdrawn unless named. Declined: there is none."""
    if named is not None:
        wanted = find_release(base, named)
        if wanted.app is not None:
            raise Declined(f"{wanted} is a release of an app", remedy="name a release of the image in --from")
        return wanted.release
    images = base.images()
    sound = [name for name, spec in images.items() if spec.withdrawn is None] or list(images)
    if not sound:
        raise Declined("there is no release to start from", remedy="write the first images/RELEASE.yaml by hand")
    return Wanted(max(sound, key=release_key)).release


def next_release(base: Base) -> str:
    """The next patch number after the highest release, withdrawn ones counted. Declined: there is no release yet."""
    images = base.images()
    if not images:
        raise Declined("there is no release to count on from", remedy="write the first images/RELEASE.yaml by hand")
    major, minor, patch = max(map(release_key, images))
    return f"v{major}.{minor}.{patch + 1}"


def _edits(
    spec: ImageSpec, packages: Mapping[str, str], snapshot: str | None, origin: str
) -> tuple[list[Edit], tuple[Move, ...]]:
    """What changes in the document, and the same as old and new values."""
    edits: list[Edit] = []
    moves: list[Move] = []
    if snapshot is not None:
        if spec.base is None:
            raise Declined(
                f"{origin} has no base, so no snapshot can be set in it", remedy="write the base there by hand"
            )
        if snapshot != spec.base.snapshot:
            edits.append(Set(("spec", "base", "snapshot"), snapshot, ("distribution", "suite")))
            moves.append(Move("snapshot", spec.base.snapshot or "none", snapshot))
    if packages and not spec.packages:
        edits.append(Set(("spec", "packages"), dict(packages), ("family", "recipe", "base")))
    for name, version in packages.items():
        was = spec.packages.get(name)
        if was != version:
            moves.append(Move(name, was, version))
            if spec.packages:
                edits.append(Set(("spec", "packages", name), version))
    return edits, tuple(moves)


def _holds(spec: ImageSpec) -> str:
    """What a release fixes, in a few words."""
    pins = f"{len(spec.packages)} pin{'s' if len(spec.packages) != 1 else ''}"
    snapshot = spec.base.snapshot if spec.base is not None else None
    return f"{pins} and the snapshot {snapshot}" if snapshot else f"{pins}, and no snapshot (the rest is not looked at)"
