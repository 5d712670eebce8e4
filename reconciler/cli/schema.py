"""`reconciler schema`: the JSON Schemas of the fleet documents, for editors and other validators."""

from __future__ import annotations

import os
from pathlib import Path

import click

from reconciler.repo.documents import KINDS


@click.command()
@click.argument("kind", required=False, metavar="[KIND]", type=click.Choice(KINDS, case_sensitive=False))
@click.option(
    "--write", "folder", type=click.Path(path_type=Path, file_okay=False), help="Write all schemas to this folder."
)
def schema(kind: str | None, folder: Path | None) -> None:
    """Print the JSON Schema (2020-12) of a KIND of document, or write those of all kinds to a folder.

    KIND is Fleet, Image, App, Waves, Site or Scenario.
    """
    from reconciler.repo.schema import file_name, schemas

    texts = schemas()
    if folder is None:
        if kind is None:
            raise click.UsageError(f"name a kind ({', '.join(KINDS)}), or a folder with --write")
        click.echo(texts[file_name(kind)], nl=False)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            if kind is None or name == file_name(kind):
                temporary = folder / f".{name}.tmp"
                temporary.write_text(text, encoding="utf-8")
                os.replace(temporary, folder / name)
                click.echo(str(folder / name))
    except OSError as error:
        raise click.UsageError(
            f"cannot write to {folder} ({error.strerror}); name a folder that can be written"
        ) from None
