"""Many seeds: as each alone, however many run at once; quantiles and what is told of them."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from reconciler.simulate.distribution import as_json, as_text, distribution, play, quantile
from reconciler.simulate.faults import Faults
from tests.review.repos import AT
from tests.simulate.rollouts import course

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

FAULTS = Faults(fail=0.3, offline=0.05, until=AT + timedelta(days=2))


@pytest.mark.slow
def test_many_are_as_each_alone_however_many_run_at_once() -> None:
    many, heard = course(faults=FAULTS), list[int]()
    found = distribution(many, 3, heard.append, processes=2)
    assert heard == [1, 2, 3]
    assert found.outcomes == tuple(play(many, seed) for seed in (1, 2, 3))
    assert as_json(found, "t", "b") == as_json(distribution(many, 3, processes=1), "t", "b")
    assert len({tuple(outcome.proven.values()) for outcome in found.outcomes}) > 1, "seeds differ"


def test_what_is_told_is_what_was_found() -> None:
    found = distribution(course(faults=FAULTS), 3, processes=1)
    tree = json.loads(as_json(found, "t", "b"))
    proven = [(wave["wave"], wave["proven"], wave["stopped"]) for wave in tree["waves"]]
    assert proven == [("lab", 3, 0), ("canary", 3, 0), ("all", 1, 2)]
    for wave, spread in zip(tree["waves"], found.spreads, strict=True):
        assert wave["days"]["p50"] == round(sorted(spread.days)[len(spread.days) // 2], 4)
        assert wave["days"]["p5"] <= wave["days"]["p50"] <= wave["days"]["p95"]
    text = as_text(found, "t", "b").splitlines()
    assert text[0] == "t"
    assert "3 seeds, 1 to 3" in text[2]
    assert text[-1].endswith("violations of the rules: none")


def test_a_stopped_release_is_counted_and_has_no_days() -> None:
    bad = Faults(bad_from_s=60, bad=frozenset({"v1.4.2"}))
    found = distribution(course(faults=bad), 2, processes=1)
    assert (found.spreads[0].wave, found.spreads[0].days, found.spreads[0].stopped) == ("lab", (), 2)
    assert {outcome.bad for outcome in found.outcomes} == {1}
    assert "on a bad release (v1.4.2): 1 in the median, 1 at worst" in as_text(found, "t", "b")


def test_quantiles_lie_between_neighbours_in_proportion() -> None:
    assert [quantile([1.0, 2.0, 4.0], share) for share in (0, 0.25, 0.5, 0.75, 1)] == [1, 1.5, 2, 3, 4]
    assert quantile([7.0], 0.95) == 7
