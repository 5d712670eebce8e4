"""`image bump`: the document of a new release of the image, from that of an earlier one.

Decides the bytes: the earlier document's, comments included, with the release, the snapshot and the pins that were named
changed. Whether the release can be built is the builder's to say. Pure. Source: design §1 ("monthly rebuild"), §3.
"""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.model.scalars import release_key
from reconciler.propose.base import Base, Change, Declined, new_path
from reconciler.propose.edit import Edit, Remove, Set, edited
from reconciler.propose.release import Wanted, find_release
from reconciler.repo.near import did_you_mean


def bump(
    base: Base, release: str, source: str | None, packages: Mapping[str, str], snapshot: str | None = None
) -> Change:
    """A new `images/RELEASE.yaml` from `source`, the highest release that is not withdrawn unless said.

    Declined: the release is no release, is taken, or is not higher than its source; or there is nothing to start from.
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
    old = _source(base, source)
    if release_key(old.release) > key:
        raise Declined(
            f"{release} is lower than {old.release}, from which it would be made, and releases order by their numbers",
            remedy="give it a higher number, or name another --from",
        )
    spec = images[old.release]
    origin = base.path("Image", old.release)
    edits: list[Edit] = [Set(("metadata", "name"), release)]
    if snapshot is not None:
        if spec.base is None:
            raise Declined(
                f"{origin} has no base, so no snapshot can be set in it", remedy="write the base there by hand"
            )
        edits.append(Set(("spec", "base", "snapshot"), snapshot, ("distribution", "suite")))
    says, hints = [f"made from {old.release}"], []
    if packages and not spec.packages:
        edits.append(Set(("spec", "packages"), dict(packages), ("family", "recipe", "base")))
    for name, version in packages.items() if spec.packages else ():
        was = spec.packages.get(name)
        if was is None:
            says.append(f"{name} was not pinned before{did_you_mean(name, spec.packages)}")
        says.append(f"{name}: {was or 'not pinned'} → {version}")
        if was != version:
            edits.append(Set(("spec", "packages", name), version))
    if spec.withdrawn is not None:
        edits.append(Remove(("spec", "withdrawn")))
        says.append(f"{old.release} is withdrawn; the new release is not")
    if not packages and snapshot is None:
        hints.append(f"same pins and snapshot as {old.release}; --package NAME=VERSION and --snapshot change them")
    hints.append(f"comments are those of {old.release}: read them, they may tell of the old release")
    hints.append(f"it is built when a wave asks for it; after the merge: reconciler promote {release}")
    suffix = origin.rpartition(".")[2]
    path = new_path(base, "Image", release).rpartition(".")[0] + f".{suffix}"
    data = edited(base.read(origin), *edits)
    return Change(f"Add release {release}", f"image/{release}", {path: data}, tuple(says), hints=tuple(hints))


def _source(base: Base, named: str | None) -> Wanted:
    if named is not None:
        wanted = find_release(base, named)
        if wanted.app is not None:
            raise Declined(f"{wanted} is a release of an app", remedy="name a release of the image in --from")
        return wanted
    images = base.images()
    sound = [name for name, spec in images.items() if spec.withdrawn is None] or list(images)
    if not sound:
        raise Declined("there is no release to start from", remedy="write the first images/RELEASE.yaml by hand")
    return Wanted(max(sound, key=release_key))
