"""One course under many seeds: how the days until each proof, and the devices at risk, spread. Called by the command line.

Plays each seed in a process of its own, as many at once as there are cores; what is kept of a run is a few numbers. The result
does not depend on how many run at once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reconciler.model.scalars import format_instant
from reconciler.simulate.course import Course
from reconciler.simulate.oracle import Violation
from reconciler.simulate.run import simulate
from reconciler.simulate.summary import faults_dict, faults_in_words, judged

_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is kept of one run. Days are since the merge; None: not proven by the end."""

    seed: int
    proven: Mapping[tuple[str, str], float | None]
    stopped: frozenset[tuple[str, str]]
    unproven: int
    bad: int
    days: float
    violations: tuple[Violation, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one wave and release. Days until the proof, in order, of the runs that proved it."""

    wave: str
    key: str
    days: tuple[float, ...]
    stopped: int
    runs: int

    @property
    def name(self) -> str:
        """`canary v1.4.2`."""
        return f"{self.wave} {self.key}"


@dataclass(frozen=True, slots=True)
class Distribution:
    """What many seeds gave, in the order of the seeds."""

    course: Course
    outcomes: Sequence[Outcome]

    @property
    def spreads(self) -> tuple[Spread, ...]:
        """One a wave and release, in the calendar's order."""
        places = dict.fromkeys(place for outcome in self.outcomes for place in outcome.proven)
        out = []
        for place in places:
            days = sorted(d for outcome in self.outcomes if (d := outcome.proven.get(place)) is not None)
            stopped = sum(place in outcome.stopped for outcome in self.outcomes)
            out.append(Spread(*place, tuple(days), stopped, len(self.outcomes)))
        return tuple(out)


def play(course: Course, seed: int) -> Outcome:
    """One seed."""
    run = judged(simulate(replace(course, seed=seed, states=False)))
    begin = course.merges[0].at if course.merges else course.at
    entries = [
        entry for entry in run.calendar if entry.first_told_at or entry.arrived or entry.stopped_at or entry.held
    ]
    return Outcome(
        seed,
        {
            (entry.wave, entry.key): (entry.proven_at - begin).total_seconds() / _DAY_S if entry.proven_at else None
            for entry in entries
        },
        frozenset((entry.wave, entry.key) for entry in entries if entry.stopped_at is not None),
        run.unproven.devices,
        run.bad.devices,
        (run.trace.ended_at - begin).total_seconds() / _DAY_S,
        tuple(run.violations),
    )


def distribution(
    course: Course, seeds: int, tell: Callable[[int], object] = lambda done: None, processes: int | None = None
) -> Distribution:
    """`seeds` runs, from the course's seed on. `tell` hears after each how many are done. ValueError: the fleet does not load."""
    numbers = range(course.seed, course.seed + seeds)
    outcomes = []
    for done, outcome in enumerate(_played(course, numbers, min(processes or os.cpu_count() or 1, seeds)), 1):
        outcomes.append(outcome)
        tell(done)
    return Distribution(course, tuple(outcomes))


def _played(course: Course, seeds: Sequence[int], processes: int) -> Iterator[Outcome]:
    if processes < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from (play(course, seed) for seed in seeds)
        return
    context = multiprocessing.get_context("fork")
    # Forked, so that the course is handed over as it is, and nothing is loaded again.
    with context.Pool(processes, _begin, (course,)) as pool:
        yield from pool.imap(_play, seeds)


_COURSE: list[Course] = []


def _begin(course: Course) -> None:
    _COURSE[:] = [course]


def _play(seed: int) -> Outcome:
    return play(_COURSE[0], seed)


def quantile(values: Sequence[float], share: float) -> float:
    """Of values in order, the one below which `share` of them lie, between neighbours in proportion."""
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


# ---------------------------------------------------------------- for people, and as JSON


def as_text(found: Distribution, title: str, begins: str) -> str:
    """A table, and what was most."""
    outcomes = found.outcomes
    first, last = outcomes[0].seed, outcomes[-1].seed
    out = [
        title,
        f"  begins   {begins}",
        f"  faults   {faults_in_words(found.course.faults)}; {len(outcomes)} seeds, {first} to {last}",
        "",
    ]
    rows: list[tuple[str, ...]] = [("wave", "release", "proven in", "stopped in", "5 %", "median", "95 %")]
    rows += [_row(spread) for spread in found.spreads]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    out += [f"  {line}" for line in lines]
    out += ["", "  days from the merge until the proof, of the runs that proved it", ""]
    out.append(f"  most devices at once on an unproven release: {_spread([o.unproven for o in outcomes])}")
    if found.course.faults.bad:
        names = ", ".join(sorted(found.course.faults.bad))
        out.append(f"  most devices at once on a bad release ({names}): {_spread([o.bad for o in outcomes])}")
    broken = [outcome.seed for outcome in outcomes if outcome.violations]
    out.append(f"  violations of the rules: {'with seeds ' + ', '.join(map(str, broken[:10])) if broken else 'none'}")
    return "\n".join(out) + "\n"


def _row(spread: Spread) -> tuple[str, ...]:
    days = spread.days
    marks = [f"{quantile(days, share):.1f}" for share in (0.05, 0.5, 0.95)] if days else ["-"] * 3
    return spread.wave, spread.key, f"{len(days)} of {spread.runs}", str(spread.stopped), *marks


def _spread(counts: Sequence[int]) -> str:
    values = sorted(counts)
    return f"{quantile(values, 0.5):g} in the median, {values[-1]} at worst"


def as_json(found: Distribution, title: str, begins: str) -> str:
    """The document `kind: SimulationDistribution`: the same bytes for the same course and seeds."""
    begin = found.course.merges[0].at if found.course.merges else found.course.at
    tree: dict[str, Any] = {
        "apiVersion": "fleet/v1",
        "kind": "SimulationDistribution",
        "title": title,
        "begins": begins,
        "mergedAt": format_instant(begin),
        "faults": faults_dict(found.course.faults),
        "waves": [
            {
                "wave": spread.wave,
                "release": spread.key,
                "proven": len(spread.days),
                "stopped": spread.stopped,
                "days": None
                if not spread.days
                else {name: round(quantile(spread.days, at), 4) for name, at in _MARKS.items()},
            }
            for spread in found.spreads
        ],
        "runs": [
            {
                "seed": outcome.seed,
                "days": round(outcome.days, 4),
                "unproven": outcome.unproven,
                "bad": outcome.bad,
                "violations": len(outcome.violations),
                "proven": [
                    {"wave": wave, "release": key, "days": None if days is None else round(days, 4)}
                    for (wave, key), days in outcome.proven.items()
                ],
            }
            for outcome in found.outcomes
        ],
    }
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


_MARKS = {"p5": 0.05, "p50": 0.5, "p95": 0.95}
