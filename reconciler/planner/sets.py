"""Sorted sets of rows as arrays. numpy's own set functions load `numpy.ma`, which costs a short-lived process 16 ms. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


def distinct(values: npt.NDArray[np.integer]) -> I64:
    """The values in ascending order, each once."""
    out = np.sort(values.astype(np.int64, copy=False))
    if len(out) < 2:
        return out
    keep = np.empty(len(out), np.bool_)
    keep[0] = True
    np.not_equal(out[1:], out[:-1], out=keep[1:])
    return out[keep]


def union(*sets: npt.NDArray[np.integer]) -> I64:
    """Every value that is in one of the arrays, ascending, each once."""
    return distinct(np.concatenate(sets)) if sets else np.zeros(0, np.int64)


def difference(left: I64, right: I64) -> I64:
    """Every value that is in exactly one of two sets: what changed from one to the other."""
    both = np.sort(np.concatenate([left, right]))
    if len(both) == 0:
        return both
    edge = np.ones(len(both) + 1, np.bool_)
    np.not_equal(both[1:], both[:-1], out=edge[1:-1])
    return both[edge[1:] & edge[:-1]]
