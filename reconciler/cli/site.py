"""`reconciler site`: what a site's devices are told by cloud-init, to look at before it is sent; and a new site's document.

`render` reads a fleet repo, and prints or writes the three rendered files. Secrets stay references, unless it is told
where their values are: then it writes the seed of one device's first installation, as a folder or as a medium, for its
owner's eyes alone.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING

import click

from reconciler.cli.names import sites
from reconciler.cli.proposal import Options, carry_out, proposing

if TYPE_CHECKING:
    from reconciler.model.desired import Desired, FleetSpec, SiteSpec
    from reconciler.ports import Secrets
    from reconciler.repo.render import Rendering


@click.group()
def site() -> None:
    """Look at single sites, and add them."""


@site.command(short_help="Render a site's cloud-init files.")
@click.argument("name", metavar="SITE", shell_complete=sites)
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
@click.option(
    "--iso",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the seed as an ISO file labelled CIDATA, for a first boot from a disk without a seed.",
)
@click.option(
    "--enrol",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Put an enrolment on the ISO too: the folder of `reconciler device enrol`.",
)
@click.option(
    "--secrets",
    "secrets_folder",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Fill in secrets from this folder, for a first installation: DIR/edge/SITE-2847/vpn, mode 0600. "
    "Needs --output or --iso.",
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Fill in secrets from where these settings of the controller keep them. Needs --output or --iso.",
)
def render(
    name: str,
    folder: Path,
    device: str | None,
    output: Path | None,
    iso: Path | None,
    enrol: Path | None,
    secrets_folder: Path | None,
    config: Path | None,
) -> None:
    """Render SITE's cloud-init files: user-data, meta-data and network-config.

    Where a secret goes stands its reference: only a device that fetches its own files gets the value. For a first
    installation the files are needed with their secrets, and are written so with --secrets or --config: as a device
    would fetch them, with their digest, readable by you alone. With --config the digest is the one that the controller
    assigns, so that the device need not be configured again. A site without a secret needs neither.
    """
    from reconciler.repo.load import load_folder
    from reconciler.repo.problem import InvalidInput
    from reconciler.repo.render import render_site

    if secrets_folder is not None and config is not None:
        raise click.UsageError("--secrets and --config both say where secrets are; name one of them")
    filled = secrets_folder is not None or config is not None
    if filled and output is None and iso is None:
        raise click.UsageError(
            "secrets are not printed: name a folder for the files with --output, or a file with --iso"
        )
    if enrol is not None and iso is None:
        raise click.UsageError(
            "--enrol goes onto the medium of --iso; onto a disk, with `reconciler image disk --enrol`"
        )
    result = load_folder(folder)
    if result.desired is None:
        raise InvalidInput(result.problems)
    spec = _site(result.desired, name, folder)
    chosen = device or spec.devices[0]
    try:
        rendering = render_site(name, spec, result.desired.fleet, chosen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--device") from None
    if iso is not None and rendering.secret_refs and not filled:
        raise click.UsageError(
            f"the seed holds the secret {rendering.secret_refs[0]}: say where its value is with --config or --secrets"
        )
    if device is None and len(spec.devices) > 1:
        click.echo(f"{name} has {len(spec.devices)} devices; this is for {chosen}, another with --device", err=True)
    if output is None and iso is None:
        for file_name, text in rendering.files().items():
            click.echo(f"==> {file_name} <==\n{text}")
    elif output is not None and rendering.secret_refs and not filled:
        _write(output, {file_name: text.encode() for file_name, text in rendering.files().items()}, 0o644)
        click.echo("to look at, and no seed: secrets are filled in with --config or --secrets", err=True)
    else:
        secrets = _secrets(secrets_folder, config) if rendering.secret_refs else None
        files = _seed(rendering, spec, result.desired.fleet, secrets)
        if output is not None:
            _write(output, files, 0o600)
        if iso is not None:
            _write_medium(iso, files, enrol)


@site.command(short_help="Propose a new site.")
@click.argument("name", metavar="SITE")
@click.option("--timezone", metavar="ZONE", required=True, help="IANA time zone, as Europe/Berlin.")
@click.option("--device", "devices", metavar="DEVICE", multiple=True, required=True, help="A device; once for each.")
@click.option("--ntp", metavar="HOST", multiple=True, help="A time server.")
@click.option("--camera", "cameras", metavar="ADDRESS", multiple=True, help="A camera that healthcheck.sh tries.")
@click.option("--vpn-type", type=click.Choice(["wireguard", "ipsec"]), help="Kind of tunnel; needs --secret-ref.")
@click.option("--secret-ref", metavar="NAME", help="Name of the secret with the tunnel's configuration.")
@click.option("--uplink", metavar="SPEED", help="The site's line, as 50Mbit. [the fleet's]")
@click.option("--window", metavar="START-END", help="Maintenance window in local time, as 02:00-04:00. [the fleet's]")
@click.option("--lab", is_flag=True, help="A lab site: never drawn for a percentage.")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="A free label.")
@click.option("--wave", metavar="WAVE", help="List the site in this wave. [percentages draw it]")
@proposing
def add(
    options: Options,
    name: str,
    timezone: str,
    devices: tuple[str, ...],
    ntp: tuple[str, ...],
    cameras: tuple[str, ...],
    vpn_type: str | None,
    secret_ref: str | None,
    uplink: str | None,
    window: str | None,
    lab: bool,
    labels: tuple[str, ...],
    wave: str | None,
) -> None:
    """Propose sites/SITE.yaml, written as its neighbours are, and checked against the whole fleet."""
    from reconciler.model.scalars import NAME_PATTERN
    from reconciler.propose.site import NewSite, add_site

    if not fullmatch(NAME_PATTERN, name):
        raise click.BadParameter(f"{name!r} is not a name; use letters, digits and '-', 63 at most", param_hint="SITE")
    if (vpn_type is None) != (secret_ref is None):
        raise click.UsageError("a tunnel needs both: --vpn-type and --secret-ref, the name of its secret")
    vpn = (vpn_type, secret_ref) if vpn_type is not None and secret_ref is not None else None
    start, dash, end = (window or "").partition("-")
    if window is not None and not (dash and start.strip() and end.strip()):
        raise click.BadParameter(f"{window!r} is no window; write it as 02:00-04:00", param_hint="--window")
    pairs = {}
    for text in labels:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is no label; write KEY=VALUE", param_hint="--label")
        pairs[key] = value
    times = (start.strip(), end.strip()) if window is not None else None
    new = NewSite(name, timezone, devices, ntp, cameras, vpn, uplink, times, lab, pairs)
    carry_out(options, lambda base, _sha, _clone: add_site(base, new, wave))


def _site(desired: Desired, name: str, folder: Path) -> SiteSpec:
    spec = desired.sites.get(name)
    if spec is None:
        near = get_close_matches(name, desired.sites, 1) or [
            known for known in desired.sites if known.lower() == name.lower()
        ]
        hint = f"did you mean {near[0]!r}?" if near else f"its sites are in {folder / 'sites'}"
        raise click.BadParameter(f"{folder} has no site {name!r}; {hint}", param_hint="SITE")
    return spec


def _write(output: Path, files: dict[str, bytes], mode: int) -> None:
    """Write files into a folder, and name them on stdout. With mode 0600 nobody else may enter the folder."""
    import os

    try:
        output.mkdir(mode=0o700 if mode == 0o600 else 0o777, parents=True, exist_ok=True)
        for file_name, data in files.items():
            path = output / file_name
            # Never readable by others, not for a moment, and not because an earlier file was.
            path.unlink(missing_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
        # Of an earlier rendering, whose secrets or digest would be taken for this one's.
        for stale in {"digest"} - files.keys():
            (output / stale).unlink(missing_ok=True)
    except OSError as error:
        raise click.ClickException(
            f"cannot write {error.filename}: {error.strerror}; name a folder that you may write to in --output"
        ) from None
    for file_name in files:
        click.echo(output / file_name)


def _write_medium(iso: Path, files: dict[str, bytes], enrol: Path | None) -> None:
    from reconciler.image.enrolment import check_fit, read_enrolment
    from reconciler.image.seed_medium import make_medium

    enrolment = read_enrolment(enrol) if enrol is not None else None
    if enrolment is not None:
        check_fit(enrolment, files)
    make_medium(iso, files, enrolment)
    click.echo(iso)
    click.echo(f"{iso} holds what is the device's alone: only you may read it", err=True)


def _secrets(folder: Path | None, config: Path | None) -> Secrets:
    """Where the values of secrets are."""
    if config is not None:
        from reconciler.controller.bootstrap import make_secrets
        from reconciler.controller.settings import load_settings

        return make_secrets(load_settings(config))
    from reconciler.adapters.secrets_dir import DirectorySecrets

    assert folder is not None
    return DirectorySecrets(folder)


def _seed(rendering: Rendering, spec: SiteSpec, fleet: FleetSpec, secrets: Secrets | None) -> dict[str, bytes]:
    """What the device would fetch, and its digest. Held in memory; None of secrets: there are none."""
    from reconciler.ports import TerminalError
    from reconciler.repo.render import UnusableSecret, config_digest, resolve

    needed_for = f"the seed of {rendering.device}"
    versions = secrets.versions(rendering.secret_refs) if secrets is not None else {}
    digest = config_digest(rendering.site, spec, fleet, versions)
    if digest is None:
        absent = next(reference for reference in rendering.secret_refs if reference not in versions)
        raise TerminalError(
            f"there is no secret {absent}", needed_for=needed_for, remedy="store it, or correct the site"
        )
    try:
        files = resolve(rendering, secrets.value if secrets is not None else str, digest)
    except UnusableSecret as error:
        raise TerminalError(str(error), needed_for=needed_for) from None
    return {**files, "digest": f"{digest}\n".encode()}
