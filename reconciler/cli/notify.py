"""`reconciler notify`: try the targets of notifications. Sends to them by itself, beside a running loop; writes nothing."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.run import CONFIG
from reconciler.ports import PortError, TerminalError, TransientError

if TYPE_CHECKING:
    from reconciler.controller.settings import Settings
    from reconciler.controller.settings_notify import NotifyTarget


@click.group(short_help="Try the targets of notifications.")
def notify() -> None:
    """Try the targets of notifications that the settings name (`notifications`)."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one target. `code` is the exit code that it asks for; `said` is why it was not taken."""

    target: str
    code: int
    took_s: float
    said: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        return {
            "target": self.target,
            "accepted": self.code == 0,
            "seconds": round(self.took_s, 3),
            "message": self.said or None,
        }


@notify.command(short_help="Send a test message, and say what happened.")
@click.argument("name", metavar="[TARGET]", required=False)
@CONFIG
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)
def test(name: str | None, config: Path, output: str) -> None:
    """Send a test message to TARGET, or to every target of the settings, and say what each answered.

    It is sent once and at once: nothing is put on record, and a running loop is not asked. Exit codes: 0 all took it, 1 a target
    refuses it or cannot be sent to (or the settings name none), 2 wrong usage or no such target, 3 a target did not answer.
    """
    from reconciler.controller.settings import load_settings

    settings = load_settings(config)
    targets = [target for target in settings.notifications if name in (None, target.name)]
    if not settings.notifications:
        raise TerminalError(
            f"{config} names no target of notifications",
            needed_for="a test message",
            remedy="add one under `notifications` (see docs/how-to/get-notified.md)",
        )
    if not targets:
        known = ", ".join(target.name for target in settings.notifications)
        raise click.BadParameter(f"{name!r} is no target of {config}; it names {known}", param_hint="TARGET")
    tried = [_try(target, settings) for target in targets]
    if output == "json":
        click.echo(json.dumps([one.to_dict() for one in tried], indent=2, ensure_ascii=False))
    for one in tried:
        if one.code:
            click.echo(f"error: {one.target}: {one.said}", err=True)
        elif output == "text":
            click.echo(f"{one.target} took it, in {one.took_s:.1f} s")
    # What will not change by itself is told before what may.
    codes = {one.code for one in tried}
    raise SystemExit(1 if 1 in codes else max(codes))


def _try(target: NotifyTarget, settings: Settings) -> Tried:
    from reconciler.controller.bootstrap import make_secrets
    from reconciler.controller.notices import trial
    from reconciler.controller.notify_senders import make_sender

    message = trial(target.name, settings.server.public_url, datetime.now(UTC).replace(microsecond=0))
    begun = time.monotonic()
    try:
        answer = make_sender(target, lambda: make_secrets(settings)).send(f"msg_{uuid.uuid4().hex}", message)
    except PortError as error:
        code = 3 if isinstance(error, TransientError) else 1
        return Tried(target.name, code, time.monotonic() - begun, str(error))
    return Tried(target.name, 0 if answer.accepted else 1, time.monotonic() - begun, answer.said)
