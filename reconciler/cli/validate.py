"""`reconciler validate`: every problem of a fleet repo, each on a line that a person, or a pull request, can act on."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from reconciler.model.desired import Desired
from reconciler.repo.documents import NEEDED
from reconciler.repo.load import LoadResult, load_folder
from reconciler.repo.problem import InvalidInput, Problem


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--fleet", "fleet", type=click.Path(path_type=Path), help="The fleet repo's folder; PATH is the same. [. or fleet]"
)
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
    help="text and github print a line a problem (github: annotations of a pull request), json a list.",
)
def validate(path: Path | None, fleet: Path | None, output: str) -> None:
    """Check a fleet repo: every document by itself, and all of them together.

    PATH is the fleet repo's folder, or a folder or file in it: then the whole is checked, and the problems there are shown.
    Exit code 0: no error, warnings at most. 1: there is one. Needs no store, no network and no account.
    """
    if fleet is None:
        fleet = _fleet_of(path) if path is not None else _nearest()
        path = None if path == fleet else path
    only = _below(fleet, path) if path is not None else None
    result = load_folder(fleet)
    # The process ends with what it has read: to look through that for garbage, now and at the end, is time for nothing.
    gc.freeze()
    found = sorted((*result.problems, *_within_scenarios(fleet, result)))
    problems = [problem for problem in found if only is None or _is_below(problem.path, only)]
    _PRINT[output](problems)
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    if errors:
        click.echo(f"{fleet}: {_count(errors, 'error')}, {_count(warnings, 'warning')}", err=True)
        raise SystemExit(1)
    loaded = ""
    if result.desired is not None:
        desired = result.desired
        parts = (
            _count(len(desired.sites), "site"),
            _count(len(desired.waves.waves), "wave"),
            _count(len(desired.images), "image"),
            _count(len(desired.apps), "app"),
            _count(len(result.scenarios), "scenario"),
        )
        loaded = ", " + ", ".join(parts)
    click.echo(f"{fleet}: {'valid' if result.desired else 'no error'}, {_count(warnings, 'warning')}{loaded}", err=True)


def _within_scenarios(fleet: Path, result: LoadResult) -> Iterator[Problem]:
    """Problems of the documents inside scenarios, and of what they observe. None is run: that is `reconciler test`."""
    if not result.scenarios:
        return
    from reconciler.repo.scenario_read import read_scenario

    def own() -> Desired:
        if result.desired is None:
            raise InvalidInput(())  # the fleet's own problems are told already
        return result.desired

    for scenario in result.scenarios:
        path = fleet / scenario.path
        try:
            _, warnings = read_scenario(str(path), path.read_bytes(), own)
            yield from warnings
        except InvalidInput as invalid:
            yield from invalid.problems
        except OSError as error:
            yield Problem(str(path), 1, 1, f"cannot be read any more ({error.strerror}); run again", code="unreadable")


def _fleet_of(path: Path) -> Path:
    """The fleet repo that a path is in, or the path itself: a folder of sites is none."""
    for folder in (path, *list(path.parents)[:2]):
        if any((folder / name).exists() for name in NEEDED.values()):
            return folder
    return path


def _nearest() -> Path:
    """The folder to check where none is named: this one if it is a fleet repo, or `fleet` in it, as for the other commands."""
    elsewhere = not Path("fleet.yaml").exists() and Path("fleet/fleet.yaml").exists()
    return Path("fleet") if elsewhere else Path()


def _below(fleet: Path, path: Path) -> Path:
    """The part of the fleet repo to show: a path as given, or one below the fleet repo's folder."""
    for candidate in (path, fleet / path):
        if candidate.exists() and candidate.resolve().is_relative_to(fleet.resolve()):
            return fleet / candidate.resolve().relative_to(fleet.resolve())
    raise click.UsageError(f"{path} is no file or folder of the fleet repo {fleet}; name one that is in it")


def _is_below(path: str, folder: Path) -> bool:
    return Path(path) == folder or Path(path).is_relative_to(folder)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _text(problems: Sequence[Problem]) -> None:
    for problem in problems:
        click.echo(str(problem), err=True)


def _json(problems: Sequence[Problem]) -> None:
    listed = [
        {
            "path": problem.path,
            "line": problem.line,
            "column": problem.column,
            "severity": problem.severity,
            "code": problem.code,
            "message": problem.message,
        }
        for problem in problems
    ]
    click.echo(json.dumps({"problems": listed}, indent=2, ensure_ascii=False))


def _github(problems: Sequence[Problem]) -> None:
    """Workflow commands, escaped as the runner wants: more in a property than in the message."""
    for problem in problems:
        message = _escaped(problem.message)
        place = f"file={_property(problem.path)},line={problem.line},col={problem.column}"
        click.echo(f"::{problem.severity} {place},title={_property(problem.code)}::{message}")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


_PRINT: dict[str, Callable[[Sequence[Problem]], None]] = {"text": _text, "json": _json, "github": _github}
