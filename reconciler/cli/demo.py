"""`reconciler demo`: a fleet of 52 sites on this machine. Shows what happens, and ends with a summary."""

from __future__ import annotations

import signal
import time
from datetime import datetime
from pathlib import Path

import click

_FLEET = Path(__file__).resolve().parents[2] / "fleet"


@click.command(short_help="A fleet of 52 sites on this machine: a promotion, a bad release, a rollback.")
@click.option(
    "--dir", "root", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder to make."
)
@click.option(
    "--fleet",
    type=click.Path(path_type=Path, exists=True),
    help="The fleet repo to copy. [this project's own, in a checkout]",
)
@click.option("--keep-running", is_flag=True, help="Go on afterwards, on the system's clock, until interrupted.")
@click.option(
    "--follow", is_flag=True, help="Play no story: follow what you merge into DIR/fleet.git, until interrupted."
)
@click.option("--pushes", type=click.IntRange(min=1), metavar="N", help="With --follow: end after N merges.")
def demo(root: Path, fleet: Path | None, keep_running: bool, follow: bool, pushes: int | None) -> None:
    """Play nine days of a fleet in a minute or two, without root and without an account.

    The controller and the agents are the real ones; time is stepped. The folder is left for you to look at.

    With --follow you are the engineer: a fleet on v1.4.1 waits for what you merge. After each merge, time runs until only a
    person can go on, and DIR/observed.json says where the fleet stands. Devices take as long as in the field, so that
    what `reconciler diff` said of the merge is what happens.
    """
    if (keep_running and follow) or (pushes is not None and not follow):
        raise click.UsageError("--follow goes without --keep-running, and --pushes only with --follow")
    if fleet is None and not _FLEET.is_dir():
        raise click.UsageError(
            "the example fleet is in this project's checkout, not in what is installed; name it: --fleet CHECKOUT/fleet"
        )
    fleet = fleet or _FLEET
    # Ctrl-C and SIGTERM both end the controller too, also where a shell has started this in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if follow:
        _follow(root, fleet, pushes)
        return
    from reconciler.demo.story import Demo

    started = time.monotonic()
    play = Demo(root, fleet, _say)
    try:
        play.play()
        click.echo(f"\n{play.summary()}\n")
        click.echo(
            f"{time.monotonic() - started:.0f} s. Everything is in {root}: the fleet repo, the stores, the devices, and"
        )
        click.echo(f"controller.log. Look at it with: reconciler status --config {root / 'reconciler.yaml'}")
        if keep_running:
            play.go_on(click.echo)
    finally:
        play.close()


def _say(at: datetime, text: str) -> None:
    click.echo(f"{at:%a %d %b %H:%M}  {text}")


def _follow(root: Path, fleet: Path, pushes: int | None) -> None:
    """Ctrl-C is how it ends: no error."""
    from reconciler.demo.follow import Follow

    play = Follow(root, fleet, _say, pushes=pushes)
    try:
        play.play(click.echo)
    except KeyboardInterrupt:
        click.echo(f"\nEnded. Everything is in {root}.")
    finally:
        play.close()
