"""`reconciler`: finds the command and loads nothing else, so that `plan` and `validate` start fast."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from typing import NoReturn

import click

from reconciler import __version__
from reconciler.cli.guide import START
from reconciler.cli.lazy import Commands, LazyGroup

COMMANDS: Commands = {
    "validate": ("validate", "validate", "Check a fleet repo: every document, and all of them together."),
    "schema": ("schema", "schema", "Print or write the JSON Schemas of the fleet documents."),
    "test": ("test", "test", "Run the policy scenarios of a fleet repo."),
    "diff": ("diff", "diff", "Show everything that a merge will do, before it."),
    "simulate": ("simulate", "simulate", "Play a merge, and what may go wrong, in virtual time."),
    "plan": ("plan", "plan", "Show what the loop would do now, and what it holds and why."),
    "explain": ("explain", "explain", "Say why a device, a site or a wave is where it is, and what would change it."),
    "status": ("status", "status", "Show where every wave stands, what is held and why."),
    "snapshot": ("snapshot", "snapshot", "Write what is observed, for `diff`, `plan` and `simulate`."),
    "publish-review": ("publish_review", "publish_review", "Post a review's comment and commit status; for workflows."),
    "token": ("token", "token", "Enrol devices and operators; revoke and list their tokens."),
    "device": ("device", "device", "Enrol a device: all that its agent needs, in one folder."),
    "audit": ("audit", "audit", "List what people did: logins, acknowledgements, tokens."),
    "run": ("run", "run", "Run the loop and the HTTP service."),
    "notify": ("notify", "notify", "Try the targets of notifications."),
    "adopt": ("adopt", "adopt", "Record proofs for what a running fleet already runs in health."),
    "demo": ("demo", "demo", "A fleet of 52 sites on this machine: a promotion, a bad release, a rollback."),
    "site": ("site", "site", "Look at single sites (`site render` shows their cloud-init files), and add them."),
    "promote": ("promote", "promote", "Propose that the next wave, or every wave, runs a release."),
    "rollback": ("promote", "rollback", "Propose that waves go back to what they ran before."),
    "pin": ("policy", "pin", "Propose that devices of a site run a release of their own."),
    "withdraw": ("policy", "withdraw", "Propose that nothing moves to a release any more."),
    "pause": ("policy", "pause", "Propose to stop the fleet, or a wave; or to let it go on."),
    "image": ("image", "image", "Build, check and move the golden image; `image bump` proposes the next release."),
    "builder": ("builder", "builder", "Build one release for the reconciler, as a user without keys."),
    "completion": ("completion", "completion", "Print a script that lets a shell complete commands and options."),
    "relay": ("relay", "relay", "Ask a command of another user over a socket; for signer and builder."),
    "monitoring": ("monitoring", "monitoring", "Print alert rules for Prometheus and a dashboard for Grafana."),
    "systemd-units": ("units", "systemd_units", "Write the systemd units for controller, signer and builder."),
    "signer": ("signer", "signer", "Sign a release that an accepted commit names, after checking it."),
}


# pydantic looks through every installed package for plugins of its own; none is used here, and it costs 20 ms a start.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
# The planner multiplies no matrices: a pool of threads would only be started and stopped.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Importing allocates and frees nothing: the collector's default of every 700 objects is a tenth of a short command's time.
gc.set_threshold(50_000, 20, 20)


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    epilog=START,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="reconciler")
def cli() -> None:
    """GitOps reconciler for fleets of edge servers: golden images and apps, promoted wave by wave from git."""


def main() -> NoReturn:
    """Entry point of the `reconciler` command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no arrow is shown how it is written; a result is never cut off by it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(cli(standalone_mode=True))
    except Exception as error:  # noqa: BLE001  what is ours is raised again by `_report`, with its traceback
        sys.exit(_report(error))


def _report(error: Exception) -> int:
    """Say what went wrong and return the exit code; what is nobody's fault but ours keeps its traceback."""
    from reconciler.ports import TerminalError, TransientError
    from reconciler.repo.problem import InvalidInput

    if isinstance(error, InvalidInput):
        click.echo(str(error), err=True)
        return 1
    if isinstance(error, (TerminalError, TransientError)):
        click.echo(f"error: {error}", err=True)
        return 3 if isinstance(error, TransientError) else 1
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        click.echo(
            f"error: the result cannot be written ({error.strerror}); make room, or write it elsewhere", err=True
        )
        return 1
    raise error
