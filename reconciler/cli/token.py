"""`reconciler token`: enrol devices and operators. A token is shown once; only its hash is kept.

Works on the store of the settings, beside a running `reconciler run`: what is added or revoked counts from the next
request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from reconciler.cli.run import CONFIG
from reconciler.model.scalars import NAME_PATTERN, format_instant
from reconciler.ports import Store, TerminalError

_SUFFIX = ".token"


def _names(_context: click.Context, _parameter: click.Parameter, value: Sequence[str]) -> tuple[str, ...]:
    """Names as the fleet repo writes them, each once."""
    for name in value:
        if not re.fullmatch(NAME_PATTERN, name):
            raise click.BadParameter(f"{name!r} is not a name; use letters, digits and '-', 63 at most")
    return tuple(dict.fromkeys(value))


DEVICES = click.argument("devices", nargs=-1, required=True, metavar="DEVICE...", callback=_names)


@click.group(short_help="Enrol devices and operators; revoke and list their tokens.")
def token() -> None:
    """Enrol devices and operators, revoke and list their tokens. A token is shown once; only its hash is kept."""


@token.command(short_help="Make a token for each device.")
@DEVICES
@CONFIG
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Write each token to DIR/DEVICE{_SUFFIX} (mode 0600) and print the paths instead.",
)
@click.option("--replace", is_flag=True, help="Replace tokens that exist: the devices must be given the new ones.")
def add(devices: tuple[str, ...], config: Path, out: Path | None, replace: bool) -> None:
    """Make a token for each DEVICE, keep its hash, and print `DEVICE TOKEN`, one a line. All of them or none."""
    from reconciler.server.tokens import write_token

    def keep(made: Mapping[str, str], written: list[Path]) -> None:
        if out is None:
            return
        _folder(out)
        for device, text in made.items():
            path = out / f"{device}{_SUFFIX}"
            if replace:
                path.unlink(missing_ok=True)
            write_token(path, text)
            written.append(path)

    made = issue(devices, config, replace=replace, keep=keep)
    for device in devices:
        click.echo(f"{device} {made[device]}" if out is None else str(out / f"{device}{_SUFFIX}"))


def issue(
    devices: Sequence[str], config: Path, *, replace: bool, keep: Callable[[Mapping[str, str], list[Path]], None]
) -> dict[str, str]:
    """Make a token for each device and keep its hash in the settings' store: all of them or none.

    `keep` writes the tokens (device → token) where they shall go, and lists the files it wrote: they are removed again where
    something fails. TerminalError: a device has a token, and `replace` is not said.
    """
    from reconciler.server.tokens import hash_token, make_token

    now = datetime.now(UTC)
    made = {device: make_token() for device in devices}
    written: list[Path] = []
    store = _store(config, create=True)
    try:
        with store.transaction():
            taken = sorted(set(devices) & set(store.tokens()))
            if taken and not replace:
                raise TerminalError(
                    f"{', '.join(taken)}: enrolled already",
                    needed_for="making new tokens",
                    remedy="give --replace to make the old ones invalid, or leave them out",
                )
            for device in devices:
                store.add_token(device, hash_token(made[device]), now)
            # Before the commit: a token whose hash is kept and that nobody can read would be lost.
            keep(made, written)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    finally:
        store.close()
    return made


@token.command(short_help="Make devices' tokens invalid.")
@DEVICES
@CONFIG
def revoke(devices: tuple[str, ...], config: Path) -> None:
    """Make the tokens of DEVICEs invalid, from their next request on. All of them or none."""
    store = _store(config, create=False)
    try:
        with store.transaction():
            unknown = [device for device in devices if not store.revoke_token(device)]
            if unknown:
                raise TerminalError(
                    f"{', '.join(unknown)}: no token on record, so nothing was revoked",
                    needed_for="revoking",
                    remedy="see `reconciler token list`",
                )
    finally:
        store.close()
    for device in devices:
        click.echo(f"{device} revoked")


@token.command("list", short_help="List the enrolled devices.")
@CONFIG
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def list_tokens(config: Path, output: str) -> None:
    """List the devices that have a token, and since when. Tokens themselves are not kept."""
    store = _store(config, create=False)
    try:
        found = store.tokens()
    finally:
        store.close()
    if output == "json":
        rows = [{"device": device, "createdAt": format_instant(at)} for device, at in found.items()]
        click.echo(json.dumps(rows, indent=2))
        return
    width = max((len(device) for device in found), default=0)
    for device, at in found.items():
        click.echo(f"{device:<{width}}  {format_instant(at.replace(microsecond=0))}")


@token.command(short_help="Make a token that may read plan, status and metrics.")
@click.argument("name", callback=lambda context, parameter, value: _names(context, parameter, [value])[0])
@CONFIG
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of operators' hashes; `server.operators` of the settings unless said.",
)
@click.option(
    "--scope",
    type=click.Choice(["all", "read"]),
    default="all",
    show_default=True,
    help="`read`: plan, status and the observed snapshot alone, as the checks of a pull request need them.",
)
def operator(name: str, config: Path, path: Path | None, scope: str) -> None:
    """Make a token for an operator called NAME, add its hash to the file of operators, and print the token once."""
    from reconciler.adapters import durable
    from reconciler.server.tokens import hash_token, make_token, read_hashes

    if path is None:
        from reconciler.controller.settings import load_settings

        path = load_settings(config).server.operators
    if path is None:
        raise click.UsageError("the settings name no `server.operators`; set it, or give --file")
    before = ""
    if path.exists():
        read_hashes(path)  # An invalid file is not made longer.
        before = path.read_text(encoding="utf-8")
        before += "" if before.endswith("\n") or not before else "\n"
    made = make_token()
    word = "" if scope == "all" else f" {scope}"
    text = f"{before}{hash_token(made)}{word}  # {name}, {format_instant(datetime.now(UTC).replace(microsecond=0))}\n"
    with durable.os_errors(f"write {path}", needed_for="adding an operator"):
        durable.write_atomic(path, [text.encode()], 0o600)
    click.echo(made)


def _store(config: Path, *, create: bool) -> Store:
    from reconciler.controller.bootstrap import make_store
    from reconciler.controller.settings import load_settings

    return make_store(load_settings(config), create=create)


def _folder(out: Path) -> None:
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise TerminalError(
            f"cannot make {out}: {error.strerror}", needed_for="handing out tokens", remedy="name another folder"
        ) from None
