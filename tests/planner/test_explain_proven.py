"""What is said of a wave that has its proof: what is so now is told, and takes nothing of the proof back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from reconciler.model.observed import Health
from reconciler.planner import Columns, Roster, decide
from reconciler.planner.explain_values import arrows
from reconciler.planner.explain_wave import WavePart
from reconciler.planner.windows import micros
from reconciler.repo.load import load_folder
from reconciler.simulate.start import settled
from tests.planner.test_explain import TESTS, at, wave


def test_a_proof_on_record_is_no_soak_though_a_device_became_well_a_minute_ago() -> None:
    now = at("2026-01-15T01:30:00Z")
    desired = load_folder(TESTS.parent / "fleet", scenarios=False).desired
    assert desired is not None
    observed = settled(desired, now)
    devices = tuple(
        d.model_copy(update={"health_since": now - timedelta(minutes=1)}) if d.name == "SITE-1033-1" else d
        for d in observed.devices
    )
    roster = Roster(desired)
    state = decide(roster, Columns.bind(roster, observed.model_copy(update={"devices": devices})), micros(now))
    found = wave(state, "canary").parts[0]
    assert found.state.value == "complete" and found.proved_at is not None
    assert [link.code for link in found.chain] == ["complete"]
    assert "soaks" not in arrows(found.chain)


def test_a_wave_with_a_proof_never_says_that_it_is_not_complete() -> None:
    now = at("2026-01-15T01:30:00Z")
    desired = load_folder(TESTS.parent / "fleet", scenarios=False).desired
    assert desired is not None
    roster, observed = Roster(desired), settled(desired, now)
    ill = {"health": Health.CRITICAL, "health_since": now - timedelta(minutes=1)}
    gone = {"last_seen": now - timedelta(hours=3)}

    def canary(**changes: dict[str, Any]) -> WavePart:
        devices = tuple(d.model_copy(update=changes.get(d.name.replace("-", "_"), {})) for d in observed.devices)
        seen = Columns.bind(roster, observed.model_copy(update={"devices": devices}))
        return wave(decide(roster, seen, micros(now)), "canary").parts[0]

    inside = sorted(name for called in canary().devices.values() for name in called)
    one, other = (name.replace("-", "_") for name in inside[:2])
    # Its soak would begin anew, which nobody waits for; or it would be unresolved; or lack one that is ill.
    begun = canary(**{one: {"health_since": now - timedelta(minutes=1)}})
    assert [(link.code, link.until) for link in begun.chain] == [("complete", None)]
    for changes, said in (
        ({one: ill}, f"has its proof; now {len(inside) - 1} of {len(inside)} devices are healthy on v1.4.1"),
        ({one: ill, other: gone}, "has its proof; judged anew it is unresolved on v1.4.1: 1 of 3 silent"),
    ):
        found = canary(**changes)
        assert (found.state.value, found.chain[0].until) == ("complete", None)
        assert found.chain[1].statement.startswith(said)
        assert {link.name for link in found.chain[2:]} >= {
            name for name in inside if name.replace("-", "_") == one or name in found.devices["silent"]
        }
