"""`reconciler image changed`: which releases a push asks to be built. Reads two commits, and no system beside git.

An entry point of a workflow: it has no settings and no credential.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from reconciler.adapters.git_trees import GitTrees
    from reconciler.model.desired import ImageSpec


@click.command(short_help="Name the releases whose documents changed since a commit.")
@click.option("--since", required=True, metavar="REVISION", help="The commit before, as a hash, a tag or HEAD~1.")
@click.option("--until", default="HEAD", show_default=True, metavar="REVISION", help="The commit after.")
@click.option("--fleet", type=click.Path(path_type=Path), metavar="DIR", help="The fleet repo's folder. [. or fleet]")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def changed(since: str, until: str, fleet: Path | None, output: str) -> None:
    """Name the releases that are new in a commit, or whose documents say something else than before.

    Comments, order and `withdrawn` change no byte of an image and do not count; a withdrawn release, and one without a recipe, is
    not built. A changed recipe alone names nothing: a release that is published never changes, and `image bump` makes the next.
    """
    from reconciler.adapters.git_trees import GitTrees
    from reconciler.cli.proposal import nearest
    from reconciler.model.scalars import release_key

    trees = GitTrees(fleet or nearest())
    before, after = _images(trees, since, strict=False), _images(trees, until, strict=True)
    found = sorted(
        (
            release
            for release, spec in after.items()
            if spec.recipe is not None and spec.withdrawn is None and _bytes(spec) != _bytes(before.get(release))
        ),
        key=release_key,
    )
    if output == "json":
        click.echo(json.dumps(found))
    for release in found if output == "text" else ():
        click.echo(release)


def _images(trees: GitTrees, revision: str, *, strict: bool) -> dict[str, ImageSpec]:
    """The Image documents of a commit. InvalidInput (`strict`): the fleet repo is not valid there."""
    from reconciler.propose.publish import document
    from reconciler.repo.load import load_tree
    from reconciler.repo.problem import InvalidInput

    entries = trees.files(trees.resolve(revision).sha)
    blobs = dict(trees.blobs([entry.blob for entry in entries if document(entry)]))

    def read(blob: str) -> bytes:
        if blob not in blobs:
            blobs.update(trees.blobs([blob]))
        return blobs[blob]

    loaded = load_tree(entries, read)
    if strict and loaded.errors:
        raise InvalidInput(loaded.errors)
    return {name: one.spec for name, one in loaded.state.fleet.by_name("Image").items() if one.spec is not None}


def _bytes(spec: ImageSpec | None) -> object:
    """What of a document decides the image's bytes."""
    return spec.model_dump(mode="json", exclude={"withdrawn"}) if spec is not None else None
