"""What the loop says of its own work."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from reconciler.controller.pulse import BOUNDS_S, Pulse
from reconciler.ports import PublicKey, TransientError

AT = datetime(2026, 3, 1, tzinfo=UTC)


def test_a_tick_is_counted_by_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse, before, took_s = Pulse(), time.time(), [5.0, 5.005, 6.0, 6.03]
    monkeypatch.setattr(time, "perf_counter", lambda: took_s.pop(0))
    assert pulse.ticks().last_at is None
    for _ in range(2):
        with pulse.tick():
            pass
    monkeypatch.undo()
    ticks = pulse.ticks()
    assert len(ticks.counts) == len(BOUNDS_S) + 1
    assert (sum(ticks.counts), ticks.failures) == (2, 0)
    assert ticks.counts[0] == 1, "one took less than the first bound"
    assert sum(ticks.counts[:2]) == 1, "and the other took longer than the second"
    assert ticks.took_s == pytest.approx(0.035)
    assert ticks.last_at is not None and ticks.last_at >= before


def test_a_tick_that_fails_is_a_failure_and_not_the_last_tick() -> None:
    pulse = Pulse()
    with pytest.raises(TransientError), pulse.tick():
        raise TransientError("the store does not answer")
    ticks = pulse.ticks()
    assert (sum(ticks.counts), ticks.failures, ticks.last_at) == (1, 1, None)


def test_keys_that_cannot_be_looked_at_are_still_known() -> None:
    pulse = Pulse()
    assert (pulse.expiring.keys, pulse.expiring.assignments) == (None, None)
    pulse.looked(2, [("release", PublicKey("A" * 40, "us", AT)), ("assignment", PublicKey("B" * 40, "us", None))])
    pulse.looked(0, None)
    assert pulse.expiring.keys == (("release", "A" * 40, AT),), "a key that never expires has no instant"
    assert pulse.expiring.assignments == 0
