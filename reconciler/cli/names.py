"""Names that a shell may complete: releases and sites of the fleet repo that one is in. Reads names of files alone.

A Tab is pressed between two keys, so nothing is parsed: a site's file is named after it, a release's too. Devices and waves
stand in documents; a device's name begins with its site's by habit, so a site's name is most of it. A folder that is none
offers nothing, and is no error. Called by click, for the arguments of commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click


def releases(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Releases of the image."""
    return _named(context, "images", incomplete)


def sites(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Sites."""
    return _named(context, "sites", incomplete)


def _named(context: click.Context, folder: str, incomplete: str) -> list[str]:
    return sorted({name for name in _stems(_fleet(context) / folder) if name.startswith(incomplete)})


def _fleet(context: click.Context) -> Path:
    """The folder of --fleet where it has been typed; else this one, or `fleet` in it."""
    name = next((option.name for option in context.command.params if "--fleet" in option.opts), None)
    given = context.params.get(name or "")
    if given is not None:
        return Path(given)
    return Path("fleet") if not Path("fleet.yaml").exists() and Path("fleet").is_dir() else Path()


def _stems(folder: Path) -> Iterator[str]:
    try:
        yield from (path.stem for path in folder.iterdir() if path.suffix in (".yaml", ".yml", ".json"))
    except OSError:
        return
