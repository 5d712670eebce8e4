"""Long work that takes its time under a stepped clock: spent before the work, and for the kinds that have one alone."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime

from reconciler.controller.jobs import Jobs, PacedJobs
from reconciler.model.plan import Action, ActionKind
from reconciler.ports import Intent
from tests.support.processes import wait_until

NOW = datetime(2026, 1, 15, tzinfo=UTC)


def intent(number: int, kind: ActionKind) -> Intent:
    action = Action(kind, {"image": "v1.4.2"})
    return Intent(number, action.key, action, None, NOW)


def test_a_build_spends_its_time_before_its_effect_and_what_has_none_spends_none() -> None:
    done: list[object] = []
    jobs = Jobs(lambda: None, nullcontext)
    paced = PacedJobs(jobs, done.append, {ActionKind.BUILD: 1800})
    for number, kind in enumerate((ActionKind.BUILD, ActionKind.PROPOSE_REVERT)):
        paced.submit(intent(number, kind), lambda kind=kind: done.append(kind) or "made")  # type: ignore[misc]
    assert paced.busy and paced.holds(intent(1, ActionKind.PROPOSE_REVERT))
    collected = []

    def both() -> bool:
        collected.extend(paced.collect())
        return len(collected) == 2

    wait_until(both)
    jobs.stop(60)
    assert done == [1800, ActionKind.BUILD, ActionKind.PROPOSE_REVERT]
    assert [finished.detail for finished in collected] == ["made", "made"] and not paced.busy
