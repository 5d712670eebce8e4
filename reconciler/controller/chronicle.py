"""Tells what happened: reads what was told, asks `controller.events` for the difference, and records it. The last step of a tick.

Decides nothing. Writes only where there is something to tell, in one transaction with what has then been told. Adds to an event
what only the store knows: which checks a flagged device has worse, where a revert was proposed. Expiring keys and assignments are
looked for once an hour. Called by the loop, on its thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from reconciler.controller.conditions import Conditions, Type
from reconciler.controller.events import Seen, Told, baseline, happened
from reconciler.controller.gather import World
from reconciler.controller.words import clean
from reconciler.model.events import MOST_MESSAGE, Event, EventKind
from reconciler.model.observed import DeviceObservation, Health
from reconciler.model.plan import ActionKind, Plan
from reconciler.model.scalars import format_instant
from reconciler.planner.live import Live
from reconciler.ports import PortError, PublicKey, Store

Log = Callable[..., object]

_EVERY = timedelta(hours=1)
KEY_STAGES = (timedelta(days=30), timedelta(days=7), timedelta(days=1), timedelta(0))
"""Time left at which an expiring key is told of, again and again."""
_ASSIGNMENT_LEFT = timedelta(hours=6)
_MOST_DETAIL = 200
"""Flagged devices of one tick that are looked up in the store; the others say less."""
_MOST_COMMITS = 50


def _no_keys() -> Sequence[tuple[str, PublicKey]]:
    return ()


@dataclass(frozen=True, slots=True)
class Watched:
    """What the chronicle looks after besides the plan. `keys` gives the signing keys, each with what it is for (PortError: not
    now); `kept` is how long events and health logs are kept; `looked` is told how many assignments are about to expire, and the
    keys (None: not now)."""

    keys: Callable[[], Sequence[tuple[str, PublicKey]]] = _no_keys
    kept: timedelta = timedelta(days=365)
    looked: Callable[[int, Sequence[tuple[str, PublicKey]] | None], object] = lambda _assignments, _keys: None


class Chronicle:
    """The teller. One thread: the loop's. `told` is called with events that were recorded, after they were."""

    def __init__(
        self,
        store: Store,
        log: Log,
        watched: Watched | None = None,
        told: Callable[[Sequence[Event]], object] | None = None,
    ) -> None:
        self._store, self._log, self._watched, self._announce = store, log, watched or Watched(), told
        self._told: Told | None = None
        self._early = Told()
        """What was told before there was a plan to begin from: it is not kept, since the events' keys tell what was told."""
        self._looked: datetime | None = None

    def begin(self, epoch: int, world: World | None, plan: Plan | None, conditions: Conditions) -> None:
        """Remember what was told; on a store that has no memory of it, what stands on record counts as told.

        Called before a tick's decision is recorded, so that what it establishes is news.
        """
        if self._told is not None:
            return
        text = self._store.told()
        if text is not None:
            try:
                self._told = Told.from_json(text)
            except ValueError as error:
                self._log("what was told is unreadable", error=str(error))
        if self._told is None and world is not None and plan is not None:
            told = baseline(self._seen(world, plan, conditions, None, world.now))
            self._store.add_events(epoch, (), told.to_json())
            self._told = told

    def tell(
        self,
        epoch: int,
        world: World | None,
        plan: Plan | None,
        conditions: Conditions,
        refused: tuple[str, str] | None,
        now: datetime,
        live: Live,
    ) -> tuple[Event, ...]:
        """Record what happened since the last call; returns it."""
        before = self._told or self._early
        events, after = happened(before, self._seen(world, plan, conditions, refused, now))
        found = [*self._detailed(events, live), *self._expiring(now, live, epoch)]
        if not found and after == before:
            return ()
        begun = self._told is not None
        new = self._store.add_events(epoch, found, after.to_json() if begun else None)
        if begun:
            self._told = after
        else:
            self._early = after
        for event in new:
            self._log("event", kind=event.kind.value, message=event.message)
        if new and self._announce is not None:
            self._announce(new)
        return new

    def _seen(
        self,
        world: World | None,
        plan: Plan | None,
        conditions: Conditions,
        refused: tuple[str, str] | None,
        now: datetime,
    ) -> Seen:
        rows = conditions.rows()
        fleet = next(row for row in rows if row.type == Type.FLEET_VALID)
        known = world is not None and plan is not None
        commit = plan.commit if plan is not None else None
        return Seen(
            at=now,
            commit=commit,
            waves=plan.waves if known and plan is not None else None,
            flagged=plan.flagged if known and plan is not None else None,
            recorded=world.observed if known and world is not None else None,
            conditions=rows,
            refused=(refused[0], fleet.reason, refused[1]) if refused is not None else None,
            commits=self._commits(commit),
        )

    def _commits(self, commit: str | None) -> list[tuple[str, datetime]]:
        """Commits that came into force since the one that was told last, oldest first."""
        last = self._told.commit if self._told is not None else None
        if commit is None or commit == last:
            return []
        out = []
        for row in self._store.accepted_commits(limit=_MOST_COMMITS if last is not None else 1):
            if row.sha == last:
                break
            out.append((row.sha, row.at))
        return out[::-1]

    # ------------------------------------------------ what only the store knows

    def _detailed(self, events: Sequence[Event], live: Live) -> Iterator[Event]:
        names = [event.device for event in events if event.device is not None]
        seen = self._store.observed(names[:_MOST_DETAIL]) if names else {}
        for event in events:
            if event.device is not None and event.device in seen:
                device = seen[event.device][0]
                yield replace(_of_device(event, device), wave=live.wave_of(device.site or ""))
            elif event.kind is EventKind.REVERT_PROPOSED:
                yield self._of_proposal(event)
            else:
                yield event

    def _of_proposal(self, event: Event) -> Event:
        """With where the revert is, as the journal has it."""
        app, at_sign, version = (event.release or "").partition("@")
        fields = {f"app={app}", f"release={version}"} if at_sign else {f"image={event.release}"}
        for row in self._store.journal(_MOST_DETAIL):
            key = (row["key"] or "").split(" ")
            if key[0] == ActionKind.PROPOSE_REVERT and fields == set(key[1:]) and row["outcome"] == "done":
                detail = row["detail"]
                return replace(event, message=f"{event.message} ({detail})"[:MOST_MESSAGE]) if detail else event
        return event

    # ------------------------------------------------ what is about to expire

    def _expiring(self, now: datetime, live: Live, epoch: int) -> list[Event]:
        if self._looked is not None and timedelta(0) <= now - self._looked < _EVERY:
            return []
        self._looked = now
        self._store.prune_events(epoch, now - self._watched.kept)
        found = list(self._assignments(now, sorted(live.marked())))
        try:
            keys = self._watched.keys()
        except PortError as error:
            self._log("keys not looked at", error=str(error))
            self._watched.looked(len(found), None)
            return found
        self._watched.looked(len(found), keys)
        for purpose, key in keys:
            found += _of_key(purpose, key, now)
        return found

    def _assignments(self, now: datetime, devices: Sequence[str]) -> Iterator[Event]:
        """Of devices in flight alone: what others were told has been done."""
        for device, row in self._store.assignments(devices).items() if devices else ():
            if now < row.expires_at <= now + _ASSIGNMENT_LEFT:
                text = (
                    f"the assignment of {device} expires at {format_instant(row.expires_at)}, and the device is still in"
                    " flight: it begins nothing after that"
                )
                key = f"{device} {row.epoch}.{row.n}"
                kind = EventKind.ASSIGNMENT_EXPIRING
                yield Event(None, now, kind, key, device=device, reason="expiring", message=text)


def _of_device(event: Event, device: DeviceObservation) -> Event:
    """With its site, and of a flag why."""
    if event.kind is not EventKind.DEVICE_FLAGGED:
        return replace(event, site=device.site)
    critical = device.health is Health.CRITICAL
    # A check has the name that the device gave it.
    worse = ", ".join(clean(name) for name in device.checks_worse[:5]) + (", …" if len(device.checks_worse) > 5 else "")
    if critical:
        since = f" since {format_instant(device.health_since)}" if device.health_since is not None else ""
        text = f"{event.message}: its healthcheck is critical{since}"
    else:
        text = f"{event.message}: its update attempts failed"
    text += f"; worse than before the update: {worse}" if worse else ""
    reason = "critical" if critical else "attempts-exhausted"
    return replace(event, site=device.site, reason=reason, message=text[:MOST_MESSAGE])


def _of_key(purpose: str, key: PublicKey, now: datetime) -> Iterator[Event]:
    """The stage that a key has reached, if any: a month, a week, a day, expired."""
    if key.expires_at is None:
        return
    left = key.expires_at - now
    reached = [stage for stage in KEY_STAGES if left <= stage]
    if not reached:
        return
    stage, at = min(reached), format_instant(key.expires_at)
    gone = stage <= timedelta(0)
    text = f"the {purpose} key {key.fingerprint} {'expired' if gone else 'expires'} at {at}"
    text += ": nothing that it signs counts" if gone else "; rotate it before"
    reason = "expired" if gone else f"{stage.days}-day{'s' * (stage.days > 1)}-left"
    yield Event(
        None, now, EventKind.KEY_EXPIRING, f"{key.fingerprint} {at} {stage.days}", reason=reason, message=text
    )  # fmt: skip
