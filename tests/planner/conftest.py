"""Calendars are kept for the life of a process; no test shall live on what another has computed."""

from __future__ import annotations

import pytest

from reconciler.planner.windows import calendar


@pytest.fixture(autouse=True)
def _fresh_calendars() -> None:
    calendar.cache_clear()
