"""Keyrings that the recipes of a fleet put into its images: what devices trust once they run a release. Pure, but for `read`.

Called by `cli.diff`. Source: fleet/images/edge-golden/README.md, `rootfs/etc/edge/keys/`.
"""

from __future__ import annotations

from posixpath import normpath

from reconciler.review.sides import Side, Sides

KEYS = "rootfs/etc/edge/keys"
MOST_BYTES = 1 << 20


def keyrings_of(sides: Sides) -> list[tuple[str, bytes]]:
    """(path as shown, bytes) of every keyring in a recipe of a release that the head asks for."""
    head = sides.head
    folders = {f"images/{normpath(recipe)}/{KEYS}/" for recipe in _recipes(head)}
    paths = [
        path
        for path, entry in sorted(head.files.items())
        if path.endswith(".gpg")
        and entry.mode.startswith("100")
        and (entry.size or 0) <= MOST_BYTES
        and any(path.startswith(folder) and "/" not in path[len(folder) :] for folder in folders)
    ]
    return [(sides.shown(path), head.read(head.files[path].blob)) for path in paths]


def _recipes(head: Side) -> set[str]:
    desired = head.desired
    asked = {wave.image for wave in desired.waves.waves}
    asked |= {site.pin.image for site in desired.sites.values() if site.pin is not None}
    return {image.recipe for name, image in desired.images.items() if name in asked and image.recipe is not None}
