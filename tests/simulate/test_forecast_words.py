"""A word to fetch that no device has heard yet holds back no word to begin: a device that is rung fetches then."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from reconciler.repo.load import load_folder
from reconciler.simulate.forecast import forecast
from reconciler.simulate.start import settled
from reconciler.simulate.trace import Kind, calendar_of

FLEET = Path(__file__).resolve().parents[2] / "fleet"
AT = datetime(2026, 1, 12, 15, tzinfo=UTC)


def test_devices_that_report_daily_are_moved_in_the_night_in_which_they_may() -> None:
    before = load_folder(FLEET, scenarios=False).desired
    assert before is not None
    fleet = before.fleet.model_copy(update={"report_every": 86_400, "stale_after": 2 * 86_400, "freezes": ()})
    before = replace(before, fleet=fleet)
    waves = tuple(wave.model_copy(update={"image": "v1.4.2"}) for wave in before.waves.waves)
    after = replace(before, waves=before.waves.model_copy(update={"waves": waves}))
    trace = forecast(after, settled(before, AT), AT, before=before)
    assert [event for event in trace.events if event.kind is Kind.TIMED_OUT] == []
    canary = next(entry for entry in calendar_of(trace) if entry.wave == "canary" and entry.key == "v1.4.2")
    assert canary.last_arrived_at is not None and canary.last_arrived_at.date() == datetime(2026, 1, 13).date()
