"""The kill matrix: every mutant is caught by the rule that it breaks, and the code as it is breaks none."""

from __future__ import annotations

import pytest

from reconciler.simulate.run import Simulation
from reconciler.simulate.truth import Rule, Violation
from tests.simulate.courses import Play
from tests.simulate.mutants import MUTANTS, Edit, Mutant, mutated
from tests.simulate.plays import plays

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


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught_by_the_rule_that_it_breaks(mutant: Mutant) -> None:
    found = [violations(PLAYS[name], mutant.edits, mutant.rule) for name in mutant.plays]
    assert any(violation.rule is mutant.rule for several in found for violation in several), found


LAYERS = [(mutant, index) for mutant in MUTANTS for index in mutant.alone]


@pytest.mark.parametrize(("mutant", "layer"), LAYERS, ids=lambda part: part.name if isinstance(part, Mutant) else str(part))
def test_of_two_layers_one_is_enough(mutant: Mutant, layer: int) -> None:
    for name in mutant.plays:
        found = violations(PLAYS[name], (mutant.edits[layer],), mutant.rule)
        assert not [violation for violation in found if violation.rule is mutant.rule]


@pytest.mark.parametrize("name", sorted(PLAYS))
def test_the_code_as_it_is_breaks_no_rule(name: str) -> None:
    assert violations(PLAYS[name]) == []


def test_every_rule_has_two_mutants_at_least() -> None:
    for rule in Rule:
        assert len([mutant for mutant in MUTANTS if mutant.rule is rule]) >= 2, rule
    assert len(MUTANTS) >= 24
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
