"""Draws how the runs of many seeds spread: days until each proof, and devices at risk. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reconciler.simulate.canvas import FAILED, INK, OPEN, RELEASES, canvas, titles
from reconciler.simulate.distribution import Distribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_distribution(found: Distribution, title: str, subtitle: str = "") -> Figure:
    """Over many seeds: per wave and release the days until its proof, and how many devices were ever at risk at once."""
    spreads = list(found.spreads)
    figure, (left, right) = canvas(2.2 + 0.42 * max(len(spreads), 3), columns=2)
    some = [number for number, spread in enumerate(spreads) if spread.days]
    if some:
        drawn = left.boxplot(
            [spreads[number].days for number in some], positions=some, orientation="horizontal", whis=(5, 95),
            widths=0.5, patch_artist=True, showfliers=False, medianprops={"color": INK, "linewidth": 2},
        )  # fmt: skip
        for box in drawn["boxes"]:
            box.set(facecolor=OPEN, edgecolor=RELEASES[0])
    names = []
    for spread in spreads:
        stopped = f", stopped in {spread.stopped}" if spread.stopped else ""
        names.append(f"{spread.name}\nproven in {len(spread.days)}{stopped} of {spread.runs}")
    left.set_yticks(range(len(spreads)), names, fontsize=8)
    left.set_ylim(len(spreads) - 0.4, -0.6)
    left.set_xlim(0, max(1.0, *(days for spread in spreads for days in spread.days)) * 1.05 if some else 1.0)
    left.grid(axis="x", color="#e6eaee")
    left.set_axisbelow(True)
    left.set_xlabel("days until proven: median, quartiles, 5 and 95 %", fontsize=9)
    bad = bool(found.course.faults.bad)
    _bars(
        right,
        [outcome.bad if bad else outcome.unproven for outcome in found.outcomes],
        FAILED if bad else RELEASES[0],
    )
    right.set_xlabel(f"most devices at once on {'a bad' if bad else 'an unproven'} release", fontsize=9)
    right.set_ylabel("seeds", fontsize=9)
    for axes in (left, right):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    titles(figure, left, title, subtitle, pad=6)
    return figure


def _bars(axes: Axes, values: Sequence[int], colour: str) -> None:
    """How many runs had each number; in groups where there are many numbers."""
    low, high = min(values), max(values)
    if high - low < 30:
        axes.bar(range(low, high + 1), [values.count(n) for n in range(low, high + 1)], color=colour, width=0.8)
        axes.set_xlim(low - max(1, (high - low) * 0.05), high + max(1, (high - low) * 0.05))
    else:
        axes.hist(values, bins=20, color=colour, edgecolor="#ffffff")
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
