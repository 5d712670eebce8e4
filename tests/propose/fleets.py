"""A fleet repo in memory, for tests of changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from reconciler.propose.base import Base, Change
from reconciler.propose.diff import unified
from reconciler.repo.folder import File

DIGEST = "sha256:" + "0" * 64
HEAD = "apiVersion: fleet/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n"


def document(kind: str, name: str, spec: str) -> str:
    """A document with its header."""
    return HEAD.format(kind=kind, name=name) + spec


def waves(*images: str, apps: str = "") -> str:
    """Three waves: a (S-1), b (S-2), c (everyone), asking for these images; the last one's for all that are not given."""
    asked = [*images, *[images[-1]] * (3 - len(images))]
    members = ("sites: [S-1]", "sites: [S-2]", "percent: 100\n      maxOffline: 1")
    lines = ["  waves:\n"]
    for name, member, image in zip("abc", members, asked, strict=True):
        lines.append(f"    # wave {name}\n    - name: {name}\n      {member}\n      image: {image}  # of {name}\n")
        lines.append(f"      apps: {apps}\n      soak: 1h\n" if apps else "      soak: 1h\n")
    return document("Waves", "waves", "".join(lines))


def files(**more: str | None) -> dict[str, bytes]:
    """The files of a small fleet: four sites, releases v1.0.0, v1.1.0 and v1.2.0, an app with three."""
    releases = "".join(f"    {version}: {DIGEST}\n" for version in ("1.0.0", "1.9", "1.10"))
    found: dict[str, str | None] = {
        "fleet.yaml": document("Fleet", "f", "  staleAfter: 15m  # why\n"),
        "waves.yaml": waves("v1.0.0"),
        "apps/cam.yaml": document("App", "cam", f"  repository: cam\n  releases:\n{releases}"),
        **{f"images/v1.{n}.0.yaml": document("Image", f"v1.{n}.0", "  packages: {curl: 1-1}\n") for n in range(3)},
        **{
            f"sites/S-{n}.yaml": document(
                "Site", f"S-{n}", f"  timezone: Europe/Berlin\n  devices: [S-{n}-1, S-{n}-2]\n"
            )
            for n in range(1, 5)
        },
        **{name.replace("__", "/") + ".yaml": text for name, text in more.items()},
    }
    return {path: text.encode() for path, text in found.items() if text is not None}


def base(found: Mapping[str, bytes]) -> Base:
    """A fleet repo of these files."""
    blobs = {hashlib.sha256(data).hexdigest(): data for data in found.values()}
    entries = [File(path, hashlib.sha256(data).hexdigest(), "100644", len(data)) for path, data in found.items()]
    return Base(entries, blobs.__getitem__)


def after(start: Base, change: Change) -> Base:
    """The fleet repo with a change, which must be valid."""
    start.warnings_after(change)
    found = {path: start.read(path) for path in start.entries}
    for path, data in change.files.items():
        if data is None:
            del found[path]
        else:
            found[path] = data
    return base(found)


def lines(start: Base, change: Change) -> list[str]:
    """The lines that a change takes away and adds."""
    before = {path: start.read(path) if path in start.entries else None for path in change.files}
    diff = unified(before, change.files)
    return [line for line in diff.splitlines() if line[:1] in "+-" and not line.startswith(("+++", "---"))]
