"""The kill matrix: every mutant is caught by the rule that it breaks, and the code as it is breaks none."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path

import pytest

from reconciler.simulate.run import Simulation
from reconciler.simulate.truth import Rule, Violation
from tests.simulate.courses import Play
from tests.simulate.mutants import MUTANTS
from tests.simulate.mutating import Cut, Edit, Mutant, mutated
from tests.simulate.plays import plays
from tests.simulate.random_plays import random_play

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

PLAYS = plays()


def violations(play: Play, edits: tuple[Edit, ...] = (), until: Rule | None = None) -> list[Violation]:
    """What the oracle says of a play under some edits; seen no further than to the first that breaks `until`."""
    # The world and what it knows of commits are made before: the mutant is in the product, not in the judge.
    simulation = Simulation(play.course)
    play.prepare(simulation)
    oracle = simulation.oracle
    assert oracle is not None
    with mutated(edits):
        while (at := simulation._next_at()) is not None and at <= simulation._end:
            simulation.step(at)
            if any(violation.rule is until for violation in oracle.violations) or simulation._is_quiet():
                break
        simulation._result(at or simulation._end)
    return oracle.violations


def _quick(mutant: Mutant) -> bool:
    """The first mutant of each rule is tried always, the others with the slow tests."""
    return mutant is next(first for first in MUTANTS if first.rule is mutant.rule)


MATRIX = [pytest.param(m, id=m.name, marks=() if _quick(m) else pytest.mark.slow) for m in MUTANTS]


@pytest.mark.parametrize("mutant", MATRIX)
def test_a_mutant_is_caught_by_the_rule_that_it_breaks(mutant: Mutant) -> None:
    found = [violations(PLAYS[name], mutant.edits, mutant.rule) for name in mutant.plays]
    assert any(violation.rule is mutant.rule for several in found for violation in several), found


LAYERS = [pytest.param(m, index, id=f"{m.name}-{index}") for m in MUTANTS for index in m.alone]


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "layer"), LAYERS)
def test_of_two_layers_one_is_enough(mutant: Mutant, layer: int) -> None:
    for name in mutant.plays:
        found = violations(PLAYS[name], (mutant.edits[layer],), mutant.rule)
        assert not [violation for violation in found if violation.rule is mutant.rule]


QUICK_PLAYS = ("limited", "bad and rescued", "app")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK_PLAYS else pytest.mark.slow) for name in sorted(PLAYS)]
)
def test_the_code_as_it_is_breaks_no_rule(name: str) -> None:
    assert violations(PLAYS[name]) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [68, 71, 119, 132, 167, 191, 206, 298])
def test_random_fleets_in_which_something_was_wrong_once_stay_right(number: int) -> None:
    assert violations(random_play(number)) == []


FLEETS, EACH = 200, 5


def broken(numbers: Iterable[int]) -> dict[int, list[Violation]]:
    """The random fleets among these whose plays break a rule, with the first violations of each."""
    found = {number: violations(random_play(number))[:3] for number in numbers}
    return {number: several for number, several in found.items() if several}


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, FLEETS, 50))
def test_random_fleets_with_faults_of_every_kind_break_no_rule(first: int) -> None:
    assert broken(range(first, first + 50, EACH)) == {}


@pytest.mark.vm
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, FLEETS, 20))
def test_all_random_fleets_with_faults_of_every_kind_break_no_rule(first: int) -> None:
    """The four of five that a run of the whole suite leaves out."""
    assert broken(number for number in range(first, first + 20) if number % EACH) == {}


def test_every_rule_has_two_mutants_at_least() -> None:
    for rule in Rule:
        assert len([mutant for mutant in MUTANTS if mutant.rule is rule]) >= 2, rule
    assert len(MUTANTS) >= 24
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_an_edit_that_fits_no_more_is_told() -> None:
    with (
        pytest.raises(AssertionError, match="0 times, not once"),
        mutated((Cut("reconciler.planner.gates:_entry", "no such text", ""),)),
    ):
        pass


def table() -> str:
    """The table of docs/explanation/simulation.md: each rule, in its own words, and the mutants that prove it."""
    source = inspect.getsource(Rule)
    lines = ["| rule | what must hold | mutants that it catches |", "| --- | --- | --- |"]
    for rule in Rule:
        _, _, after = source.partition(f"    {rule.name} = ")
        said = " ".join(after.split('"""')[1].split())
        names = "; ".join(mutant.name for mutant in MUTANTS if mutant.rule is rule)
        lines.append(f"| `{rule.value}` | {said} | {names} |")
    return "\n".join(lines)


def test_the_documentation_has_the_matrix_as_it_is() -> None:
    page = Path(__file__).parents[2] / "docs" / "explanation" / "simulation.md"
    assert table() in page.read_text(encoding="utf-8"), f"the table of {page.name} is not this:\n{table()}"
