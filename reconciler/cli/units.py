"""`reconciler systemd-units`: writes the units for controller, signer and builder, and the users that they run as.

The units are files of this package (`cli/systemd`); here the program's path is put into them. Writes into the folder that is named
and nowhere else, and starts nothing. Called by whoever installs: docs/how-to/run-under-systemd.md.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

UNITS = Path(__file__).resolve().parent / "systemd"
_MARK = "@RECONCILER@"


def units(program: Path) -> dict[str, str]:
    """File name → text of every unit, and of the file for systemd-sysusers, for the command at `program`."""
    paths = sorted(path for path in UNITS.iterdir() if path.suffix in (".service", ".socket", ".conf"))
    return {path.name: path.read_text(encoding="utf-8").replace(_MARK, str(program)) for path in paths}


@click.command("systemd-units", short_help="Write the systemd units for controller, signer and builder.")
@click.option("--output", "folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder.")
@click.option(
    "--program",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The command that the units run, as an absolute path. [this one]",
)
def systemd_units(folder: Path, program: Path | None) -> None:
    """Write the systemd units for controller, signer and builder, and the users that they run as, into a folder.

    What is there already is written again. Nothing is enabled or started. Prints each file's path.
    """
    program = program or _this()
    if not program.is_absolute() or any(c.isspace() or c in "%$\\\"'" for c in str(program)):
        raise click.UsageError(f"--program {program}: name the command by an absolute path without blanks and quotes")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in units(program).items():
            (folder / name).write_text(text, encoding="utf-8")
            click.echo(str(folder / name))
    except OSError as error:
        from reconciler.ports import TerminalError

        raise TerminalError(
            f"{error.filename or folder} cannot be written ({error.strerror})",
            needed_for="the units",
            remedy="name a folder that you may write; copy them to /etc/systemd/system as root then",
        ) from None


def _this() -> Path:
    """The command that is running, by the path that others find it by."""
    return Path(shutil.which("reconciler") or sys.argv[0]).absolute()
