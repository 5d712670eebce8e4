"""`reconciler image check`: the sysprep gate over a finished image, an artifact or an install disk."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(short_help="Refuse an image that holds what no image may hold.")
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--fleet",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The fleet repo's folder: its `releaseKeys` may sign the next release.",
)
@click.option(
    "--allowed",
    metavar="FPR",
    multiple=True,
    help="A key that may sign the next release, 40 digits; may be given again.",
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def check(file: Path, fleet: Path | None, allowed: tuple[str, ...], output: str) -> None:
    """Open FILE and name everything in it that no image may hold: keys, ids, logs, leases, secrets, a site's data.

    FILE is a slot image or an install disk (raw, or packed with zstd), or an artifact's folder, which is held to its
    own papers too. It is neither mounted nor changed, and root is not needed. With --fleet or --allowed, the image's own
    release keys must have one in common with those that may sign.

    Every fault is a line: its path in the image, the rule, and what it is, never a secret's value. The rules:
    docs/reference/image-check.md. Exit code 0: none; 1: refused, or no image; 2: wrong usage.
    """
    from reconciler.image.gate_file import check as inspect

    keys = _keys(fleet, allowed)
    if keys is None:
        click.echo("note: without --fleet or --allowed, it is not asked whose signature the image accepts", err=True)
    checked = inspect(file, allowed=keys)
    if output == "json":
        faults = [
            {"path": fault.path, "rule": fault.rule, "what": fault.what, "remedy": fault.remedy}
            for fault in checked.faults
        ]
        document = {"file": str(file), "kind": checked.kind, "clean": not faults, "faults": faults}
        click.echo(json.dumps(document, indent=2))
    else:
        for fault in checked.faults:
            click.echo(f"{fault.path}: {fault.rule}: {fault.what}; {fault.remedy}")
        if not checked.faults:
            click.echo(f"{file}: {checked.kind}, nothing found that no image may hold")
    if checked.faults:
        rules = len({fault.rule for fault in checked.faults})
        count = f"{len(checked.faults)} fault{'s' if len(checked.faults) > 1 else ''}"
        click.echo(f"refused: {count} by {rules} rule{'s' if rules > 1 else ''} in {file}", err=True)
        raise SystemExit(1)


def _keys(fleet: Path | None, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
    """Fingerprints of the keys that may sign; None: nobody said."""
    import re

    wrong = [word for word in allowed if not re.fullmatch(r"[0-9A-Fa-f]{40}", word)]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is no fingerprint; write all 40 digits", param_hint="--allowed")
    if fleet is None:
        return tuple(word.upper() for word in allowed) if allowed else None
    from reconciler.repo.load import load_folder
    from reconciler.repo.problem import InvalidInput

    loaded = load_folder(fleet, scenarios=False)
    if loaded.desired is None:
        raise InvalidInput(loaded.errors)
    named = loaded.desired.fleet.release_keys
    if not named and not allowed:
        raise click.UsageError(
            f"the fleet in {fleet} names no releaseKeys; give --allowed FPR, as the settings have it"
        )
    # The fleet narrows what the settings allow: where both are said, both must agree.
    both = {word.upper() for word in allowed} & {word.upper() for word in named} if named and allowed else None
    return tuple(sorted(both)) if both is not None else tuple(named or allowed)
