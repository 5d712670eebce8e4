"""The published description of the API: what it says of each route, and that the API does what it says."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.adapters.sql import open_store
from reconciler.model.access import Scope
from reconciler.model.observed import Snapshot
from reconciler.planner import plan as plan_of
from reconciler.protocol.exchange import SiteConfig
from reconciler.repo.load import load_folder
from reconciler.repo.snapshot import load_snapshot
from reconciler.server.access import ROUTES, Need
from tests.controller.staging import Stage
from tests.server.inside import HERE, Inside, bearing, inside
from tests.server.service import NOW, report
from tests.server.test_api import Api, Images, commit, signed_by
from tests.server.test_api import filled as fill

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "10"))


_FLAG = {"device": "A-1", "release": "v1.4.2", "at": "2026-01-15T01:00:00Z"}


@cache
def plan() -> dict[str, Any]:
    """A true plan, with holds: the example fleet asked to move on, as its devices report it."""
    root = Path(__file__).parents[2]
    loaded = load_folder(root / "fleet")
    assert loaded.desired is not None
    desired = loaded.desired
    observed = load_snapshot((root / "docs/tutorial/observed.json").read_bytes(), "observed.json")
    newest = desired.releases_in_order()[-1]
    raised = tuple(wave.model_copy(update={"image": newest}) for wave in desired.waves.waves)
    waves = desired.waves.model_copy(update={"waves": raised})
    made = plan_of(replace(desired, waves=waves), observed, observed.at or NOW).to_dict()
    assert made["waves"] and made["holds"]
    return made


@contextmanager
def filled(folder: Path) -> Iterator[Inside]:
    """A service that has something to say on every route."""
    images = DirectoryImageStore(folder / "images")
    (folder / "images" / "edge-golden-v1.4.2-20251115").mkdir()
    (folder / "images" / "edge-golden-v1.4.2-20251115" / "image.raw").write_bytes(b"x" * 100)
    config = SiteConfig("sha256:" + "0" * 64, {"user-data": b"#cloud-config\n", "meta-data": b""})
    known: list[Inside] = []
    other = open_store(folder / "store.db")
    stage, packages = Stage(store=other), Images()
    options: dict[str, Any] = {
        "boards": stage.boards,
        "images": packages,
        "signed_by": signed_by,
        "commit": commit,
        "artifact": images.path,
        "config": lambda _device: config,
        "export": lambda: known[-1].store.export(),  # noqa: PLW0108  the store is not there yet
        "stores": Snapshot,
    }
    with inside(folder, **options) as world:
        known.append(world)
        fill(Api(world, stage, world.browser(), packages))
        world.store.save_plan(world.store.begin_epoch(), json.dumps(plan() | {"flagged": [_FLAG]}))
        yield world
    other.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    with filled(tmp_path_factory.mktemp("openapi")) as made:
        yield made


@pytest.fixture(scope="module")
def described(world: Inside) -> dict[str, Any]:
    found: dict[str, Any] = (
        world.browser().get("/v1/openapi.json", headers=bearing(world.token("reader", Scope.READ))).json()
    )
    return found


@pytest.mark.slow
def test_every_route_for_programs_is_described_with_who_may_use_it(described: dict[str, Any]) -> None:
    assert described["openapi"].startswith("3.1")
    found = {
        f"{method.upper()} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }
    pages = {key for key in ROUTES if not key.split(" ")[1].startswith(("/v1/", "/metrics", "/healthz", "/readyz"))}
    assert set(found) == set(ROUTES) - pages
    for key, operation in found.items():
        need = ROUTES[key]
        ways = [name for way in operation.get("security", []) for name in way]
        if need is Need.ANYBODY:
            assert ways == [] and "401" not in operation["responses"]
            continue
        assert ways == (["deviceToken"] if need is Need.DEVICE else ["operatorToken", "session"])
        assert {"401", "403", "429", "503"} <= set(operation["responses"])
        assert operation.get("x-scope") == (None if need is Need.DEVICE else need.value)
    assert set(described["components"]["securitySchemes"]) == {"deviceToken", "operatorToken", "session"}


def test_the_description_is_for_readers_alone(world: Inside) -> None:
    browser = world.browser()
    assert browser.get("/v1/openapi.json").status_code == 401
    assert browser.get("/v1/openapi.json", headers=bearing(world.token("x", Scope.METRICS))).status_code == 403
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert browser.get(path, headers=bearing(world.token("x"))).status_code == 404


def test_answers_are_as_they_are_described(world: Inside, described: dict[str, Any]) -> None:
    """One true answer of each route that has something to say, against its own schema."""
    import jsonschema

    device, operator = make_device(world), bearing(world.token("anna"))
    asked = {
        "/v1/plan": operator, "/v1/status": operator, "/v1/flags": operator, "/v1/audit": operator,
        "/v1/observed": operator, "/v1/config": device, "/healthz": {}, "/readyz": {},
    }  # fmt: skip
    for path, headers in asked.items():
        schema = described["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        answer = world.browser().get(path, headers=headers)
        assert answer.status_code == 200, path
        whole = schema | {"components": described["components"]}
        jsonschema.Draft202012Validator(whole).validate(answer.json())
    sent = world.browser().post("/v1/exchange", content=report("A-1").to_bytes(), headers=device)
    schema = described["paths"]["/v1/exchange"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator(schema | {"components": described["components"]}).validate(sent.json())


def make_device(world: Inside) -> dict[str, str]:
    from reconciler.server.tokens import hash_token, make_token

    token = make_token()
    world.store.add_token("A-1", hash_token(token), NOW)
    return bearing(token)


def hold(operation: Any, browser: httpx.Client, headers: dict[str, str], checks: list[Any]) -> set[int]:
    """Ask a route in many ways, right and wrong, and hold each answer to the description; returns the statuses."""
    import requests
    from schemathesis import GenerationMode

    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])
    answered = set()

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def holds(case: Any) -> None:
        asked = requests.Request(**case.as_transport_kwargs(base_url=HERE)).prepare()
        # Who asks is not what is tried here.
        sent = {name: value for name, value in asked.headers.items() if name.lower() != "authorization"}
        body = asked.body.encode() if isinstance(asked.body, str) else asked.body
        answer = browser.request(str(asked.method), str(asked.url), headers=sent | headers, content=body)
        answered.add(answer.status_code)
        answer.elapsed = timedelta(0)  # Nothing was sent anywhere; it is asked for all the same.
        case.validate_response(answer, checks=checks)

    holds()
    return answered


@pytest.mark.slow
def test_the_api_keeps_to_its_description_whatever_it_is_sent(tmp_path: Path) -> None:
    """schemathesis makes requests from the description, right and wrong ones, and holds each answer to it."""
    with warnings.catch_warnings():
        # It brings clients for several frameworks, and they warn of each other's age.
        warnings.simplefilter("ignore")
        import schemathesis
        from schemathesis.checks import not_a_server_error
        from schemathesis.specs.openapi import checks

        held = [
            not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
            checks.response_headers_conformance,
        ]
        with filled(tmp_path) as world:
            browser, operator = world.browser(), bearing(world.token("anna"))
            device = make_device(world)
            document = browser.get("/v1/openapi.json", headers=operator).json()
            answered = {}
            for result in schemathesis.openapi.from_dict(document).get_all_operations():
                operation = result.ok()
                key = f"{operation.method.upper()} {operation.path}"
                headers = device if ROUTES[key] is Need.DEVICE else operator
                answered[key] = hold(operation, browser, headers, held)
    assert len(answered) >= 13
    for key, statuses in answered.items():
        assert not statuses & {401, 403, 500}, f"{key}: {statuses}"
        assert statuses & {200, 400, 404}, f"{key}: {statuses}"
