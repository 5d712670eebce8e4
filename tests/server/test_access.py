"""Who may use which route: every route of the app, with no token, each token that is too narrow, and each that is no good."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from reconciler.adapters.sql import SqlStore
from reconciler.model.access import Scope
from reconciler.ports import TransientError
from reconciler.server.access import ROUTES, Callers, Need, Unstated, check_routes, stated
from reconciler.server.app import make_routes
from reconciler.server.batch import Batcher
from reconciler.server.metrics import Metrics
from reconciler.server.options import Limits, Options
from reconciler.server.tokens import FileToken, hash_token, make_token
from tests.server.inside import EASY, HERE, PAGE, Inside, bearing, inside
from tests.server.service import NOW

# Which scopes suffice for what a route needs.
SUFFICES = {
    Need.PAGE: {Scope.READ, Scope.ALL},
    Need.READ: {Scope.READ, Scope.ALL},
    Need.METRICS: {Scope.METRICS, Scope.ALL},
    Need.ACKNOWLEDGE: {Scope.ACKNOWLEDGE, Scope.ALL},
    Need.ALL: {Scope.ALL},
}
CHANGING = {
    "POST /v1/exchange": "a device's report",
    "POST /login": "a session",
    "POST /logout": "the end of a session",
    "POST /flags/{device}/acknowledge": "an acknowledgement, by a form",
    "POST /flags/{device}/take-back": "its end, by a form",
    "POST /v1/flags/{device}/acknowledge": "an acknowledgement",
    "DELETE /v1/flags/{device}/acknowledge": "its end",
}
CASES = [(key, need) for key, need in ROUTES.items() if need is not Need.ANYBODY]
BY_FORM = {key for key in ROUTES if key.startswith("POST /flags/")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    with inside(tmp_path_factory.mktemp("access")) as made:
        yield made


@dataclass(frozen=True)
class Tokens:
    """Tokens that were made once for all routes: they cost a synced write each."""

    of: dict[Scope, str]
    both: str
    device: str
    bad: tuple[str, ...]


@pytest.fixture(scope="module")
def tokens(world: Inside) -> Tokens:
    device = make_token()
    world.store.add_token("A-1", hash_token(device), NOW)
    of = {scope: world.token(f"of-{scope}", scope) for scope in Scope}
    revoked, expired, replaced = world.token("revoked"), world.token("expired", days=0), world.token("replaced")
    world.store.access.revoke_operator("revoked", world.at)
    world.token("replaced")
    return Tokens(of, world.token("both", Scope.METRICS, Scope.READ), device, (revoked, expired, replaced))


def routes_of(store: SqlStore) -> FastAPI:
    options = Options(store=store, now=lambda: NOW, access=store.access)
    return make_routes(options, Metrics(options), Batcher(lambda batch: [], batch=1, queue=1))  # type: ignore[arg-type]


def ask(world: Inside, key: str, headers: dict[str, str] | None = None) -> int:
    method, _, path = key.partition(" ")
    filled = re.sub(r"{[^}]*}", "A-1", path)
    return world.browser().request(method, filled, headers=headers).status_code


def test_every_route_of_the_app_is_in_the_table_and_the_table_names_no_other(world: Inside) -> None:
    assert {key for key, _ in stated(routes_of(world.store))} == set(ROUTES)


def test_a_route_that_states_nothing_is_never_served(world: Inside) -> None:
    app = routes_of(world.store)
    app.get("/v1/secrets")(lambda: None)
    with pytest.raises(Unstated, match=r"GET /v1/secrets says nowhere"):
        check_routes(app)


def test_a_route_whose_dependency_is_not_what_the_table_says_is_never_served(world: Inside) -> None:
    callers = Callers(world.options)
    for dependencies in ([], [Depends(callers.reader)], [Depends(callers.operator), Depends(callers.device)]):
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        app.get("/v1/audit", dependencies=dependencies)(lambda: None)
        with pytest.raises(Unstated, match=r"GET /v1/audit is for all"):
            check_routes(app)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.routes.append(Route("/v1/audit", lambda _request: PlainTextResponse("")))
    with pytest.raises(Unstated, match="no route of the framework's own"):
        check_routes(app)


def test_desired_state_cannot_be_changed_over_http(world: Inside) -> None:
    """What changes anything is this list; a new one is a decision, and not an accident."""
    changing = {key for key, _ in stated(routes_of(world.store)) if not key.startswith(("GET ", "OPTIONS "))}
    assert changing == set(CHANGING)


@pytest.mark.parametrize(("key", "need"), CASES)
def test_without_a_token_nothing_is_answered(world: Inside, key: str, need: Need) -> None:
    assert ask(world, key) == 401
    assert ask(world, key, bearing("edge_" + "A" * 43)) == 401
    assert ask(world, key, {"Authorization": "Basic YW5uYTplZGdl"}) == 401
    # A browser is led to the login where there is a page, and nowhere else.
    leads = need is Need.PAGE or key in BY_FORM
    assert ask(world, key, PAGE) == (303 if leads else 401)


@pytest.mark.slow
@pytest.mark.parametrize(("key", "need"), [case for case in CASES if case[0] not in BY_FORM])
def test_a_token_opens_what_its_scopes_say_and_nothing_else(
    world: Inside, tokens: Tokens, key: str, need: Need
) -> None:
    opened = set()
    for scope, token in tokens.of.items():
        status = ask(world, key, bearing(token))
        if need is Need.DEVICE:
            assert status == 401
        elif status not in (401, 403):
            opened.add(scope)
        else:
            assert status == 403, scope
    if need is Need.DEVICE:
        assert ask(world, key, bearing(tokens.device)) not in (401, 403)
        return
    assert ask(world, key, bearing(tokens.device)) == 401
    assert opened == SUFFICES[need]
    assert (ask(world, key, bearing(tokens.both)) != 403) == bool(SUFFICES[need] & {Scope.METRICS, Scope.READ})


@pytest.mark.parametrize(("key", "need"), [case for case in CASES if case[0] not in BY_FORM])
def test_a_token_that_is_no_good_any_more_opens_nothing(world: Inside, tokens: Tokens, key: str, need: Need) -> None:
    for token in tokens.bad:
        assert ask(world, key, bearing(token)) == 401


def test_who_has_the_token_is_told_why_it_is_no_good(world: Inside) -> None:
    token = world.token("eve", days=0)
    body = world.browser().get("/v1/plan", headers=bearing(token)).json()
    assert body["error"] == "this token expired at 2026-01-15T01:30:00Z"
    assert "token operator eve --replace" in body["remedy"]
    narrow = world.browser().get("/v1/plan", headers=bearing(world.token("eve", Scope.METRICS)))
    assert "lacks the scope `read`" in narrow.json()["error"]


def test_a_token_expires_at_the_very_instant(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        token = world.token(days=1)
        world.later(hours=23, minutes=59, seconds=59)
        assert ask(world, "GET /v1/status", bearing(token)) == 200
        world.later(seconds=1)
        assert ask(world, "GET /v1/status", bearing(token)) == 401


def test_a_tokens_last_use_is_noted_coarsely(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        token = world.token()
        for minutes, noted in ((0, 0), (59, 0), (2, 61), (30, 61)):
            world.later(minutes=minutes)
            ask(world, "GET /v1/status", bearing(token))
            (one,) = world.store.access.operators()
            assert one.last_used_at is not None
            assert (one.last_used_at - NOW).total_seconds() == noted * 60


def test_tokens_of_the_file_have_their_scopes_as_long_as_they_stand_there(tmp_path: Path) -> None:
    token, lines = make_token(), list[FileToken]()
    with inside(tmp_path, operators=lambda: lines) as world:
        assert ask(world, "GET /metrics", bearing(token)) == 401
        lines.append(FileToken(hash_token(token), frozenset({Scope.METRICS}), "prometheus"))
        assert ask(world, "GET /metrics", bearing(token)) == 200
        assert ask(world, "GET /v1/plan", bearing(token)) == 403
        lines.clear()
        assert ask(world, "GET /metrics", bearing(token)) == 401


def test_on_loopback_pages_and_metrics_need_no_token_and_nothing_else_does(tmp_path: Path) -> None:
    with inside(tmp_path, local=True) as world:
        for key, need in CASES:
            status = ask(world, key)
            assert (status != 401) == (need in (Need.PAGE, Need.METRICS)), key
        page = world.browser().get("/account", headers=PAGE)
        assert (page.status_code, "anybody" in page.text, 'href="/login"' in page.text) == (200, True, True)


@pytest.mark.parametrize("host", ["evil.example", "reconciler.example:8470", "192.0.2.1"])
def test_a_name_that_was_pointed_at_loopback_is_not_loopback(tmp_path: Path, host: str) -> None:
    with inside(tmp_path, local=True) as world:
        for path in ("/account", "/metrics"):
            assert world.browser().get(path, headers={"Host": host}).status_code == 401
            for name in ("localhost", "127.0.0.1:8470", "[::1]:8470"):
                assert world.browser().get(path, headers={"Host": name}).status_code == 200


def test_guessing_is_slowed_down_without_silencing_who_is_known(tmp_path: Path) -> None:
    with inside(tmp_path, limits=replace(EASY, refused_per_address=(0.01, 3))) as world:
        token, browser = world.token(), world.browser()
        assert browser.get("/v1/status", headers=bearing(token)).status_code == 200
        tried = [browser.get("/v1/status", headers=bearing(make_token())) for _ in range(4)]
        assert [answer.status_code for answer in tried] == [401, 401, 401, 429]
        assert int(tried[-1].headers["retry-after"]) > 60
        assert browser.get("/v1/status").status_code == 429
        assert browser.get("/v1/status", headers=bearing(token)).status_code == 200
        # A token that is good, and was not met before, waits with the guesser.
        assert browser.get("/v1/status", headers=bearing(world.token("ben"))).status_code == 429


def test_each_caller_has_a_limit(tmp_path: Path) -> None:
    with inside(tmp_path, limits=replace(EASY, per_device=(0.01, 2))) as world:
        statuses = [ask(world, "GET /v1/status", bearing(world.token(name))) for name in ("anna", "ben")]
        token = world.token("carl")
        statuses += [ask(world, "GET /v1/status", bearing(token)) for _ in range(3)]
    assert statuses == [200, 200, 200, 200, 429]


def test_a_store_that_does_not_answer_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise TransientError("database is locked", retry_after_s=3)

    with inside(tmp_path) as world:
        token = world.token()
        monkeypatch.setattr(world.store.access, "operator", busy)
        answer = world.browser().get("/v1/status", headers=bearing(token))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


def test_every_answer_has_the_headers_that_keep_browsers_in(tmp_path: Path) -> None:
    with inside(tmp_path, local=True) as world:
        for path in ("/login", "/account", "/metrics", "/v1/status", "/nowhere", "/static/style.css", "/healthz"):
            headers = world.browser().get(path, headers=PAGE).headers
            policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
            assert policy["default-src"] == "'none'"
            assert policy["frame-ancestors"] == "'none'"
            assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "font", "connect")} == {"'self'"}
            assert (policy["form-action"], policy["base-uri"]) == ("'self'", "'none'")
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            assert "strict-transport-security" not in headers
            assert headers["cache-control"] == ("no-cache" if path.startswith("/static/") else "no-store")
    (tmp_path / "tls").mkdir()
    with inside(tmp_path / "tls", tls=True) as world:
        sent = world.browser(HERE.replace("http:", "https:")).get("/login").headers
        assert sent["strict-transport-security"] == "max-age=31536000"


def test_no_page_has_anything_inline(world: Inside) -> None:
    for path in (Path(__file__).parents[2] / "reconciler/server/dashboard/templates").glob("*.html"):
        text = path.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:|\|\s*safe", text), (
            path.name
        )


def test_limits_have_room_for_a_person() -> None:
    rate, burst = Limits().refused_per_address
    assert (rate, burst) == (0.5, 30)
