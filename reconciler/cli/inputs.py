"""What `plan` and `explain` read: a fleet folder and a snapshot, or the controller's own store. Loads only what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from reconciler.model.desired import Desired
from reconciler.model.observed import Snapshot
from reconciler.model.scalars import parse_instant


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what to plan: `--fleet`, `--observed`, `--at`, `--config`."""
    for option in (
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            help="Settings of the controller, for its store and its fleet repo. [reconciler.yaml]",
        ),
        click.option("--at", "at", metavar="INSTANT", help="Plan for this instant, as 2026-01-15T01:30:00Z. [now]"),
        click.option(
            "--observed",
            type=click.Path(path_type=Path),
            help="Observed snapshot (JSON); without it, the store of --config is read.",
        ),
        click.option("--fleet", type=click.Path(path_type=Path), help="The fleet repo's folder."),
    ):
        command = option(command)
    return command


def read_inputs(
    fleet: Path | None, observed: Path | None, at: str | None, config: Path | None
) -> tuple[Desired, Snapshot, datetime]:
    """Desired and observed state, and the instant. Documents are checked before any system is contacted.

    InvalidInput: a document or the snapshot is invalid. UsageError: it is not said what to read.
    """
    now = _instant(at)
    desired = _fleet(fleet) if fleet is not None else None
    if observed is not None:
        from reconciler.repo.snapshot import load_snapshot

        if desired is None:
            raise click.UsageError("--observed needs --fleet DIR, the fleet repo that the snapshot is of")
        snapshot = load_snapshot(observed)
    else:
        settings = config or Path("reconciler.yaml")
        if not settings.exists():
            raise click.UsageError(
                f"there is no snapshot and no settings file {settings}; give --observed FILE, or --config FILE for the store"
            )
        from reconciler.controller.bootstrap import open_snapshot
        from reconciler.controller.settings import load_settings

        stored, snapshot = open_snapshot(load_settings(settings))
        desired = desired or stored
    return with_configuration(desired, snapshot), snapshot, now


def with_configuration(desired: Desired, snapshot: Snapshot) -> Desired:
    """Fill in the digests of the sites' rendered configuration, where any device reports one to compare it with."""
    if all(device.config is None for device in snapshot.devices):
        return desired
    from reconciler.repo.load import with_config

    return with_config(desired, snapshot.secret_versions)


def _instant(at: str | None) -> datetime:
    if at is None:
        return datetime.now(UTC)
    try:
        return parse_instant(at)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--at") from None


def _fleet(folder: Path) -> Desired:
    from reconciler.repo.load import load_folder
    from reconciler.repo.problem import InvalidInput

    result = load_folder(folder, scenarios=False)
    if result.desired is None:
        raise InvalidInput(result.errors)
    for problem in result.problems:
        click.echo(str(problem), err=True)
    return result.desired


def write(text: str) -> None:
    """Print a result as it is, without a second newline."""
    click.echo(text, nl=False)
