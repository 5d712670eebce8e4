"""What a policy would have decided on observations that were recorded: the planner alone, fed line by line.

Open-loop: devices did what they were told at the time, not what this policy would have told them. Its own proofs,
failures, members, time-outs and rescues are carried on; artifacts, tags and proposals are as they were recorded. Pure; called by
the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from reconciler.model.amend import MARKS
from reconciler.model.desired import Desired
from reconciler.model.observed import DeviceObservation
from reconciler.model.plan import Action, ActionKind, Plan, WaveState
from reconciler.planner.live import Live
from reconciler.planner.render import reason_of, track_state
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.planner.windows import instant, micros
from reconciler.repo.load import with_config
from reconciler.simulate.controller import FAR, on_grid
from reconciler.simulate.forecast_record import Record
from reconciler.simulate.forecast_wakes import next_wake
from reconciler.simulate.outcome import asked_of, held_of
from reconciler.simulate.recording import Line, given
from reconciler.simulate.trace import Entry, Event, Kind, Trace, calendar_of

SPINS = 20
"""Passes at one instant, while a plan establishes something that the next one must know."""
_CARRIED = ("proofs", "failures", "members")
"""What this policy's own plans establish; the first line's are what it begins with."""


@dataclass(frozen=True, slots=True)
class Held:
    """A device that was started when this policy would not have: why not."""

    at: datetime
    device: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Replay:
    """What this policy decided (`decided`: its trace), beside what was recorded."""

    decided: Trace
    recorded: Trace
    held: tuple[Held, ...]
    lines: int
    devices: int

    @property
    def rows(self) -> tuple[tuple[Entry, Entry], ...]:
        """(decided, recorded) of each wave and release that the policy asks for."""
        return tuple(zip(calendar_of(self.decided), calendar_of(self.recorded), strict=True))


@dataclass(slots=True)
class _Known:
    """What was recorded of a device, and what this policy established about it since."""

    seen: DeviceObservation
    is_silent: bool
    ended: dict[str, Any] = field(default_factory=dict)
    """What this policy holds for timed out: a field that says since when → its value then."""
    attempts: dict[str, int] = field(default_factory=dict)
    rescued: dict[str, datetime] = field(default_factory=dict)


def replay(desired: Desired, lines: Iterable[Line]) -> Replay:
    """Run recorded observations through the planner under `desired`. `lines` are at least one; what they raise is raised."""
    return _Replaying(desired, iter(lines)).run()


class _Replaying:
    def __init__(self, desired: Desired, lines: Iterator[Line]) -> None:
        self._lines, self._first = lines, next(lines)
        first = self._first.snapshot
        reports_config = any(device.config is not None for device in first.devices)
        self.desired = with_config(desired, first.secret_versions) if reports_config else desired
        self.record = Record(first.model_copy(update={"devices": ()}))
        self.live = Live()
        self.known: dict[str, _Known] = {}
        self.decided: list[Event] = []
        self.recorded: list[Event] = []
        self.held: list[Held] = []
        self._told: set[tuple[str, str]] = set()
        self._states: dict[tuple[str, str], str] = {}
        self._verdicts: set[tuple[str, str, str]] = set()
        self._plan: Plan | None = None
        self._count = 0

    def run(self) -> Replay:
        line, last = self._first, self._first.at
        while True:
            after = next(self._lines, None)
            self._until(line.at)
            self._take(line, after)
            self._count, last = self._count + 1, line.at
            if after is None:
                break
            line = after
        assert self._plan is not None
        asked = asked_of(self.live)
        return Replay(
            Trace(self._first.at, last, tuple(self.decided), asked, held_of(self.live, self._plan)),
            Trace(self._first.at, last, tuple(self.recorded), asked),
            tuple(self.held),
            self._count,
            len(self.known),
        )

    # ------------------------------------------------ time

    def _until(self, at: datetime) -> None:
        """What the passing of time alone decides before `at`."""
        while self.live.state is not None:
            wake = next_wake(self.live.state)
            if wake >= micros(at) or (tick := on_grid(instant(wake))) >= at:
                return
            self._decide(tick)

    def _decide(self, at: datetime) -> None:
        """Plans at one instant, until they establish nothing new."""
        for _ in range(SPINS):
            devices, shared = self.record.taken()
            plan = self._plan = self.live.advance(self.desired, devices, shared, at)
            facts = plan.facts
            for verdicts, kind in ((facts.proofs, Kind.PROVEN), (facts.failures, Kind.STOPPED)):
                self.decided += [Event(at, kind, wave=fact.wave, key=fact.key) for fact in verdicts]
            for late in facts.timeouts:
                self.decided.append(self._of_device(at, Kind.TIMED_OUT, late.device, late.key))
            self._remember(plan)
            for action in plan.actions:
                self._start(at, action)
            if not (facts.proofs or facts.failures or facts.members or facts.closed or facts.timeouts or facts.rescues):
                break
        self._note_states(at)

    def _start(self, at: datetime, action: Action) -> None:
        key = self._key(action)
        device = action.fields.get("device")
        if key is None or device is None or (device, key) in self._told:
            return
        self._told.add((device, key))
        why = action.fields.get("why") or action.kind.value
        self.decided.append(self._of_device(at, Kind.TOLD, device, key, why))

    def _key(self, action: Action) -> str | None:
        fields = action.fields
        if action.kind is ActionKind.FLASH:
            return fields["to"]
        if action.kind is not ActionKind.RESTART:
            return None
        return self._app_key(fields["app"] or "", fields["to"] or "")

    def _app_key(self, app: str, digest: str) -> str:
        releases = self.desired.apps[app].releases if app in self.desired.apps else {}
        return f"{app}@{next((version for version, found in releases.items() if found == digest), digest)}"

    def _of_device(self, at: datetime, kind: Kind, device: str, key: str, detail: str = "") -> Event:
        known = self.known.get(device)
        site = known.seen.site if known is not None else None
        for name, spec in self.desired.sites.items() if site is None else ():
            site = name if device in spec.devices else site
        return Event(at, kind, self.live.wave_of(site) if site is not None else None, site, device, key, detail)

    def _note_states(self, at: datetime) -> None:
        state = self.live.state
        for wave in state.roster.waves if state is not None else ():
            for number in state.roster.tracks if state is not None else ():
                code = wave.ask(number)
                if state is None or code < 0:
                    continue
                key, now = state.roster.key(number, code), track_state(state, number, wave.index)
                reason = state.ground.gates[number].entry[wave.index].reason
                waits = reason is not None and now is WaveState.WAITING
                detail = f"{now.value}: {reason.value}" if waits and reason is not None else now.value
                if self._states.get((wave.spec.name, key)) != detail:
                    self._states[(wave.spec.name, key)] = detail
                    self.decided.append(Event(at, Kind.STATE, wave=wave.spec.name, key=key, detail=detail))

    # ------------------------------------------------ what this policy establishes about devices

    def _remember(self, plan: Plan) -> None:
        facts = plan.facts
        for late in facts.timeouts:
            known = self.known.get(late.device)
            if known is None:
                continue
            app = "@" in late.key or late.key == "restart"
            since = "configuring_since" if late.key == "configure" else "restarting_since" if app else "updating_since"
            known.ended[since] = getattr(known.seen, since)
            if late.key not in ("configure", "restart"):
                counts = self.record.seen[late.device].failed_attempts
                known.attempts[late.key] = counts.get(late.key, 0) + 1
        for rescue in facts.rescues:
            if (known := self.known.get(rescue.device)) is not None:
                known.rescued[rescue.key] = rescue.at
        for key in facts.closed:
            for known in self.known.values():
                known.attempts.pop(key, None)
                known.rescued.pop(key, None)
        # `note` amends what is known of devices too, as the recorder does; a later line is amended by `_amended`.
        self.record.note(facts, ())

    def _amended(self, known: _Known, until: datetime) -> DeviceObservation:
        """A device as recorded, and as this policy has judged it. `until`: it is known to report at least so long."""
        seen, changes = known.seen, dict[str, Any]()
        if not known.is_silent:
            changes["last_seen"] = until
        for since, value in known.ended.items():
            if value is not None and getattr(seen, since) == value:
                changes |= dict.fromkeys(_ENDS[since])
        if known.attempts:
            counts = dict(seen.failed_attempts)
            counts |= {key: max(count, counts.get(key, 0)) for key, count in known.attempts.items()}
            changes["failed_attempts"] = counts
        if known.rescued:
            changes["rescued_from"] = {**seen.rescued_from, **known.rescued}
        return seen.model_copy(update=changes) if changes else seen

    # ------------------------------------------------ what was recorded

    def _take(self, line: Line, after: Line | None) -> None:
        """Plan with a line's reports, and only then with what the controller of the time decided on them."""
        marked = []
        began = self._count == 0
        seen_next = {} if after is None else {device.name: device.last_seen for device in after.snapshot.devices}
        for device in line.snapshot.devices:
            before = self.known.get(device.name)
            is_silent = device.last_seen is None or (before is not None and device.last_seen <= self._last_at)
            if began and device.last_seen is not None:
                age = (line.at - device.last_seen).total_seconds()
                is_silent = age > self.desired.fleet.stale_after
            old = before.seen if before is not None else None
            known = before or _Known(device, is_silent)
            known.is_silent = is_silent
            starts = self._starts(old, device) if not began else ()
            known.seen = device.model_copy(update={name: getattr(old, name) for name in MARKS}) if starts else device
            self.known[device.name] = known
            if starts:
                marked.append((known, device, starts))
            self._changes(line.at, old, device)
            self.record.put(self._amended(known, self._heard_until(device.name, seen_next)))
        for name in seen_next.keys() - {device.name for device in line.snapshot.devices}:
            if name in self.known:
                self.record.put(self._amended(self.known[name], self._heard_until(name, seen_next)))
        self._share(line, began)
        self._decide(line.at)
        for known, device, starts in marked:
            for key in starts:
                self._judge(line.at, device.name, key)
            known.seen = device
            self.record.put(self._amended(known, self._heard_until(device.name, seen_next)))
        if marked:
            self._decide(line.at)
        self._last_at = line.at

    _last_at: datetime

    @staticmethod
    def _heard_until(name: str, seen_next: Mapping[str, datetime | None]) -> datetime:
        """Until when a device is known to have reported: the next line says, where it has the device; else it goes on."""
        return (seen_next.get(name) or FAR) if name in seen_next else FAR

    def _starts(self, old: DeviceObservation | None, device: DeviceObservation) -> tuple[str, ...]:
        """What the controller of the time had a device begin since the line before."""
        out = []
        if device.updating_to is not None and device.updating_since != (old.updating_since if old else None):
            out.append(device.updating_to)
        if device.restarting_app is not None and device.restarting_since != (old.restarting_since if old else None):
            track = next((wave.apps.get(device.restarting_app) for wave in self._waves_of(device)), None)
            out.append(f"{device.restarting_app}@{track}")
        return tuple(out) if old is not None else ()

    def _waves_of(self, device: DeviceObservation) -> Iterator[Any]:
        name = self.live.wave_of(device.site or "")
        yield from (wave for wave in self.desired.waves.waves if wave.name == name)

    def _changes(self, at: datetime, old: DeviceObservation | None, new: DeviceObservation) -> None:
        """What was recorded of a device, as events."""
        if old is None:
            return
        for key in self._starts(old, new):
            self.recorded.append(self._of_device(at, Kind.TOLD, new.name, key))
        pairs = [(old.image, new.image)]
        for app in sorted(old.apps.keys() | new.apps.keys()):
            had, has = old.apps.get(app), new.apps.get(app)
            pairs.append(
                (self._app_key(app, had.digest) if had else None, self._app_key(app, has.digest) if has else None)
            )
        for had_key, has_key in pairs:
            if had_key == has_key:
                continue
            if had_key is not None:
                self.recorded.append(self._of_device(at, Kind.LEFT, new.name, had_key))
            if has_key is not None:
                self.recorded.append(self._of_device(at, Kind.ARRIVED, new.name, has_key))
                self._told.discard((new.name, has_key))

    def _judge(self, at: datetime, device: str, key: str) -> None:
        """Whether this policy had wanted by then what was begun."""
        state = self.live.state
        if (device, key) in self._told or state is None or device not in state.roster.row_of:
            return
        row, app = state.roster.row_of[device], key.partition("@")
        number = IMAGE_TRACK if not app[1] else next(
            (n for n in state.roster.tracks if n != IMAGE_TRACK and state.roster.apps[n - 1].name == app[0]), IMAGE_TRACK
        )  # fmt: skip
        track = state.tracks[number]
        reason = reason_of(track, row)
        target = int(track.target[row])
        wanted = state.roster.key(number, target) if target >= 0 and number != IMAGE_TRACK else None
        if number == IMAGE_TRACK and target >= 0:
            wanted = state.obs.release_names[target]
        why = reason.value if reason is not None else "not wanted"
        if wanted is not None and wanted != key and number == IMAGE_TRACK:
            why = f"wants {wanted}" + (f", held: {reason.value}" if reason is not None else "")
        self.held.append(Held(at, device, key, why))

    def _share(self, line: Line, began: bool) -> None:
        parts = given(line.snapshot)
        for name, kind in (("proofs", Kind.PROVEN), ("failures", Kind.STOPPED)):
            for verdict in parts.get(name, ()):
                place = (name, verdict.wave, verdict.key)
                if place not in self._verdicts:
                    self._verdicts.add(place)
                    if not began:
                        self.recorded.append(Event(verdict.at, kind, wave=verdict.wave, key=verdict.key))
        changed = {name: value for name, value in parts.items() if name not in _CARRIED}
        if changed and not began:
            self.record.shared = self.record.shared.model_copy(update=changed)
            self.record.news = True


_ENDS: Mapping[str, tuple[str, ...]] = {
    "updating_since": ("updating_to", "updating_since", "rebooting_since"),
    "restarting_since": ("restarting_app", "restarting_since"),
    "configuring_since": ("configuring_since",),
}
