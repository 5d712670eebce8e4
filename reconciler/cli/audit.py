"""`reconciler audit`: what people did, read from the store. Changes nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from reconciler.cli.run import CONFIG
from reconciler.controller.words import clean
from reconciler.model.scalars import format_instant, parse_duration, parse_instant


def _since(_context: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    """`7d` → an instant before now; an instant as it is."""
    if value is None:
        return None
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(value))
    except (ValueError, OverflowError):
        pass
    try:
        return parse_instant(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither a time, as 7d, nor an instant, as 2026-01-15T00:00:00Z"
        ) from None


@click.command(short_help="List what people did: logins, acknowledgements, tokens.")
@CONFIG
@click.option(
    "--since", callback=_since, metavar="DURATION|INSTANT", help="Not older than this, as 7d or 2026-01-15T00:00:00Z."
)
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Entries at most, the newest."
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def audit(config: Path, since: datetime | None, limit: int, output: str) -> None:
    """List what people did, newest first: logged in or failed to, logged out, acknowledged a flag, made or revoked a token.

    A name is that of a token, or of a user of this machine where the address is `local`. What changes the fleet is not in it:
    that is in git. `server.auditKept` of the settings says how long it is kept.
    """
    from reconciler.controller.bootstrap import make_store
    from reconciler.controller.settings import load_settings

    store = make_store(load_settings(config), create=False)
    try:
        found = store.access.audit(since=since, limit=limit)
    finally:
        store.close()
    if output == "json":
        click.echo(json.dumps([entry.to_dict() for entry in found], indent=2, ensure_ascii=False))
        return
    rows = [
        (
            format_instant(entry.at.replace(microsecond=0)),
            entry.who or "-",
            entry.address,
            entry.what.value,
            entry.outcome.value,
            clean(" ".join(entry.about.split())),
        )
        for entry in found
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip())
