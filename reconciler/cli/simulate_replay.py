"""`reconciler simulate --replay FILE`: recorded observations under the policy of a fleet folder."""

from __future__ import annotations

from pathlib import Path

import click

from reconciler.cli.inputs import write
from reconciler.repo.load import load_folder
from reconciler.repo.problem import InvalidInput
from reconciler.simulate.recording import read
from reconciler.simulate.replay import replay
from reconciler.simulate.replay_text import as_json, as_text


def replay_file(path: Path, fleet: Path, output: str) -> None:
    """Read, decide and tell. InvalidInput: the fleet or the recording is invalid."""
    result = load_folder(fleet, scenarios=False)
    if result.desired is None:
        raise InvalidInput(result.errors)
    for problem in result.problems:
        click.echo(str(problem), err=True)
    found = replay(result.desired, read(path))
    title = f"{path} under the policy in {fleet}"
    if output == "json":
        write(as_json(found, title))
    else:
        write(as_text(found, title, table=output == "text"))
