"""Which releases may be pruned: every reason to keep one in turn, and their order."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.image.retention import Fleet, Policy, Reason, Verdict, judge
from reconciler.model.desired import Desired, FleetSpec, ImageSpec, Pin, SiteSpec, WavesSpec
from reconciler.model.observed import ArtifactState, DeviceObservation, Holding

NOW = datetime(2026, 6, 1, tzinfo=UTC)
POLICY = Policy(keep=1, older_than_s=90 * 86400)
OLD, NEWEST = "v1.0.0", "v2.0.0"


def holding(
    release: str = OLD, days: int = 200, state: ArtifactState = ArtifactState.PUBLISHED, **more: Any
) -> Holding:
    at = NOW - timedelta(days=days)
    published = at if state is ArtifactState.PUBLISHED else None
    return Holding(release, state, (f"edge-golden-{release}-{at:%Y%m%d}",), 1000, at.date(), None, published, **more)


def desired(image: str | None = NEWEST, pin: Pin | None = None, **images: ImageSpec) -> Desired:
    waves = WavesSpec.model_validate({"waves": [{"name": "lab", "sites": ["LAB-1"], "image": image, "soak": "0s"}]})
    site = SiteSpec(timezone="Europe/Berlin", devices=("LAB-1-a",), pin=pin)
    return Desired(FleetSpec(), waves, images, {}, {"LAB-1": site}, commit="c0ffee" * 7)


def device(name: str = "LAB-1-a", **seen: Any) -> DeviceObservation:
    return DeviceObservation(name=name, **seen)


def verdict(fleet: Fleet, *held: Holding, policy: Policy = POLICY) -> Verdict:
    """What is said of the old release, beside a newer one that takes the place of the newest."""
    every = judge([*(held or (holding(),)), holding(NEWEST, 1)], fleet, policy, NOW)
    assert next(each.holding.release for each in every) == NEWEST
    return next(each for each in every if each.holding.release == OLD)


def test_what_nobody_needs_goes_and_the_reason_says_since_when() -> None:
    said = verdict(Fleet([desired()], [device(image=NEWEST)]))
    assert (said.prune, said.reason) == (True, Reason.UNUSED)
    assert said.why == "was published at 2025-11-13T00:00:00Z, more than 90d ago, and nothing has or names it"


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        ({"image": OLD}, Reason.CURRENT),
        ({"image": NEWEST, "previous_image": OLD}, Reason.PREVIOUS),
        ({"image": NEWEST, "inactive_slot": OLD}, Reason.INACTIVE),
        ({"image": NEWEST, "updating_to": OLD}, Reason.UPDATING),
    ],
)
def test_what_a_device_has_anywhere_stays(seen: dict[str, Any], reason: Reason) -> None:
    said = verdict(Fleet([desired()], [device(**seen)]))
    assert (said.prune, said.reason) == (False, reason) and "LAB-1-a" in said.why


def test_a_silent_device_counts_as_it_was_last_known() -> None:
    silent = device(image=OLD, last_seen=NOW - timedelta(days=900))
    assert verdict(Fleet([desired()], [silent])).reason is Reason.CURRENT


def test_a_device_that_git_does_not_name_any_more_counts_too() -> None:
    assert verdict(Fleet([desired()], [device("GONE-7-b", previous_image=OLD)])).reason is Reason.PREVIOUS


def test_what_is_assigned_stays_though_the_device_says_otherwise() -> None:
    said = verdict(Fleet([desired()], [device(image=NEWEST)], assigned={"LAB-1-a": OLD}))
    assert (said.reason, said.why) == (Reason.ASSIGNED, "is assigned to LAB-1-a")


def test_what_any_commit_names_stays() -> None:
    head = desired(OLD)
    assert verdict(Fleet([desired(), head], ())).reason is Reason.WAVE
    pinned = desired(pin=Pin(image=OLD, why="camera firmware"))
    assert verdict(Fleet([pinned], ())).reason is Reason.PIN


def test_what_the_loop_is_at_work_on_stays() -> None:
    assert verdict(Fleet([desired()], (), busy={OLD})).reason is Reason.BUSY


def test_the_newest_published_stay_and_a_withdrawn_one_takes_no_place() -> None:
    assert verdict(Fleet([desired()], ()), policy=Policy(2, 0)).reason is Reason.NEWEST
    withdrawn = desired(**{NEWEST: ImageSpec(withdrawn="burns"), OLD: ImageSpec()})
    said = verdict(Fleet([withdrawn], ()), policy=Policy(1, 0))
    assert (said.reason, said.why) == (Reason.NEWEST, "is the newest published")
    both = desired(**{NEWEST: ImageSpec(withdrawn="burns"), OLD: ImageSpec(withdrawn="leaks")})
    assert verdict(Fleet([both], ()), policy=Policy(1, 0)).reason is Reason.UNUSED


def test_the_newest_are_those_published_last_whatever_their_number() -> None:
    late = holding(OLD, 0)
    every = judge([late, holding(NEWEST, 100)], Fleet([desired(None)], ()), Policy(1, 0), NOW)
    assert {each.holding.release: each.reason for each in every} == {OLD: Reason.NEWEST, NEWEST: Reason.UNUSED}


@pytest.mark.parametrize(("days", "reason"), [(89, Reason.YOUNG), (90, Reason.UNUSED), (91, Reason.UNUSED)])
def test_the_young_stay(days: int, reason: Reason) -> None:
    assert verdict(Fleet([desired()], ()), holding(days=days)).reason is reason


@pytest.mark.parametrize(
    "state", [ArtifactState.BUILT, ArtifactState.SIGNED, ArtifactState.ABSENT, ArtifactState.BROKEN]
)
def test_what_was_never_published_goes_by_its_day_and_takes_no_place_among_the_newest(state: ArtifactState) -> None:
    said = verdict(Fleet([desired()], ()), holding(state=state), policy=Policy(5, 90 * 86400))
    assert (said.prune, said.reason) == (True, Reason.UNUSED)
    assert ("cut off" if state is ArtifactState.ABSENT else "never published") in said.why
    assert verdict(Fleet([desired()], ()), holding(days=5, state=state)).reason is Reason.YOUNG


def test_a_folder_of_no_day_of_the_calendar_is_never_old() -> None:
    odd = Holding(OLD, ArtifactState.BUILT, (f"edge-golden-{OLD}-20259999",), 1, date.max)
    assert verdict(Fleet([desired()], ()), odd).reason is Reason.YOUNG


def test_a_removal_that_was_cut_off_is_ended_whoever_names_the_release_now() -> None:
    cut = holding(state=ArtifactState.ABSENT, removing=True)
    said = verdict(Fleet([desired(OLD)], [device(image=OLD)]), cut)
    assert (said.prune, said.reason) == (True, Reason.REMOVING)


def test_many_devices_are_named_by_the_first_few() -> None:
    said = verdict(Fleet([desired()], [device(f"LAB-{n}-a", image=OLD) for n in range(6)]))
    assert said.why == "runs on LAB-0-a, LAB-1-a, LAB-2-a and 3 more"


RELEASES = [f"v1.{n}.0" for n in range(6)]
one = st.sampled_from([None, *RELEASES])


@given(
    seen=st.lists(st.tuples(one, one, one, one), max_size=4),
    wave=one,
    pin=one,
    assigned=one,
    ages=st.lists(st.integers(0, 300), min_size=6, max_size=6),
    keep=st.integers(1, 6),
)
def test_nothing_in_use_is_ever_pruned(
    seen: list[tuple[Any, ...]], wave: Any, pin: Any, assigned: Any, ages: list[int], keep: int
) -> None:
    devices = [
        device(f"D-{n}", image=a, previous_image=b, inactive_slot=c, updating_to=d)
        for n, (a, b, c, d) in enumerate(seen)
    ]
    asks = desired(wave, Pin(image=pin, why="x") if pin else None)
    fleet = Fleet([asks], devices, {"D-0": assigned} if assigned else {})
    held = [holding(release, age) for release, age in zip(RELEASES, ages, strict=True)]
    pruned = {each.holding.release for each in judge(held, fleet, Policy(keep, 90 * 86400), NOW) if each.prune}
    assert not pruned & ({each for row in seen for each in row} | {wave, pin, assigned})
    assert len(RELEASES) - len(pruned) >= keep
    assert all(age >= 90 for release, age in zip(RELEASES, ages, strict=True) if release in pruned)
