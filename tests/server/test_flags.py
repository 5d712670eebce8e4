"""Flags: who has seen which, that it is told and written down, and that it changes nothing else."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from reconciler.model.access import Scope
from reconciler.model.events import EventKind
from reconciler.server.limits import read_body
from reconciler.server.sessions import read_form
from tests.server.inside import Inside, bearing, csrf_of, inside, own, shown
from tests.server.service import NOW

PATH = "/v1/flags/A-1/acknowledge"


def flags(world: Inside) -> dict[tuple[str, str], Any]:
    """Every flag, and who has acknowledged it."""
    document = world.browser().get("/v1/flags", headers=bearing(world.token("looker", Scope.READ))).json()
    return {(row["device"], row["release"]): row["acknowledged"] for row in document["flags"]}


def audited(world: Inside) -> list[tuple[str, str, str]]:
    return [(entry.who, entry.what.value, entry.about) for entry in reversed(world.store.access.audit())]


def test_a_flag_is_acknowledged_once_and_taken_back(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        world.flag(("A-1", "v1.4.2"), ("B-1", "v1.4.2"))
        token, browser = bearing(world.token("anna", Scope.ACKNOWLEDGE)), world.browser()
        assert flags(world) == {("A-1", "v1.4.2"): None, ("B-1", "v1.4.2"): None}
        world.later(minutes=1)
        said = {"release": "v1.4.2", "by": "anna", "at": shown(NOW + timedelta(minutes=1)), "note": "disk ordered"}
        for _ in range(2):
            answer = browser.post(PATH, json={"note": " disk\tordered "}, headers=token)
            assert (answer.status_code, answer.json()) == (200, {"device": "A-1", "acknowledgements": [said]})
            world.later(minutes=1)
        assert flags(world) == {("A-1", "v1.4.2"): said, ("B-1", "v1.4.2"): None}
        (event,) = world.store.events(kinds=(EventKind.FLAG_ACKNOWLEDGED,))
        assert (event.device, event.release, event.at) == ("A-1", "v1.4.2", NOW + timedelta(minutes=1))
        assert event.message == "anna has seen that A-1 failed on v1.4.2: disk ordered"
        for _ in range(2):
            assert browser.delete(PATH, headers=token).json() == {"device": "A-1", "acknowledgements": []}
        assert flags(world)["A-1", "v1.4.2"] is None
        assert audited(world) == [
            ("anna", "acknowledge", "A-1 v1.4.2: disk ordered"),
            ("anna", "take-back", "A-1 v1.4.2"),
        ]


def test_what_ends_while_a_request_is_sent_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with inside(tmp_path) as world:
        world.flag(("A-1", "v1.4.2"))
        token, browser = bearing(world.token("anna")), world.log_in(world.token("ben"))
        form = {"csrf": csrf_of(browser)}

        def sent_slowly(read: Any, name: str) -> Any:
            async def slow(*given: Any) -> Any:
                got = await read(*given)
                world.store.access.revoke_operator(name, world.at)
                return got

            return slow

        monkeypatch.setattr("reconciler.server.flags.read_body", sent_slowly(read_body, "anna"))
        monkeypatch.setattr("reconciler.server.access.read_form", sent_slowly(read_form, "ben"))
        assert world.browser().post(PATH, json={}, headers=token).status_code == 401
        answer = browser.post("/flags/A-1/acknowledge", data=form, headers=own(browser))
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert flags(world) == {("A-1", "v1.4.2"): None}


def test_another_person_or_another_note_replaces_it(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        world.flag(("A-1", "v1.4.2"))
        browser = world.browser()
        for name, note in (("anna", ""), ("anna", "on it"), ("ben", "on it")):
            browser.post(PATH, json={"note": note}, headers=bearing(world.token(name)))
        acknowledged = flags(world)["A-1", "v1.4.2"]
        assert (acknowledged["by"], acknowledged["note"]) == ("ben", "on it")
        assert len(audited(world)) == 3


def test_a_device_with_two_flags_has_one_of_them_acknowledged_or_both(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        world.flag(("A-1", "v1.4.2"), ("A-1", "video-ingest@2.8.0"))
        token, browser = bearing(world.token()), world.browser()
        browser.post(PATH, json={"release": "video-ingest@2.8.0"}, headers=token)
        assert [one is not None for one in flags(world).values()] == [False, True]
        answer = browser.post(PATH, headers=token).json()
        assert [one["release"] for one in answer["acknowledgements"]] == ["v1.4.2", "video-ingest@2.8.0"]


def test_only_a_flag_that_stands_can_be_acknowledged(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        token, browser = bearing(world.token()), world.browser()
        assert browser.post(PATH, headers=token).status_code == 404
        world.flag(("A-1", "v1.4.2"))
        assert browser.post(PATH, json={"release": "v1.4.3"}, headers=token).status_code == 404
        for name in ("B-1", "a b", "..", "x" * 64, "%00"):
            assert browser.post(f"/v1/flags/{name}/acknowledge", headers=token).status_code == 404
        assert (audited(world), world.store.access.acknowledgements()) == ([], [])


def test_a_device_that_recovers_and_fails_again_is_flagged_anew(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        world.flag(("A-1", "v1.4.2"))
        token, browser = bearing(world.token()), world.browser()
        world.later(minutes=1)
        browser.post(PATH, headers=token)
        world.later(minutes=1)
        world.flag(("A-1", "v1.4.2"))
        assert flags(world)["A-1", "v1.4.2"] is not None
        world.flag()
        assert flags(world) == {}
        world.flag(("A-1", "v1.4.2"), at=world.at)
        assert flags(world)["A-1", "v1.4.2"] is None
        # What is kept of a device is what covers its flags: the old one goes with the next.
        browser.post(PATH, json={"note": "again"}, headers=token)
        (kept,) = world.store.access.acknowledgements()
        assert (kept.note, kept.at) == ("again", world.at)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"note": 1}', 400),
        (b'{"notes": "x"}', 400),
        (b"[]", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b'{"note": "%s"}' % (b"x" * 500), 200),
        (b'{"note": "%s"}' % (b"x" * 501), 400),
        (b'{"note": "a\\u001b[31mb"}', 400),
        (b'{"note": "a\\u009bb"}', 400),
        (b'{"note": "first\\r\\nsecond"}', 200),
        (b"", 200),
        (b'{"note": "%s"}' % (b"x" * 9000), 413),
    ],
)
def test_a_note_is_short_and_is_text(tmp_path: Path, body: bytes, status: int) -> None:
    with inside(tmp_path) as world:
        world.flag(("A-1", "v1.4.2"))
        answer = world.browser().post(PATH, content=body, headers=bearing(world.token()))
        assert answer.status_code == status, answer.text


def test_a_page_does_the_same_by_forms(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        world.flag(("A-1", "v1.4.2"))
        browser = world.log_in(world.token("anna", Scope.READ, Scope.ACKNOWLEDGE))
        form = {"csrf": csrf_of(browser), "note": "on it", "next": "/flagged"}
        gone = browser.post("/flags/A-1/acknowledge", data=form, headers=own(browser))
        assert (gone.status_code, gone.headers["location"]) == (303, "/flagged")
        acknowledged = flags(world)["A-1", "v1.4.2"]
        assert (acknowledged["by"], acknowledged["note"]) == ("anna", "on it")
        for wrong in ({"csrf": ""}, {"csrf": "0" * 64}, {}):
            refused = browser.post("/flags/A-1/take-back", data={"note": ""} | wrong, headers=own(browser))
            assert refused.status_code == 403
        elsewhere = form | {"next": "//evil.example"}
        back = browser.post("/flags/A-1/take-back", data=elsewhere, headers=own(browser))
        assert (back.status_code, back.headers["location"]) == (303, "/")
        assert flags(world)["A-1", "v1.4.2"] is None
        narrow = world.log_in(world.token("ben", Scope.READ))
        form["csrf"] = csrf_of(narrow)
        assert narrow.post("/flags/A-1/acknowledge", data=form, headers=own(narrow)).status_code == 403
        # A token is for programs, and a form for browsers.
        by_token = world.browser().post("/flags/A-1/acknowledge", data=form, headers=bearing(world.token()))
        assert by_token.status_code == 401


def test_acknowledging_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with inside(tmp_path) as world:
        world.flag(("A-1", "v1.4.2"))
        token = bearing(world.token())

        def broken(*_: object) -> None:
            raise RuntimeError("killed between two lines")

        with monkeypatch.context() as patch:
            patch.setattr(world.store, "add_events", broken)
            assert world.browser().post(PATH, headers=token).status_code == 500
        assert (audited(world), world.store.access.acknowledgements()) == ([], [])


def test_the_audit_log_is_read_page_by_page(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        world.flag(("A-1", "v1.4.2"))
        token, browser = bearing(world.token()), world.browser()
        for number in range(5):
            browser.post(PATH, json={"note": str(number)}, headers=token)
            world.later(days=1)
        first = browser.get("/v1/audit?limit=2", headers=token).json()
        assert [entry["about"][-1] for entry in first["entries"]] == ["4", "3"]
        assert first["entries"][0]["who"] == "anna" and first["entries"][0]["address"] == "192.0.2.7"
        second = browser.get(f"/v1/audit?limit=2&before={first['next']}", headers=token).json()
        last = browser.get(f"/v1/audit?limit=2&before={second['next']}", headers=token).json()
        assert ([entry["about"][-1] for entry in last["entries"]], last["next"]) == (["0"], None)
        since = shown(NOW + timedelta(days=3))
        assert len(browser.get(f"/v1/audit?since={since}", headers=token).json()["entries"]) == 2
        for wrong in ("since=lately", "limit=0", "limit=x", "before=0"):
            assert browser.get(f"/v1/audit?{wrong}", headers=token).status_code == 400


def test_the_audit_log_forgets_what_is_old(tmp_path: Path) -> None:
    with inside(tmp_path, audit_kept_s=86400.0) as world:
        world.flag(("A-1", "v1.4.2"))
        token, browser = bearing(world.token()), world.browser()
        for days in (0, 1, 1):
            world.later(days=days, seconds=1)
            browser.post(PATH, json={"note": f"{world.at}"}, headers=token)
        assert len(audited(world)) == 1
