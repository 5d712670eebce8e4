"""Takes a protection out of the product while a test runs: edits of the real code's own text, and of its tables.

An edit that fits the code no more fails loudly. Nothing here is imported by the product.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from reconciler.agent import machine
from reconciler.agent.machine import Effect, Event, State, Transition
from reconciler.model.plan import Reason
from reconciler.planner import want
from reconciler.planner.windows import calendar
from reconciler.simulate.truth import Rule


@dataclass(frozen=True)
class Cut:
    """In the function or method at `place` (`module:name`), `old` stands once and becomes `new`."""

    place: str
    old: str
    new: str


@dataclass(frozen=True)
class Rungless:
    """The ladder without some rungs."""

    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Follows:
    """The agent's table with another transition."""

    state: State
    event: Event
    then: State
    effects: tuple[Effect, ...] = ()


Edit = Cut | Rungless | Follows


@dataclass(frozen=True)
class Mutant:
    """A protection removed, the rule that must see it, and where."""

    name: str
    rule: Rule
    edits: tuple[Edit, ...]
    plays: tuple[str, ...]
    alone: tuple[int, ...] = ()
    """Indexes of edits that are layers: each by itself must not break the rule on these plays."""


def without(*reasons: Reason) -> Rungless:
    """The ladder without these rungs."""
    return Rungless(reasons)


# ---------------------------------------------------------------- putting a mutant in place


@contextmanager
def mutated(edits: Sequence[Edit]) -> Iterator[None]:
    """The code with edits made, until the end of the block."""
    undo: list[Callable[[], object]] = []
    try:
        calendar.cache_clear()
        cuts: dict[str, list[Cut]] = {}
        for edit in edits:
            if isinstance(edit, Cut):
                cuts.setdefault(edit.place, []).append(edit)
            else:
                undo.append(_replaced(edit))
        for place, several in cuts.items():
            function = _function(place)
            undo.append(partial(setattr, function, "__code__", function.__code__))
            function.__code__ = _code(function, several)
        yield
    finally:
        for back in reversed(undo):
            back()
        calendar.cache_clear()


def _replaced(edit: Rungless | Follows) -> Callable[[], object]:
    """Change a table; returns what puts it back."""
    if isinstance(edit, Rungless):
        before = want.RUNGS
        kept = tuple(rung for rung in before if rung.reason not in edit.reasons)
        assert len(kept) == len(before) - len(edit.reasons), edit
        want.RUNGS = kept
        return partial(setattr, want, "RUNGS", before)
    table: Any = machine.TABLE
    key = (edit.state, edit.event)
    old = table[key]
    table[key] = Transition(edit.then, edit.effects)
    return partial(table.__setitem__, key, old)


def _function(place: str) -> FunctionType:
    module_name, _, path = place.partition(":")
    found: Any = importlib.import_module(module_name)
    for part in path.split("."):
        found = vars(found)[part]
    found = found.__func__ if isinstance(found, (classmethod, staticmethod)) else found
    assert isinstance(found, FunctionType), place
    return found


def _code(function: FunctionType, cuts: Sequence[Cut]) -> CodeType:
    """The function's text with edits made, compiled: whoever holds the function runs that."""
    text = textwrap.dedent(inspect.getsource(function))
    for cut in cuts:
        assert text.count(cut.old) == 1, f"{cut.place} has {cut.old!r} {text.count(cut.old)} times, not once"
        text = text.replace(cut.old, cut.new)
    space: dict[str, Any] = {}
    exec(compile("from __future__ import annotations\n" + text, "mutant", "exec"), function.__globals__, space)
    made = space[function.__name__]
    made = made.__func__ if isinstance(made, (classmethod, staticmethod)) else made
    code: CodeType = made.__code__
    return code
