"""`reconciler test`: runs the policy scenarios of a fleet repo and says which hold.

Finds the files, plans each scenario and prints one line a scenario; needs no store, no network and no account.
Scenarios that have no documents of their own are planned with the fleet repo's. Exit codes: 0 all hold, 1 one fails or
a file is invalid, 2 wrong usage. Source: contract, "Scenario" and fine print 16.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import click

from reconciler.model.desired import Desired
from reconciler.repo.problem import InvalidInput, Problem
from reconciler.repo.scenario_read import read_scenario
from reconciler.repo.scenario_run import Outcome, run_scenario

_MOST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Result:
    """One file's result: an outcome, or the problems that kept it from running."""

    path: str
    outcome: Outcome | None
    problems: tuple[Problem, ...] = ()

    @property
    def name(self) -> str:
        """The scenario's sentence, or the file's path where it could not be read."""
        return self.outcome.scenario.name if self.outcome else self.path

    @property
    def passed(self) -> bool:
        """It ran, and everything was as expected."""
        return self.outcome is not None and self.outcome.passed


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--fleet", default="fleet", show_default=True, help="Folder of the fleet repo.")
@click.option(
    "--output",
    type=click.Choice(["text", "json", "junit"]),
    default="text",
    show_default=True,
    help="Form of the results.",
)
def test(paths: tuple[str, ...], fleet: str, output: str) -> None:
    """Run a fleet's policy scenarios: what is observed, and what the plan for it must be.

    PATH is a scenario's file, or a folder of them; the fleet's tests/ unless said. Exit code 0: all hold. 1: one does not, or
    a file is invalid. Needs no store, no network and no account.
    """
    files = list(_files(paths or (os.path.join(fleet, "tests"),), given=bool(paths)))
    if not files:
        where = ", ".join(paths) if paths else os.path.join(fleet, "tests")
        raise click.UsageError(f"no scenario below {where}; write one as NAME.yaml with kind: Scenario")
    own = _own_desired(fleet)
    results = [run_file(path, own) for path in files]
    for result in results:
        for problem in result.problems:
            click.echo(str(problem), err=True)
    click.echo({"text": as_text, "json": as_json, "junit": as_junit}[output](results), nl=False)
    sys.exit(0 if all(result.passed for result in results) else 1)


def run_file(path: str, own: Callable[[], Desired] | None) -> Result:
    """Read and run one scenario file."""
    from reconciler.planner import plan, waves_of_sites

    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        return Result(path, None, (Problem(path, 1, 1, f"cannot be read: {error.strerror}"),))
    if len(data) > _MOST_BYTES:
        return Result(path, None, (Problem(path, 1, 1, f"larger than {_MOST_BYTES} bytes; a scenario is smaller"),))
    try:
        scenario, warnings = read_scenario(path, data, own)
    except InvalidInput as error:
        return Result(path, None, error.problems)
    return Result(path, run_scenario(scenario, plan, waves_of_sites), warnings)


def _files(paths: tuple[str, ...], *, given: bool) -> Iterator[str]:
    """Scenario files in order: files as given, folders searched for .yaml, .yml and .json."""
    for path in paths:
        if os.path.isdir(path):
            yield from sorted(
                str(file)
                for file in Path(path).rglob("*")
                if file.suffix in (".yaml", ".yml", ".json") and file.is_file()
            )
        elif os.path.exists(path):
            yield path
        elif given:
            raise click.UsageError(f"no file or folder {path!r}; name a scenario file or a folder of them")


def _own_desired(fleet: str) -> Callable[[], Desired] | None:
    """The fleet repo's desired state, loaded when the first scenario asks for it."""
    if not os.path.isdir(fleet):
        return None

    @lru_cache(maxsize=1)
    def load() -> Desired:
        from reconciler.repo.load import load_folder

        result = load_folder(Path(fleet), scenarios=False)
        if result.desired is None:
            raise InvalidInput(result.problems)
        return result.desired

    return load


def as_text(results: list[Result]) -> str:
    """One line a scenario, what failed below it, and a summary."""
    lines = []
    for result in results:
        lines.append(f"{'ok  ' if result.passed else 'FAIL'} {result.name}")
        if result.outcome is not None:
            lines += [f"       {line}" for line in result.outcome.failures]
            lines += [] if result.passed else [f"       in {result.path}"]
        else:
            lines.append("       the file is invalid; see the problems above")
    passed = sum(result.passed for result in results)
    failed = len(results) - passed
    lines.append(f"{passed} passed, {failed} failed")
    return "\n".join(lines) + "\n"


def as_json(results: list[Result]) -> str:
    """A list of scenarios with path, name, passed, failures and problems."""
    items = [
        {
            "path": result.path,
            "name": result.name,
            "passed": result.passed,
            "failures": list(result.outcome.failures) if result.outcome else [],
            "problems": [str(problem) for problem in result.problems],
        }
        for result in results
    ]
    return json.dumps({"apiVersion": "fleet/v1", "kind": "TestResults", "scenarios": items}, indent=2) + "\n"


def as_junit(results: list[Result]) -> str:
    """JUnit XML, as CI systems read it: a failed scenario is a failure, an invalid file an error."""
    from xml.sax.saxutils import escape, quoteattr

    failures = sum(1 for result in results if result.outcome is not None and not result.passed)
    errors = sum(1 for result in results if result.outcome is None)
    lines = ['<?xml version="1.0" encoding="UTF-8"?>']
    lines.append(f'<testsuite name="reconciler test" tests="{len(results)}" failures="{failures}" errors="{errors}">')
    for result in results:
        lines.append(f"  <testcase classname={quoteattr(result.path)} name={quoteattr(result.name)}>")
        if result.outcome is None:
            text = "\n".join(str(problem) for problem in result.problems)
            lines.append(f'    <error message="invalid file">{escape(text)}</error>')
        elif not result.passed:
            text = "\n".join(result.outcome.failures)
            lines.append(f"    <failure message={quoteattr(result.outcome.failures[0])}>{escape(text)}</failure>")
        lines.append("  </testcase>")
    return "\n".join([*lines, "</testsuite>"]) + "\n"
