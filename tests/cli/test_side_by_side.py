"""Two computations at once give what one after the other gives, errors included, and leave no child."""

from __future__ import annotations

import os

import psutil
import pytest

from reconciler.cli.side_by_side import side_by_side


def test_both_results_come_back_and_the_second_is_another_process_s() -> None:
    here = os.getpid()
    first, second = side_by_side(lambda: (os.getpid(), "x"), lambda: (os.getpid(), "y" * 1_000_000))
    assert first == (here, "x")
    assert second[1] == "y" * 1_000_000
    assert (second[0] != here) == ((os.cpu_count() or 1) > 1)


@pytest.mark.parametrize("which", [0, 1])
def test_an_error_is_raised_here(which: int) -> None:
    def fails() -> int:
        raise ValueError("mine")

    before = {child.pid for child in psutil.Process().children()}
    both = [lambda: 1, lambda: 2]
    both[which] = fails
    with pytest.raises(ValueError, match="mine"):
        side_by_side(both[0], both[1])
    assert {child.pid for child in psutil.Process().children()} <= before


def test_what_cannot_be_handed_over_is_computed_here() -> None:
    first, second = side_by_side(lambda: 1, lambda: lambda: 2)  # type: ignore[arg-type, return-value]
    assert first == 1
    assert callable(second)
