"""The API of the rollout, through the real app: what it answers, in pages, and not twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ConfigDict

from reconciler.adapters.sql import open_store
from reconciler.controller.board import DeviceState
from reconciler.model.access import Scope
from reconciler.model.desired import WavesSpec
from reconciler.model.events import MEANINGS, CheckSaid, Event, EventKind, HealthChange
from reconciler.ports import Commit, ConditionRow, TerminalError, TransientError
from reconciler.protocol.manifest import Manifest
from reconciler.server import api_documents as documents
from reconciler.server.paging import page_of
from tests.controller.staging import Stage, desired, observed
from tests.server.inside import Inside, bearing, inside
from tests.server.service import NOW

ROUTES: Mapping[str, type[BaseModel]] = {
    "/v1/waves": documents.WavesDocument,
    "/v1/devices": documents.DevicesDocument,
    "/v1/devices/S0-1": documents.DeviceDocument,
    "/v1/sites": documents.SitesDocument,
    "/v1/holds": documents.HoldsDocument,
    "/v1/releases": documents.ReleasesDocument,
    "/v1/releases/v1.4.2": documents.ReleaseDocument,
    "/v1/releases/v1.4.1/diff/v1.4.2": documents.PackageDiffDocument,
    "/v1/commits": documents.CommitsDocument,
    "/v1/events": documents.EventsDocument,
}


class Images:
    """An image store with two artifacts."""

    down = False
    reads = 0

    def folder(self, release: str) -> str | None:
        return f"edge-golden-{release}-20260115"

    def read(self, release: str, name: str) -> bytes:
        if self.down:
            raise TransientError("the image store does not answer")
        Images.reads += 1
        packages = {"bash": "5.1", "curl": "7.81" if release == "v1.4.1" else "7.82"}
        packages |= {"old": "1"} if release == "v1.4.1" else {"new": "2"}
        if name == "manifest.json":
            more = {"packages": packages, "commit": "c1", "builder": "1.0", "builderType": "files"}
            return Manifest(release, "x.img", 5, "none", 5, "sha256:" + "0" * 64, more).to_bytes()
        return f"{name} of {release}".encode()


def signed_by(release: str, sums: bytes, signature: bytes) -> str:
    assert sums == f"SHA256SUMS of {release}".encode() and signature == f"SHA256SUMS.gpg of {release}".encode()
    if release == "v1.4.1":
        raise TerminalError("refused: a foreign key")
    return "A" * 40


def commit(sha: str) -> Commit:
    if sha.startswith("b"):
        raise TerminalError("unknown commit")
    return Commit(sha, "Anna <anna@example.org>", "Promote v1.4.2", NOW, "F" * 40)


@dataclass
class Api:
    """The app over a stage, and a client that may read."""

    app: Inside
    stage: Stage
    client: httpx.Client
    images: Images

    def get(self, path: str, **query: Any) -> Any:
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refusal(self, path: str, **query: Any) -> tuple[int, str]:
        answer = self.client.get(path, params=query)
        assert set(answer.json()) == {"error", "remedy"}, answer.text
        return answer.status_code, answer.json()["error"]


@contextmanager
def served(tmp_path: Path, **options: Any) -> Iterator[Api]:
    other = open_store(tmp_path / "store.db")
    stage, images = Stage(store=other), Images()
    given = {"images": images, "signed_by": signed_by, "commit": commit, "now": lambda: NOW} | options
    with inside(tmp_path, boards=stage.boards, **given) as app:
        client = app.browser()
        client.headers.update(bearing(app.token("reader", Scope.READ)))
        yield Api(app, stage, client, images)
    other.close()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with served(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One that is filled, for tests that only read."""
    with served(tmp_path_factory.mktemp("api")) as made:
        yield filled(made)


def filled(api: Api) -> Api:
    """A fleet with a device that failed, one that is silent, and history."""
    devices = {device.name: device for device in api.stage.everybody(S0_1="v1.4.2", S0_2="v1.4.2")}
    checks = [{"name": "camera", "before": "ok", "now": "critical", "message": "no frames", "since": NOW}]
    devices["S0-1"] = observed(
        "S0-1",
        "v1.4.2",
        health="critical",
        health_since=NOW - timedelta(hours=1),
        previous_image="v1.4.1",
        inactive_slot="v1.4.1",
        checks_worse=["camera"],
        checks=checks,
    )
    devices["S3-2"] = observed("S3-2", last_seen=NOW - timedelta(days=1))
    api.stage.conditions = (ConditionRow("GitReady", "False", "Unreachable", "no route", NOW),)
    api.stage.store.observe(list(devices.values()), sequences={})
    epoch = api.stage.store.begin_epoch()
    for sha in ("a" * 40, "b" * 40, "c1"):
        api.stage.store.accept_commit(epoch, sha, NOW)
    api.stage.store.add_events(
        epoch,
        [
            Event(None, NOW, EventKind.COMMIT_ACCEPTED, "c1", commit="c1", message="in force"),
            Event(None, NOW, EventKind.WAVE_OPENED, "w", commit="c1", wave="lab", release="v1.4.2", message="begins"),
            Event(None, NOW, EventKind.DEVICE_FLAGGED, "d", commit="c1", device="S0-1", site="S0", message="failed"),
        ],
    )
    api.stage.store.add_health([HealthChange("S0-1", NOW, "critical", "v1.4.2", (CheckSaid("camera", "critical"),))])
    api.stage.tick(*devices.values())
    return api


def strict(model: type[BaseModel]) -> type[BaseModel]:
    """The same model, which takes nothing that it does not name."""
    return type(model.__name__, (model,), {"model_config": ConfigDict(extra="forbid")})


@pytest.mark.parametrize("path", ROUTES)
def test_an_answer_is_what_its_model_says_and_is_not_sent_twice(full: Api, path: str) -> None:
    answer = full.client.get(path)
    assert answer.status_code == 200, answer.text
    strict(ROUTES[path]).model_validate(answer.json())
    assert answer.headers["cache-control"] == "private, no-cache"
    again = full.client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    assert full.client.get(path, headers={"If-None-Match": 'W/"other"'}).status_code == 200


@pytest.mark.parametrize("path", [*ROUTES, "/v1/explain/S0-1", "/v1/events/stream"])
def test_nobody_reads_without_a_token(full: Api, path: str) -> None:
    assert full.app.browser().get(path).status_code == 401
    narrow = full.app.token("narrow", Scope.METRICS)
    assert full.app.browser().get(path, headers=bearing(narrow)).status_code == 403


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in ROUTES if path != "/v1/events"])
def test_before_the_first_tick_the_answer_says_so(api: Api, path: str) -> None:
    assert api.refusal(path) == (503, "nothing is known of the rollout yet")


def test_waves_with_conditions_and_counts(api: Api) -> None:
    said = filled(api).get("/v1/waves")
    assert [wave["name"] for wave in said["waves"]] == ["lab", "canary", "all"]
    assert said["commit"] == "c1" and said["states"]["failed"] == 1 and said["states"]["silent"] == 1
    assert said["flagged"] == [{"device": "S0-1", "release": "v1.4.2", "at": said["flagged"][0]["at"]}]
    assert said["conditions"][0]["reason"] == "Unreachable" and said["refused"] is None
    api.stage.refused = ("f" * 40, "it has 2 errors")
    api.stage.tick()
    assert api.get("/v1/waves")["refused"] == {"commit": "f" * 40, "message": "it has 2 errors"}


def test_devices_are_given_in_pages(full: Api) -> None:
    names, cursor = [], None
    for _ in range(3):
        page = full.get("/v1/devices", limit=3, **({"cursor": cursor} if cursor else {}))
        names += [device["name"] for device in page["devices"]]
        cursor = page["next"]
        assert page["total"] == 8
    assert names == [f"S{site}-{number}" for site in range(4) for number in (1, 2)] and cursor is None


@pytest.mark.parametrize(
    "query, names",
    [
        ({"wave": "lab"}, "S0-1 S0-2"),
        ({"site": "S2"}, "S2-1 S2-2"),
        ({"state": "failed"}, "S0-1"),
        ({"flagged": "true"}, "S0-1"),
        ({"health": "critical"}, "S0-1"),
        ({"release": "v1.4.2"}, "S0-1 S0-2"),
        ({"q": "s3"}, "S3-1 S3-2"),
        ({"q": "s3", "state": "silent"}, "S3-2"),
        ({"wave": "none"}, ""),
    ],
)
def test_devices_are_found(full: Api, query: dict[str, str], names: str) -> None:
    said = full.get("/v1/devices", **query)
    assert " ".join(device["name"] for device in said["devices"]) == names
    assert said["total"] == len(names.split())


@pytest.mark.parametrize(
    "path, query",
    [
        ("/v1/devices", {"cursor": "nonsense!"}),
        ("/v1/devices", {"limit": "0"}),
        ("/v1/devices", {"limit": "1001"}),
        ("/v1/devices", {"state": "strange"}),
        ("/v1/sites", {"cursor": "é"}),
        ("/v1/events", {"cursor": "MXg"}),
        ("/v1/events", {"kind": "strange"}),
        ("/v1/events", {"after": "-1"}),
        ("/v1/commits", {"cursor": "MQ"}),
        ("/v1/waves", {"cursor": "MQ"}),
        ("/v1/holds", {"cursor": "MTAu"}),
        ("/v1/releases", {"cursor": "!"}),
        ("/v1/releases", {"limit": "0"}),
    ],
)
def test_what_is_not_as_documented_is_refused(full: Api, path: str, query: dict[str, str]) -> None:
    assert full.refusal(path, **query)[0] == 400


@pytest.mark.parametrize("path, rows", [("/v1/waves", "waves"), ("/v1/holds", "holds"), ("/v1/releases", "releases")])
def test_lists_in_an_order_of_their_own_come_in_pages_too(full: Api, path: str, rows: str) -> None:
    whole = full.get(path)
    assert len(whole[rows]) > 1 and whole["next"] is None
    found, cursor, tags = [], None, set()
    while True:
        answer = full.client.get(path, params={"limit": 1} | ({} if cursor is None else {"cursor": cursor}))
        page = answer.json()
        assert len(page[rows]) == 1
        found += page[rows]
        tags.add(answer.headers["etag"])
        again = full.client.get(str(answer.request.url), headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        cursor = page["next"]
        if cursor is None:
            break
    assert found == whole[rows] and len(tags) == len(found)


def test_a_page_follows_its_row_wherever_that_went() -> None:
    page, onward = page_of(["a", "b", "c", "d"], None, 2)
    assert page == slice(0, 2) and onward is not None
    assert page_of(["new", "a", "b", "c"], onward, 2) == (slice(3, 5), None), "behind b"
    assert page_of(["a", "c", "d"], onward, 2) == (slice(1, 3), None), "b is gone: its place"
    assert page_of([], onward, 2) == (slice(1, 3), None)
    assert page_of([], None, 0) == (slice(0, 0), None)


def test_many_waves_and_flags_are_a_bounded_answer(api: Api) -> None:
    fleet = desired(300)
    waves = [
        {"name": f"w{number}", "sites": [f"S{number}"], "image": "v1.4.2", "soak": "1h"} for number in range(300)
    ]  # fmt: skip
    api.stage.desired = replace(fleet, waves=WavesSpec.model_validate({"waves": waves}))
    sick = {"health": "critical", "health_since": NOW - timedelta(days=2), "checks_worse": ["camera"]}
    api.stage.tick(*[observed(f"S{number}-1", "v1.4.2", **sick) for number in range(300)])
    said = api.get("/v1/waves")
    assert [wave["name"] for wave in said["waves"]] == [f"w{number}" for number in range(100)]
    assert (len(said["flagged"]), said["flaggedInAll"]) == (100, 300)
    assert len(api.client.get("/v1/waves").content) < 60_000
    assert "w299" in " ".join(api.get("/v1/explain/w299")["text"])


def test_a_device_says_why_and_what_happened_to_it(full: Api) -> None:
    said = full.get("/v1/devices/S0-1")
    assert said["slots"] == {"running": "v1.4.2", "inactive": "v1.4.1", "previous": "v1.4.1"}
    assert said["device"]["state"] == "failed" and said["device"]["worse"] is True
    assert said["explanation"]["checks"][0]["message"] == "no frames"
    assert [event["kind"] for event in said["events"]] == ["device-flagged"]
    assert said["health"][0]["checks"] == [{"name": "camera", "status": "critical", "message": ""}]
    assert said["observation"]["checksWorse"] == ["camera"]
    assert full.refusal("/v1/devices/S9-1") == (404, "no such device")


def test_a_name_is_explained_as_the_command_line_does(full: Api) -> None:
    said = full.get("/v1/explain/canary", kind="wave")
    assert said["of"] == "wave" and said["text"] and said["wave"] == "canary"
    assert full.get("/v1/explain/S0")["of"] == "site"
    assert full.refusal("/v1/explain/nothing")[0] == 404
    assert full.refusal("/v1/explain/S0", kind="wave")[0] == 404
    assert full.refusal("/v1/explain/S0", kind="strange")[0] == 400


def test_sites_and_holds(full: Api) -> None:
    said = full.get("/v1/sites", limit=2)
    assert [(site["name"], site["state"]) for site in said["sites"]] == [("S0", "failed"), ("S1", "held")]
    rest = full.get("/v1/sites", limit=2, cursor=said["next"])
    assert [site["name"] for site in rest["sites"]] == ["S2", "S3"] and rest["next"] is None
    assert [site["name"] for site in full.get("/v1/sites", state="failed")["sites"]] == ["S0"]
    holds = full.get("/v1/holds")["holds"]
    failed = next(hold for hold in holds if hold["reason"] == "gate-failed" and hold["wave"] == "canary")
    assert failed["image"] == "v1.4.2" and failed["count"] == 2 and failed["devices"] == ["S1-1", "S1-2"]
    assert "stopped in every wave" in failed["message"]


def test_releases_say_who_runs_them_and_who_signed(api: Api) -> None:
    listed = filled(api).get("/v1/releases")["releases"]
    assert [(one["release"], one["state"], one["devices"]) for one in listed] == [
        ("v1.4.2", "published", 2),
        ("v1.4.1", "published", 6),
        ("video@1.1.0", None, 0),
        ("video@1.0.0", None, 8),
    ]
    one = api.get("/v1/releases/v1.4.2")
    assert one["signature"] == {
        "state": "accepted",
        "key": "A" * 40,
        "message": "signed by a release key, over every file of the artifact",
    }
    assert one["running"] == {"lab": 2} and one["release"]["waves"] == ["lab", "canary"]
    assert one["artifact"]["packages"] == {"bash": "5.1", "curl": "7.82", "new": "2"}
    before = Images.reads
    api.get("/v1/releases/v1.4.2")
    assert Images.reads == before, "what is published is read once"
    assert api.get("/v1/releases/v1.4.1")["signature"]["state"] == "refused"
    app = api.get("/v1/releases/video@1.0.0")
    assert app["artifact"] is None and app["running"] == {"lab": 2, "canary": 2, "all": 4}
    assert api.refusal("/v1/releases/v9.9.9")[0] == 404


def test_an_image_store_that_is_away_hides_nothing_else(api: Api) -> None:
    filled(api).images.down = True
    one = api.get("/v1/releases/v1.4.2")
    assert one["artifact"] is None and one["trouble"] == "the image store does not answer"
    assert one["release"]["devices"] == 2
    assert api.refusal("/v1/releases/v1.4.1/diff/v1.4.2")[0] == 503


def test_packages_of_two_releases_are_compared(full: Api) -> None:
    said = full.get("/v1/releases/v1.4.1/diff/v1.4.2")
    assert (said["added"], said["removed"], said["same"]) == (
        [{"name": "new", "version": "2"}],
        [{"name": "old", "version": "1"}],
        1,
    )
    assert said["changed"] == [{"name": "curl", "before": "7.81", "after": "7.82"}]
    back = full.get("/v1/releases/v1.4.2/diff/v1.4.1")
    assert back["added"] == said["removed"] and back["changed"][0]["before"] == "7.82"
    assert full.refusal("/v1/releases/v1.4.1/diff/v9.9.9")[0] == 404
    assert full.refusal("/v1/releases/v1.4.1/diff/video@1.0.0")[0] == 404


def test_commits_with_what_git_knows_and_what_happened(full: Api) -> None:
    said = full.get("/v1/commits", limit=2)
    first, second = said["commits"]
    assert (first["commit"], first["inForce"], first["author"]) == ("c1", True, "Anna <anna@example.org>")
    assert first["events"] == {"commit-accepted": 1, "device-flagged": 1, "wave-opened": 1}
    assert (second["commit"], second["author"], second["inForce"]) == ("b" * 40, None, False)
    (last,) = full.get("/v1/commits", limit=2, cursor=said["next"])["commits"]
    assert last["commit"] == "a" * 40


def test_events_are_given_in_pages_both_ways(full: Api) -> None:
    newest = full.get("/v1/events", limit=2)
    assert [event["id"] for event in newest["events"]] == [3, 2] and newest["last"] == 3
    older = full.get("/v1/events", limit=2, cursor=newest["next"])
    assert [event["id"] for event in older["events"]] == [1] and older["next"] is None
    onward = full.get("/v1/events", limit=1, after=1)
    assert [event["id"] for event in onward["events"]] == [2]
    assert [event["id"] for event in full.get("/v1/events", after=1, cursor=onward["next"])["events"]] == [3]
    assert [e["id"] for e in full.get("/v1/events", kind=["wave-opened", "device-flagged"])["events"]] == [3, 2]
    assert [event["id"] for event in full.get("/v1/events", device="S0-1")["events"]] == [3]
    assert [event["id"] for event in full.get("/v1/events", wave="lab", commit="c1")["events"]] == [2]


def test_no_text_reaches_the_store_that_some_stores_do_not_take(full: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL takes no NUL: asked for one, it would be the service that failed."""
    for name in ("wave", "device", "commit"):
        assert full.refusal("/v1/events", **{name: "a\0b"}) == (400, "the request is not valid")
    monkeypatch.setattr(full.app.store, "events", lambda **_: pytest.fail("the store was asked"))
    answer = full.client.get("/commits/%00", headers={"Accept": "text/html"})
    assert answer.status_code == 404


def test_every_kind_of_event_and_state_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/http-api.md").read_text(encoding="utf-8")
    assert set(MEANINGS) == set(EventKind)
    for kind, meaning in MEANINGS.items():
        assert f"| `{kind.value}` | {meaning} |" in page
    for state in DeviceState:
        assert f"| `{state.value}` |" in page
