"""Polls are spread around their interval, so that many controllers started together do not ask together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from reconciler.controller.pace import Backoff, Poll

NOW = datetime(2026, 1, 15, tzinfo=UTC)


@pytest.mark.parametrize(("draw", "seconds"), [(0.0, 54), (0.5, 60), (0.75, 63)])
def test_polls_are_spread_around_the_interval(draw: float, seconds: float) -> None:
    poll = Poll(60, Backoff(5, 900))
    assert poll.is_due(NOW)
    poll.answered(NOW, draw)
    assert poll.due_at == NOW + timedelta(seconds=seconds)
    assert not poll.is_due(NOW) and poll.is_due(NOW + timedelta(seconds=seconds))
