"""Whether the devices of a merge can go back, and how: from the inactive slot, by a download, or not at all. Pure.

For what moves forward, going back is to the release that the device runs now: the update keeps it in the other slot. For what
goes back by this very merge, it is the release asked for. A release is gone back to only while its artifact is published: the
index lists it only after its bytes were read back and verified. Called by `review.make`. Source: design §4.7, fine print 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.model.desired import Desired
from reconciler.model.observed import Artifact, ArtifactState
from reconciler.model.plan import Why
from reconciler.model.scalars import release_key
from reconciler.review.moves import IMAGE, Move, Standing


@dataclass(frozen=True, slots=True)
class Return:
    """The way back to one release. `why_not` says what keeps `stuck` devices from it; the lists are names of devices."""

    release: str
    by_merge: bool
    """True: this merge goes back there. False: a later revert of it would."""
    switch: tuple[str, ...]
    download: tuple[str, ...]
    stuck: tuple[str, ...]
    why_not: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "to": self.release,
            "byMerge": self.by_merge,
            "fromInactiveSlot": list(self.switch),
            "needDownload": list(self.download),
            "cannot": list(self.stuck),
            "why": self.why_not or None,
        }


def returns(
    moves: Sequence[Move], after: Standing, desired: Desired, artifacts: Mapping[str, Artifact]
) -> tuple[Return, ...]:
    """One entry a release that devices would go back to, those of this merge first, then highest release first."""
    inactive = after.other_slot()
    groups: dict[tuple[bool, str], list[str]] = {}
    for move in moves:
        if move.of != IMAGE or move.before is None:
            continue
        lower = move.why in (Why.ROLLBACK, Why.RESCUE)
        if not lower and _key(move.before) > _key(move.after):
            continue  # downward by the gates: what would undo it goes forward
        # Who never leaves its release has none to return to; who cannot go back by this merge is named below.
        who = move.devices if lower else move.goes
        if who:
            groups.setdefault((lower, move.after if lower else move.before), []).extend(who)
    out = []
    for (lower, release), devices in groups.items():
        why_not = _why_not(desired, artifacts, release)
        here: list[str] = []
        away: list[str] = []
        for device in sorted(devices):
            # An update writes the other slot: what runs now stays whole in its own, and is switched back to.
            held = not lower or _holds(after, inactive, device, release)
            (here if held else away).append(device)
        if why_not:
            out.append(Return(release, lower, (), (), tuple(sorted(devices)), why_not))
        else:
            out.append(Return(release, lower, tuple(here), tuple(away), (), ""))
    return tuple(sorted(out, key=_order))


def _holds(after: Standing, inactive: list[int], device: str, release: str) -> bool:
    return inactive[after.roster.row_of[device]] == after.roster.release_code.get(release, -2)


def _order(way: Return) -> tuple[bool, tuple[int, ...], str]:
    return not way.by_merge, tuple(-part for part in _key(way.release)), way.release


def _key(release: str) -> tuple[int, ...]:
    try:
        return release_key(release)
    except ValueError:  # what a device says that it runs need be no release
        return (-1,)


def _why_not(desired: Desired, artifacts: Mapping[str, Artifact], release: str) -> str:
    """What would hold every device on its way back to a release; empty where nothing does."""
    image = desired.images.get(release)
    if image is None:
        return f"git does not name {release} after the merge, so nothing can ask for it; keep images/{release}.yaml"
    if image.withdrawn is not None:
        return (
            f"{release} is withdrawn ({' '.join(image.withdrawn.split())}), and a withdrawn release is not gone back to"
        )
    artifact = artifacts.get(release)
    state = artifact.state if artifact is not None else ArtifactState.ABSENT
    if state is ArtifactState.PUBLISHED:
        return ""
    if state is ArtifactState.BROKEN:
        return f"the artifact of {release} does not verify (broken); publish it again under a new release"
    return (
        f"the artifact of {release} is not published (the store says: {state.value}), and it is never built to go back"
    )
