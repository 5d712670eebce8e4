"""`reconciler plan`: what the loop would do now, what it holds and why. Changes nothing."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from reconciler.cli.inputs import input_options, read_inputs, write
from reconciler.model.plan import Action, Hold, Plan
from reconciler.model.scalars import format_instant

_MOST_DEVICES = 4


@click.command()
@input_options
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)
def plan(fleet: Path | None, observed: Path | None, at: str | None, config: Path | None, output: str) -> None:
    """Show what the loop would do now, and what it holds and why.

    With --fleet and --observed it needs no store, no network and no account. Exit codes: 0 fine, 1 the input is invalid,
    2 wrong usage, 3 a system that was needed did not answer.
    """
    from reconciler.planner import plan as make

    desired, snapshot, now = read_inputs(fleet, observed, at, config)
    made = make(desired, snapshot, now)
    write(made.to_json() if output == "json" else as_text(made))


def as_text(made: Plan) -> str:
    """A plan for people: waves, actions, holds, what was established, and when to look again."""
    out = [f"plan at {format_instant(made.at)}" + (f" for commit {made.commit}" if made.commit else ""), "", "waves"]
    for wave in made.waves:
        soak = _soak(made, wave.soak_ends_at)
        bad = f", {wave.failed} failed, {wave.offline} offline" if wave.failed or wave.offline else ""
        out.append(
            f"  {wave.name:<12} {wave.image or '-':<10} {wave.state.value:<13}"
            f" {wave.on_release}/{wave.devices} on it, {wave.healthy} healthy{bad}{soak}"
        )
        for name, app in sorted(wave.apps.items()):
            ends = _soak(made, app.soak_ends_at)
            out.append(f"  {'':<12} {name} {app.release}: {app.state.value}, {app.on_release} on it{ends}")
    out += ["", f"actions ({len(made.actions)})"]
    out += [f"  {_action(action)}" for action in made.actions] or ["  none"]
    out += ["", f"holds ({len(made.holds)})"]
    out += [line for hold in made.holds for line in _hold(hold)] or ["  none"]
    established = [f"  proof: {fact.wave} has proved {fact.key}" for fact in made.facts.proofs]
    established += [f"  failure: {fact.wave} failed {fact.key}" for fact in made.facts.failures]
    if established:
        out += ["", "established", *established]
    if made.flagged:
        out += [
            "",
            "flagged",
            *(f"  {fact.device}: failed {fact.key} at {format_instant(fact.at)}" for fact in made.flagged),
        ]
    change = made.next_change_at
    out += ["", f"next change: {format_instant(change) if change else 'when something is reported or merged'}", ""]
    return "\n".join(out)


def _soak(made: Plan, ends: datetime | None) -> str:
    """When a soak that runs ends. One that is over is no news: the wave's state says what came of it."""
    return f", soak ends {format_instant(ends)}" if ends is not None and ends > made.at else ""


def _action(action: Action) -> str:
    fields = action.fields
    kind = action.kind.value
    if "device" in fields and "method" in fields:
        return f"{kind} {fields['device']}: {fields['from'] or 'nothing'} → {fields['to']} ({fields['why']}, {fields['method']})"
    return " ".join([kind, *(f"{key}={value}" for key, value in fields.items() if value is not None)])


def _hold(hold: Hold) -> list[str]:
    names = ", ".join(hold.devices[:_MOST_DEVICES])
    more = f" and {len(hold.devices) - _MOST_DEVICES} more" if len(hold.devices) > _MOST_DEVICES else ""
    lines = [f"  {hold.reason.value:<20} {hold.message}"]
    if len(hold.devices) > 1:
        lines.append(f"  {'':<20} {names}{more}")
    return lines
