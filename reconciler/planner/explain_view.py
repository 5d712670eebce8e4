"""What the parts of an explanation look at: a state, the snapshot it was made from, and how rows and instants are named. Pure.

Decides nothing: it reads the codes and columns that the three stages left. Called by the other `explain_*` modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property

import numpy as np

from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.model.plan import Reason
from reconciler.planner.explain_values import Ask, Change, Link, fleet_ask, site_ask, wave_ask
from reconciler.planner.judge import in_flight
from reconciler.planner.messages import plain, what
from reconciler.planner.render import reason_of
from reconciler.planner.roster import I64, IMAGE_TRACK, Roster, WaveFacts
from reconciler.planner.state import State, Track
from reconciler.planner.windows import NEVER, NONE, instant

_MOST_CHECKS = 3
_MOST_SAID = 80
"""Of a sentence: checks, and characters of what one says."""


class View:
    """A planned state, and names for what is in it. `observed` tells which checks are worse; the columns only that some are."""

    def __init__(self, state: State, observed: Snapshot | None = None) -> None:
        self.state, self.observed = state, observed

    @property
    def roster(self) -> Roster:
        """The compiled desired state."""
        return self.state.roster

    @property
    def now(self) -> int:
        """The plan's instant, in microseconds."""
        return self.state.now

    @cached_property
    def reports(self) -> dict[str, DeviceObservation]:
        """What each device said last."""
        return {device.name: device for device in self.observed.devices} if self.observed else {}

    def track(self, number: int) -> Track:
        """A track: 0 the image, 1 + a app a, -1 the configuration."""
        return self.state.config if number < 0 else self.state.tracks[number]

    def name(self, row: int) -> str:
        """A device's name."""
        return self.roster.device_names[row]

    def site(self, row: int) -> str:
        """The name of a device's site."""
        name: str = self.roster.site_names[self.roster.site_of[row]]
        return name

    def wave(self, row: int) -> int:
        """The index of a device's wave; -1 for none."""
        return int(self.state.places.wave_of[row])

    def facts(self, wave: int) -> WaveFacts:
        """A wave."""
        return self.roster.waves[wave]

    def target(self, number: int, row: int) -> str:
        """What a device shall run on a track, as sentences name it."""
        return what(self.state, number, int(self.track(number).target[row]))

    def release(self, number: int, code: int) -> str:
        """A release of a track, as sentences name it."""
        return what(self.state, number, code)

    def reason(self, number: int, row: int) -> Reason | None:
        """Why a device is held on a track."""
        return reason_of(self.track(number), row)

    def checks(self, row: int) -> str:
        """` (worse than before the update: camera: "no frames", disk)`, or nothing. All of them are listed by `explain DEVICE`."""
        report = self.reports.get(self.name(row))
        if report is None or not report.checks_worse:
            return ""
        said = {check.name: check.message for check in report.checks}
        order = [*said, *(name for name in report.checks_worse if name not in said)]
        shown = [_check(name, said.get(name, "")) for name in order[:_MOST_CHECKS]]
        more = f" and {len(order) - _MOST_CHECKS} more" if len(order) > _MOST_CHECKS else ""
        return f" (worse than before the update: {', '.join(shown)}{more})"

    def timeout(self, rows: Sequence[int]) -> list[int]:
        """Per row, when what is in flight will have timed out; NEVER where nothing is."""
        index = np.array(rows, np.int64)
        answer: list[int] = in_flight(self.roster, self.state.obs, index, self.now).timeout_at.tolist()
        return answer

    def rows_of_site(self, row: int) -> range:
        """All devices of a device's site."""
        site = int(self.roster.site_of[row])
        return range(int(self.roster.site_start[site]), int(self.roster.site_start[site + 1]))

    def link(
        self,
        rows: Sequence[int] | I64,
        code: str,
        statement: str,
        *,
        depth: int,
        since: int = NONE,
        until: int = NEVER,
        changes: Iterable[Change] = (),
        ask: Ask | None = None,
        why: str | None = None,
    ) -> Link:
        """A link about one device or several."""
        called = tuple(sorted(self.name(int(row)) for row in rows))
        return Link("device", called[0], code, statement, depth, at(since), at(until), called, tuple(changes), ask, why)

    def wave_link(
        self,
        wave: int,
        code: str,
        statement: str,
        *,
        depth: int,
        since: int = NONE,
        until: int = NEVER,
        changes: Iterable[Change] = (),
        ask: Ask | None = None,
    ) -> Link:
        """A link about a wave."""
        name = self.facts(wave).spec.name
        return Link("wave", name, code, statement, depth, at(since), at(until), (), tuple(changes), ask)

    def wave_target(self, wave: int, number: int) -> Ask:
        """Where git says what a wave runs on a track."""
        keys = ("image",) if number <= IMAGE_TRACK else ("apps", self.roster.apps[number - 1].name)
        return wave_ask(wave, *keys)

    def asked(self, number: int, row: int) -> Ask | None:
        """Where git says what a device shall run on a track: its pin, or its wave. Its configuration follows from no one line."""
        if number < 0:
            return None
        if number == IMAGE_TRACK and self.roster.pin_of[row] >= 0:
            return site_ask(self.site(row), "pin", "image")
        wave = self.wave(row)
        if wave < 0 or self.facts(wave).ask(number) != int(self.track(number).target[row]):
            return None
        return self.wave_target(wave, number)

    def window_ask(self, row: int) -> Ask:
        """Where git says when a device's window is."""
        own = self.roster.desired.sites[self.site(row)].window
        return site_ask(self.site(row), "window") if own is not None else fleet_ask("window")


def _check(name: str, message: str) -> str:
    short = message if len(message) <= _MOST_SAID else f"{message[: _MOST_SAID - 1]}…"
    return plain(name) + (f': "{plain(short)}"' if short else "")


def at(value: int) -> datetime | None:
    """Microseconds → an instant; None for NONE and NEVER."""
    return None if value in (NONE, NEVER) else instant(value)
