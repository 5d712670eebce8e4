"""The machine's clock as a `ports.Clock`. Waits in pieces, so that a clock that is set is noticed."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

_PIECE_S = 30.0


class SystemClock:
    """`ports.Clock` on the system's time. Safe from any thread."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def now(self) -> datetime:
        """The present instant, UTC."""
        return datetime.now(UTC)

    def wait(self, until: datetime | None) -> bool:
        """True once `wake` was called, False once `until` is reached."""
        while True:
            left = _PIECE_S if until is None else min(_PIECE_S, (until - self.now()).total_seconds())
            # Looked at even where no time is left: a wake is never lost to a wait that ends at once.
            if self._woken.wait(max(0.0, left)):
                self._woken.clear()
                return True
            if until is not None and self.now() >= until:
                return False

    def wake(self) -> None:
        """End a wait in progress, or the next one at once."""
        self._woken.set()
