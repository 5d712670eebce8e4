"""What operators and monitors read, what devices fetch, and what everybody is told when something is wrong."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from pathlib import Path

import pytest

from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.model.access import Scope
from reconciler.ports import TerminalError, TransientError
from reconciler.protocol.report import DeviceClock
from reconciler.server.answers import Refusal
from reconciler.server.options import Limits
from reconciler.server.tokens import FileToken, hash_token, make_token
from tests.server.service import NOW, Service, report, running

PLAN = {
    "apiVersion": "fleet/v1",
    "kind": "Plan",
    "at": "2026-01-15T01:30:00Z",
    "waves": [{"name": "canary", "devices": 4, "onRelease": 2, "healthy": 2, "failed": 1, "offline": 0, "inFlight": 1}],
    "holds": [{"reason": "soaking", "wave": "tenth"}, {"reason": "soaking", "wave": "half"}],
    "flagged": [],
    "nextChangeAt": None,
}


def operator() -> tuple[dict[str, str], tuple[FileToken, ...]]:
    token = make_token()
    of_all = FileToken(hash_token(token), frozenset({Scope.ALL}), "anna")
    return {"Authorization": f"Bearer {token}"}, (of_all,)


def save_plan(service: Service) -> None:
    service.store.save_plan(service.store.begin_epoch(), json.dumps(PLAN))


def test_operators_read_plan_and_status_and_devices_do_not(tmp_path: Path) -> None:
    headers, hashes = operator()
    with running(tmp_path, operators=lambda: hashes) as service:
        assert service.client.get("/v1/plan", headers=headers).status_code == 404
        save_plan(service)
        assert service.client.get("/v1/plan", headers=headers).json() == PLAN
        status = service.client.get("/v1/status", headers=headers).json()
        assert (status["kind"], status["planAt"], len(status["holds"])) == ("Status", "2026-01-15T01:30:00Z", 2)
        device = service.enrol("A-1")
        assert service.client.get("/v1/plan", headers=device).status_code == 401
        # Nor is an operator a device.
        assert service.send(report("A-1"), headers).status_code == 401


def test_metrics_tell_of_clocks_without_naming_a_device(tmp_path: Path) -> None:
    with running(tmp_path, local=True) as service:
        token, now = service.enrol("A-1"), NOW
        wrong = DeviceClock(now - timedelta(minutes=5), synchronised=False)
        service.send(report("A-1", clock=wrong), token)
        service.send(report("A-1", 2, clock=DeviceClock(now, synchronised=True)), token)
        text = service.client.get("/metrics").text
        seen = service.store.observed(["A-1"])["A-1"][0]
    assert 'reconciler_device_clock_skew_seconds_bucket{le="0.5"} 1.0' in text
    assert 'reconciler_device_clock_skew_seconds_bucket{le="600.0"} 2.0' in text
    assert "reconciler_reports_unsynchronised_total 1.0" in text
    assert "A-1" not in text
    assert seen.clock is None, "the last report's was right"


def test_metrics_count_what_was_asked_and_name_no_device(tmp_path: Path) -> None:
    with running(tmp_path, local=True) as service:
        service.send(report("SITE-2847-1"), service.enrol("SITE-2847-1"))
        service.client.get("/v1/artifacts/SITE-2847-1/x")
        service.client.get("/nowhere/SITE-2847-1")
        service.client.request("SITE", "/healthz")
        response = service.client.get("/metrics")
    text = response.text
    assert response.headers["content-type"].startswith("text/plain")
    assert 'reconciler_store_seconds_count{operation="reports"} 1.0' in text
    assert 'reconciler_reports_total{outcome="taken"} 1.0' in text
    assert "reconciler_store_up 1.0" in text
    route = 'method="GET",route="/v1/artifacts/{folder}/{file}",status="401"'
    assert f"reconciler_http_requests_total{{{route}}} 1.0" in text
    assert 'method="other"' in text
    assert "SITE" not in text


def test_metrics_of_two_services_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with running(tmp_path / "a", local=True) as one, running(tmp_path / "b", local=True) as two:
        one.send(report("A-1"), one.enrol("A-1"))
        assert 'reconciler_reports_total{outcome="taken"} 0.0' in two.client.get("/metrics").text


def test_health_is_the_process_and_readiness_is_what_it_needs(tmp_path: Path) -> None:
    waits = ["no commit is in force yet"]
    with running(tmp_path, not_ready=lambda: tuple(waits)) as service:
        assert service.client.get("/healthz").json() == {"status": "ok"}
        response = service.client.get("/readyz")
        assert (response.status_code, response.json()["waitsFor"]) == (503, waits)
        waits.clear()
        assert service.client.get("/readyz").status_code == 200
        service.store.engine.dispose()
        (tmp_path / "store.db").write_bytes(b"not a database at all" * 100)
        assert service.client.get("/healthz").status_code == 200
        assert service.client.get("/readyz").json()["waitsFor"] == ["the store does not answer"]


def test_what_needs_no_token_has_a_limit_too(tmp_path: Path) -> None:
    with running(tmp_path, local=True, limits=Limits(per_address=(0.01, 3))) as service:
        paths = ("/readyz", "/metrics", "/readyz", "/readyz", "/metrics")
        assert [service.client.get(path).status_code for path in paths] == [200, 200, 200, 429, 429]
        assert service.client.get("/healthz").status_code == 200


def artifacts(folder: Path) -> DirectoryImageStore:
    store = DirectoryImageStore(folder)
    (folder / "edge-golden-v1.4.2-20251115").mkdir()
    (folder / "edge-golden-v1.4.2-20251115" / "image.raw").write_bytes(bytes(range(256)) * 40)
    (folder / "secret").write_bytes(b"outside")
    return store


def test_artifacts_are_served_whole_and_in_ranges(tmp_path: Path) -> None:
    images = artifacts(tmp_path / "images")
    path = "/v1/artifacts/edge-golden-v1.4.2-20251115/image.raw"
    with running(tmp_path, artifact=images.path) as service:
        token = service.enrol("A-1")
        whole = service.client.get(path, headers=token)
        assert whole.content == bytes(range(256)) * 40
        head = service.client.head(path, headers=token)
        assert (head.headers["content-length"], head.headers["accept-ranges"]) == ("10240", "bytes")
        part = service.client.get(path, headers=token | {"Range": "bytes=10000-"})
        assert (part.status_code, part.content) == (206, whole.content[10000:])
        assert part.headers["content-range"] == "bytes 10000-10239/10240"
        middle = service.client.get(path, headers=token | {"Range": "bytes=5-6"})
        assert (middle.status_code, middle.content) == (206, b"\x05\x06")
        beyond = service.client.get(path, headers=token | {"Range": "bytes=99999-"})
        assert beyond.status_code == 416
        assert service.client.get(path).status_code == 401


def test_no_path_leads_out_of_the_artifacts(tmp_path: Path) -> None:
    images = artifacts(tmp_path / "images")
    with running(tmp_path, artifact=images.path) as service:
        token = service.enrol("A-1")
        for path in (
            "/v1/artifacts/../secret",
            "/v1/artifacts/%2e%2e/secret",
            "/v1/artifacts/edge-golden-v1.4.2-20251115/..%2fsecret",
            "/v1/artifacts/edge-golden-v1.4.2-20251115/%2e%2e%2fsecret",
            "/v1/artifacts/./secret",
            "/v1/artifacts/edge-golden-v1.4.2-20251115/image.raw%00",
            "/v1/artifacts/edge-golden-v1.4.2-20251115/absent",
            "/v1/artifacts/edge-golden-v1.4.2-20251115/",
            "/v1/artifacts//etc/passwd",
        ):
            response = service.client.get(path, headers=token)
            assert response.status_code == 404, path
            assert set(response.json()) == {"error", "remedy"}


def test_without_a_directory_store_there_are_no_artifacts(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        assert service.client.get("/v1/artifacts/a/b", headers=service.enrol("A-1")).status_code == 404


def test_every_answer_carries_the_headers_and_errors_are_json(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        answers = {
            200: service.client.get("/healthz"),
            404: service.client.get("/docs"),
            405: service.client.put("/healthz"),
            401: service.client.get("/v1/config"),
        }
    for status, response in answers.items():
        assert response.status_code == status
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert "frame-ancestors" in response.headers["content-security-policy"]
        assert "server" not in response.headers
        if status >= 400:
            assert set(response.json()) == {"error", "remedy"}


def test_nothing_of_the_inside_is_answered_or_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(device: str) -> None:
        raise RuntimeError("hunter2")

    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage() + str(record.exc_info))  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        with running(tmp_path, config=broken) as service:
            token = service.enrol("A-1")
            response = service.client.get("/v1/config?password=hunter3", headers=token)
            assert service.client.get("/healthz").status_code == 200
    finally:
        logging.getLogger().removeHandler(handler)
    assert response.status_code == 500
    assert set(response.json()) == {"error", "remedy"}
    shown = response.text + "".join(logged) + "".join(capsys.readouterr())
    for secret in ("hunter2", "hunter3", token["Authorization"].partition(" ")[2], "Traceback"):
        assert secret not in shown
    assert "RuntimeError" in shown


def test_a_store_that_is_busy_is_a_503_with_a_wait(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        token = service.enrol("A-1")

        def busy(*_: object, **__: object) -> None:
            raise TransientError("database is locked", retry_after_s=3)

        service.store.observe = busy  # type: ignore[method-assign, assignment]
        response = service.send(report("A-1"), token)
        assert (response.status_code, response.headers["retry-after"]) == (503, "3")
        assert "locked" not in response.text
        del service.store.observe
        assert service.send(report("A-1"), token).status_code == 200


def test_an_unreadable_list_of_operators_lets_nobody_in(tmp_path: Path) -> None:
    def unreadable() -> tuple[FileToken, ...]:
        raise TerminalError("cannot read operators")

    headers, _ = operator()
    with running(tmp_path, operators=unreadable) as service:
        assert service.client.get("/v1/plan", headers=headers).status_code == 500


def test_a_refusal_says_what_and_what_to_do() -> None:
    answer = Refusal(429, "too many requests", "wait", retry_after_s=2).answer()
    assert json.loads(bytes(answer.body)) == {"error": "too many requests", "remedy": "wait"}
    assert answer.headers["retry-after"] == "2"
    assert NOW.tzinfo is not None
