"""The demo that a person drives: a fleet at rest, a bare repository to merge into, and time that runs after every merge.

Plays time and the world, never the engineer: who clones, proposes, reviews and merges is the reader of the tutorial. After a
merge, time runs until nothing is left that happens by itself; then it stands still, and what is observed is written down for
`reconciler diff`. Devices and long work take the time that forecasts give them, so a review's calendar can be held against
what happened. Called by `reconciler demo --follow`. Source: docs/tutorial/first-promotion.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from reconciler.demo.chronicle import Chronicle, Tail
from reconciler.demo.stage import OLD, Say, Stage
from reconciler.demo.summary import aligned
from reconciler.demo.wear import Wear
from reconciler.model.observed import Snapshot
from reconciler.model.scalars import format_instant, parse_instant
from reconciler.repo.load import load_folder
from reconciler.simulate.start import first_report_at
from reconciler.simulate.timings import TICK_S
from reconciler.simulate.trace import Event, Kind

START = datetime(2026, 1, 12, 12, tzinfo=UTC)
"""A Monday: whoever follows the tutorial sees the days that stand in it."""
MOST_DAYS = 60
_LOOK_S = 0.2
_AT_REST = ("idle", "complete", "failed", "unresolved", "paused", "waiting")


class Follow(Stage):
    """One session. `play` returns once `pushes` merges were played; None: it goes on until it is interrupted."""

    def __init__(
        self,
        root: Path,
        fleet: Path,
        say: Say,
        *,
        start: datetime = START,
        pushes: int | None = None,
        debug: bool = False,
    ) -> None:
        super().__init__(root, fleet, say, start, paced=True, debug=debug)
        self._left, self._shown = pushes, root
        self._seen: Snapshot | None = None
        self._commit = self._refused = ""

    def play(self, tell: Callable[[str], object]) -> None:
        """Everything, in order. `tell` gets what is no event of virtual time. KeyboardInterrupt ends it."""
        self.set_up()
        self.bring_up()
        # A site's devices share its cameras.
        self._wear = Wear(
            {
                name: -(-len(spec.cameras) // len(spec.devices))
                for spec in self.desired.sites.values()
                for name in spec.devices
            }
        )
        self._to_the_minute()
        self._tail = Tail(self.ground.log)
        for _ in self._tail.read():
            pass
        self._write_down()
        tell(self._welcome())
        while self._left is None or self._left > 0:
            if self._take(self._await_push(), tell):
                self._left = None if self._left is None else self._left - 1
            tell(self._invitation())

    # ------------------------------------------------ what a person is told

    def _welcome(self) -> str:
        count = len(self.director.devices)
        return (
            f"\n{count} devices of {len(self.desired.sites)} sites run {OLD}, adopted and healthy.\n\n"
            f"  the fleet repo    {self._shown / self.ground.remote.name}\n"
            f"  what is observed  {self._shown / 'observed.json'}\n"
            f"  settings          {self._shown / self.ground.config.name}\n\n{self._invitation()}"
        )

    def _invitation(self) -> str:
        return f"It is {format_instant(self.now)}, and time stands still until something is merged into main. Ctrl-C ends it."

    def _event(self, event: Event) -> None:
        """One line where something begins, or is done, that a person waits for."""
        if event.kind is Kind.PUBLISHED:
            self._say(event.at, f"{event.key} is built, signed and published.")
        elif event.kind is Kind.PROPOSED:
            self._say(event.at, f"The reconciler proposes to revert {event.key}: branch {event.detail.split()[0]}.")
        elif event.kind is Kind.STOPPED:
            self._say(event.at, f"{event.wave:<7} {event.key}: the gate has failed; it is stopped in every wave.")
        elif event.kind is Kind.PROVEN:
            self._say(event.at, f"{event.wave:<7} {event.key}: proven.")
        elif event.kind in (Kind.ATTEMPT_FAILED, Kind.TIMED_OUT):
            self._say(event.at, f"{event.wave:<7} {event.key}: {event.device} did not get there ({event.kind.value}).")

    def _state(self, event: Event, of: Mapping[str, Any]) -> None:
        """A wave's state, where that says more than its gate did."""
        if event.detail == "rolling":
            self._say(event.at, f"{event.wave:<7} {event.key}: rolling; {of['onRelease']} of {of['devices']} run it.")
        elif event.detail == "soaking":
            # It is judged with the tick that follows.
            step, ends = timedelta(seconds=TICK_S), parse_instant(of["soakEndsAt"])
            until = ends + (START - ends) % step
            self._say(
                event.at,
                f"{event.wave:<7} {event.key}: {of['onRelease']} of {of['devices']} run it; soaks until {_when(until)}.",
            )
        elif event.detail in ("rolling-back", "unresolved", "paused"):
            self._say(event.at, f"{event.wave:<7} {event.key}: {event.detail}.")

    def _came_of_it(self, story: Chronicle) -> str:
        """What happened, in the columns of the calendar of `reconciler diff`."""
        entries = story.calendar(self.plan())
        if not entries:
            return "Nothing was to be done on any device."
        head = ("wave", "release", "devices", "starts", "last arrives", "proven")
        lines = [
            (
                entry.wave,
                entry.key,
                str(entry.devices),
                _when(entry.first_told_at),
                _when(entry.last_arrived_at),
                f"gate failed {_when(entry.stopped_at)}" if entry.stopped_at is not None else _when(entry.proven_at),
            )
            for entry in entries
        ]
        most = story.exposure(entries)
        text = "\n".join(f"  {line}" for line in aligned((head, *lines)))
        at = f" ({_when(most.at)})" if most.at is not None else ""
        return f"What happened\n{text}\n  at most {most.devices} devices at once on a release that their wave had not proven{at}"

    # ------------------------------------------------ a merge

    def _await_push(self) -> str:
        """Until the branch has moved. The controller stands by; whoever else asks it for the time is turned away."""
        while (head := self.ground.head()) == self._commit:
            self.director.settle()
            self.time.turn_away()
            time.sleep(_LOOK_S)
        return head

    def _take(self, sha: str, tell: Callable[[str], object]) -> bool:
        """Play what a merge brings. False: the controller did not take it, and says why."""
        self._commit = sha
        if not self._in_force(sha, tell):
            return False
        self.ground.fetch(sha)
        loaded = load_folder(self.ground.clone)
        if loaded.desired is not None:
            self.desired = loaded.desired
        before = self._seen or self.observed()
        story = Chronicle(replace(self.desired, commit=sha), before, self.now)
        self._tell(f"Merged: {self.ground.subject(sha)} ({sha[:12]}).")
        self._run_on(story)
        self._to_the_minute()
        self._write_down()
        tell(f"\n{self._came_of_it(story)}\n")
        return True

    def _in_force(self, sha: str, tell: Callable[[str], object]) -> bool:
        """The watcher rings within milliseconds; time stands still meanwhile."""
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up:
            self.director.settle()
            if self.store.last_good_commit() == sha:
                return True
            for row in self.store.conditions():
                refused = row.status == "False" and row.type in ("FleetValid", "GitReady")
                if refused and row.message != self._refused:
                    self._refused = row.message
                    tell(f"{sha[:12]} is not taken: {row.message}")
                    return False
            time.sleep(0.02)
        tell(f"{sha[:12]} has not come into force; see {self.ground.log}")
        return False

    def _run_on(self, story: Chronicle) -> None:
        """Until nothing happens by itself any more, and a person is needed."""
        deadline = self.now + timedelta(days=MOST_DAYS)
        cursor, plan = self.store.changes_since(0).cursor, self.plan()
        changed: set[str] = set(self.director.devices)
        first = True
        while True:
            self.director.settle()
            if first or self.stirred():
                for event in [event for line in self._tail.read() for event in story.hear(line)]:
                    self._event(event)
                changes = self.store.changes_since(cursor)
                cursor = changes.cursor
                for event in [event for device in changes.devices for event in story.look(device)]:
                    self._event(event)
                changed |= {device.name for device in changes.devices}
                plan = self.plan()
                for event, of in story.states(plan):
                    self._state(event, of)
                if self._at_rest(plan, story.desired.commit):
                    return
                first = False
            if self.now >= deadline:
                self._say(self.now, f"Not done after {MOST_DAYS} days; see `reconciler status`.")
                return
            for name in self._wear.pass_on(self.director.devices, changed & self.director.devices.keys(), self.now):
                self.director.call(name, self.now)
            changed.clear()
            self.director.jump(min(deadline, self._wear.next_at() or deadline))

    def _at_rest(self, plan: Mapping[str, Any], sha: str | None) -> bool:
        """Whether all that is left waits for a person."""
        if plan.get("commit") != sha or plan["actions"] or plan["nextChangeAt"] is not None:
            return False
        states = [wave["state"] for wave in plan["waves"]]
        states += [of["state"] for wave in plan["waves"] for of in wave.get("apps", {}).values()]
        return all(state in _AT_REST for state in states) and self._quiet()

    # ------------------------------------------------ between merges

    def _to_the_minute(self) -> None:
        """Time stops at a whole minute, at which a merge can be ticked at once."""
        late = (self.now - START) % timedelta(minutes=1)
        if late:
            self.director.pass_until(self.now + timedelta(minutes=1) - late)

    def _write_down(self) -> None:
        """The snapshot that a review is made against, and the line that the next downloads are played on."""
        self._commit = self.ground.head()
        self._seen = self.observed()
        self._sizes = {name: of.size for name, of in self._seen.artifacts.items() if of.size is not None}
        self.write(self.ground.root / "observed.json", self._seen)
        # Who forecasts does not know when each device last called, and lets it call when its name says.
        every = self.desired.fleet.report_every
        for name in self.director.devices:
            self.director.call(name, first_report_at(name, every, self.now + timedelta(seconds=1)))


def _when(at: datetime | None) -> str:
    """An instant as `reconciler diff` writes it."""
    return f"{at:%a %Y-%m-%d %H:%M}Z" if at is not None else "–"
