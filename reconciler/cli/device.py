"""`reconciler device`: what a device's agent needs to report, made in one go.

Works on the store of the settings, as `reconciler token` does, and writes the folder that `image disk --enrol` and `site
render --iso … --enrol` put on a device. The token is in that folder alone; the store keeps its hash.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli.run import CONFIG
from reconciler.cli.token import issue

if TYPE_CHECKING:
    from reconciler.controller.settings_server import ServerSettings


@click.group(short_help="Enrol a device: all that its agent needs, in one folder.")
def device() -> None:
    """Enrol a device: all that its agent needs, in one folder. `reconciler token` lists and revokes."""


@device.command(short_help="Make a device's token and settings.")
@click.argument("name", metavar="DEVICE")
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to write: agent.json, token, and ca.pem where --ca is given (mode 0600).",
)
@click.option("--server", metavar="URL", help="Where devices reach the reconciler; `server.publicUrl` unless said.")
@click.option(
    "--ca",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Authority of the server's certificate, in PEM, where the image does not know it.",
)
@click.option(
    "--fleet",
    "folder",
    metavar="DIR",
    default="fleet",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The fleet repo's folder, in which the device stands.",
)
@click.option("--replace", is_flag=True, help="Replace a token that exists, and the folder's files.")
@CONFIG
def enrol(name: str, out: Path, server: str | None, ca: Path | None, folder: Path, replace: bool, config: Path) -> None:
    """Make a token for DEVICE, keep its hash, and write what its agent needs into a folder.

    DEVICE must stand in its site's document. The folder goes onto the device with `reconciler image disk --enrol DIR`, with
    `reconciler site render SITE --iso FILE --enrol DIR`, or by hand to /var/lib/edge-agent. Remove it then: it holds
    the token.
    """
    from reconciler.controller.settings import load_settings
    from reconciler.image.enrolment import AUTHORITY, SETTINGS, TOKEN, check_authority, settings_text

    site = _site_of(name, folder)
    address = server or _address(load_settings(config).server)
    files = {SETTINGS: settings_text(name, site, address, authority=ca is not None)}
    if ca is not None:
        files[AUTHORITY] = check_authority(ca)

    def keep(made: Mapping[str, str], written: list[Path]) -> None:
        _write(out, {**files, TOKEN: f"{made[name]}\n".encode()}, written, replace=replace)

    issue([name], config, replace=replace, keep=keep)
    for file in sorted((*files, TOKEN)):
        click.echo(out / file)
    click.echo(f"{out} holds the token of {name}: it goes onto that device and nowhere else", err=True)


def _site_of(name: str, folder: Path) -> str:
    """The site in whose document the device stands."""
    from reconciler.repo.load import load_folder
    from reconciler.repo.problem import InvalidInput

    if not folder.is_dir():
        raise click.UsageError(f"{folder} is no folder: name that of your fleet repo with --fleet")
    desired = (result := load_folder(folder, scenarios=False)).desired
    if desired is None:
        raise InvalidInput(result.problems)
    sites = {known: site for site, spec in desired.sites.items() for known in spec.devices}
    if name not in sites:
        own = [known for known, site in sites.items() if name.startswith(f"{site}-")]
        near = get_close_matches(name, own or sites, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"devices stand in {folder / 'sites'}"
        raise click.BadParameter(f"no site of {folder} has a device {name!r}; {hint}", param_hint="DEVICE")
    return sites[name]


def _address(server: ServerSettings) -> str:
    """Where devices reach the service, by its settings."""
    if server.local:
        raise click.UsageError(
            "the settings name no `server.publicUrl`: say with --server where devices reach the service"
        )
    return server.address


def _write(out: Path, files: Mapping[str, bytes], written: list[Path], *, replace: bool) -> None:
    """Write files for their owner alone. What is there already stays, unless it shall be replaced."""
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, data in files.items():
            path = out / name
            if replace:
                path.unlink(missing_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                written.append(path)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    except FileExistsError as error:
        raise click.ClickException(
            f"{error.filename} is there already; name another folder, or say --replace"
        ) from None
    except OSError as error:
        raise click.ClickException(
            f"cannot write {error.filename}: {error.strerror}; name a folder that you may write to in --out"
        ) from None
