"""Publishes a board after every tick, and hands the newest to whoever looks. Also answers "why", from the planner's own state.

The loop's thread publishes; any thread reads. Publishing costs what changed: columns that did not change are shared with the board
before. The planner's state is written only under `planning`, and read by others only under the same lock. Nothing here decides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, TypeVar

import numpy as np

from reconciler.controller.board import Board
from reconciler.controller.board_rows import Index, Rows
from reconciler.controller.gather import World
from reconciler.controller.remembered import remembered
from reconciler.model.observed import Snapshot
from reconciler.model.plan import Plan
from reconciler.planner.explain import AmbiguousName, Explanation, Kind, UnknownName, explain
from reconciler.planner.groups import Codes, held, keys_of
from reconciler.planner.live import Live
from reconciler.planner.roster import I64
from reconciler.planner.sets import union
from reconciler.planner.state import State, Track
from reconciler.ports import ConditionRow, PortError, Store, TransientError

__all__ = ["AmbiguousName", "Boards", "Explanation", "UnknownName"]

A = TypeVar("A", bound=np.ndarray)

_TIMES = ("health_since", "image_since", "last_seen")
_OF_ROWS = ("image", "previous", "inactive", "updating_to", "health", "worse", "conflict")
_UNSEEN = frozenset({"last_seen", "releases", "index", "roster"})
"""What may differ without anybody seeing it."""
_MOST_NAMES = 100
"""Devices of one explanation whose checks are looked up."""


class Boards:
    """The newest board, and those who wait for it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._planning = threading.Lock()
        self._new = threading.Condition()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._next = 0
        self._board: Board | None = None
        self._live: Live | None = None
        self._index: Index | None = None
        self._looked: I64 | None = np.zeros(0, np.int64)
        """Rows that the planner looked at since the last board; None: all."""
        self._counts: dict[int, dict[int, int]] = {}
        self.closed = False
        """Whether the loop has ended: there will be no other board."""

    # ------------------------------------------------ the loop's side

    @contextmanager
    def planning(self, live: Live) -> Iterator[None]:
        """While the planner writes its state. Nobody reads it meanwhile."""
        with self._planning:
            self._live = live
            looked_before, self._looked = self._looked, None
            yield
            looked = live.looked
            self._looked = None if looked is None or looked_before is None else union(looked_before, looked)

    def publish(
        self,
        world: World | None,
        plan: Plan | None,
        live: Live,
        conditions: tuple[ConditionRow, ...],
        refused: tuple[str, str] | None,
        now: datetime,
    ) -> Board:
        """Make the board of a tick that has ended. Without a plan the last one's rows stay, under the new conditions; before the
        first it is what the plan on record says."""
        before = self._board
        if world is None or plan is None or live.state is None:
            board = replace(before or self._begun(now), at=now, conditions=conditions, refused=refused)
        else:
            rows = self._rows(live.state, None if before is None else before.rows)
            same = before is not None and before.observed == world.observed
            board = Board(
                generation=0,
                at=now,
                commit=plan.commit,
                desired=world.desired,
                observed=before.observed if before is not None and same else world.observed,
                waves=tuple(plan.waves),
                holds=held(live.state, self._counts),
                flagged=tuple(plan.flagged),
                actions=plan.actions,
                conditions=conditions,
                refused=refused,
                wake_at=plan.wake_at,
                rows=rows,
            )
            self._looked = np.zeros(0, np.int64)
        generation = 1 if before is None else before.generation + _differ(before, board)
        board = replace(board, generation=generation)
        with self._new:
            self._board = board
            self._new.notify_all()
            waiting = list(self._callbacks.values()) if before is None or generation > before.generation else []
        for callback in waiting:
            callback()
        return board

    def _begun(self, now: datetime) -> Board:
        try:
            return remembered(self._store.last_plan(), now) or _empty(now)
        except PortError:
            return _empty(now)

    def _rows(self, state: State, before: Rows | None) -> Rows:
        """The planner's columns, copied where they differ from the board before."""
        roster, obs = state.roster, state.obs
        if before is not None and before.roster is not roster:
            before = None
        if before is None:
            self._index = Index(roster) if self._index is None else self._index.of(roster)
            # The first plan of a commit costs the fleet anyway.
            self._index.make()
        assert self._index is not None
        looked = None if before is None else self._looked
        tables = [tuple(table) for table in obs.app_digest_code]
        old_digests = () if before is None else before.digests
        rows = Rows(
            roster=roster,
            index=self._index,
            releases=obs.release_names,
            digests=old_digests if old_digests == tuple(tables) else tuple(tables),
            wave_of=_kept(_of(before, "wave_of"), state.places.wave_of),
            site_wave=_kept(_of(before, "site_wave"), state.places.site_wave),
            **{name: _kept(_of(before, name), getattr(obs, name)) for name in _OF_ROWS},
            **{name: _kept_at(_of(before, name), getattr(obs, name), looked) for name in _TIMES},
            busy=_kept(_of(before, "busy"), state.busy),
            silent=_kept(_of(before, "silent"), state.silent),
            app_digest=_each(_of(before, "app_digest"), obs.app_digest),
            tracks=tuple(
                _codes(None if before is None else before.tracks[at], track) for at, track in enumerate(state.tracks)
            ),
            seen=_each(_of(before, "seen"), [track.seen for track in state.tracks]),
            config=_codes(_of(before, "config"), state.config),
        )
        self._count(rows, before)
        return rows

    def _count(self, rows: Rows, before: Rows | None) -> None:
        """How many rows have each key, brought up to date for the rows whose codes have changed."""
        if before is None or before.wave_of is not rows.wave_of:
            self._counts = {}
        old_codes = None if before is None else [*before.tracks, before.config]
        for position, codes in enumerate([*rows.tracks, rows.config]):
            number = position if position < len(rows.tracks) else -1
            known = self._counts.get(number)
            if known is None or old_codes is None:
                self._counts[number] = _summed(keys_of(rows.roster, number, codes, rows.wave_of, slice(None)))
                continue
            old = old_codes[position]
            changed = _changed(old, codes)
            if len(changed) == 0:
                continue
            for key, count in _summed(keys_of(rows.roster, number, old, rows.wave_of, changed)).items():
                known[key] -= count
            for key, count in _summed(keys_of(rows.roster, number, codes, rows.wave_of, changed)).items():
                known[key] = known.get(key, 0) + count

    def close(self) -> None:
        """The loop has ended. Whoever waits is told."""
        with self._new:
            self.closed = True
            self._new.notify_all()
            waiting = list(self._callbacks.values())
        for callback in waiting:
            callback()

    # ------------------------------------------------ everybody else's side

    def latest(self) -> Board | None:
        """The newest board; None before the first tick has ended."""
        return self._board

    @property
    def generation(self) -> int:
        """Of the newest board; 0 where there is none."""
        return 0 if self._board is None else self._board.generation

    def wait(self, generation: int, timeout_s: float) -> bool:
        """Block until there is a board beyond a generation; False where the time is up first, or the loop has ended."""
        with self._new:
            self._new.wait_for(lambda: self.closed or self.generation > generation, timeout_s)
            return self.generation > generation

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback` on the loop's thread whenever the generation has risen, and when the loop ends; returns what ends that.

        It must return at once: the loop waits for it.
        """
        with self._new:
            self._next += 1
            number = self._next
            self._callbacks[number] = callback

        def end() -> None:
            with self._new, suppress(KeyError):
                del self._callbacks[number]

        return end

    def explain(self, name: str, kind: Kind | None = None) -> Explanation:
        """Why a device, a site or a wave is where it is, with what devices' checks say.

        UnknownName, AmbiguousName: see `planner.explain`. TransientError: nothing was planned yet.
        """
        said = self._explain(name, kind, None)
        names = _named(said, _MOST_NAMES)
        if not names:
            return said
        seen = self._store.observed(names)
        devices = tuple(observation for observation, _, _ in seen.values())
        return self._explain(name, kind, Snapshot.model_construct(devices=devices))

    def _explain(self, name: str, kind: Kind | None, observed: Snapshot | None) -> Explanation:
        with self._planning:
            state = None if self._live is None else self._live.state
            if state is None:
                raise TransientError(
                    "nothing was planned yet",
                    needed_for=f"explaining {name}",
                    remedy="wait for the first tick",
                    retry_after_s=5,
                )
            return explain(state, name, kind, observed)


def _empty(now: datetime) -> Board:
    return Board(0, now, None, None, Snapshot(), (), (), (), (), (), None, None, None)


def _of(before: object | None, name: str) -> Any:
    return None if before is None else getattr(before, name)


def _kept(old: A | None, new: A) -> A:
    """The old column where it says the same; else a copy of the new one that nobody can write to."""
    if old is not None and np.array_equal(old, new):
        return old
    return _frozen(new)


def _kept_at(old: A | None, new: A, looked: I64 | None) -> A:
    """The same of a column in which only `looked` rows may have changed (None: any)."""
    if old is not None and looked is not None:
        return old if np.array_equal(old[looked], new[looked]) else _frozen(new)
    return _kept(old, new)


def _frozen(column: A) -> A:
    made = column.copy()
    made.setflags(write=False)
    return made


def _each(old: tuple[A, ...] | None, new: Sequence[A]) -> tuple[A, ...]:
    return tuple(_kept(old[number] if old else None, column) for number, column in enumerate(new))


def _codes(old: Codes | None, track: Track) -> Codes:
    reason = _kept(_of(old, "reason"), track.reason)
    starts = _kept(_of(old, "starts"), track.starts)
    target = _kept(_of(old, "target"), track.target)
    if old is not None and reason is old.reason and starts is old.starts and target is old.target:
        return old
    return Codes(reason, starts, target)


def _changed(old: Codes, new: Codes) -> I64:
    """Rows whose codes differ."""
    if old is new:
        return np.zeros(0, np.int64)
    return np.flatnonzero((old.reason != new.reason) | (old.starts != new.starts) | (old.target != new.target))


def _summed(keys: I64) -> dict[int, int]:
    found, counts = np.unique(keys, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _differ(old: Board, new: Board) -> bool:
    """Whether a person could see a difference."""
    parts = ("commit", "waves", "flagged", "actions", "conditions", "refused", "holds")
    if any(getattr(old, name) != getattr(new, name) for name in parts) or old.observed is not new.observed:
        return True
    if old.rows is None or new.rows is None:
        return old.rows is not new.rows
    return old.rows.roster is not new.rows.roster or any(
        not _same(getattr(old.rows, one.name), getattr(new.rows, one.name))
        for one in fields(Rows)
        if one.name not in _UNSEEN
    )


def _same(old: object, new: object) -> bool:
    if isinstance(old, tuple) and isinstance(new, tuple):
        return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
    return old is new


def _named(said: Explanation, most: int) -> list[str]:
    """The first devices that an explanation speaks of. It may list a whole fleet, of which only the first are looked at."""
    names: dict[str, None] = {}

    def walk(value: object) -> None:
        if len(names) >= most:
            return
        if isinstance(value, Mapping):
            many = value.get("devices")
            for name in (value.get("device"), *(many if isinstance(many, list | tuple) else ())):
                if isinstance(name, str):
                    names.setdefault(name)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list | tuple) and value and not isinstance(value[0], str):
            for inner in value:
                walk(inner)

    walk(said.to_dict({}))
    return list(names)[:most]
