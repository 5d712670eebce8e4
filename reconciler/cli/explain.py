"""`reconciler explain DEVICE`: why a device has the decision it has, from the same plan that the loop acts on."""

from __future__ import annotations

import json
from pathlib import Path

import click

from reconciler.cli.inputs import input_options, read_inputs, write


@click.command()
@click.argument("device")
@input_options
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)
def explain(
    device: str, fleet: Path | None, observed: Path | None, at: str | None, config: Path | None, output: str
) -> None:
    """Say why DEVICE is, or is not, moving: the rung that stops it, until when, and whom its wave waits for."""
    from reconciler.planner import Columns, Roster, decide
    from reconciler.planner.explain import UnknownDevice
    from reconciler.planner.explain import explain as make
    from reconciler.planner.windows import micros

    desired, snapshot, now = read_inputs(fleet, observed, at, config)
    roster = Roster(desired)
    try:
        said = make(decide(roster, Columns.bind(roster, snapshot), micros(now)), device)
    except UnknownDevice as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
    if output == "json":
        write(json.dumps(said.to_dict(), indent=2, ensure_ascii=False) + "\n")
    else:
        write("\n".join(said.lines()) + "\n")
