"""Every scenario file is a case: the planner's rules, one a file, and the contract's own examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.planner import plan, waves_of_sites
from reconciler.repo.scenario_read import read_scenario
from reconciler.repo.scenario_run import run_scenario

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted((TESTS / "scenarios").glob("*.yaml")) + sorted((TESTS / "contract" / "scenarios").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    scenario, warnings = read_scenario(path.name, path.read_bytes())
    assert not warnings
    outcome = run_scenario(scenario, plan, waves_of_sites)
    assert outcome.passed, "\n".join(outcome.failures)


def test_the_files_are_found() -> None:
    """An empty folder would pass unseen."""
    assert len(FILES) > 150
