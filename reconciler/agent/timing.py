"""How long the agent takes for what, in seconds: settings of a device, with what is right for a real one as defaults.

Python 3.10, standard library only: runs as root on a device. Values alone. Read by `look`, `work` and `agent`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Times of the agent, in seconds. Defaults are for a real device."""

    settle_s: float = 120
    """How long checks may be worse after a boot or restart before that counts: services start one after another."""
    recheck_s: float = 10
    """How often the healthcheck runs while it settles."""
    spread_s: float = 300
    """Devices begin spread over this much of a window, or a tenth of it if that is less."""
    least_window_s: float = 60
    """With less than this left of a window nothing begins in it."""
    slice_s: float = 5
    """How long a download or a write goes on before the agent looks whether a report is due."""
    report_jitter: float = 0.1
    """Reports come earlier or later by up to this part, so that a fleet does not report in step."""
