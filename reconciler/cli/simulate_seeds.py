"""`reconciler simulate --seeds N`: one course under many seeds, told as a table, JSON and a picture."""

from __future__ import annotations

from pathlib import Path

import click

from reconciler.cli.inputs import write
from reconciler.cli.simulate import Progress, again
from reconciler.simulate.course import Course
from reconciler.simulate.distribution import as_json, as_text, distribution
from reconciler.simulate.summary import defect, faults_in_words


def many(course: Course, title: str, begins: str, seeds: int, output: str, picture: Path | None) -> None:
    """Play, tell and draw. Exit code 1: some seed broke a rule."""
    progress = Progress()
    found = distribution(course, seeds, lambda done: progress.at(f"{done} of {seeds} seeds"))
    progress.end()
    if picture is not None:
        from reconciler.simulate.canvas import save
        from reconciler.simulate.spread_picture import draw_distribution

        headline = f"{seeds} seeds; faults: {faults_in_words(course.faults)}"
        save(draw_distribution(found, title, headline), picture, title, headline)
    write(as_json(found, title, begins) if output == "json" else as_text(found, title, begins))
    broken = [outcome for outcome in found.outcomes if outcome.violations]
    if broken:
        click.echo(defect(broken[0].violations, again(course, broken[0].seed)), err=True)
        raise SystemExit(1)
