"""Which releases the image store may lose: a verdict with its reason for each. Pure.

Nothing that a device runs, ran before, has in its other slot, is moving to or was told to run is pruned, nothing that a wave or
a pin names, that the loop is at work on, that is among the newest that were published, or that is young. A device that is
silent keeps what it was last known to have: silence is no proof of anything. The reasons are tried in that order, and the
first that holds is told. Called by `cli.image_prune`; the loop never prunes. Source: design §1 "Rollback", §4.9.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum

from reconciler.model.desired import Desired
from reconciler.model.observed import ArtifactState, DeviceObservation, Holding
from reconciler.model.scalars import format_duration, format_instant, release_key

_NAMED = 3


class Reason(StrEnum):
    """Why a release is kept, or pruned."""

    REMOVING = "removing"
    CURRENT = "current"
    PREVIOUS = "previous"
    INACTIVE = "inactive-slot"
    UPDATING = "updating-to"
    ASSIGNED = "assigned"
    WAVE = "wave"
    PIN = "pin"
    BUSY = "busy"
    NEWEST = "newest"
    YOUNG = "young"
    UNUSED = "unused"


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept beside what is used: the `keep` newest published releases that are not withdrawn, and all that are younger
    than `older_than_s` seconds, by when they were published, or else by the day in the folder's name."""

    keep: int = 3
    older_than_s: int = 90 * 86400


@dataclass(frozen=True, slots=True)
class Fleet:
    """Who may need a release. `desired`: the commit in force, and others that may soon be. `assigned`: device → the release of
    its latest assignment. `busy`: releases of actions that were begun and have no outcome yet."""

    desired: Sequence[Desired]
    devices: Iterable[DeviceObservation]
    assigned: Mapping[str, str] = field(default_factory=dict)
    busy: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with a release: `prune` or keep it, the reason, and the same for people."""

    holding: Holding
    prune: bool
    reason: Reason
    why: str


@dataclass(slots=True)
class _Uses:
    """Release → who has it, of each kind, in the order in which they were met."""

    by: dict[Reason, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, reason: Reason, release: str | None, who: str) -> None:
        if release is not None:
            self.by.setdefault(reason, {}).setdefault(release, []).append(who)

    def of(self, reason: Reason, release: str) -> list[str]:
        return self.by.get(reason, {}).get(release, [])


_SAYS = {
    Reason.CURRENT: "runs on {}",
    Reason.PREVIOUS: "is what {} would go back to",
    Reason.INACTIVE: "is in the inactive slot of {}",
    Reason.UPDATING: "is what {} is moving to",
    Reason.ASSIGNED: "is assigned to {}",
    Reason.WAVE: "is named by {}",
    Reason.PIN: "is pinned by {}",
    Reason.BUSY: "has {} under way",
}


def judge(holdings: Iterable[Holding], fleet: Fleet, policy: Policy, now: datetime) -> tuple[Verdict, ...]:
    """A verdict for every release in the store, the highest release first."""
    uses, held = _uses(fleet), list(holdings)
    newest = _newest(held, fleet.desired, policy.keep)
    verdicts = (_judge_one(holding, uses, newest, policy, now) for holding in held)
    return tuple(sorted(verdicts, key=lambda each: release_key(each.holding.release), reverse=True))


def _judge_one(holding: Holding, uses: _Uses, newest: Mapping[str, int], policy: Policy, now: datetime) -> Verdict:
    release = holding.release
    # Out of the index already: what is left is of no use to anyone, and a new build of it waits for the end.
    if holding.removing:
        return Verdict(holding, True, Reason.REMOVING, "its removal was begun and cut off; the rest goes too")
    for reason, says in _SAYS.items():
        who = uses.of(reason, release)
        if who:
            return Verdict(holding, False, reason, says.format(_names(who)))
    if release in newest:
        place = newest[release]
        nth = "the newest" if place == 1 else f"number {place} of the {policy.keep} newest"
        return Verdict(holding, False, Reason.NEWEST, f"is {nth} published")
    since = holding.published_at or datetime.combine(holding.day, time(), UTC)
    kept = format_duration(policy.older_than_s)
    said = _said(holding)
    if now - since < timedelta(seconds=policy.older_than_s):
        return Verdict(holding, False, Reason.YOUNG, f"{said}, less than {kept} ago")
    return Verdict(holding, True, Reason.UNUSED, f"{said}, more than {kept} ago, and nothing has or names it")


def _uses(fleet: Fleet) -> _Uses:
    uses = _Uses()
    for device in fleet.devices:
        uses.add(Reason.CURRENT, device.image, device.name)
        uses.add(Reason.PREVIOUS, device.previous_image, device.name)
        uses.add(Reason.INACTIVE, device.inactive_slot, device.name)
        uses.add(Reason.UPDATING, device.updating_to, device.name)
    for name, release in sorted(fleet.assigned.items()):
        uses.add(Reason.ASSIGNED, release, name)
    for desired in fleet.desired:
        commit = f" at {desired.commit[:12]}" if desired.commit else ""
        for wave in desired.waves.waves:
            uses.add(Reason.WAVE, wave.image, f"wave {wave.name}{commit}")
        for name, site in sorted(desired.sites.items()):
            if site.pin is not None:
                uses.add(Reason.PIN, site.pin.image, f"site {name}{commit}")
    for release in fleet.busy:
        uses.add(Reason.BUSY, release, "an action of the loop")
    return uses


def _newest(holdings: Iterable[Holding], desired: Sequence[Desired], keep: int) -> dict[str, int]:
    """Published release → its place among the newest, from 1; a withdrawn one has none: nobody may go back to it."""
    withdrawn = {name for each in desired for name, spec in each.images.items() if spec.withdrawn is not None}
    published = [
        (holding.published_at, release_key(holding.release), holding.release)
        for holding in holdings
        if holding.state is ArtifactState.PUBLISHED and holding.published_at and holding.release not in withdrawn
    ]
    ordered = sorted(published, reverse=True)
    return {release: place for place, (_, _, release) in enumerate(ordered[:keep], 1)}


def _names(who: Sequence[str]) -> str:
    """The first few of them, and how many more."""
    several = list(dict.fromkeys(who))
    more = f" and {len(several) - _NAMED} more" if len(several) > _NAMED else ""
    return ", ".join(several[:_NAMED]) + more


def _said(holding: Holding) -> str:
    if holding.published_at is not None:
        return f"was published at {format_instant(holding.published_at)}"
    if holding.state is ArtifactState.ABSENT:
        return f"is an upload of {holding.day} that was cut off"
    return f"was built on {holding.day} and never published"
