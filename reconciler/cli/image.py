"""`reconciler image`: the golden image, from its document to the store. Finds the command and loads nothing else."""

from __future__ import annotations

import click

from reconciler.cli.lazy import Commands, LazyGroup

COMMANDS: Commands = {
    "disk": ("image_disk", "disk", "Make an install disk from an artifact or a slot image."),
    "build": ("image_build", "build", "Build a release from its recipe."),
    "check": ("image_check", "check", "Refuse an image that holds what no image may hold."),
    "changed": ("image_changed", "changed", "Name the releases whose documents changed since a commit."),
    "upload": ("image_upload", "upload", "Put an artifact that was built elsewhere into the image store."),
    "bump": ("image_bump", "bump", "Propose a new release, from an earlier one with other pins."),
    "list": ("image_list", "list_images", "Show what the image store holds."),
    "prune": ("image_prune", "prune", "Take releases that nobody needs out of the image store."),
    "sign": (
        "image_sign",
        "sign",
        "Sign a release with a key of your own, and put the signature where it is waited for.",
    ),
}


@click.group(cls=LazyGroup, table=COMMANDS, path="image")
def image() -> None:
    """Build, check and move the golden image, and write the documents of its releases."""
