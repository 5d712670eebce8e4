"""`reconciler completion`: a script by which a shell completes commands, options and their choices.

Prints it and writes nothing. The script asks `reconciler` itself at each Tab, with `_RECONCILER_COMPLETE` set, and click
answers from the same definitions as `--help`. Called by people, once a machine.
"""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print a script that lets a shell complete commands and options.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print a script that lets SHELL complete commands, options and their choices.

    Put it where your shell looks for completions, and open a new shell. It needs `reconciler` in the PATH, and is the same
    for every version of it.
    """
    from click.shell_completion import get_completion_class

    from reconciler.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None, f"click has no completion for {shell}"
    # Not `found.source()`: it asks this machine's bash for its version, which need not be the shell that reads the script.
    made = found(cli, {}, "reconciler", "_RECONCILER_COMPLETE")
    # click's script for fish cuts a description at its first comma.
    template = made.source_template.replace('string split "," $completion', 'string split -m 1 "," $completion')
    click.echo(template % made.source_vars())
