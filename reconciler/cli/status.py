"""`reconciler status`: where the rollout stands, read from the store or asked of the service, for a terminal or for a program.

Shows what the loop saw at its last tick; asks no other system. The picture itself is in `cli.status_view`.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli.server import server_options
from reconciler.ports import TransientError

if TYPE_CHECKING:
    from rich.console import Console

    from reconciler.controller.settings import Settings
    from reconciler.controller.status import Status


@click.command(short_help="Show where every wave stands, what is held and why.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The controller's settings: its store is read. [reconciler.yaml]",
)
@server_options
@click.option("--watch", is_flag=True, help="Keep showing it until interrupted.")
@click.option(
    "--every", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True, help="Seconds between two looks."
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def status(
    config: Path | None, server: str | None, token_file: Path | None, watch: bool, every: float, output: str
) -> None:
    """Show where every wave stands, what is held and until when, flagged devices, conditions, and open actions.

    Reads the store of the settings: it says what the loop saw at its last tick, also while no loop runs. With --server it asks
    the controller's service for the same, from anywhere.

    Exit codes: 0 fine, 1 an input is invalid, 2 wrong usage, 3 the store or the service gave none.
    """
    if watch and output == "json":
        raise click.UsageError("--watch is for people; call `status --output json` as often as you like instead")
    if server is not None and config is not None:
        raise click.UsageError("--server and --config each say where to look; give one of them")
    if server is None and token_file is not None:
        raise click.UsageError("--token-file goes with --server")
    with _looking(config, server, token_file) as look:
        _show(look, output, every if watch else None)


@contextmanager
def _looking(config: Path | None, server: str | None, token_file: Path | None) -> Iterator[Callable[[], Status]]:
    """What gives the status: the service, or the store."""
    if server is not None:
        yield lambda: _asked(server, token_file)
        return
    from reconciler.controller.bootstrap import make_store
    from reconciler.controller.settings import load_settings
    from reconciler.controller.status import status_of

    settings = load_settings(config or Path("reconciler.yaml"))
    store = make_store(settings, create=False)
    try:
        yield lambda: status_of(store, _now(settings))
    finally:
        store.close()


def _asked(server: str, token_file: Path | None) -> Status:
    from reconciler.cli.server import Asked, ask_json
    from reconciler.controller.status import status_from

    document = ask_json(server, token_file, Asked("/v1/status", "the status", "gave no status"))
    try:
        return status_from(document)
    except ValueError:
        raise TransientError(
            f"{server} gave no status: its answer is another one",
            needed_for="the status",
            remedy="check that the address is a reconciler's, of this version",
        ) from None


def _show(look: Callable[[], Status], output: str, every: float | None) -> None:
    """Print what `look` gives: once, or (`every` seconds) until interrupted."""
    try:
        if output == "json":
            click.echo(json.dumps(look().to_dict(), indent=2, ensure_ascii=False))
            return
        from rich.console import Console

        console = Console(highlight=False, emoji=False, markup=False)
        if every is not None:
            _watch(console, look, every)
        else:
            from reconciler.cli.status_view import view

            found = look()
            console.print(view(found, console.width, _ascii(console)))
            for line in _to_be_run(found):
                # Not broken into lines: it is there to be copied.
                console.print(line, soft_wrap=True)
    except KeyboardInterrupt:
        return


def _to_be_run(status: Status) -> list[str]:
    """The commands that a person with the release key is waited for to run."""
    from reconciler.cli.status_view import clean
    from reconciler.controller.conditions import AWAITING_SIGNATURE

    awaited = " ".join(clean(row.message) for row in status.conditions if row.reason == AWAITING_SIGNATURE)
    commands = re.findall(r"; run: (reconciler image sign .+?)(?=; v\d|; and \d+ more$|$)", awaited)
    return (
        ["", "To be signed, by a person with the release key:", *(f"  {text}" for text in commands)] if commands else []
    )


def _watch(console: Console, look: Callable[[], Status], every: float) -> None:
    """On a terminal one picture that changes; elsewhere a new one each time that something changed but the time."""
    from rich.live import Live

    from reconciler.cli.status_view import view

    if console.is_terminal:
        first = view(look(), console.width, _ascii(console))
        with Live(first, console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                try:
                    live.update(view(look(), console.width, _ascii(console)), refresh=True)
                except TransientError:
                    continue  # Busy for a moment: the last picture stands until the next look.
    shown = None
    while True:
        found = look()
        facts = {key: value for key, value in found.to_dict().items() if key != "at"}
        if facts != shown:
            shown = facts
            console.print(view(found, console.width, _ascii(console)))
            sys.stdout.flush()
        time.sleep(every)


def _ascii(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")


def _now(settings: Settings) -> datetime:
    """The present instant: the system's, or that of a stepped clock, whose director need not run any more."""
    from reconciler.controller.settings import SteppedClockSettings

    if isinstance(settings.clock, SteppedClockSettings):
        try:
            (micros,) = struct.unpack("<q", Path(f"{settings.clock.socket}.now").read_bytes()[:8])
        except (OSError, struct.error):
            return datetime.now(UTC)
        return datetime.fromtimestamp(micros / 1e6, UTC)
    return datetime.now(UTC)
