"""The plan: actions, holds, wave states and facts, as the contract prints them.

`Plan` is a value; `planner.render` makes it from the planner's columns. `to_json` gives the same bytes for the same plan.
Source: contract, "Plan".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from reconciler.model.scalars import format_instant


class Reason(StrEnum):
    """Why a wanted action is not taken now. The contract's table, in the order of the ladder (fine print 5)."""

    IDENTITY_CONFLICT = "identity-conflict"
    SUSPENDED = "suspended"
    IN_PROGRESS = "in-progress"
    SERIALISED = "serialised"
    OFFLINE = "offline"
    UNKNOWN_IMAGE = "unknown-image"
    AHEAD = "ahead"
    WITHDRAWN = "withdrawn"
    GATE_FAILED = "gate-failed"
    PAUSED = "paused"
    FROZEN = "frozen"
    WAVE_WAITS = "wave-waits"
    SOAKING = "soaking"
    GATE_UNRESOLVED = "gate-unresolved"
    ATTEMPTS_EXHAUSTED = "attempts-exhausted"
    IMAGE_NOT_READY = "image-not-ready"
    NO_ROLLBACK_IMAGE = "no-rollback-image"
    TAG_DRIFT = "tag-drift"
    OUTSIDE_WINDOW = "outside-window"
    NO_WINDOW = "no-window"
    BUDGET = "budget"


class ActionKind(StrEnum):
    """Kinds of action, in the order in which a plan lists them (fine print 16)."""

    BUILD = "build"
    SIGN = "sign"
    PUBLISH = "publish"
    PROPOSE_REVERT = "propose-revert"
    FLASH = "flash"
    CONFIGURE = "configure"
    RETAG = "retag"
    RESTART = "restart"


class Why(StrEnum):
    """What a flash is for."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    RESCUE = "rescue"
    PROVISION = "provision"
    REPAIR = "repair"


class WaveState(StrEnum):
    """Where a wave stands with the release it asks for."""

    IDLE = "idle"
    WAITING = "waiting"
    ROLLING = "rolling"
    SOAKING = "soaking"
    COMPLETE = "complete"
    FAILED = "failed"
    UNRESOLVED = "unresolved"
    ROLLING_BACK = "rolling-back"
    PAUSED = "paused"


_ACTION_ORDER = {kind: number for number, kind in enumerate(ActionKind)}


@dataclass(frozen=True, slots=True)
class Action:
    """One action. `fields` are its keys as the contract prints them, `kind` apart."""

    kind: ActionKind
    fields: Mapping[str, str | None]

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Kind, device, then every other field."""
        rest = tuple(sorted((key, value or "") for key, value in self.fields.items()))
        return _ACTION_ORDER[self.kind], self.fields.get("device") or "", rest

    @property
    def key(self) -> str:
        """Identity of the action across ticks: the journal's idempotency key, without what it came from."""
        rest = [
            f"{k}={v}" for k, v in sorted(self.fields.items()) if k not in ("from", "why", "method", "wave", "site")
        ]
        return " ".join([self.kind.value, *rest])

    def to_dict(self) -> dict[str, Any]:
        """The action as the contract prints it."""
        return {"kind": self.kind.value, **self.fields}


@dataclass(frozen=True, slots=True)
class Hold:
    """A reason why something wanted is not done now. No devices means all of the wave that are not on the release."""

    reason: Reason
    wave: str | None
    image: str | None = None
    app: str | None = None
    release: str | None = None
    devices: tuple[str, ...] = ()
    until: datetime | None = None
    message: str = ""

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Wave, release, ladder position, until, devices."""
        until = format_instant(self.until) if self.until else ""
        order = list(Reason).index(self.reason)
        return self.wave or "", self.image or "", self.app or "", self.release or "", order, until, self.devices

    def to_dict(self) -> dict[str, Any]:
        """The hold as the contract prints it."""
        out: dict[str, Any] = {"reason": self.reason.value, "wave": self.wave}
        if self.app is not None:
            out |= {"app": self.app, "release": self.release}
        else:
            out["image"] = self.image
        out |= {"devices": list(self.devices), "until": format_instant(self.until) if self.until else None}
        return out | {"message": self.message}


@dataclass(frozen=True, slots=True)
class AppStatus:
    """Where a wave stands with one app release."""

    release: str
    state: WaveState
    on_release: int
    healthy: int
    failed: int
    soak_ends_at: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """For the plan's JSON."""
        return {
            "release": self.release,
            "state": self.state.value,
            "onRelease": self.on_release,
            "healthy": self.healthy,
            "failed": self.failed,
            "soakEndsAt": format_instant(self.soak_ends_at) if self.soak_ends_at else None,
        }


@dataclass(frozen=True, slots=True)
class WaveStatus:
    """Where a wave stands. Counts are of devices, `sites` of sites."""

    name: str
    image: str | None
    state: WaveState
    sites: int
    devices: int
    on_release: int
    healthy: int
    failed: int
    offline: int
    in_flight: int
    soak_ends_at: datetime | None
    apps: Mapping[str, AppStatus] = field(default_factory=dict)

    def of(self, key: str) -> WaveStatus | AppStatus | None:
        """Where it stands with a release, `v1.4.2` or `video-ingest@2.8.0`; None: it does not ask for that one."""
        app, at_sign, release = key.partition("@")
        if not at_sign:
            return self if self.image == key else None
        status = self.apps.get(app)
        return status if status is not None and status.release == release else None

    def to_dict(self) -> dict[str, Any]:
        """The wave as the contract prints it."""
        return {
            "name": self.name,
            "image": self.image,
            "state": self.state.value,
            "sites": self.sites,
            "devices": self.devices,
            "onRelease": self.on_release,
            "healthy": self.healthy,
            "failed": self.failed,
            "offline": self.offline,
            "inFlight": self.in_flight,
            "soakEndsAt": format_instant(self.soak_ends_at) if self.soak_ends_at else None,
            "apps": {name: self.apps[name].to_dict() for name in sorted(self.apps)},
        }


@dataclass(frozen=True, slots=True)
class VerdictFact:
    """A proof or failure that this plan established."""

    wave: str
    key: str
    at: datetime

    def to_dict(self) -> dict[str, Any]:
        """As the snapshot holds it."""
        app, at_sign, release = self.key.partition("@")
        of = {"app": app, "release": release} if at_sign else {"image": self.key}
        return {"wave": self.wave, **of, "at": format_instant(self.at)}


@dataclass(frozen=True, slots=True)
class DeviceFact:
    """Something that this plan established about a device: a time-out, a rescue, or a failure that is flagged, not charged."""

    device: str
    key: str
    at: datetime

    def to_dict(self) -> dict[str, Any]:
        """For the plan's JSON; `release` is `v1.4.2`, or `video-ingest@2.8.0`."""
        return {"device": self.device, "release": self.key, "at": format_instant(self.at)}


@dataclass(frozen=True, slots=True)
class Facts:
    """What this plan newly established, to be recorded in the transaction of its intents.

    `members` maps release → wave → the sites newly taken. `closed` are releases (keys) on record that no wave asks for any
    more: their proofs and failures become closed, their members, proposals, attempts and rescues are dropped.
    `timeouts` are updates (or app restarts) judged timed out: the recorder counts one attempt and ends the update.
    """

    proofs: tuple[VerdictFact, ...] = ()
    failures: tuple[VerdictFact, ...] = ()
    members: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    closed: tuple[str, ...] = ()
    timeouts: tuple[DeviceFact, ...] = ()
    rescues: tuple[DeviceFact, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As the contract prints it."""
        return {
            "proofs": [fact.to_dict() for fact in self.proofs],
            "failures": [fact.to_dict() for fact in self.failures],
            "members": {
                release: {wave: list(sites) for wave, sites in sorted(waves.items())}
                for release, waves in sorted(self.members.items())
            },
            "closed": list(self.closed),
            "timeouts": [fact.to_dict() for fact in self.timeouts],
            "rescues": [fact.to_dict() for fact in self.rescues],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, what is held and why, and what was established.

    `flagged` are devices that are failed on their release though nothing is charged any more. `wake_at` is the earliest
    instant at which planning again may say something else without a new report (a window, a soak's end, a time-out);
    `next_change_at` is the earliest `until` of a hold.
    """

    at: datetime
    commit: str | None
    actions: tuple[Action, ...]
    holds: Sequence[Hold]
    waves: Sequence[WaveStatus]
    facts: Facts
    flagged: Sequence[DeviceFact] = ()
    wake_at: datetime | None = None

    @property
    def next_change_at(self) -> datetime | None:
        """The earliest `until` of a hold."""
        return min((hold.until for hold in self.holds if hold.until is not None), default=None)

    def settled(self) -> Plan:
        """The same plan with everything in it made: it stays true when its planner goes on."""
        return replace(self, holds=tuple(self.holds), waves=tuple(self.waves), flagged=tuple(self.flagged))

    def to_dict(self) -> dict[str, Any]:
        """The plan as the contract prints it."""
        change = self.next_change_at
        return {
            "apiVersion": "fleet/v1",
            "kind": "Plan",
            "at": format_instant(self.at),
            "commit": self.commit,
            "actions": [action.to_dict() for action in self.actions],
            "holds": [hold.to_dict() for hold in self.holds],
            "waves": [wave.to_dict() for wave in self.waves],
            "facts": self.facts.to_dict(),
            "flagged": [fact.to_dict() for fact in self.flagged],
            "nextChangeAt": format_instant(change) if change else None,
            "wakeAt": format_instant(self.wake_at) if self.wake_at else None,
        }

    def to_json(self) -> str:
        """Byte-identical for equal plans."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
