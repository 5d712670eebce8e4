"""`reconciler image list`: what the image store holds."""

from __future__ import annotations

import json
from pathlib import Path

import click

from reconciler.cli.image_store import as_document, megabytes
from reconciler.cli.inputs import write
from reconciler.cli.run import CONFIG
from reconciler.model.scalars import format_instant, release_key


@click.command("list", short_help="Show what the image store holds.")
@CONFIG
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)
def list_images(config: Path, output: str) -> None:
    """Show what the image store holds: every release with its state, its size and its folder, the highest first.

    `absent` is what an upload that was cut off left behind, `removing` what a removal did.
    """
    from reconciler.controller.bootstrap import make_clock, make_images
    from reconciler.controller.settings import load_settings

    settings = load_settings(config)
    images = make_images(settings, make_clock(settings)[0].now)
    held = sorted(images.holdings(), key=lambda each: release_key(each.release), reverse=True)
    if output == "json":
        write(json.dumps({"releases": [as_document(holding) for holding in held]}, indent=2) + "\n")
        return
    for holding in held:
        at = format_instant(holding.published_at.replace(microsecond=0)) if holding.published_at is not None else "-"
        state = "removing" if holding.removing else holding.state.value
        line = (
            f"{holding.release:<10} {state:<10} {megabytes(holding.size):>12}  {at:<20}  {', '.join(holding.folders)}"
        )
        click.echo(line)
    if not held:
        click.echo("the image store holds no release")
