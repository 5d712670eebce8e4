"""What happened between two ticks: a pure difference of what was told and what is. No clock, no store, no log.

`Told` is all that has been told, small and kept in the store with the events, in one transaction: a tick that is killed before
that tells the same at its repeat, one that is killed after it tells nothing twice. What is diffed is the plan (waves, flags), the
verdicts and proposals on record, the conditions, and the head that is refused. Called by `controller.chronicle` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime

from reconciler.controller.conditions import Type
from reconciler.model.events import MOST_MESSAGE, Event, EventKind
from reconciler.model.observed import Proposal, Snapshot, Verdict
from reconciler.model.plan import DeviceFact, WaveState, WaveStatus
from reconciler.model.scalars import format_instant
from reconciler.ports import ConditionRow

_BEGUN = frozenset(
    {
        WaveState.ROLLING,
        WaveState.SOAKING,
        WaveState.COMPLETE,
        WaveState.FAILED,
        WaveState.UNRESOLVED,
        WaveState.ROLLING_BACK,
    }
)
"""States of a wave that has begun to move to what it asks for. A pause may come before that as well as after it."""
_SILENT = frozenset({Type.PROGRESSING.value})
"""Conditions whose changes are no news: `Progressing` turns with every action."""
_GOOD = {Type.STALLED.value: "False"}
"""What a condition is when all is well; True for the others."""
_OPENED, _COMPLETE = "opened", "complete"

Of = tuple[str, str]
"""(wave, release) or (device, release)."""


@dataclass(frozen=True, slots=True)
class Told:
    """What has been told. `waves` maps a wave and what it asks for to its last state and what was told of that (`opened`,
    `complete`); `proofs` and `failures` count the verdicts on record that were told, which are never taken off it."""

    commit: str | None = None
    refused: str | None = None
    waves: Mapping[Of, tuple[str, ...]] = field(default_factory=dict)
    flagged: Mapping[Of, str] = field(default_factory=dict)
    conditions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    proofs: int = 0
    failures: int = 0
    proposals: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As the store keeps it."""
        return json.dumps(
            {
                "commit": self.commit,
                "refused": self.refused,
                "waves": [[*of, list(told)] for of, told in sorted(self.waves.items())],
                "flagged": [[*of, at] for of, at in sorted(self.flagged.items())],
                "conditions": {kind: list(row) for kind, row in sorted(self.conditions.items())},
                "proofs": self.proofs,
                "failures": self.failures,
                "proposals": list(self.proposals),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Told:
        """Back from the store. ValueError: it is none."""
        try:
            tree = json.loads(text)
            return cls(
                commit=tree["commit"],
                refused=tree["refused"],
                waves={(wave, key): tuple(told) for wave, key, told in tree["waves"]},
                flagged={(device, key): at for device, key, at in tree["flagged"]},
                conditions={kind: (row[0], row[1]) for kind, row in tree["conditions"].items()},
                proofs=int(tree["proofs"]),
                failures=int(tree["failures"]),
                proposals=tuple(tree["proposals"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not what was told: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a tick leaves to be told. `waves`, `flagged` and `recorded` are None where there was no plan (nothing is in force):
    then only conditions and the refused head are told. `commits` are those that came into force since `Told.commit`, oldest
    first. `refused` is the head that is not acted on: its hash, the reason's code and the sentence."""

    at: datetime
    commit: str | None
    waves: Sequence[WaveStatus] | None
    flagged: Sequence[DeviceFact] | None
    recorded: Snapshot | None
    conditions: Sequence[ConditionRow]
    refused: tuple[str, str, str] | None = None
    commits: Sequence[tuple[str, datetime]] = ()


def baseline(seen: Seen) -> Told:
    """What counts as told when nothing is known: what stood on record before this program began to tell.

    Waves that are complete were so before; those under way, flags and conditions are news.
    """
    done = {of: (state, _OPENED, _COMPLETE) for of, state, _ in _asked(seen.waves or ()) if state == WaveState.COMPLETE}
    recorded = seen.recorded or Snapshot()
    return Told(
        waves=done,
        proofs=len(recorded.proofs),
        failures=len(recorded.failures),
        proposals=tuple(_proposed(item) for item in recorded.proposals),
    )


def happened(told: Told, seen: Seen) -> tuple[tuple[Event, ...], Told]:
    """Events since `told`, in the order in which a person would tell them, and what has then been told."""
    events: list[Event] = [*_commits(told, seen), *_refused(told, seen)]
    after = replace(
        told,
        commit=seen.commit or told.commit,
        refused=_refusal(seen.refused),
        conditions={row.type: (row.status, row.reason) for row in seen.conditions},
    )
    if seen.waves is not None and seen.recorded is not None:
        events += [*_verdicts(told, seen, seen.recorded), *_proposals(told, seen, seen.recorded)]
        states = {of: (str(state), *told.waves.get(of, ("",))[1:]) for of, state, _ in _asked(seen.waves)}
        events += _waves(told, seen, states, {(proof.wave, proof.key) for proof in seen.recorded.proofs})
        after = replace(
            after,
            waves=states,
            proofs=len(seen.recorded.proofs),
            failures=len(seen.recorded.failures),
            proposals=tuple(_proposed(item) for item in seen.recorded.proposals),
        )
    if seen.flagged is not None:
        events += _flags(told, seen, seen.flagged)
        now = {(fact.device, fact.key): format_instant(fact.at) for fact in seen.flagged}
        # Since when a device counts as failed may be set anew; the flag is the same as long as it stands.
        after = replace(after, flagged={of: told.flagged.get(of, at) for of, at in now.items()})
    events += _conditions(told, seen)
    return tuple(events), after


def _event(at: datetime, kind: EventKind, key: str, message: str, reason: str = "", **of: str | None) -> Event:
    return Event(None, at, kind, key, reason=reason, message=message[:MOST_MESSAGE], **of)


# ---------------------------------------------------------------- git


def _commits(told: Told, seen: Seen) -> Iterator[Event]:
    for sha, at in seen.commits:
        yield _event(at, EventKind.COMMIT_ACCEPTED, sha, f"{sha[:12]} came into force", "InForce", commit=sha)


def _refusal(refused: tuple[str, str, str] | None) -> str | None:
    return None if refused is None else f"{refused[0]} {refused[1]}"


def _refused(told: Told, seen: Seen) -> Iterator[Event]:
    refusal = _refusal(seen.refused)
    if seen.refused is not None and refusal is not None and refusal != told.refused:
        sha, reason, message = seen.refused
        yield _event(seen.at, EventKind.COMMIT_REFUSED, refusal, message, reason, commit=sha)


# ---------------------------------------------------------------- waves


def _asked(waves: Sequence[WaveStatus]) -> Iterator[tuple[Of, WaveState, WaveStatus]]:
    """What every wave asks for, with where it stands on that."""
    for wave in waves:
        if wave.image is not None:
            yield (wave.name, wave.image), wave.state, wave
        for app, status in wave.apps.items():
            yield (wave.name, f"{app}@{status.release}"), status.state, wave


def _waves(told: Told, seen: Seen, states: dict[Of, tuple[str, ...]], proved: Set[Of]) -> Iterator[Event]:
    """Openings, soaks and completions; what is told is added to `states`. A wave is complete once its proof is on record: the tick
    that establishes it comes before that."""
    for of, state, wave in _asked(seen.waves or ()):
        (before, *known), (name, key) = told.waves.get(of, ("",)), of
        about = {"commit": seen.commit, "wave": name, "release": key}
        ends = _soak_ends(wave, key)
        if state in _BEGUN and _OPENED not in known:
            states[of] = (*states[of], _OPENED)
            back = state is WaveState.ROLLING_BACK
            text = f"wave {name!r} {'goes back' if back else 'begins to move'} to {key}: {_size(wave)}"
            reason = "going-back" if back else "promotion"
            yield _event(seen.at, EventKind.WAVE_OPENED, f"{name} {key} {seen.commit}", text, reason, **about)
        if state is WaveState.SOAKING and before != state and ends is not None:
            until = format_instant(ends)
            text = f"wave {name!r} soaks {key} until {until}, if every device stays healthy"
            yield _event(seen.at, EventKind.WAVE_SOAKING, f"{name} {key} {until}", text, "soaking", **about)
        if state is WaveState.COMPLETE and of in proved and _COMPLETE not in known and _everywhere(wave, key):
            states[of] = (*states[of], _COMPLETE)
            text = f"wave {name!r} is complete: {_size(wave)} on {key}"
            yield _event(seen.at, EventKind.WAVE_COMPLETE, f"{name} {key} {seen.commit}", text, "complete", **about)


def _soak_ends(wave: WaveStatus, key: str) -> datetime | None:
    app, at_sign, _ = key.partition("@")
    return wave.apps[app].soak_ends_at if at_sign else wave.soak_ends_at


def _everywhere(wave: WaveStatus, key: str) -> bool:
    app, at_sign, _ = key.partition("@")
    on_release = wave.apps[app].on_release if at_sign else wave.on_release
    return on_release >= wave.devices and wave.in_flight == 0


def _size(wave: WaveStatus) -> str:
    sites, devices = wave.sites, wave.devices
    return f"{devices} device{'s' * (devices != 1)} at {sites} site{'s' * (sites != 1)}"


def _verdicts(told: Told, seen: Seen, recorded: Snapshot) -> Iterator[Event]:
    """Proofs and failures that were put on record since."""
    for proof in recorded.proofs[told.proofs :]:
        text = f"wave {proof.wave!r} passed its gate for {proof.key}"
        yield _verdict(seen, EventKind.WAVE_SOAKED, proof, text, "passed")
    for failure in recorded.failures[told.failures :]:
        text = f"the gate of wave {failure.wave!r} failed for {failure.key}: the release is stopped in every wave"
        yield _verdict(seen, EventKind.GATE_FAILED, failure, text, "gate-failed")


def _verdict(seen: Seen, kind: EventKind, verdict: Verdict, text: str, reason: str) -> Event:
    key = f"{verdict.wave} {verdict.key} {format_instant(verdict.at)}"
    return _event(
        verdict.at, kind, key, text, reason, commit=seen.commit, wave=verdict.wave, release=verdict.key
    )  # fmt: skip


def _proposed(item: Proposal) -> str:
    return f"{item.key} {format_instant(item.at)}"


def _proposals(told: Told, seen: Seen, recorded: Snapshot) -> Iterator[Event]:
    for item in recorded.proposals:
        key = _proposed(item)
        if key not in told.proposals:
            text = f"the revert of {item.key} is proposed; review and merge it, or fix the release forward"
            about = {"commit": seen.commit, "release": item.key}
            yield _event(item.at, EventKind.REVERT_PROPOSED, key, text, "gate-failed", **about)


# ---------------------------------------------------------------- devices and conditions


def _flags(told: Told, seen: Seen, flagged: Sequence[DeviceFact]) -> Iterator[Event]:
    standing = set()
    for fact in flagged:
        of = (fact.device, fact.key)
        standing.add(of)
        if of not in told.flagged:
            key = f"{fact.device} {fact.key} {format_instant(fact.at)}"
            text = f"{fact.device} failed on {fact.key}"
            about = {"commit": seen.commit, "device": fact.device, "release": fact.key}
            yield _event(seen.at, EventKind.DEVICE_FLAGGED, key, text, "failed", **about)
    asked = {key for (_, key), _, _ in _asked(seen.waves or ())}
    for (device, release), at in told.flagged.items():
        if (device, release) not in standing:
            still = release in asked
            text = f"{device} is not failed on {release} any more" if still else f"{release} is asked for no more"
            about = {"commit": seen.commit, "device": device, "release": release}
            reason = "recovered" if still else "not-asked"
            yield _event(seen.at, EventKind.DEVICE_RECOVERED, f"{device} {release} {at}", text, reason, **about)


def _conditions(told: Told, seen: Seen) -> Iterator[Event]:
    for row in seen.conditions:
        before = told.conditions.get(row.type)
        # What is well when it is first known is no news, and what is not known yet is none either.
        first = before is None or before[0] == "Unknown"
        well = row.status in (_GOOD.get(row.type, "True"), "Unknown")
        if row.type in _SILENT or before == (row.status, row.reason) or (first and well):
            continue
        # A head that is refused is told as that.
        if row.type == Type.FLEET_VALID and row.status == "False" and seen.refused is not None:
            continue
        key = f"{row.type} {row.status} {row.reason} {format_instant(row.since)}"
        text = f"{row.type} is {row.status} ({row.reason})" + (f": {row.message}" if row.message else "")
        yield _event(row.since, EventKind.CONDITION_CHANGED, key, text, row.reason, commit=seen.commit)
