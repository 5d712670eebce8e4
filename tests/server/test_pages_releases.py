"""The pages of releases and of commits, through the real app: what a person reads there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.model.events import Event, EventKind
from reconciler.model.observed import Verdict
from reconciler.ports import Commit, TerminalError, TransientError
from reconciler.review.changes import Change
from reconciler.server.dashboard.view_commits import asked_of, paths_of
from reconciler.server.dashboard.view_releases import size
from tests.controller.staging import SHARED, Stage, desired
from tests.server.pages import Reader, reading
from tests.server.service import NOW
from tests.server.test_api import filled


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A fleet with a device that failed, one that is silent, and history."""
    with reading(tmp_path_factory.mktemp("releases")) as reader:
        filled(reader.api)
        yield reader


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Reader]:
    with reading(tmp_path) as reader:
        yield reader


# ---------------------------------------------------------------- releases


def test_all_releases_are_listed_with_where_they_stand(full: Reader) -> None:
    rows = full.get("/releases").rows()
    assert rows[0] == "v1.4.2 ● published – 2 lab, canary – – against v1.4.1"
    assert rows[1] == "v1.4.1 ● published – 6 all – – –"
    assert [row.split()[0] for row in rows] == ["v1.4.2", "v1.4.1", "1.1.0", "1.0.0"]


def test_a_release_says_who_signed_it_what_is_in_it_and_where_it_runs(full: Reader) -> None:
    page = full.get("/releases/v1.4.2")
    assert page.heading == "v1.4.2" and "● artifact published; 2 devices run it." in page.text
    assert "Signature ● accepted by " + "A" * 40 in page.text and "Folder edge-golden-v1.4.2-20260115" in page.text
    assert "lab 2" in page.rows()[0] and "/devices?wave=lab&release=v1.4.2" in page.links
    assert "/releases/v1.4.1/diff/v1.4.2" in page.links and "/commits/c1" in page.links
    assert page.rows()[1:] == ["bash 5.1", "curl 7.82", "new 2"]
    assert "◆ refused" in full.get("/releases/v1.4.1").text and "a foreign key" in full.get("/releases/v1.4.1").text


def test_a_release_that_is_stopped_or_withdrawn_says_so(fresh: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Verdict.model_validate({"wave": "lab", "image": "v1.4.2", "at": NOW})
    shared = SHARED.model_copy(update={"failures": (failed,)})
    monkeypatch.setattr("tests.controller.staging.SHARED", shared)
    fleet = desired()
    banned = {"v1.4.1": fleet.images["v1.4.1"].model_copy(update={"withdrawn": "CVE-2026-1"})}
    fresh.api.stage.desired, fresh.api.stage.shared = replace(fleet, images={**fleet.images, **banned}), shared
    filled(fresh.api)
    rows = fresh.get("/releases").rows()
    assert "◆ lab" in rows[0] and "△ withdrawn" in rows[1]
    assert "◆ The gate failed in lab: it is stopped in every wave." in fresh.get("/releases/v1.4.2").text
    assert "△ withdrawn: CVE-2026-1." in fresh.get("/releases/v1.4.1").text


def test_an_apps_release_has_no_artifact_of_ours(full: Reader) -> None:
    page = full.get("/releases/video@1.0.0")
    assert page.heading == "video@1.0.0" and "sha256:" + "1" * 64 in page.text and "in the registry" in page.text
    assert len(page.rows()) == 3
    assert full.get("/releases/video%401.1.0").heading == "video@1.1.0"


@pytest.mark.parametrize(
    "path", ["/releases/v9.9.9", "/releases/v1.4.1/diff/v9.9.9", "/releases/v1.4.1/diff/video@1.0.0"]
)
def test_what_nobody_knows_is_not_found(full: Reader, path: str) -> None:
    assert "no such release" in full.get(path, 404).text.lower()


def test_packages_of_two_releases(full: Reader) -> None:
    page = full.get("/releases/v1.4.1/diff/v1.4.2")
    assert "1 package changed, 1 added, 1 removed; 1 the same" in page.text
    assert page.rows() == ["curl 7.81 7.82", "new 2", "old 1"]
    assert "/releases/v1.4.2/diff/v1.4.1" in page.links
    assert "The same 3 packages in both." in full.get("/releases/v1.4.2/diff/v1.4.2").text


def test_an_image_store_that_is_away_hides_nothing_else(fresh: Reader) -> None:
    filled(fresh.api).images.down = True
    page = fresh.get("/releases/v1.4.2")
    assert "cannot be shown now: the image store does not answer" in page.text and "2 devices run it" in page.text
    assert fresh.get("/releases/v1.4.1/diff/v1.4.2", 503)


@pytest.mark.parametrize(
    "count, words",
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_800_000_000, "1.8 GB"), (999_999, "1 MB"), (123_456, "123 kB")],
)
def test_sizes_are_short(count: int, words: str) -> None:
    assert size(count) == words


# ---------------------------------------------------------------- commits


def test_commits_are_listed_the_newest_first(full: Reader) -> None:
    page = full.get("/commits")
    assert [row.split()[0] for row in page.rows()] == ["c1", "b" * 12, "a" * 12]
    assert "in force" in page.rows()[0] and "Promote v1.4.2" in page.rows()[0]
    assert "1 × wave opened" in page.rows()[0] and "1 × flagged" in page.rows()[0]
    assert "git does not know it here" in page.rows()[1]


def asked(before: str, sha: str) -> tuple[Change, ...] | None:
    if before.startswith("a"):
        raise TerminalError("unknown commit")
    names = [f"wave w{number}" for number in range(150)]
    image = Change("Wave", "canary", "changed", "image", "v1.4.1", "v1.4.2", "waves.yaml", 12)
    return (image, *(Change("Site", f"<b>{name}", "added", "", None, None, "sites/x.yaml", None) for name in names))


def test_what_each_commit_asked_for_is_told(tmp_path: Path) -> None:
    with reading(tmp_path, asked=asked) as reader:
        filled(reader.api)
        rows = reader.get("/commits").rows()
        assert "wave canary: image v1.4.1 → v1.4.2" in rows[0] and "and 148 more" in rows[0]
        assert "not known" in rows[1] and "not known" in rows[2]
        page = reader.get("/commits/c1")
        assert "wave canary: image v1.4.1 → v1.4.2 waves.yaml:12" in page.rows()
        assert "site <b>wave w0 added" in page.text and "<b>wave" not in page.html
        assert "And 51 changes more" in page.text
        first, second, last = reader.api.get("/v1/commits")["commits"]
        assert first["askedInAll"] == 151 and len(first["asked"]) == 100
        assert first["asked"][0] == {
            "text": "wave canary: image v1.4.1 → v1.4.2", "kind": "Wave", "name": "canary", "what": "changed",
            "field": "image", "from": "v1.4.1", "to": "v1.4.2", "file": "waves.yaml", "line": 12,
        }  # fmt: skip
        assert second["asked"] is None and last["asked"] is None, "git knows one no more; nothing was before the other"


def test_what_happened_under_a_commit_is_told_by_release(tmp_path: Path) -> None:
    change = Change("Wave", "lab", "changed", "apps.video", "2.7.0", "2.8.0", "waves.yaml", 3)
    with reading(tmp_path, asked=lambda _before, _sha: (change,)) as reader:
        filled(reader.api)
        new = Event(None, NOW, EventKind.WAVE_OPENED, "x", commit="c1", wave="lab", release="video@2.8.0")
        about = Event(None, NOW, EventKind.KEY_EXPIRING, "y", commit="c1")
        reader.app.store.add_events(None, [new, about])
        row = reader.get("/commits").rows()[0]
        assert f"v1.4.2 (asked for by {'a' * 12}): 1 × wave opened" in row
        assert "video 2.8.0: 1 × wave opened besides: 1 × flagged, 1 × key expires" in row
        (first, second, _) = reader.api.get("/v1/commits")["commits"]
        assert {of["release"]: of["askedBy"] for of in first["releases"]} == {
            "v1.4.2": "a" * 40, "video@2.8.0": "c1", None: None,
        }  # fmt: skip
        page = reader.get("/commits/c1")
        assert "v1.4.2, asked for by aaaaaaaaaaaa" in page.text and "/commits/" + "a" * 40 in page.links
        later = reader.get("/commits/" + "a" * 40)
        assert "What came of it later" in later.text and "Under c1" in later.text and "begins" in later.text
        assert "What came of it later" not in page.text + reader.get("/commits/" + "b" * 40).text
        told = {of["release"]: (of["earlier"], sum(of["events"].values())) for of in first["releases"]}
        assert told["v1.4.2"][0] and not told["video@2.8.0"][0] and told["video@2.8.0"][1] == 1
        assert sum(number for _, number in told.values()) == sum(first["events"].values())
        assert second["releases"] == []


def test_a_version_that_begins_as_the_one_asked_for_was_asked_for_earlier(tmp_path: Path) -> None:
    change = Change("Wave", "lab", "changed", "image", "v1.4.2", "v1.4.20", "waves.yaml", 3)
    with reading(tmp_path, asked=lambda _before, _sha: (change,)) as reader:
        filled(reader.api)
        new = Event(None, NOW, EventKind.WAVE_OPENED, "x", commit="c1", wave="lab", release="v1.4.20")
        reader.app.store.add_events(None, [new])
        first = reader.api.get("/v1/commits")["commits"][0]
        earlier = {of["release"]: of["earlier"] for of in first["releases"]}
        assert (earlier["v1.4.2"], earlier["v1.4.20"]) == (True, False)


def test_who_asked_is_not_known_where_git_does_not_tell_and_a_new_site_asks_for_nothing(tmp_path: Path) -> None:
    site = Change("Site", "S9", "added", "", None, None, "sites/S9.yaml", None)

    def told(before: str, _sha: str) -> tuple[Change, ...] | None:
        return None if before.startswith("a") else (site,)

    with reading(tmp_path, asked=told) as reader:
        filled(reader.api)
        (of,) = [of for of in reader.api.get("/v1/commits")["commits"][0]["releases"] if of["release"] == "v1.4.2"]
        assert (of["earlier"], of["askedBy"]) == (True, None)
        assert "v1.4.2 (asked for earlier): 1 × wave opened" in reader.get("/commits").rows()[0]
        assert "v1.4.2, asked for earlier" in reader.get("/commits/c1").text


def test_a_new_wave_asks_for_what_it_begins_with(tmp_path: Path) -> None:
    wave = Change("Wave", "lab", "added", "", None, None, "waves.yaml", 3)
    with reading(tmp_path, asked=lambda _before, _sha: (wave,)) as reader:
        filled(reader.api)
        (of,) = [of for of in reader.api.get("/v1/commits")["commits"][0]["releases"] if of["release"] == "v1.4.2"]
        assert (of["earlier"], of["askedBy"]) == (False, "c1")


def test_a_commit_that_asks_for_nothing_new_says_so(tmp_path: Path) -> None:
    with reading(tmp_path, asked=lambda before, sha: ()) as reader:
        filled(reader.api)
        assert "nothing new of the fleet" in reader.get("/commits").rows()[0]
        assert "no document of the fleet differs" in reader.get("/commits/c1").text


def test_the_list_goes_on(full: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.server.dashboard.pages_commits._PAGE", 2)
    (older,) = [link for link in full.get("/commits").links if "cursor=" in link]
    page = full.get(older)
    assert [row.split()[0] for row in page.rows()] == ["a" * 12] and "/commits" in page.links
    assert full.get("/commits?cursor=x!", 400)


def test_a_commit_says_what_it_asked_for_and_did(full: Reader) -> None:
    page = full.get("/commits/c1")
    assert page.heading == "Commit c1" and "In force since 2026-01-15 01:30 UTC" in page.text
    assert "by " + "F" * 40 in page.text and "Promote v1.4.2" in page.text
    assert page.rows()[:2] == ["lab v1.4.2 ◆ failed", "lab video@1.0.0 ◐ soaking"]
    assert "begins" in page.of("did") or "begins" in page.text
    old = full.get("/commits/" + "a" * 40)
    assert "It was in force from 2026-01-15 01:30 UTC until 2026-01-15 01:30 UTC" in old.text
    assert "Nothing is on record" in old.text and "no commit in force before it" in old.text
    unknown = full.get("/commits/" + "b" * 40)
    assert "Git does not know it here now" in unknown.text
    for sha in ("d" * 40, "%2e%2e", "%00", "x" * 300):
        assert full.browser.get(f"/commits/{sha}", headers={"Accept": "text/html"}).status_code == 404


def test_a_head_that_is_refused_is_shown_with_why(fresh: Reader) -> None:
    api, sha = filled(fresh.api), "e" * 40
    api.stage.refused = (sha, "sites/<b>A</b>.yaml:3: it has 2 errors")
    api.stage.tick()
    listed = fresh.get("/commits")
    assert "The branch's head is not acted on: " + sha[:12] in listed.text and f"/commits/{sha}" in listed.links
    page = fresh.get(f"/commits/{sha}")
    assert "Not acted on" in page.text and "sites/<b>A</b>.yaml:3: it has 2 errors" in page.text
    # Once another head is acted on, what was refused is known by its event alone.
    event = Event(None, NOW, EventKind.COMMIT_REFUSED, "x", commit=sha, message="it had 2 errors")
    api.stage.store.add_events(api.stage.store.begin_epoch(), [event])
    api.stage.refused = None
    api.stage.tick()
    assert "it had 2 errors" in fresh.get(f"/commits/{sha}").text


def test_before_the_first_commit(fresh: Reader) -> None:
    assert "Nothing is planned yet" in fresh.get("/commits").text
    assert "Nothing is planned yet" in fresh.get("/releases").text
    fresh.api.stage.desired = replace(desired(), images={}, apps={}, sites={})
    stage = fresh.api.stage
    stage.boards.publish(None, None, stage.live, (), ("f" * 40, "it is invalid"), NOW)
    assert "No commit has come into force yet" in fresh.get("/commits").text
    assert "it is invalid" in fresh.get("/commits/" + "f" * 40).text


def test_which_files_a_commit_changed(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def changed(old: str, new: str) -> Mapping[str, object | None]:
        asked.append((old, new))
        if new.startswith("b"):
            raise TransientError("not now")
        return {"waves.yaml": 1, "sites/B.yaml": None, "sites/A.yaml": 1}

    def commit(sha: str) -> Commit:
        raise TerminalError("unknown commit")

    with reading(tmp_path, changed=changed, commit=commit) as reader:
        filled(reader.api)
        page = reader.get("/commits/c1")
        assert asked == [("b" * 40, "c1")]
        assert "sites/A.yaml waves.yaml sites/B.yaml removed" in page.text
        assert "Not known here" in reader.get("/commits/" + "b" * 40).text


def test_many_files_are_cut_and_counted() -> None:
    found = paths_of({f"sites/{number:04}.yaml": number % 2 or None for number in range(1000)}, most=10)
    assert (len(found.changed), len(found.removed), found.more) == (10, 10, 980)
    assert paths_of({}).more == 0


def test_an_earlier_commit_is_told_by_what_it_set_in_motion() -> None:
    stage = Stage()
    board = stage.tick(*stage.everybody())
    kinds = (EventKind.WAVE_OPENED, EventKind.WAVE_SOAKING, EventKind.WAVE_SOAKED)
    events = [
        Event(number, NOW, kind, str(number), commit="c0", wave="canary", release="v1.4.1")
        for number, kind in enumerate(kinds, 1)
    ]
    events.append(
        Event(9, NOW, EventKind.DEVICE_FLAGGED, "d", commit="c0", wave="lab", release="v1.4.1", device="S0-1")
    )
    (one,) = asked_of(board, "c0", events[::-1])
    assert (one.wave, one.release, one.came_of) == ("canary", "v1.4.1", "wave-soaked")
    assert [(one.wave, one.release) for one in asked_of(board, "c1", ())][:2] == [
        ("lab", "v1.4.2"),
        ("lab", "video@1.0.0"),
    ]


# ---------------------------------------------------------------- all of them


@pytest.mark.slow
def test_every_link_leads_somewhere(full: Reader) -> None:
    found = full.follow("/releases")
    assert {"/releases/v1.4.2", "/commits/c1", "/sites/S0", "/rollout"} <= set(found)
