"""What a review says of a merge: kind, devices, calendar, gates, downloads, the way back, keys, configuration."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from reconciler.model.observed import Artifact, ArtifactState, Health, Snapshot
from reconciler.review.make import Outside
from reconciler.review.summary import summary
from reconciler.simulate.forecast import forecast
from reconciler.simulate.start import settled
from reconciler.simulate.timings import IMAGE_BYTES
from reconciler.simulate.trace import calendar_of
from tests.review.repos import AT, DIGESTS, document, fleet_files, repo, review, site, waves
from tests.support.gitrepo import Repo

PROMOTE = {"fleet/waves.yaml": waves("v1.4.2")}


@pytest.fixture
def made(tmp_path: Path) -> Repo:
    return repo(tmp_path)


def fleet_at(made: Repo, **changes: Any) -> Snapshot:
    """The settled fleet of the first commit as a snapshot, with changes of single devices by name (`_` for `-`)."""
    from tests.review.repos import sides

    base = sides(made, "HEAD", "HEAD").base
    assert base is not None
    found = settled(base.desired, AT)
    devices = tuple(
        device.model_copy(update=changes.get(device.name.replace("-", "_"), {})) for device in found.devices
    )
    return found.model_copy(update={"devices": devices})


def test_a_promotion_names_its_devices_wave_by_wave(made: Repo) -> None:
    found = review(made, files=PROMOTE)
    assert found.kind == "promotion"
    told = [(move.wave, move.before, move.after, move.why, len(move.devices), move.sites) for move in found.moves.moves]
    assert told == [
        ("lab", "v1.4.1", "v1.4.2", "promote", 1, ("LAB-1",)),
        ("canary", "v1.4.1", "v1.4.2", "promote", 2, ("SITE-1",)),
        ("all", "v1.4.1", "v1.4.2", "promote", 5, ("SITE-2", "SITE-3", "SITE-4")),
    ]
    assert [change.line for change in found.changes] == [10, 15, 21]
    assert {(change.before, change.after) for change in found.changes} == {("v1.4.1", "v1.4.2")}


def test_the_calendar_is_the_forecast_s(made: Repo) -> None:
    found = review(made, files=PROMOTE)
    trace = forecast(found.head.desired, found.observed.snapshot, AT, before=found.base.desired if found.base else None)
    assert found.likely is not None
    assert [found.likely.entries[place] for place in found.places] == [
        entry for entry in calendar_of(trace) if entry.key == "v1.4.2"
    ]
    assert found.likely is found.earliest
    lab, canary, rest = (found.likely.entries[place] for place in found.places)
    assert lab.proven_at is not None and canary.first_told_at is not None and rest.first_told_at is not None
    assert lab.proven_at < canary.first_told_at < rest.first_told_at
    assert found.likely.finished_at == rest.proven_at


def test_local_nights_are_those_of_the_sites(made: Repo) -> None:
    found = review(made, files=PROMOTE)
    assert found.likely is not None
    local = {one.zone: one for one in found.likely.local["all", "v1.4.2"]}
    assert set(local) == {"America/New_York", "Asia/Kathmandu", "Europe/Berlin"}
    assert local["Asia/Kathmandu"].devices == 3
    told = local["Asia/Kathmandu"].to_dict()
    assert told["firstArrival"].endswith("+05:45")
    assert datetime.fromisoformat(told["firstArrival"]).hour in (2, 3)


def test_a_clock_change_is_told_with_what_is_left_of_the_window(made: Repo) -> None:
    found = review(made, files=PROMOTE, at=datetime.fromisoformat("2026-03-27T09:00:00+00:00"))
    changed = {(one.zone, str(one.night), one.window): (one.minutes, one.usual) for one in found.clock_changes}
    assert changed["Europe/Berlin", "2026-03-29", "02:00–04:00"] == (60, 120)
    assert all(zone != "Asia/Kathmandu" for zone, _, _ in changed)


def test_going_back_is_the_fast_lane(made: Repo) -> None:
    made.commit("Promote", PROMOTE)
    found = review(made, "HEAD", "HEAD~1")
    assert found.kind == "rollback"
    assert {move.why for move in found.moves.moves} == {"rollback"}
    assert [(way.release, way.by_merge, len(way.switch), len(way.download)) for way in found.returns] == [
        ("v1.4.1", True, 8, 0)
    ]
    assert found.downloads.switching == 8
    assert not found.downloads.sites


def test_a_merge_may_promote_and_go_back_at_once(made: Repo) -> None:
    made.commit("Promote the lab", {"fleet/waves.yaml": waves("v1.4.2", "v1.4.1", "v1.4.1")})
    found = review(made, files={"fleet/waves.yaml": waves("v1.4.1", app="2.8.0")})
    assert found.kind == "promotion and rollback"


def test_a_lower_release_that_nobody_ran_takes_the_gates(made: Repo) -> None:
    made.commit("Older", {"fleet/images/v1.3.0.yaml": document("Image", "v1.3.0", "family: edge")})
    observed = fleet_at(made)
    plain = [device.model_copy(update={"previous_image": None, "inactive_slot": None}) for device in observed.devices]
    found = review(
        made,
        files={"fleet/waves.yaml": waves("v1.3.0")},
        observed=observed.model_copy(update={"devices": tuple(plain)}),
    )
    assert {move.why for move in found.moves.moves} == {"promote"}
    assert not found.returns


def test_nothing_changes(made: Repo) -> None:
    found = review(made, "HEAD", "HEAD")
    assert (found.kind, found.changes, found.moves.moves, found.likely) == ("nothing", (), (), None)
    assert found.to_dict()["summary"] == [
        "HEAD (" + made.head()[:10] + ") → HEAD (" + made.head()[:10] + "): nothing changes for the fleet"
    ]


def test_a_first_commit_provisions_everybody(made: Repo) -> None:
    found = review(made, "0" * 40, "HEAD")
    assert found.kind == "promotion"
    assert {move.why for move in found.moves.moves if move.of == "image"} == {"provision"}
    assert found.silent == 0
    assert found.likely is not None and found.likely.finished_at is not None


def test_policy_alone_moves_nobody(made: Repo) -> None:
    found = review(
        made,
        files={
            "fleet/fleet.yaml": document(
                "Fleet", "f", 'registry: registry.example\nimages: s3://edge/\nwindow: {start: "01:00", end: "03:00"}'
            )
        },
    )
    assert (found.kind, found.moves.moves) == ("policy", ())
    (change,) = found.changes
    assert (change.subject, change.field, change.before, change.after) == (
        "fleet",
        "window",
        "02:00–04:00",
        "01:00–03:00",
    )
    assert (change.path.endswith("fleet/fleet.yaml"), change.line) == (True, 8)


def test_an_app_moves_on_its_own(made: Repo) -> None:
    found = review(made, files={"fleet/waves.yaml": waves("v1.4.1", app="2.8.0")})
    assert {(move.of, move.before, move.after, move.key) for move in found.moves.moves} == {
        ("video", "2.7.0", "2.8.0", "video@2.8.0")
    }
    assert not found.downloads.sites
    assert [place[1] for place in found.places] == ["video@2.8.0"] * 3


def test_an_app_of_which_only_the_digest_changed_moves_too(made: Repo) -> None:
    other = "sha256:" + "9" * 64
    text = document("App", "video", f"repository: video\nreleases:\n  2.7.0: {other}\n  2.8.0: {DIGESTS['2.8.0']}")
    found = review(made, files={"fleet/apps/video.yaml": text})
    assert sum(len(move.devices) for move in found.moves.moves) == 8


def test_sites_that_come_go_and_change_their_wave(made: Repo) -> None:
    found = review(
        made,
        files={
            "fleet/sites/SITE-9.yaml": site("SITE-9", "Europe/Berlin"),
            "fleet/sites/SITE-4.yaml": None,
            "fleet/waves.yaml": waves("v1.4.1").replace("[SITE-1]", "[SITE-1, SITE-2]"),
        },
    )
    assert [(change.kind, change.subject, change.what) for change in found.changes if change.kind == "Site"] == [
        ("Site", "SITE-4", "removed"),
        ("Site", "SITE-9", "added"),
    ]
    assert [(move.site, move.before, move.after) for move in found.moves.sites] == [("SITE-2", "all", "canary")]
    assert found.moves.removed == ("SITE-4-1",)
    assert (found.removed_sites, found.must_confirm) == (("SITE-4",), True)
    assert any(
        "REFUSED unless the merge's message has the line `Confirm-Removed-Sites: 1`" in line for line in summary(found)
    )
    assert [(move.why, move.devices) for move in found.moves.moves if move.of == "image"] == [
        ("provision", ("SITE-9-1",))
    ]


def test_silent_devices_part_the_earliest_from_the_likely(made: Repo) -> None:
    old = {"last_seen": AT - timedelta(days=2)}
    found = review(made, files=PROMOTE, observed=fleet_at(made, SITE_1_1=old))
    assert found.silent == 1
    assert found.earliest is not None and found.likely is not None
    assert found.earliest.finished_at is not None
    assert found.likely.finished_at is None
    (wave, key), held = found.never[0]
    assert (wave, key) == ("canary", "v1.4.2")
    assert {"offline", "gate-unresolved"} & {one.reason for one in held}
    assert not found.fails_either_way((wave, key))
    assert any(
        line.startswith("does not pass while the silent stay silent: canary") for line in found.to_dict()["summary"]
    )


def test_a_snapshot_is_as_old_as_it_says_and_nobody_falls_silent_for_it(made: Repo) -> None:
    taken = AT - timedelta(days=3)
    observed = fleet_at(made)
    then = [device.model_copy(update={"last_seen": taken}) for device in observed.devices]
    found = review(made, files=PROMOTE, observed=observed.model_copy(update={"devices": tuple(then), "at": taken}))
    assert (found.observed.age(AT), found.silent) == (timedelta(days=3), 0)
    undated = observed.model_copy(update={"devices": tuple(then), "at": None})
    assert review(made, files=PROMOTE, observed=undated).observed.age(AT) == timedelta(days=3)


def test_downloads_take_what_the_line_takes(made: Repo) -> None:
    observed = fleet_at(made)
    sized = {**observed.artifacts, "v1.4.2": Artifact(state=ArtifactState.PUBLISHED, size=1_000_000_000)}
    line = {"fleet/sites/SITE-3.yaml": site("SITE-3", "Asia/Kathmandu", 3, "uplink: 100kbit")}
    made.commit("A slow line", line)
    found = review(made, files=PROMOTE, observed=observed.model_copy(update={"artifacts": sized}))
    slow = found.downloads.slowest
    assert slow is not None
    assert (slow.site, slow.devices, slow.bytes, slow.seconds, slow.nights) == ("SITE-3", 3, 3_000_000_000, 240_000, 3)
    assert found.downloads.bytes == 8_000_000_000
    assert (found.downloads.assumed_sizes, found.downloads.assumed_uplinks) == ((), 4)


def test_a_size_that_nobody_knows_is_assumed_and_said(made: Repo) -> None:
    found = review(made, files=PROMOTE)
    assert found.downloads.assumed_sizes == ("v1.4.2",)
    assert found.downloads.bytes == 8 * IMAGE_BYTES


@pytest.mark.parametrize(
    ("files", "artifact", "why"),
    [
        ({}, Artifact(state=ArtifactState.BROKEN), "does not verify"),
        ({}, Artifact(state=ArtifactState.ABSENT), "is not published"),
        (
            {"fleet/images/v1.4.1.yaml": document("Image", "v1.4.1", "family: edge\nwithdrawn: leaks")},
            None,
            "withdrawn (leaks)",
        ),
    ],
)
def test_devices_that_could_not_go_back_are_named(
    made: Repo, files: dict[str, str | bytes | None], artifact: Artifact | None, why: str
) -> None:
    observed = fleet_at(made)
    if artifact is not None:
        observed = observed.model_copy(update={"artifacts": {"v1.4.1": artifact}})
    found = review(made, files={**PROMOTE, **files}, observed=observed)
    (way,) = found.returns
    assert (len(way.stuck), way.by_merge) == (8, False)
    assert why in way.why_not
    assert any("COULD NOT" in line for line in found.to_dict()["summary"])


def test_a_device_without_the_release_in_its_other_slot_downloads_it_to_go_back(made: Repo) -> None:
    made.commit("Promote", PROMOTE)
    other = {"inactive_slot": "v1.4.0"}
    found = review(made, "HEAD", "HEAD~1", observed=fleet_at(made, SITE_2_1=other))
    (way,) = found.returns
    assert (way.download, len(way.switch)) == (("SITE-2-1",), 7)
    assert [place.site for place in found.downloads.sites] == ["SITE-2"]


def test_a_gate_that_nobody_can_pass_says_why(made: Repo) -> None:
    paused = waves("v1.4.2").replace("soak: 24h\n", "soak: 24h\n      paused: true\n")
    found = review(made, files={"fleet/waves.yaml": paused})
    assert [place[0] for place, _ in found.never] == ["canary", "all"]
    assert found.never[0][1][0].reason == "paused"


def test_devices_that_are_on_their_way_already_are_not_blamed_on_the_merge(made: Repo) -> None:
    made.commit("Promote", PROMOTE)
    ran = {"image": "v1.4.1", "previous_image": "v1.4.0", "inactive_slot": "v1.4.0"}
    observed = fleet_at(made, SITE_3_1=ran)
    changed = document("Fleet", "f", "registry: registry.example\nimages: s3://edge/\nattempts: 5")
    found = review(made, files={"fleet/fleet.yaml": changed}, observed=observed)
    assert (found.kind, dict(found.moves.pending)) == ("policy", {"image": 1})
    assert found.places == (("all", "v1.4.2"),)
    assert not found.by_merge


def test_configurations_that_change_alike_are_shown_once(made: Repo) -> None:
    files: dict[str, str | bytes | None] = {
        f"fleet/sites/{name}.yaml": site(name, zone, devices).replace("ntp.example", "time.example")
        for name, zone, devices in (("SITE-2", "America/New_York", 1), ("SITE-3", "Asia/Kathmandu", 3))
    }
    files["fleet/sites/SITE-4.yaml"] = site(
        "SITE-4", "Europe/Berlin", more="vpn: {type: wireguard, secretRef: edge/SITE-4/vpn}"
    )
    found = review(made, files=files)
    assert found.kind == "configuration"
    first, second = found.configurations.groups
    assert (first.sites, first.devices) == (("SITE-2", "SITE-3"), 4)
    assert "-    server ntp.example iburst\n+    server time.example iburst" in first.diff
    assert second.sites == ("SITE-4",)
    assert any(
        line.startswith("configuration: 3 sites (5 devices) configured anew, in 2 ways; at once")
        for line in summary(found)
    )
    assert "(the secret edge/SITE-4/vpn, filled in when the device fetches this file)" in second.diff


def test_a_change_that_renders_the_same_is_no_configuration(made: Repo) -> None:
    found = review(made, files={"fleet/sites/SITE-2.yaml": site("SITE-2", "America/New_York", more="labels: {a: b}")})
    assert (found.kind, found.configurations.sites) == ("policy", 0)


def test_a_recipe_that_changed_is_told(made: Repo) -> None:
    found = review(made, files={"fleet/images/golden/setup.sh": "#!/bin/sh\nexit 1\n"})
    assert [(change.kind, change.subject, change.field) for change in found.changes] == [
        ("Recipe", "images/golden", "setup.sh")
    ]


def test_a_device_that_was_never_heard_of_is_silent(made: Repo) -> None:
    observed = fleet_at(made)
    some = tuple(device for device in observed.devices if device.name != "SITE-4-1")
    found = review(made, files=PROMOTE, observed=observed.model_copy(update={"devices": some}))
    assert found.silent == 1
    assert "SITE-4-1" not in {device for move in found.moves.moves for device in move.devices}
    assert found.moves.pending == {"image": 1}


def test_json_has_every_device_and_every_part(made: Repo) -> None:
    told = review(made, files=PROMOTE, outside=Outside(keys_unread="no gpg")).to_dict()
    assert (told["apiVersion"], told["kind"], told["change"]) == ("fleet/v1", "Review", "promotion")
    assert sorted(name for move in told["moves"] for name in move["devices"]) == [
        "LAB-1-1", "SITE-1-1", "SITE-1-2", "SITE-2-1", "SITE-3-1", "SITE-3-2", "SITE-3-3", "SITE-4-1",
    ]  # fmt: skip
    assert told["observed"] == {"source": None, "assumed": True, "at": None, "ageSeconds": None, "silentDevices": 0}
    assert told["keys"]["unread"] == "no gpg"
    entry = told["calendar"]["entries"][0]
    assert (entry["wave"], entry["byMerge"], entry["likely"]["arrived"]) == ("lab", True, 1)


def test_the_same_input_gives_the_same_review(made: Repo) -> None:
    observed = fleet_at(made, SITE_1_1={"last_seen": AT - timedelta(days=2)})
    turned = observed.model_copy(update={"devices": tuple(reversed(observed.devices))})
    made.write(PROMOTE)
    assert review(made, observed=observed).to_dict() == review(made, observed=turned).to_dict()


def test_a_release_that_git_names_no_more_moves_nobody_away_from_it(made: Repo) -> None:
    found = review(made, files={**PROMOTE, "fleet/images/v1.4.1.yaml": None})
    assert not found.returns and not found.downloads.sites
    assert summary(found)[1].startswith("moves NO device, as things are: 8 devices at 5 sites")
    assert "held, 8 unknown-image" in summary(found)[1]


def test_one_that_is_silent_on_a_release_that_git_names_no_more_could_not_go_back(made: Repo) -> None:
    observed = fleet_at(made, SITE_2_1={"image": "v1.3.9", "last_seen": AT - timedelta(days=1)})
    found = review(made, files=PROMOTE, observed=observed)
    (way,) = (way for way in found.returns if way.stuck)
    assert (way.release, way.stuck) == ("v1.3.9", ("SITE-2-1",))
    assert "git does not name v1.3.9" in way.why_not


def half_way(made: Repo, window: str = 'window: {start: "00:00", end: "24:00"}') -> Snapshot:
    """v1.4.2 in force: SITE-3-1 has not begun, SITE-3-2 was told to and writes as soon as its window is open (it is, unless
    said), all others run it."""
    made.commit("Promote", {**PROMOTE, "fleet/sites/SITE-3.yaml": site("SITE-3", "Asia/Kathmandu", 3, window)})
    before = {"image": "v1.4.1", "previous_image": "v1.4.0", "inactive_slot": "v1.4.0"}
    midway = {**before, "updating_to": "v1.4.2", "updating_since": AT - timedelta(minutes=3)}
    return fleet_at(made, SITE_3_1=before, SITE_3_2=midway)


def test_a_device_in_the_middle_of_an_update_goes_back_from_it(made: Repo) -> None:
    observed = half_way(made)
    found = review(made, files={"fleet/waves.yaml": waves("v1.4.1")}, observed=observed)
    (move,) = (move for move in found.moves.moves if move.wave == "all")
    assert move.devices == ("SITE-2-1", "SITE-3-2", "SITE-3-3", "SITE-4-1")
    assert (move.before, move.why, move.held, move.stuck) == ("v1.4.2", "rollback", {"in-progress": 1}, ())
    assert found.moves.there == {"image": 1}
    (way,) = found.returns
    # The update leaves v1.4.1, which it runs now, in the other slot.
    assert "SITE-3-2" in way.switch and not way.download
    # v1.4.1 is known to run; SITE-3-1 never left it.
    assert found.likely is not None and found.likely.exposure.devices == 0
    assert found.likely is not None and found.likely.entries["all", "v1.4.1"].arrived == 4


def test_an_update_that_waits_for_its_window_is_taken_back_by_the_merge_that_asks_for_it_no_more(made: Repo) -> None:
    observed = half_way(made, window="")
    found = review(made, files={"fleet/waves.yaml": waves("v1.4.1")}, observed=observed)
    # Nobody has to bring SITE-3-2 back: it never leaves v1.4.1.
    assert found.likely is not None and found.likely.entries["all", "v1.4.1"].arrived == 3


def test_a_device_whose_other_slot_is_being_overwritten_downloads(made: Repo) -> None:
    """SITE-3-2 has v1.4.0 in the slot that v1.4.2 is written to, and is asked to go to v1.4.0."""
    made.commit("Old", {"fleet/images/v1.4.0.yaml": document("Image", "v1.4.0", "family: edge")})
    observed = half_way(made)
    observed = observed.model_copy(
        update={"artifacts": {**observed.artifacts, "v1.4.0": Artifact(state=ArtifactState.PUBLISHED)}}
    )
    found = review(made, files={"fleet/waves.yaml": waves("v1.4.0")}, observed=observed)
    (way,) = (way for way in found.returns if way.by_merge)
    assert "SITE-3-2" in way.download and "SITE-3-1" in way.switch


def test_a_pin_is_told_with_its_arrival_and_waits_for_no_gate(made: Repo) -> None:
    pin = site("SITE-3", "Asia/Kathmandu", 3, more="pin: {image: v1.4.2, devices: [SITE-3-2], why: a try}")
    found = review(made, files={"fleet/sites/SITE-3.yaml": pin})
    assert found.likely is not None and found.places == (("all", "v1.4.2"),)
    assert not found.never and found.likely.finished_at is None and not found.likely.gated
    assert found.likely.arrived_at == found.likely.entries["all", "v1.4.2"].last_arrived_at is not None
    assert "no gate has to pass for it" in summary(found)[3]
    # One of three devices: one image over the line, not three.
    (download,) = found.downloads.sites
    assert (download.bytes, download.seconds) == (IMAGE_BYTES, IMAGE_BYTES * 8 // 50_000_000)


def test_a_wave_that_grows_after_its_proof_needs_none_again(made: Repo) -> None:
    made.commit("Half", {"fleet/waves.yaml": waves("v1.4.2", "v1.4.2", "v1.4.1")})
    grown = waves("v1.4.2", "v1.4.2", "v1.4.1").replace("[SITE-1]", "[SITE-1, SITE-2]")
    found = review(made, files={"fleet/waves.yaml": grown}, observed=fleet_at(made))
    assert [move.devices for move in found.moves.moves] == [("SITE-2-1",)]
    assert found.likely is not None and not found.never
    assert found.known.proven["canary", "v1.4.2"] < AT
    assert found.likely.entries["canary", "v1.4.2"].proven_at == found.known.proven["canary", "v1.4.2"]
    assert found.likely.exposure.devices == 0
    assert "blast radius: none" in "\n".join(summary(found))


def test_devices_that_soak_already_count_in_the_blast_radius(made: Repo) -> None:
    """The three canaries run v1.4.2 unproven when the merge raises a wave of one device."""
    text = waves("v1.4.2", "v1.4.2", "v1.4.1").replace("[SITE-1]", "[SITE-1, SITE-3]")
    made.commit("Half", {"fleet/waves.yaml": text})
    now = {"image": "v1.4.2", "image_since": AT - timedelta(hours=2), "health_since": AT - timedelta(hours=2)}
    observed = fleet_at(made, **dict.fromkeys(("SITE_1_1", "SITE_1_2", "SITE_3_1", "SITE_3_2", "SITE_3_3"), now))
    kept = tuple(proof for proof in observed.proofs if (proof.wave, proof.key) != ("canary", "v1.4.2"))
    observed = observed.model_copy(update={"proofs": kept})
    raised = text.replace("image: v1.4.1", "image: v1.4.2")
    found = review(made, files={"fleet/waves.yaml": raised}, observed=observed)
    assert found.likely is not None
    assert (found.likely.exposure.devices, found.likely.exposure.at) == (5, AT)


def test_who_is_held_for_good_downloads_nothing_and_is_said(made: Repo) -> None:
    quiet = site("SITE-2", "America/New_York", more="suspended: true")
    found = review(made, files={**PROMOTE, "fleet/sites/SITE-2.yaml": quiet})
    assert [move.stuck for move in found.moves.moves] == [(), (), ("SITE-2-1",)]
    assert "held now: 1 suspended" in summary(found)[1]
    assert "SITE-2" not in {download.site for download in found.downloads.sites}
    assert "SITE-2-1" not in {device for way in found.returns for device in way.switch}


def test_what_waits_for_a_gate_that_never_passes_downloads_nothing(made: Repo) -> None:
    made.commit("The lab", {"fleet/waves.yaml": waves("v1.4.2", "v1.4.1", "v1.4.1")})
    found = review(made, files={"fleet/waves.yaml": waves("v1.4.2", "v1.4.1", "v1.4.2")})
    assert [(place, held.message) for place, several in found.never for held in several] == [
        (
            ("all", "v1.4.2"),
            "wave 'all' waits for v1.4.2: wave 'canary' does not ask for it, and has no proof for it",
        )
    ]
    assert not found.downloads.sites and not found.returns


def test_a_gate_with_nobody_left_to_judge_says_so_itself(made: Repo) -> None:
    ill = {"health": Health.CRITICAL, "health_since": AT - timedelta(days=1)}
    found = review(made, files=PROMOTE, observed=fleet_at(made, SITE_1_1=ill, SITE_1_2=ill))
    held = dict(found.never)["canary", "v1.4.2"]
    assert [(one.reason, "none is left to judge by" in one.message) for one in held] == [("gate-unresolved", True)]


def test_a_new_site_is_no_promotion(made: Repo) -> None:
    found = review(made, files={"fleet/sites/SITE-9.yaml": site("SITE-9", "Pacific/Apia", 2)})
    assert summary(found)[0].endswith(": new devices get their first release")
    assert found.earliest is not None and found.earliest.arrived_at is not None and not found.never


def test_an_old_version_with_other_bytes_is_no_proven_release(made: Repo) -> None:
    """The planner knows a release by its version: what passed stays passed, and everybody restarts at once."""
    other = fleet_files()["fleet/apps/video.yaml"]
    assert isinstance(other, str)
    found = review(made, files={"fleet/apps/video.yaml": other.replace("1" * 64, "9" * 64)})
    assert found.known.other == ("video@2.7.0",) and found.known.proven
    assert found.likely is not None and found.likely.exposure.devices > 1
    assert any(line.startswith("OTHER BYTES under an old name: video@2.7.0") for line in summary(found))
