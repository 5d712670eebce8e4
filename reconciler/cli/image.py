"""`reconciler image`: the golden image, from its document to the store. Finds the command and loads nothing else."""

from __future__ import annotations

import importlib

import click

# command → (module below reconciler.cli, attribute, one line of help shown without loading the module)
COMMANDS: dict[str, tuple[str, str, str]] = {
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


class ImageGroup(click.Group):
    """A click group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in alphabetical order."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(f"reconciler.cli.{entry[0]}"), entry[1])
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in sorted(COMMANDS)])


@click.group(cls=ImageGroup)
def image() -> None:
    """Build, check and move the golden image, and write the documents of its releases."""
