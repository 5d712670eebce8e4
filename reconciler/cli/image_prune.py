"""`reconciler image prune`: takes releases that nobody needs out of the image store, and says why of every one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.image_store import as_document, megabytes, read_needs
from reconciler.cli.inputs import write
from reconciler.cli.run import CONFIG
from reconciler.model.scalars import format_duration, format_instant, parse_duration

if TYPE_CHECKING:
    from reconciler.image.retention import Verdict


class _Length(click.ParamType[int]):
    """A length of time, as the settings have it: 90d, 12h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(short_help="Take releases that nobody needs out of the image store.")
@CONFIG
@click.option("--dry-run", is_flag=True, help="Say of every release what would be done and why, and remove nothing.")
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Releases kept whoever needs them: the newest that were published and are not withdrawn.",
)
@click.option(
    "--older-than",
    type=_Length(),
    default="90d",
    show_default=True,
    help="Age from which a release may go, by when it was published.",
)
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)
def prune(config: Path, dry_run: bool, keep: int, older_than: int, output: str) -> None:
    """Take releases that nobody needs out of the image store, and say of every release why it is kept or goes.

    Kept is what any device on record runs, would go back to, has in its other slot, is moving to or was assigned; what a wave
    or a pin of the commit in force or of the branch's head names; what the loop is at work on; the newest releases, and the
    young. A device that is silent counts as it was last known. The loop itself never prunes.

    A removal takes the release out of the index first, then its files: killed half-way, it leaves nothing that passes for a
    build, and the next run ends it. The name of a release that was published stands for its bytes for good: the same build
    may be stored again, another one needs another name.
    """
    from reconciler.controller.settings import load_settings
    from reconciler.image.retention import Policy, judge

    needs = read_needs(load_settings(config))
    verdicts = judge(needs.holdings, needs.fleet, Policy(keep, older_than), needs.at)
    removed: set[str] = set()
    try:
        for verdict in verdicts:
            if verdict.prune and not dry_run:
                needs.images.remove(verdict.holding.release)
                removed.add(verdict.holding.release)
    finally:
        # Also where a removal fails: what is gone is gone, and must be told.
        if output == "json":
            document = {
                "at": format_instant(needs.at),
                "dryRun": dry_run,
                "keep": keep,
                "olderThan": format_duration(older_than),
                "releases": [_as_document(verdict, removed) for verdict in verdicts],
            }
            write(json.dumps(document, indent=2) + "\n")
        else:
            write(_as_text(verdicts, removed, dry_run))


def _as_document(verdict: Verdict, removed: set[str]) -> dict[str, Any]:
    return {
        **as_document(verdict.holding),
        "verdict": "prune" if verdict.prune else "keep",
        "reason": verdict.reason.value,
        "why": verdict.why,
        "removed": verdict.holding.release in removed,
    }


def _as_text(verdicts: tuple[Verdict, ...], removed: set[str], dry_run: bool) -> str:
    lines = []
    for verdict in verdicts:
        held = verdict.holding
        word = "keep"
        if verdict.prune:
            word = "removed" if held.release in removed else "would go" if dry_run else "not removed"
        lines.append(
            f"{word:<11} {held.release:<10} {megabytes(held.size):>12}  {verdict.reason.value:<13} {verdict.why}"
        )
    going = [
        verdict.holding for verdict in verdicts if verdict.prune and (dry_run or verdict.holding.release in removed)
    ]
    size = megabytes(sum(holding.size for holding in going))
    if not verdicts:
        lines.append("the image store holds no release")
    elif going:
        lines.append(f"{len(going)} of {len(verdicts)} releases {'would go' if dry_run else 'removed'}, {size}")
    else:
        lines.append(f"nothing may go, of {len(verdicts)} in the store")
    return "\n".join(lines) + "\n"
