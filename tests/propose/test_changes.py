"""Every change of a fleet repo: what it asks for afterwards, which lines it touches, and what it refuses with its reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.propose.base import Base, Change, Declined
from reconciler.propose.image import bump
from reconciler.propose.policy import pause, pin, unpin, withdraw
from reconciler.propose.promote import promote
from reconciler.propose.rollback import Version, rollback
from reconciler.propose.site import NewSite, add_site
from reconciler.repo.problem import InvalidInput
from tests.propose.fleets import after, base, document, files, lines, waves

APPS = "{cam: 1.9}"
WITHDRAWN = document("Image", "v1.1.0", "  withdrawn: it stalls\n")


def asked(start: Base) -> list[str | None]:
    """What the three waves ask for."""
    return [wave.image for wave in start.waves.waves]


def refused(do: Callable[[], Change]) -> str:
    """What is said where a change is refused."""
    with pytest.raises(Declined) as caught:
        do()
    return str(caught.value)


# ---------------------------------------------------------------- promote


def test_the_next_wave_is_the_first_that_does_not_ask_for_the_release() -> None:
    start = base(files(waves=waves("v1.1.0", "v1.0.0")))
    change = promote(start, "v1.1.0")
    assert asked(after(start, change)) == ["v1.1.0", "v1.1.0", "v1.0.0"]
    assert lines(start, change) == ["-      image: v1.0.0  # of b", "+      image: v1.1.0  # of b"]
    assert change.branch == "promote/v1.1.0-b"
    assert "'b' is the next" in " ".join(change.hints)


def test_all_waves_are_raised_that_do_not_ask_for_it() -> None:
    start = base(files(waves=waves("v1.2.0", "v1.0.0")))
    change = promote(start, "v1.1.0", every=True)
    assert asked(after(start, change)) == ["v1.2.0", "v1.1.0", "v1.1.0"]
    assert change.branch == "promote/v1.1.0-all"


@pytest.mark.parametrize("apps", ["{cam: 1.9}", '{"cam": "1.9"}', "{cam: '1.9', }"])
def test_an_app_is_promoted_by_its_version_as_text(apps: str) -> None:
    start = base(files(waves=waves("v1.0.0", apps=apps)))
    change = promote(start, "cam@1.10", "a")
    assert [wave.apps["cam"] for wave in after(start, change).waves.waves] == ["1.10", "1.9", "1.9"]
    assert len(lines(start, change)) == 2
    # 1.10 is a number to other readers, and a version here.
    assert any('"1.10"' in line or "'1.10'" in line for line in lines(start, change))


def test_an_app_that_no_wave_runs_gets_its_key() -> None:
    start = base(files())
    change = promote(start, "cam@1.9", "a")
    assert lines(start, change) == ["+      apps:", '+        cam: "1.9"']
    assert after(start, change).waves.waves[0].apps == {"cam": "1.9"}


def test_promotions_that_would_do_nothing_or_be_held_are_refused() -> None:
    start = base(files(waves=waves("v1.1.0", "v1.0.0", "v1.0.0")))
    assert "did you mean 'v1.1.0'" in refused(lambda: promote(start, "v1.1.O"))
    assert "did you mean 'cam@1.9'" in refused(lambda: promote(start, "1.9"))
    assert "no app 'can'; did you mean 'cam'" in refused(lambda: promote(start, "can@1.9"))
    assert "app 'cam' has no release '3'" in refused(lambda: promote(start, "cam@3"))
    assert "asks for v1.1.0 already" in refused(lambda: promote(start, "v1.1.0", "a"))
    assert "no wave 'canary'; the waves are a, b, c" in refused(lambda: promote(start, "v1.1.0", "canary"))
    held = refused(lambda: promote(start, "v1.1.0", "c"))
    assert "an earlier wave ('b') does not ask for v1.1.0; promote 'b' first" in held
    assert "is higher than v1.0.0" in refused(lambda: promote(start, "v1.0.0", "a"))
    done = base(files(waves=waves("v1.1.0")))
    assert "every wave asks for v1.1.0 already" in refused(lambda: promote(done, "v1.1.0"))
    banned = base(files(images__v1_1_0=None, waves=waves("v1.0.0")) | {"images/v1.1.0.yaml": WITHDRAWN.encode()})
    assert "withdrawn (it stalls)" in refused(lambda: promote(banned, "v1.1.0"))


def test_a_change_on_a_fleet_repo_that_is_broken_elsewhere_names_the_place_and_is_not_made() -> None:
    start = base(files(sites__S_9=None) | {"sites/S-9.yaml": b"apiVersion: fleet/v1\nkind: Site\n"})
    with pytest.raises(InvalidInput, match=r"^sites/S-9.yaml:\d+:\d+: "):
        start.warnings_after(promote(start, "v1.1.0"))


def test_a_release_whose_document_is_broken_is_not_unknown() -> None:
    start = base(
        files() | {"images/v1.1.0.yaml": b"apiVersion: fleet/v1\nkind: Image\nmetadata: {name: v1.1.0}\nspec: {x: y}\n"}
    )
    with pytest.raises(InvalidInput, match=r"^images/v1.1.0.yaml:4:8: "):
        promote(start, "v1.1.0")


# ---------------------------------------------------------------- rollback


def history(*texts: str) -> list[Version]:
    """Texts of the Waves document, newest first."""
    return [Version(f"{number:012x}{0:028}", text.encode()) for number, text in enumerate(texts)]


def rolled(past: list[Version], **how: str | None) -> tuple[Base, Change]:
    start = base(files() | {"waves.yaml": past[0].data})
    return start, rollback(start, past, how.get("release"), how.get("wave"), how.get("to"))


STEPS = (waves("v1.2.0", "v1.2.0", "v1.1.0"), waves("v1.2.0", "v1.1.0"), waves("v1.1.0"), waves("v1.0.0"))


def test_every_wave_that_asks_for_the_last_promotion_goes_back_to_what_it_asked_for() -> None:
    start, change = rolled(history(*STEPS))
    assert asked(after(start, change)) == ["v1.1.0", "v1.1.0", "v1.1.0"]
    assert len(lines(start, change)) == 4
    assert "fast lane" in " ".join(change.says)
    assert "commit 000000000001" in " ".join(change.says)


def test_waves_go_back_to_different_releases_where_they_came_from_different_ones() -> None:
    start, change = rolled(history(waves("v1.2.0"), waves("v1.1.0", "v1.0.0"), waves("v1.0.0")))
    assert asked(after(start, change)) == ["v1.1.0", "v1.0.0", "v1.0.0"]


def test_one_wave_one_release_and_one_goal_can_be_named() -> None:
    past = history(*STEPS)
    start, change = rolled(past, wave="b")
    assert asked(after(start, change)) == ["v1.2.0", "v1.1.0", "v1.1.0"]
    start, change = rolled(past, release="v1.1.0")
    assert asked(after(start, change)) == ["v1.2.0", "v1.2.0", "v1.0.0"]
    start, change = rolled(past, to="v1.0.0")
    assert asked(after(start, change)) == ["v1.0.0", "v1.0.0", "v1.0.0"]
    start, change = rolled(past, to="v1.0.0", release="v1.2.0")
    assert asked(after(start, change)) == ["v1.0.0", "v1.0.0", "v1.1.0"]


def test_what_went_back_already_does_not_go_further_by_itself() -> None:
    past = history(waves("v1.1.0"), waves("v1.2.0"), waves("v1.1.0"), waves("v1.0.0"))
    said = refused(lambda: rolled(past)[1])
    assert "went back already, from v1.2.0 to v1.1.0" in said
    start, change = rolled(past, release="v1.1.0")
    assert asked(after(start, change)) == ["v1.0.0", "v1.0.0", "v1.0.0"]


def test_a_commit_that_could_not_be_read_is_passed_over() -> None:
    start, change = rolled(history(waves("v1.2.0"), "{", waves("v1.2.0", "v1.1.0"), waves("v1.1.0")))
    assert asked(after(start, change)) == ["v1.1.0", "v1.1.0", "v1.1.0"]


def test_rollbacks_with_nowhere_to_go_are_refused() -> None:
    assert "no commit that raised" in refused(lambda: rolled(history(waves("v1.2.0")))[1])
    assert "no lower release" in refused(lambda: rolled(history(waves("v1.2.0")), release="v1.2.0")[1])
    assert "no wave asks for v1.0.0" in refused(lambda: rolled(history(*STEPS), release="v1.0.0")[1])
    assert "promote v1.2.0" in refused(lambda: rolled(history(*STEPS), to="v1.2.0")[1])
    start = base(files(waves=waves("v1.2.0")))
    cut = refused(lambda: rollback(start, history(waves("v1.2.0")), "v1.2.0", complete=False))
    assert "git fetch --unshallow" in cut
    banned = base(files(waves=waves("v1.2.0")) | {"images/v1.1.0.yaml": WITHDRAWN.encode()})
    said = refused(lambda: rollback(banned, history(waves("v1.2.0"), waves("v1.1.0"))))
    assert "v1.1.0 is withdrawn (it stalls)" in said


def test_an_app_goes_back_alone() -> None:
    new, old = "{cam: '1.10'}", "{cam: '1.9'}"
    past = history(waves("v1.1.0", apps=new), waves("v1.1.0", apps=old), waves("v1.0.0", apps=old))
    start, change = rolled(past)
    assert {wave.apps["cam"] for wave in after(start, change).waves.waves} == {"1.9"}
    assert asked(after(start, change)) == ["v1.1.0"] * 3
    assert change.branch == "rollback/cam-1.10-all"


def test_a_commit_that_raised_two_things_is_not_guessed_at() -> None:
    past = history(waves("v1.1.0", apps="{cam: '1.10'}"), waves("v1.0.0", apps="{cam: '1.9'}"))
    said = refused(lambda: rolled(past)[1])
    assert "commit 000000000000 raised v1.1.0 and cam@1.10" in said
    assert "--commit 000000000000" in said
    start, change = rolled(past, release="cam@1.10")
    assert len(lines(start, change)) == 6
    # One that took the image back and raised the app: it is the app that was raised last.
    mixed = history(
        waves("v1.0.0", apps="{cam: '1.10'}"),
        waves("v1.1.0", apps="{cam: '1.9'}"),
        waves("v1.0.0", apps="{cam: '1.9'}"),
    )
    start, change = rolled(mixed)
    assert change.branch == "rollback/cam-1.10-all"


@pytest.mark.slow
@given(st.lists(st.tuples(*[st.sampled_from(["v1.0.0", "v1.1.0", "v1.2.0"])] * 3), min_size=1, max_size=6))
def test_rollback_never_raises_a_wave_and_touches_only_who_asked_for_it(steps: list[tuple[str, str, str]]) -> None:
    past = history(*(waves(*step) for step in steps))
    for release in sorted(set(steps[0])):
        try:
            start, change = rolled(past, release=release)
        except Declined:
            lowest = [min(one[number] for one in steps) for number in range(3) if steps[0][number] == release]
            assert release in lowest  # one of the waves never asked for less
            continue
        for now, then, number in zip(asked(after(start, change)), steps[0], range(3), strict=True):
            if then == release:
                assert now is not None
                assert now < then
                assert now == next(one[number] for one in steps if one[number] < release)
            else:
                assert now == then


# ---------------------------------------------------------------- pin, withdraw, pause


def test_a_pin_is_set_changed_and_taken_away() -> None:
    start = base(files())
    pinned = after(start, pin(start, "S-2", "v1.1.0", ["S-2-1"], "decoder: stalls"))
    spec = pinned.sites()["S-2"].pin
    assert spec is not None
    assert (spec.image, spec.devices, spec.why) == ("v1.1.0", ("S-2-1",), "decoder: stalls")
    change = pin(pinned, "S-2", "v1.2.0", ["S-2-1"], "decoder: stalls")
    assert lines(pinned, change) == ["-    image: v1.1.0", "+    image: v1.2.0"]
    whole = pin(pinned, "S-2", "v1.1.0", [], "decoder: stalls")
    assert lines(pinned, whole) == ["-    devices: [S-2-1]"]
    assert "already" in refused(lambda: pin(pinned, "S-2", "v1.1.0", ["S-2-1"], "decoder: stalls"))
    ended = after(pinned, unpin(pinned, "S-2"))
    assert ended.read("sites/S-2.yaml") == start.read("sites/S-2.yaml")
    assert "is not pinned" in refused(lambda: unpin(ended, "S-2"))


def test_pins_that_nothing_could_follow_are_refused() -> None:
    start = base(files() | {"images/v1.1.0.yaml": WITHDRAWN.encode()})
    assert "did you mean 'S-2'" in refused(lambda: pin(start, "s-2", "v1.0.0", [], "x"))
    assert "its devices are S-2-1, S-2-2" in refused(lambda: pin(start, "S-2", "v1.0.0", ["other"], "x"))
    assert "of an app" in refused(lambda: pin(start, "S-2", "cam@1.9", [], "x"))
    assert "withdrawn" in refused(lambda: pin(start, "S-2", "v1.1.0", [], "x"))
    assert "--why is empty" in refused(lambda: pin(start, "S-2", "v1.0.0", [], " "))


def test_withdrawing_names_who_still_asks() -> None:
    start = base(files(waves=waves("v1.1.0", "v1.0.0")))
    start = after(start, pin(start, "S-4", "v1.1.0", [], "x"))
    change = withdraw(start, "v1.1.0", 'it stalls: "all" of it')
    then = after(start, change)
    assert then.images()["v1.1.0"].withdrawn == 'it stalls: "all" of it'
    said = " ".join(change.says)
    assert "wave a still asks for it" in said
    assert "S-4" in said
    assert "already" in refused(lambda: withdraw(then, "v1.1.0", 'it stalls: "all" of it'))
    assert "no wave and no pin" in " ".join(withdraw(start, "v1.2.0", "x").says)
    assert "rollback cam@1.9" in refused(lambda: withdraw(start, "cam@1.9", "x"))


@pytest.mark.parametrize("wave", [None, "b"])
def test_a_pause_is_set_and_ended(wave: str | None) -> None:
    start = base(files())
    stopped = after(start, pause(start, wave, off=False))
    assert [one.paused for one in stopped.waves.waves] == [False, wave == "b", False]
    assert stopped.single("Fleet")[1].paused is (wave is None)
    assert "already" in refused(lambda: pause(stopped, wave, off=False))
    change = pause(stopped, wave, off=True)
    indent = "  " if wave is None else "      "
    assert lines(stopped, change) == [f"-{indent}paused: true", f"+{indent}paused: false"]
    assert "not paused" in refused(lambda: pause(start, wave, off=True))


# ---------------------------------------------------------------- sites and images


def test_a_new_site_is_written_as_its_neighbours_are() -> None:
    schema = "# yaml-language-server: $schema=../../schemas/site.schema.json\r\n"
    found = {
        path: (schema.encode() + data.replace(b"\n", b"\r\n") if path.startswith("sites/") else data)
        for path, data in files().items()
    }
    start = base(found)
    new = NewSite(
        "S-9", "America/New_York", ["S-9-1"], ["time.example"], ["192.0.2.1"], ("ipsec", "edge/S-9/vpn"), "50Mbit",
        ("02:00", "05:00"), labels={"region": "no", "floor": "2"},
    )  # fmt: skip
    change = add_site(start, new, "a")
    then = after(start, change)
    site = then.sites()["S-9"]
    assert (site.timezone, site.devices, site.ntp, site.uplink) == (
        "America/New_York",
        ("S-9-1",),
        ("time.example",),
        50_000_000,
    )
    assert then.waves.waves[0].sites == ("S-1", "S-9")
    data = then.read("sites/S-9.yaml")
    assert data.startswith(schema.encode())
    assert data.count(b"\r\n") == data.count(b"\n")
    assert b'labels: {region: "no", floor: "2"}' in data
    assert "is there already" in refused(lambda: add_site(then, new))
    assert "draws its sites by percent" in refused(lambda: add_site(start, new, "c"))


def test_a_site_with_a_wrong_zone_is_not_written_and_the_place_is_named() -> None:
    start = base(files())
    change = add_site(start, NewSite("S-9", "Europe/Berlim", ["S-1-1"]))
    with pytest.raises(InvalidInput) as caught:
        start.warnings_after(change)
    assert "sites/S-9.yaml:6:13: " in str(caught.value)
    assert "Europe/Berlin" in str(caught.value)


def test_a_bump_keeps_comments_and_changes_the_pins_that_were_named() -> None:
    text = document(
        "Image", "v1.2.0",
        "  base: {distribution: ubuntu, suite: jammy, snapshot: 20251115T000000Z}\n  # Pins.\n  packages:\n    curl: 1-1  # ours\n"
        "    wget: 5:2-1\n  withdrawn: bad\n",
    )  # fmt: skip
    start = base(files() | {"images/v1.2.0.yaml": text.encode()})
    change = bump(start, "v1.3.0", "v1.2.0", {"curl": "1.10", "jq": "1.6"}, "20251215T000000Z")
    then = after(start, change)
    assert then.images()["v1.3.0"].packages == {"curl": "1.10", "wget": "5:2-1", "jq": "1.6"}
    assert then.images()["v1.3.0"].withdrawn is None
    data = then.read("images/v1.3.0.yaml").decode()
    assert '  # Pins.\n  packages:\n    curl: "1.10"  # ours\n    wget: 5:2-1\n    jq: "1.6"\n' in data
    assert "snapshot: 20251215T000000Z}" in data


def test_bumps_that_no_release_could_be_are_refused() -> None:
    start = base(files())
    assert bump(start, "v1.3", None, {}).files.keys() == {"images/v1.3.yaml"}
    assert "is there already" in refused(lambda: bump(start, "v1.2", None, {}))
    assert "is lower than v1.2.0" in refused(lambda: bump(start, "v1.1.5", None, {}))
    assert "v1.1.5.yaml" in " ".join(bump(start, "v1.1.5", "v1.1.0", {}).files)
    assert "not a release" in refused(lambda: bump(start, "1.3", None, {}))
    assert "no base" in refused(lambda: bump(start, "v1.3", None, {}, "20251215T000000Z"))
