"""A run goes on while anything can still change by itself."""

from __future__ import annotations

from reconciler.simulate.run import Simulation
from reconciler.simulate.trace import Kind
from tests.simulate.courses import later
from tests.simulate.plays import CANARY, PLAIN, ill


def test_a_parked_device_that_gets_well_is_heard_of_though_its_gate_has_failed() -> None:
    play = PLAIN.play(prepare=ill(CANARY, later(14.6), later(15.2)), days=4)
    simulation = Simulation(play.course)
    play.prepare(simulation)
    events = simulation.run().trace.events
    stopped = next(event.at for event in events if event.kind is Kind.STOPPED)
    well = [event.at for event in events if event.kind is Kind.WELL and event.device == CANARY]
    assert well and stopped < well[-1]
