"""The forecast acts on the planner's own plans, misses no instant, breaks no rule, and ends.

The oracle is the definition: `plan()` from everything that is on record, at every tick, and at every instant that a plan names
between two ticks, where it must have nothing to do. The rules are those of `simulate.rules`, written apart from the planner.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings

from reconciler.model.desired import Desired
from reconciler.model.observed import Snapshot
from reconciler.model.plan import Plan
from reconciler.planner import plan as define
from reconciler.simulate import rules
from reconciler.simulate.forecast import Forecast, forecast
from reconciler.simulate.timings import TICK_S
from reconciler.simulate.trace import Event, Kind, Trace
from tests.simulate.fleets import Merge, merges

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "12"))
PROPERTY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
LIMIT = timedelta(days=30)


def _do_nothing(plan: Plan, opened: set[str]) -> bool:
    """Whether a plan leads to nothing that is not under way."""
    facts = plan.facts
    new = [action for action in plan.actions if action.key not in opened]
    return not (
        new or facts.proofs or facts.failures or facts.members or facts.closed or facts.timeouts or facts.rescues
    )


class Watched(Forecast):
    """A forecast whose every plan is held to the definition."""

    checked = 0

    def _everything(self) -> Snapshot:
        return self.record.shared.model_copy(update={"devices": tuple(self.record.seen.values())})

    def planned(self, tick: int, plan: Plan) -> None:
        assert define(self.desired, self._everything(), plan.at).to_json() == plan.to_json()
        self.checked += 1
        self._last = plan

    def _next(self, tick: int) -> int | None:
        found = super()._next(tick)
        # What a report tells, or work that has ended, is news from the next tick on: until there nothing may change.
        until = tick + 5 * 86_400 if found is None else found - TICK_S
        seen, opened = self._everything(), set(self._open)
        at: datetime | None = self._last.at
        # Once more at the same instant: marks that the last plan made let nobody else start.
        opened |= {action.key for action in self._last.actions if self._never_ends(action)}
        for _ in range(40):
            if at is None or at.timestamp() > max(until, tick):
                break
            skipped = define(self.desired, seen, at)
            assert _do_nothing(skipped, opened), (at, skipped.actions, skipped.facts)
            at = skipped.wake_at
        return found


@pytest.mark.slow
@PROPERTY
@given(merges())
def test_every_plan_is_the_definition_and_no_instant_is_missed(merge: Merge) -> None:
    watched = Watched(merge.after, merge.observed, merge.at, before=merge.before, limit=LIMIT)
    watched.run()
    assert watched.checked


@pytest.mark.slow
@PROPERTY
@given(merges())
def test_no_rule_is_broken(merge: Merge) -> None:
    trace = forecast(merge.after, merge.observed, merge.at, before=merge.before, limit=LIMIT)
    assert list(_broken(merge, trace)) == []
    assert [event.at for event in trace.events] == sorted(event.at for event in trace.events)
    assert trace.events[-1].kind is Kind.QUIET, "three weeks after the merge something still goes on"


@pytest.mark.slow
@PROPERTY
@given(merges())
def test_the_same_input_gives_the_same_trace(merge: Merge) -> None:
    one = forecast(merge.after, merge.observed, merge.at, before=merge.before, silent="return", limit=LIMIT)
    turned = merge.observed.model_copy(update={"devices": merge.observed.devices[::-1]})
    assert forecast(merge.after, turned, merge.at, before=merge.before, silent="return", limit=LIMIT) == one


def _broken(merge: Merge, trace: Trace) -> Iterator[str]:
    """Rules that a trace breaks: windows, order, budgets, one device a site."""
    desired, wave_of = merge.after, rules.waves_of(merge.after)
    able: dict[str, int] = {}
    for site, of in desired.sites.items():
        free = [name for name in of.devices if rules.pinned(desired, site, name) is None and not of.suspended]
        able[wave_of[site]] = able.get(wave_of[site], 0) + len(free)
    proven = {(verdict.wave, verdict.key) for verdict in merge.observed.proofs if not verdict.closed}
    empty = {wave.name for wave in desired.waves.waves if not able.get(wave.name)}
    flying: dict[str, str] = {}
    begins = sorted(freeze.from_ for freeze in desired.fleet.freezes)
    for event in trace.events:
        # A failed gate, or a freeze that begins, takes back what has not begun: that has no event of its own.
        if event.kind is Kind.STOPPED or (begins and begins[0] <= event.at):
            begins = [begin for begin in begins if begin > event.at]
            flying.clear()
        if event.kind is Kind.PROVEN and event.wave is not None and event.key is not None:
            proven.add((event.wave, event.key))
        if event.device is None or event.site is None:
            continue
        if event.kind in (Kind.ARRIVED, Kind.TIMED_OUT):
            flying.pop(event.device, None)
        if event.kind is Kind.TOLD and event.detail != "configure":
            flying[event.device] = event.site
            yield from _told(desired, event, proven, empty)
            together = [name for name, site in flying.items() if site == event.site]
            if len(together) > 1:
                yield f"{event.at} {together} of one site at once"
            spec = next(spec for spec in desired.waves.waves if spec.name == wave_of[event.site])
            mine = [name for name, site in flying.items() if wave_of[site] == spec.name]
            if len(mine) > rules.slots(spec, able.get(spec.name, 0)):
                yield f"{event.at} {len(mine)} of {spec.name} at once"


def _told(desired: Desired, event: Event, proven: set[tuple[str, str]], empty: set[str]) -> Iterator[str]:
    assert event.site is not None and event.device is not None and event.key is not None
    is_open = rules.is_open(desired, event.site, event.at)
    if event.detail in ("promote", "repair") and not is_open:
        yield f"{event.at} {event.device} starts {event.key} outside of its window"
    if desired.sites[event.site].suspended:
        yield f"{event.at} {event.device} of a suspended site"
    if event.detail == "promote" and rules.is_frozen(desired, event.at):
        yield f"{event.at} {event.device} starts {event.key} in a freeze"
    if event.detail == "promote" and rules.pinned(desired, event.site, event.device) is None:
        for spec in desired.waves.waves:
            if spec.name == event.wave:
                break
            if spec.name not in empty and (spec.name, event.key) not in proven:
                yield f"{event.at} {event.device} starts {event.key} before {spec.name} has proven it"
