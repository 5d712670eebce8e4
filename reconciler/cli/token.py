"""`reconciler token`: enrol devices and operators. A token is shown once; only its hash is kept.

What is made and revoked stands in the audit log, by the user of this machine who did it. Works on the store of the
settings, beside a running `reconciler run`: what is added or revoked counts from the next request.
"""

from __future__ import annotations

import json
import os
import pwd
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from reconciler.cli.run import CONFIG
from reconciler.model.access import AuditEntry, Deed, OperatorToken, Outcome, Scope, parse_scopes
from reconciler.model.scalars import NAME_PATTERN, format_instant, parse_duration
from reconciler.ports import TerminalError

if TYPE_CHECKING:
    from reconciler.adapters.sql import SqlStore
    from reconciler.server.ports import AccessStore

_SUFFIX = ".token"
SOON = timedelta(days=14)
"""A token that expires within this is marked: time to make the next one, and to hand it out."""

LONGEST_S = 3650 * 86400
OUTPUT = click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)


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
@OUTPUT
def add(devices: tuple[str, ...], config: Path, out: Path | None, replace: bool, output: str) -> None:
    """Make a token for each DEVICE, keep its hash, and print `DEVICE TOKEN`, one a line. All of them or none.

    With --output json: a list of objects with `device`, and `token`, or `file` where --out is given.
    """
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
    if output == "json":
        rows = [
            {"device": device, "token": made[device]}
            if out is None
            else {"device": device, "file": str(out / f"{device}{_SUFFIX}")}
            for device in devices
        ]
        click.echo(json.dumps(rows, indent=2))
        return
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
                _write_down(store.access, Deed.MAKE_TOKEN, f"device {device}", now)
            # Before the commit: a token whose hash is kept and that nobody can read would be lost.
            keep(made, written)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    finally:
        store.close()
    return made


@token.command(short_help="Make tokens of devices and operators invalid.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", callback=_names)
@CONFIG
@click.option(
    "--kind",
    type=click.Choice(["device", "operator"]),
    help="Whose they are, where a device and an operator share a name.",
)
@OUTPUT
def revoke(names: tuple[str, ...], config: Path, kind: str | None, output: str) -> None:
    """Make the tokens of NAMEs invalid, devices' or operators', from their next request on. All of them or none.

    An operator's sessions end with the token. Tokens that stand in the file `server.operators` are revoked by taking their
    lines out of it.
    """
    now = datetime.now(UTC)
    store = _store(config, create=False)
    revoked: list[tuple[str, str]] = []
    try:
        with store.transaction():
            devices = store.tokens() if kind != "operator" else {}
            people = (
                {one.name for one in store.access.operators() if one.revoked_at is None} if kind != "device" else set()
            )
            both = [name for name in names if name in devices and name in people]
            if both:
                raise click.UsageError(f"{', '.join(both)}: a device and an operator; say which by --kind")
            unknown = [name for name in names if name not in devices and name not in people]
            if unknown:
                raise TerminalError(
                    f"{', '.join(unknown)}: no token on record, so nothing was revoked",
                    needed_for="revoking",
                    remedy="see `reconciler token list`",
                )
            for name in names:
                found = "device" if name in devices else "operator"
                if found == "device":
                    store.revoke_token(name)
                else:
                    store.access.revoke_operator(name, now)
                _write_down(store.access, Deed.REVOKE_TOKEN, f"{found} {name}", now)
                revoked.append((found, name))
    finally:
        store.close()
    if output == "json":
        click.echo(json.dumps([{"kind": found, "name": name, "revoked": True} for found, name in revoked], indent=2))
        return
    for _, name in revoked:
        click.echo(f"{name} revoked")


@token.command("list", short_help="List the tokens of devices and operators.")
@CONFIG
@click.option("--kind", type=click.Choice(["device", "operator"]), help="These alone.")
@OUTPUT
def list_tokens(config: Path, kind: str | None, output: str) -> None:
    """List who has a token: operators with their scopes and when their tokens expire, and devices. Tokens are not kept.

    The state of an operator's token is `good`, `expires soon` (within two weeks), `expired`, `revoked`, or `in the file`: a
    line of `server.operators`, which does not expire.
    """
    from reconciler.controller.settings import load_settings
    from reconciler.server.tokens import read_operators

    file = load_settings(config).server.operators
    store = _store(config, create=False)
    try:
        devices = store.tokens() if kind != "operator" else {}
        people = store.access.operators() if kind != "device" else ()
    finally:
        store.close()
    now = datetime.now(UTC)
    rows = [token_row(one, now) for one in people]
    if file is not None and kind != "device":
        rows += [_file_row(one.name, one.scopes) for one in read_operators(file)]
    rows += [
        {"kind": "device", "name": name, "device": name, "createdAt": format_instant(at)}
        for name, at in devices.items()
    ]
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    for line in _table(rows):
        click.echo(line)


def token_row(one: OperatorToken, now: datetime) -> dict[str, Any]:
    """An operator's token as `token list --output json` shows it."""
    if one.revoked_at is not None:
        state = "revoked"
    elif not one.valid(now):
        state = "expired"
    else:
        soon = one.expires_at is not None and one.expires_at - now <= SOON
        state = "expires soon" if soon else "good"
    return {
        "kind": "operator",
        "name": one.name,
        "scopes": sorted(one.scopes),
        "createdAt": _second(one.created_at),
        "expiresAt": _second(one.expires_at),
        "lastUsedAt": _second(one.last_used_at),
        "revokedAt": _second(one.revoked_at),
        "state": state,
    }


def _file_row(name: str, scopes: Iterable[Scope]) -> dict[str, Any]:
    empty = dict.fromkeys(("createdAt", "expiresAt", "lastUsedAt", "revokedAt"))
    return {"kind": "operator", "name": name, "scopes": sorted(scopes), **empty, "state": "in the file"}


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Columns that line up: operators first, then devices as they have always been listed, name and instant."""
    people = [row for row in rows if row["kind"] == "operator"]
    if people:
        head = ("OPERATOR", "SCOPES", "EXPIRES", "LAST USED", "STATE")
        cells = [
            (
                row["name"],
                ",".join(row["scopes"]),
                row["expiresAt"] or "never",
                row["lastUsedAt"] or "-",
                row["state"],
            )
            for row in people
        ]
        widths = [max(len(line[column]) for line in (head, *cells)) for column in range(len(head))]
        for line in (head, *cells):
            yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    devices = [row for row in rows if row["kind"] == "device"]
    if people and devices:
        yield ""
    width = max((len(row["name"]) for row in devices), default=0)
    for row in devices:
        yield f"{row['name']:<{width}}  {row['createdAt'].partition('.')[0].removesuffix('Z')}Z"


def _expiry(_context: click.Context, _parameter: click.Parameter, value: str) -> int | None:
    """`90d` → seconds, `never` → None."""
    if value == "never":
        return None
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}, or `never`") from None
    if seconds <= 0 or seconds > LONGEST_S:
        raise click.BadParameter("write a time from 1s to 3650d, or `never`")
    return seconds


def _scopes(_context: click.Context, _parameter: click.Parameter, value: str) -> frozenset[Scope]:
    try:
        return parse_scopes(value)
    except ValueError:
        raise click.BadParameter(f"write some of {', '.join(Scope)}, with commas between them") from None


@token.command(short_help="Make a token for a person, or for a program that reads.")
@click.argument("name", callback=lambda context, parameter, value: _names(context, parameter, [value])[0])
@CONFIG
@click.option(
    "--scope",
    "scopes",
    default="all",
    show_default=True,
    callback=_scopes,
    metavar="SCOPE[,SCOPE...]",
    help="`read`: pages and API, also what the checks of a pull request need. `metrics`: /metrics alone. `acknowledge`: "
    "acknowledge flags. `all`: these and the audit log.",
)
@click.option(
    "--expires",
    default="90d",
    show_default=True,
    callback=_expiry,
    metavar="DURATION|never",
    help="How long it is good, as 30d or 12h.",
)
@click.option("--replace", is_flag=True, help="Replace the good token that this name has; it is invalid at once.")
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Add its hash to this file instead, for set-ups that are written as files (`server.operators`). It does not expire.",
)
@OUTPUT
@click.pass_context
def operator(
    context: click.Context,
    name: str,
    config: Path,
    scopes: frozenset[Scope],
    expires: int | None,
    replace: bool,
    path: Path | None,
    output: str,
) -> None:
    """Make a token for an operator called NAME, keep its hash, and print the token, this once.

    It opens the pages too: who logs in with it is known there by NAME, and so is what they do in `reconciler audit`. Needs no
    restart.
    """
    from reconciler.server.tokens import hash_token, make_token

    made, now = make_token(), datetime.now(UTC)
    ends = None if expires is None else now + timedelta(seconds=expires)
    if path is not None:
        if replace or context.get_parameter_source("expires") is not ParameterSource.DEFAULT:
            raise click.UsageError(
                "a token in a file does not expire and replaces none; edit the file, or leave --file out"
            )
        _into_file(path, name, scopes, hash_token(made), config)
        ends = None
    else:
        store = _store(config, create=True)
        try:
            with store.transaction():
                store.access.add_operator(hash_token(made), OperatorToken(name, scopes, now, ends), replace=replace)
                until = f"until {_second(ends)}" if ends is not None else "for good"
                _write_down(store.access, Deed.MAKE_TOKEN, f"operator {name}: {','.join(sorted(scopes))}, {until}", now)
        finally:
            store.close()
    if output == "json":
        row = {"name": name, "token": made, "scopes": sorted(scopes), "expiresAt": _second(ends)}
        click.echo(json.dumps(row, indent=2))
        return
    click.echo(made)
    good = (
        f"until {_second(ends)}"
        if ends is not None
        else "until it is " + ("taken out of the file" if path else "revoked")
    )
    may = "everything" if Scope.ALL in scopes else ", ".join(sorted(scopes))
    click.echo(f"{name} may do with it: {may}; {good}. It is shown this once.", err=True)


def _into_file(path: Path, name: str, scopes: frozenset[Scope], token_hash: str, config: Path) -> None:
    """A line more in the file; and in the audit log, where the settings and the store of a controller are here."""
    store = _store(config, create=False) if _has_store(config) else None
    try:
        _add_line(path, name, scopes, token_hash)
        if store is not None:
            about = f"operator {name}: {','.join(sorted(scopes))}, in {path}, until it is taken out"
            _write_down(store.access, Deed.MAKE_TOKEN, about, datetime.now(UTC))
    finally:
        if store is not None:
            store.close()
    if store is None:
        click.echo(f"not in the audit log: no store of a controller by {config} here", err=True)


def _has_store(config: Path) -> bool:
    from reconciler.controller.settings import load_settings

    if not config.exists():
        return False
    place = load_settings(config).store_place
    return "://" in place or Path(place).exists()


def _add_line(path: Path, name: str, scopes: frozenset[Scope], token_hash: str) -> None:
    from reconciler.adapters import durable
    from reconciler.server.tokens import read_operators

    before = ""
    if path.exists():
        read_operators(path)  # An invalid file is not made longer.
        before = path.read_text(encoding="utf-8")
        before += "" if before.endswith("\n") or not before else "\n"
    word = "" if Scope.ALL in scopes else f" {','.join(sorted(scopes))}"
    text = f"{before}{token_hash}{word}  # {name}, {_second(datetime.now(UTC))}\n"
    with durable.os_errors(f"write {path}", needed_for="adding an operator"):
        durable.write_atomic(path, [text.encode()], 0o600)


def _write_down(access: AccessStore, deed: Deed, about: str, at: datetime) -> None:
    """Into the audit log, by the name of the user of this machine."""
    access.add_audit(AuditEntry(at, _user(), "local", deed, about, Outcome.DONE))


def _user() -> str:
    # Not of the environment, in which anybody may stand.
    try:
        return pwd.getpwuid(os.getuid()).pw_name[:100]
    except KeyError:
        return f"uid {os.getuid()}"


def _second(at: datetime | None) -> str | None:
    return format_instant(at.replace(microsecond=0)) if at is not None else None


def _store(config: Path, *, create: bool) -> SqlStore:
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
