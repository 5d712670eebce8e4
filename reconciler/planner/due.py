"""Deadlines of rows: which rows' time has come, without looking at all of them. Pure.

Rows lie in blocks; a block remembers its earliest deadline, so that finding the rows that are due costs the number of blocks
and the blocks that have one.
"""

from __future__ import annotations

import numpy as np

from reconciler.planner.roster import I64
from reconciler.planner.sets import distinct
from reconciler.planner.windows import NEVER

BLOCK = 256


class Due:
    """`at` is each row's deadline in microseconds; NEVER for none."""

    def __init__(self, size: int) -> None:
        self.blocks = -(-size // BLOCK)
        self._padded: I64 = np.full(self.blocks * BLOCK, NEVER, np.int64)
        self.at: I64 = self._padded[:size]
        self._first: I64 = np.full(self.blocks, NEVER, np.int64)

    def renew_all(self) -> None:
        """After `at` was filled anew."""
        self._first = self._padded.reshape(self.blocks, BLOCK).min(axis=1) if self.blocks else self._first

    def renew(self, rows: I64) -> None:
        """After `at` changed for some rows."""
        touched = distinct(rows // BLOCK)
        self._first[touched] = self._padded.reshape(self.blocks, BLOCK)[touched].min(axis=1) if len(touched) else NEVER

    def passed(self, now: int) -> I64:
        """Rows whose deadline is now or was before."""
        blocks = np.flatnonzero(self._first <= now)
        if len(blocks) == 0:
            return np.zeros(0, np.int64)
        inside = np.argwhere(self._padded.reshape(self.blocks, BLOCK)[blocks] <= now)
        rows: I64 = blocks[inside[:, 0]] * BLOCK + inside[:, 1]
        return rows

    @property
    def earliest(self) -> int:
        """The earliest deadline of all."""
        return int(self._first.min()) if self.blocks else NEVER
