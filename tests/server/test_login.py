"""Logging in and out with a browser: the cookie, how long it is good, who may send our forms, and where a login leads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from reconciler import __version__
from reconciler.model.access import AuditEntry, Scope
from reconciler.ports import TransientError
from reconciler.server.options import SessionTimes
from reconciler.server.sessions import HOME, safe_next
from reconciler.server.tokens import hash_token
from tests.server.inside import EASY, HERE, PAGE, Inside, bearing, csrf_of, inside, own

HTTPS = "https://reconciler.example"


def logged(world: Inside) -> list[tuple[str, str, str, str]]:
    """The audit log, oldest first: who, what, about, outcome."""

    def row(entry: AuditEntry) -> tuple[str, str, str, str]:
        return entry.who, entry.what.value, entry.about, entry.outcome.value

    return [row(entry) for entry in reversed(world.store.access.audit())]


def test_a_token_opens_a_session_and_the_browser_keeps_no_token(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        token, browser = world.token(), world.browser()
        first = browser.get("/v1/status?x=1", headers=PAGE)
        assert first.status_code == 401
        led = browser.get("/account?tab=1", headers=PAGE)
        assert (led.status_code, led.headers["location"]) == (303, "/login?next=%2Faccount%3Ftab%3D1")
        form = browser.get(led.headers["location"], headers=PAGE)
        assert 'name="next" value="/account?tab=1"' in form.text
        opened = browser.post("/login", data={"token": f" {token}\n", "next": "/account?tab=1"}, headers=own(browser))
        assert (opened.status_code, opened.headers["location"]) == (303, "/account?tab=1")
        cookie = opened.headers["set-cookie"]
        assert token not in cookie
        parts = [part.strip().lower() for part in cookie.split(";")[1:]]
        assert {"httponly", "samesite=strict", "path=/", "max-age=604800"} <= set(parts)
        assert "secure" not in parts and not any(part.startswith("domain") for part in parts)
        page = browser.get("/account", headers=PAGE)
        assert page.status_code == 200 and "anna" in page.text and token not in page.text
        assert browser.get("/v1/status").status_code == 200
        # Only the hash of its id is kept.
        sent = browser.cookies["reconciler"]
        assert world.store.access.session(sent) is None
        assert world.store.access.session(hash_token(sent)) is not None
        assert len(sent) >= 43
        assert browser.get("/login?next=/v1/plan").headers["location"] == "/v1/plan"


@pytest.mark.parametrize("options", [{"tls": True}, {"public_url": HTTPS}])
def test_under_tls_the_cookie_is_of_this_host_alone(tmp_path: Path, options: dict[str, object]) -> None:
    with inside(tmp_path, **options) as world:
        browser = world.browser(HTTPS)
        opened = browser.post("/login", data={"token": world.token()}, headers=own(browser))
        name, *parts = opened.headers["set-cookie"].split(";")
        assert name.startswith("__Host-reconciler=")
        assert {"secure", "httponly", "path=/", "samesite=strict"} <= {part.strip().lower() for part in parts}
        assert browser.get("/account", headers=PAGE).status_code == 200


def test_each_login_has_a_new_session_and_the_old_one_is_gone(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        browser = world.browser()
        browser.cookies.set("reconciler", "planted", domain="127.0.0.1")
        world.log_in(world.token(), browser)
        ids = [cookie.value for cookie in browser.cookies.jar]
        assert "planted" not in ids
        old = browser.cookies["reconciler"]
        world.log_in(world.token(), browser)
        assert browser.cookies["reconciler"] != old
        assert world.store.access.session(hash_token(old)) is None


def test_what_is_no_token_is_told_so_and_written_down_without_it(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        browser = world.browser()
        lost = world.token("lost", days=0)
        narrow = world.token("grafana", Scope.METRICS)
        for typed in ("hunter2", "edge_" + "A" * 43, lost, narrow, ""):
            answer = browser.post("/login", data={"token": typed}, headers=own(browser))
            assert answer.status_code == (403 if typed == narrow else 401)
            assert 'role="alert"' in answer.text
            assert typed == "" or typed not in answer.text
            assert "www-authenticate" not in answer.headers and "set-cookie" not in answer.headers
        assert logged(world) == [
            ("", "login", "what was typed is no token", "refused"),
            ("", "login", "no valid token", "refused"),
            ("", "login", "this token expired at 2026-01-15T01:30:00Z", "refused"),
            ("", "login", "this token lacks the scope `read`", "refused"),
            ("", "login", "what was typed is no token", "refused"),
        ]
        assert {entry.address for entry in world.store.access.audit()} == {"192.0.2.7"}


def test_guessing_at_the_login_is_slowed_down_by_address(tmp_path: Path) -> None:
    with inside(tmp_path, limits=replace(EASY, refused_per_address=(0.01, 3))) as world:
        browser, token = world.browser(), world.token()
        tried = [browser.post("/login", data={"token": "edge_" + "A" * 43}, headers=own(browser)) for _ in range(5)]
        assert [answer.status_code for answer in tried] == [401, 401, 401, 429, 429]
        assert 1 <= int(tried[-1].headers["retry-after"]) <= 100
        assert "Try again in" in tried[-1].text
        # A good token waits too: an answer would tell that it is good.
        assert browser.post("/login", data={"token": token}, headers=own(browser)).status_code == 429
        assert world.log_in(token, world.browser(peer="192.0.2.8")).cookies
        # What was not looked at is not written down.
        assert len([row for row in logged(world) if row[3] == "refused"]) == 3


def test_a_session_ends_when_it_is_idle_and_when_it_is_old(tmp_path: Path) -> None:
    with inside(tmp_path, sessions=SessionTimes(idle_s=3600, longest_s=7200)) as world:
        token = world.token()
        idle, busy = world.log_in(token), world.log_in(token)
        for _ in range(3):
            world.later(minutes=30)
            assert busy.get("/v1/status").status_code == 200
        assert idle.get("/v1/status").status_code == 401
        assert idle.get("/account", headers=PAGE).headers["location"] == "/login?next=%2Faccount"
        world.later(minutes=30)
        assert busy.get("/v1/status").status_code == 401


def test_a_session_ends_with_its_token(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        browsers = [world.log_in(world.token(name, days=1)) for name in ("revoked", "expired", "replaced")]
        assert [browser.get("/v1/status").status_code for browser in browsers] == [200, 200, 200]
        world.store.access.revoke_operator("revoked", world.at)
        world.token("replaced", days=9)
        assert [browser.get("/v1/status").status_code for browser in browsers] == [401, 200, 401]
        world.later(hours=11)
        assert browsers[1].get("/v1/status").status_code == 200
        world.later(hours=11)
        assert browsers[1].get("/v1/status").status_code == 200
        world.later(hours=2)
        assert browsers[1].get("/v1/status").status_code == 401


def test_a_session_has_the_scopes_of_its_token(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        browser = world.log_in(world.token("anna", Scope.READ))
        assert browser.get("/v1/status").status_code == 200
        assert browser.get("/v1/audit").status_code == 403
        assert browser.get("/metrics").status_code == 403


def test_logging_out_ends_the_session_for_good(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        browser = world.log_in(world.token())
        kept = browser.cookies["reconciler"]
        for form in ({"csrf": ""}, {"csrf": "0" * 64}):
            assert browser.post("/logout", data=form, headers=own(browser)).status_code == 403
        left = browser.post("/logout", data={"csrf": csrf_of(browser)}, headers=own(browser))
        assert (left.status_code, left.headers["location"]) == (303, "/login")
        assert "reconciler" not in browser.cookies
        browser.cookies.set("reconciler", kept, domain="127.0.0.1")
        assert browser.get("/v1/status").status_code == 401
        assert browser.post("/logout", headers=own(browser)).headers["location"] == "/login"
        assert [row[:2] for row in logged(world)] == [("anna", "login"), ("anna", "logout")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_sites_page_sends_no_form_of_ours(tmp_path: Path, headers: dict[str, str]) -> None:
    with inside(tmp_path) as world:
        token = world.token()
        refused = world.browser().post("/login", data={"token": token}, headers=headers)
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
        browser = world.log_in(token)
        form = {"csrf": csrf_of(browser)}
        assert browser.post("/logout", data=form, headers=headers).status_code == 403
        token_header = {"x-csrf-token": form["csrf"]}
        assert browser.delete("/v1/flags/A-1/acknowledge", headers=headers | token_header).status_code == 403
        assert browser.delete("/v1/flags/A-1/acknowledge", headers=own(browser)).status_code == 403
        assert browser.delete("/v1/flags/A-1/acknowledge", headers=own(browser) | token_header).status_code == 200
        # A form token is of one session.
        other = world.log_in(token)
        assert other.delete("/v1/flags/A-1/acknowledge", headers=own(other) | token_header).status_code == 403
        # A program shows its token with each request, and no page can make it do so.
        assert world.browser().delete("/v1/flags/A-1/acknowledge", headers=headers | bearing(token)).status_code == 200


def test_another_sites_page_logs_nobody_out(tmp_path: Path) -> None:
    """The browser holds the cookie back, and would drop it all the same if it were told to."""
    with inside(tmp_path) as world:
        stranger = world.browser().post("/logout", headers={"Origin": "https://evil.example", **PAGE})
        assert stranger.status_code == 403 and "set-cookie" not in stranger.headers


def test_guessing_from_many_addresses_of_one_network_is_guessing_from_one(tmp_path: Path) -> None:
    with inside(tmp_path, limits=replace(EASY, refused_per_address=(0.01, 3))) as world:
        peers = [f"2001:db8:0:1::{number:x}" for number in range(1, 6)] + ["2001:db8:0:2::1", "::ffff:192.0.2.9"]
        tried = [world.browser(peer=peer).get("/v1/plan", headers=bearing("edge_" + "A" * 43)) for peer in peers]
        assert [answer.status_code for answer in tried] == [401, 401, 401, 429, 429, 401, 401]


def test_behind_a_proxy_the_address_that_browsers_know_is_ours(tmp_path: Path) -> None:
    with inside(tmp_path, public_url=f"{HTTPS}/") as world:
        token, behind = world.token(), world.browser(HTTPS)
        # The proxy asks under another name than the browser did.
        sent = {"Host": "127.0.0.1:8470", "Origin": HTTPS}
        assert behind.post("/login", data={"token": token}, headers=sent).status_code == 303
        wrong = behind.post("/login", data={"token": token}, headers=sent | {"Origin": "https://other.example"})
        assert wrong.status_code == 403 and "publicUrl" in wrong.text


@pytest.mark.parametrize("said", ["https://Reconciler.Example", f"{HTTPS}:443/", f"{HTTPS}/edge/"])
def test_however_that_address_is_written(tmp_path: Path, said: str) -> None:
    with inside(tmp_path, public_url=said) as world:
        sent = {"Host": "127.0.0.1:8470", "Origin": HTTPS}
        assert world.browser(HTTPS).post("/login", data={"token": world.token()}, headers=sent).status_code == 303


def test_strangers_are_not_told_the_version(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        for path in ("/login", "/nowhere", "/healthz", "/readyz"):
            answer = world.browser().get(path, headers=PAGE)
            assert __version__ not in answer.text and __version__ not in str(answer.headers)
        assert f"reconciler {__version__}" in world.log_in(world.token()).get("/account", headers=PAGE).text


@pytest.mark.parametrize(
    ("wanted", "leads"),
    [
        ("/", "/"),
        ("/sites/SITE-2847?state=failed#now", "/sites/SITE-2847?state=failed#now"),
        ("//evil.example", HOME),
        ("/\\evil.example", HOME),
        ("/a\\b", HOME),
        ("https://evil.example", HOME),
        ("javascript:alert(1)", HOME),
        ("/\t/evil.example", HOME),
        ("/a\r\nSet-Cookie: x=1", HOME),
        ("/a b", HOME),
        ("evil", HOME),
        ("", HOME),
        (None, HOME),
        ("/" + "a" * 2000, HOME),
    ],
)
def test_a_login_leads_to_paths_of_ours_alone(wanted: str | None, leads: str) -> None:
    assert safe_next(wanted) == leads


def test_what_a_page_is_given_is_escaped(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        page = world.browser().get('/login?next=/"><script>alert(1)</script>')
        assert "<script" not in page.text and "&#34;&gt;&lt;script&gt;" in page.text


def test_a_link_from_elsewhere_finds_the_session_again(tmp_path: Path) -> None:
    """The cookie is not sent with the first request of such a link; it is with the second, which our own page makes."""
    with inside(tmp_path) as world:
        stranger = world.browser()
        from_chat = PAGE | {"Sec-Fetch-Site": "cross-site"}
        again = stranger.get("/account?x=1", headers=from_chat)
        assert again.status_code == 200 and 'content="0; url=/account?x=1"' in again.text
        assert stranger.get("/account?x=1", headers=PAGE | {"Sec-Fetch-Site": "same-origin"}).status_code == 303
        assert world.log_in(world.token()).get("/account", headers=from_chat).status_code == 200


@pytest.mark.parametrize(
    ("sent", "kind", "status"),
    [
        (b"token=x", "application/json", 415),
        (b"token=" + b"x" * 20_000, "application/x-www-form-urlencoded", 413),
        (b"token=\xff\xfe", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"a=1" for _ in range(60)), "application/x-www-form-urlencoded", 400),
    ],
)
def test_what_is_no_form_is_refused(tmp_path: Path, sent: bytes, kind: str, status: int) -> None:
    with inside(tmp_path) as world:
        answer = world.browser().post("/login", content=sent, headers={"Content-Type": kind})
        assert answer.status_code == status


def test_without_its_store_nobody_logs_in_and_nothing_is_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with inside(tmp_path) as world:
        token, browser = world.token(), world.browser()

        def full(*_: object) -> None:
            raise TransientError("disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(world.store.access, "add_audit", full)
            answer = browser.post("/login", data={"token": token}, headers=own(browser))
        assert answer.status_code == 503 and "set-cookie" not in answer.headers
        with world.store.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM sessions").scalar_one() == 0


def test_a_store_that_only_reads_shows_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise TransientError("disk is full")

    with inside(tmp_path) as world:
        token = world.token()
        browser = world.log_in(token)
        world.later(hours=2)
        for name in ("use_operator", "use_session"):
            monkeypatch.setattr(world.store.access, name, full)
        assert world.browser().get("/v1/status", headers=bearing(token)).status_code == 200
        assert browser.get("/account", headers=PAGE).status_code == 200
        # What is not noted is not prolonged.
        world.later(hours=11)
        assert browser.get("/account", headers=PAGE).status_code == 303


def test_an_answer_that_lasts_can_ask_whether_its_caller_may_go_on(tmp_path: Path) -> None:
    from reconciler.server.access import Callers

    with inside(tmp_path) as world:
        callers, token = Callers(world.options), world.token()
        seen = []

        def caller_of(headers: dict[str, str]) -> None:
            from starlette.requests import Request

            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            scope = {"type": "http", "method": "GET", "headers": raw, "client": ("192.0.2.7", 1), "path": "/"}
            seen.append(world.run(callers.caller(Request(scope))))

        browser = world.log_in(token)
        caller_of({"Authorization": f"Bearer {token}"})
        caller_of({"Cookie": f"reconciler={browser.cookies['reconciler']}"})
        by_token, in_session = seen
        assert (by_token.via, in_session.via, in_session.name) == ("token", "session", "anna")
        assert [world.run(callers.still(one)) for one in seen] == [True, True]
        browser.post("/logout", data={"csrf": csrf_of(browser)}, headers=own(browser))
        assert [world.run(callers.still(one)) for one in seen] == [True, False]
        world.store.access.revoke_operator("anna", world.at)
        assert not world.run(callers.still(by_token))


def test_static_files_are_kept_by_their_digest(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        browser = world.browser()
        page = browser.get("/login").text
        link = page.partition('rel="stylesheet" href="')[2].partition('"')[0]
        style = browser.get(link)
        assert style.headers["content-type"].startswith("text/css")
        assert style.headers["cache-control"] == "public, max-age=31536000, immutable"
        same = browser.get(link, headers={"If-None-Match": style.headers["etag"]})
        assert (same.status_code, same.content) == (304, b"")
        assert browser.get("/static/style.css?v=old").headers["cache-control"] == "no-cache"
        for name in ("../shell.py", "%2e%2e/shell.py", "absent.css", "", "templates/base.html"):
            assert browser.get(f"/static/{name}").status_code == 404


@pytest.mark.slow
def test_a_person_is_told_of_errors_by_a_page_and_a_program_by_json(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        browser = world.browser(HERE)
        page = browser.get("/nowhere", headers=PAGE)
        assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert "Not Found" in page.text
        assert set(browser.get("/nowhere").json()) == {"error", "remedy"}
        assert set(browser.get("/v1/plan", headers=PAGE).json()) == {"error", "remedy"}
        wrong: httpx.Response = browser.put("/login", headers=PAGE)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")
