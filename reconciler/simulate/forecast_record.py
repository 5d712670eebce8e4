"""The forecast's record: what the controller would have written down, kept as the recorder and the stores keep it. Pure.

Facts of plans, artifacts and tags as jobs change them, and the observations of devices. Called by `forecast` alone.
Source: contract, "Plan", facts; `model.amend` for what a tick changes on an observation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from reconciler.model.amend import amendments, forgotten
from reconciler.model.observed import Artifact, ArtifactState, DeviceObservation, Proposal, Snapshot, Verdict
from reconciler.model.plan import Action, ActionKind, Facts, VerdictFact
from reconciler.simulate.timings import BUILD_S, IMAGE_BYTES, PUBLISH_S, SIGN_S

JOB_S = {
    ActionKind.BUILD: BUILD_S,
    ActionKind.SIGN: SIGN_S,
    ActionKind.PUBLISH: PUBLISH_S,
    ActionKind.RETAG: 0,
    ActionKind.PROPOSE_REVERT: 0,
}
"""Long work and how long it takes, in seconds."""
Marks = Mapping[str, Any]
"""Fields that a tick sets on an observation (`model.amend.MARKS`)."""
_STATE = {
    ActionKind.BUILD: ArtifactState.BUILT,
    ActionKind.SIGN: ArtifactState.SIGNED,
    ActionKind.PUBLISH: ArtifactState.PUBLISHED,
}


class Record:
    """What is on record. `changed` and `news` say what the next plan is to be told."""

    def __init__(self, observed: Snapshot) -> None:
        self.shared = observed.model_copy(update={"devices": ()})
        self.seen = {device.name: device for device in observed.devices}
        self.changed: set[str] = set(self.seen)
        self.news = True

    def put(self, device: DeviceObservation) -> None:
        """A device's observation is another one now."""
        self.seen[device.name] = device
        self.changed.add(device.name)

    def taken(self) -> tuple[list[DeviceObservation], Snapshot | None]:
        """What changed since the last call: devices, and what is not a device's."""
        devices = [self.seen[name] for name in sorted(self.changed)]
        shared = self.shared if self.news else None
        self.changed.clear()
        self.news = False
        return devices, shared

    def _share(self, **changes: Any) -> None:
        self.shared = self.shared.model_copy(update=changes)
        self.news = True

    # ------------------------------------------------ what a plan established

    def note(self, facts: Facts, marks: Iterable[tuple[str, Marks]]) -> None:
        """Write down a plan's facts, and then its marks on devices."""
        for device, step in amendments((), facts):
            self.put(step(self.seen[device]))
        for device, changes in marks:
            known = self.seen.get(device)
            self.put((known or DeviceObservation(name=device)).model_copy(update=changes))
        if facts.proofs or facts.closed:
            self._share(proofs=_closed(_added(self.shared.proofs, facts.proofs), facts.closed))
        if facts.failures or facts.closed:
            self._share(failures=_closed(_added(self.shared.failures, facts.failures), facts.closed))
        if facts.members or facts.closed:
            self._share(members=_joined(self.shared.members, facts.members, facts.closed))
        if facts.closed:
            self._close(frozenset(facts.closed))

    def _close(self, closed: frozenset[str]) -> None:
        self._share(proposals=tuple(of for of in self.shared.proposals if of.key not in closed))
        for device in [seen for seen in self.seen.values() if seen.failed_attempts or seen.rescued_from]:
            after = forgotten(device, closed)
            if after is not device:
                self.put(after)

    # ------------------------------------------------ what a job did

    def done(self, action: Action, at: datetime) -> None:
        """A job's effect is there."""
        fields = action.fields
        if action.kind in _STATE:
            release = fields["image"] or ""
            before = self.shared.artifacts.get(release, Artifact())
            after = before.model_copy(
                update={"state": _STATE[action.kind], "size": before.size if before.size else IMAGE_BYTES}
            )
            self._share(artifacts={**self.shared.artifacts, release: after})
        elif action.kind is ActionKind.RETAG:
            app, tag, to = fields["app"] or "", fields["tag"] or "", fields["to"]
            self._share(tags=_with(self.shared.tags, app, tag, to), tags_set=_with(self.shared.tags_set, app, tag, to))
        elif action.kind is ActionKind.PROPOSE_REVERT:
            proposal = Proposal(at=at, **{name: fields[name] for name in ("image", "app", "release") if name in fields})
            self._share(proposals=(*self.shared.proposals, proposal))


def _with(
    tags: Mapping[str, Mapping[str, str | None]], app: str, tag: str, to: str | None
) -> dict[str, Mapping[str, str | None]]:
    return {**tags, app: {**tags.get(app, {}), tag: to}}


def _added(before: tuple[Verdict, ...], facts: tuple[VerdictFact, ...]) -> tuple[Verdict, ...]:
    """A verdict that stands already is not doubled."""
    have = {(verdict.wave, verdict.key) for verdict in before if not verdict.closed}
    new = []
    for fact in facts:
        if (fact.wave, fact.key) not in have:
            app, at_sign, release = fact.key.partition("@")
            of = {"app": app, "release": release} if at_sign else {"image": fact.key}
            new.append(Verdict(wave=fact.wave, at=fact.at, **of))
    return (*before, *new)


def _closed(verdicts: tuple[Verdict, ...], closed: tuple[str, ...]) -> tuple[Verdict, ...]:
    if not closed:
        return verdicts
    return tuple(
        of.model_copy(update={"closed": True}) if not of.closed and of.key in closed else of for of in verdicts
    )


def _joined(
    before: Mapping[str, Mapping[str, tuple[str, ...]]],
    new: Mapping[str, Mapping[str, tuple[str, ...]]],
    closed: tuple[str, ...],
) -> dict[str, dict[str, tuple[str, ...]]]:
    out = {release: dict(waves) for release, waves in before.items() if release not in closed}
    for release, waves in new.items():
        if release in closed:
            continue
        mine = out.setdefault(release, {})
        for wave, sites in waves.items():
            mine[wave] = tuple(sorted({*mine.get(wave, ()), *sites}))
    return out
