"""`reconciler site`: what a site's devices are told by cloud-init, to look at before it is sent.

Reads a fleet repo, prints or writes the three rendered files. Secrets stay references: this command cannot read one.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from reconciler.model.desired import Desired, SiteSpec


@click.group()
def site() -> None:
    """Look at single sites."""


@site.command(short_help="Render a site's cloud-init files.")
@click.argument("name", metavar="SITE")
@click.option(
    "--fleet",
    "folder",
    metavar="DIR",
    default="fleet",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The fleet repo's folder.",
)
@click.option("--device", metavar="DEVICE", help="The device that meta-data names; the site's first unless said.")
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write user-data, meta-data and network-config into this folder instead of printing them.",
)
def render(name: str, folder: Path, device: str | None, output: Path | None) -> None:
    """Render SITE's cloud-init files: user-data, meta-data and network-config.

    Where a secret goes stands its reference: only a device that fetches its own files gets the value.
    """
    from reconciler.repo.load import load_folder
    from reconciler.repo.problem import InvalidInput
    from reconciler.repo.render import render_site

    result = load_folder(folder)
    if result.desired is None:
        raise InvalidInput(result.problems)
    spec = _site(result.desired, name, folder)
    chosen = device or spec.devices[0]
    try:
        files = render_site(name, spec, result.desired.fleet, chosen).files()
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--device") from None
    if device is None and len(spec.devices) > 1:
        click.echo(f"{name} has {len(spec.devices)} devices; this is for {chosen}, another with --device", err=True)
    if output is None:
        for file_name, text in files.items():
            click.echo(f"==> {file_name} <==\n{text}")
    else:
        _write(output, files)


def _site(desired: Desired, name: str, folder: Path) -> SiteSpec:
    spec = desired.sites.get(name)
    if spec is None:
        near = get_close_matches(name, desired.sites, 1) or [
            known for known in desired.sites if known.lower() == name.lower()
        ]
        hint = f"did you mean {near[0]!r}?" if near else f"its sites are in {folder / 'sites'}"
        raise click.BadParameter(f"{folder} has no site {name!r}; {hint}", param_hint="SITE")
    return spec


def _write(output: Path, files: dict[str, str]) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        for file_name, text in files.items():
            (output / file_name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(
            f"cannot write {error.filename}: {error.strerror}; name a folder that you may write to in --output"
        ) from None
    for file_name in files:
        click.echo(output / file_name)
