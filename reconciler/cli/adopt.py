"""`reconciler adopt`: records proofs for what a running fleet already runs in health, and says which."""

from __future__ import annotations

from pathlib import Path

import click

from reconciler.cli.run import CONFIG


@click.command(short_help="Record proofs for what a running fleet already runs in health.")
@CONFIG
@click.option("--dry-run", is_flag=True, help="Say what would be recorded, and record nothing.")
def adopt(config: Path, dry_run: bool) -> None:
    """Record proofs for what a running fleet already runs in health, and say which.

    For the first day: a fleet that was flashed by other means has no proofs, so every later wave would wait for soaks. Let
    the loop run until devices report, stop it, adopt, and start it again (a loop that still runs is fenced and ends).
    """
    from reconciler.controller.adopt import adopt as decide
    from reconciler.controller.bootstrap import make_clock, make_store, open_snapshot
    from reconciler.controller.settings import load_settings
    from reconciler.ports import Decision

    settings = load_settings(config)
    desired, observed = open_snapshot(settings)
    now = observed.at or make_clock(settings)[0].now()
    found = decide(desired, observed, now)
    for line in found.lines:
        click.echo(line)
    if dry_run:
        return
    store = make_store(settings, create=False)
    try:
        epoch = store.begin_epoch()
        decision = Decision(at=now, commit=desired.commit, facts=found.facts, tags_set=found.tags_set)
        store.record(epoch, decision)
    finally:
        store.close()
    click.echo(f"{len(found.facts.proofs)} proofs recorded")
