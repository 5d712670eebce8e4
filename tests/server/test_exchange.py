"""Devices report and receive: over a real socket, into a real store."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from reconciler.controller.reports import Sources
from reconciler.model.observed import DeviceObservation, Health
from reconciler.model.plan import Facts
from reconciler.ports import Decision, TerminalError, TransientError
from reconciler.protocol.assignment import Assignment, ImageTarget
from reconciler.protocol.exchange import Answer, SiteConfig
from reconciler.protocol.report import Slot
from reconciler.server.options import Limits, Policy
from tests.server.service import DIGEST, NOW, OTHER, assign, report, running

DEVICE = "SITE-2847-1"


def test_a_report_is_on_record_when_it_is_answered(tmp_path: Path) -> None:
    woken = threading.Event()
    with running(tmp_path, reported=woken.set, policy=lambda: Policy(report_every_s=30)) as service:
        response = service.send(report(health="warning"), service.enrol(DEVICE))
        assert response.status_code == 200
        found = service.store.observation(DEVICE)
    assert found is not None and found[1:] == (f"boot-{DEVICE}", 1)
    assert (found[0].health, found[0].image, found[0].last_seen) == (Health.WARNING, "v1.4.1", NOW)
    answer = Answer.from_bytes(response.content)
    assert (answer.bundle, answer.report_every_s, answer.server_time) == (None, 30, NOW)
    assert woken.is_set()


def test_an_assignment_is_sent_until_the_device_has_accepted_it(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        token = service.enrol(DEVICE)
        first = Answer.from_bytes(service.send(report(), token).content)
        assigned = assign(service.store, DEVICE)
        second = Answer.from_bytes(service.send(report(sequence=2), token).content)
        third = Answer.from_bytes(service.send(report(sequence=3, serial=assigned.serial), token).content)
        newer = assign(service.store, DEVICE)
        fourth = Answer.from_bytes(service.send(report(sequence=4, serial=assigned.serial), token).content)
    assert first.bundle is None and third.bundle is None
    assert second.bundle is not None and fourth.bundle is not None
    assert Assignment.from_bytes(second.bundle.document) == assigned
    assert (second.bundle.count, second.bundle.index) == (1, 0)
    assert Assignment.from_bytes(fourth.bundle.document) == newer


def test_an_expired_assignment_is_not_sent(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        assign(service.store, DEVICE, valid_s=0)
        answer = Answer.from_bytes(service.send(report(), service.enrol(DEVICE)).content)
    assert answer.bundle is None


def test_sources_are_given_while_there_is_something_to_fetch(tmp_path: Path) -> None:
    image = ImageTarget("v1.4.2", OTHER, "edge-golden-v1.4.2-20251115")
    given = Sources({"image": ("https://images.example/x/",)}, registry_token="short-lived")

    with running(tmp_path, sources=lambda assignment: given if assignment.image else Sources()) as service:
        token = service.enrol(DEVICE)
        serial = assign(service.store, DEVICE, image=image).serial
        wanting = Answer.from_bytes(service.send(report(serial=serial), token).content)
        slots = {"a": Slot("v1.4.1", DIGEST, True), "b": Slot("v1.4.2", OTHER, True)}
        having = Answer.from_bytes(service.send(report(sequence=2, serial=serial, slots=slots), token).content)
    assert wanting.sources == {"image": ("https://images.example/x/",)}
    assert wanting.registry_token == "short-lived"
    assert (having.sources, having.registry_token) == ({}, None)


def test_a_report_is_taken_even_where_sources_cannot_be_had(tmp_path: Path) -> None:
    def down(_assignment: Assignment) -> Sources:
        raise TransientError("bucket unreachable")

    with running(tmp_path, sources=down) as service:
        assign(service.store, DEVICE, app=OTHER)
        response = service.send(report(), service.enrol(DEVICE))
        assert service.store.observation(DEVICE) is not None
    assert response.status_code == 200
    assert Answer.from_bytes(response.content).bundle is None


def test_late_and_doubled_reports_are_answered_and_change_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        token = service.enrol(DEVICE)
        service.send(report(sequence=5, health="critical"), token)
        for sequence in (5, 4):
            assert service.send(report(sequence=sequence, health="ok"), token).status_code == 200
        found = service.store.observation(DEVICE)
        metrics = service.client.get("/metrics").status_code
    assert found is not None and (found[0].health, found[2]) == (Health.CRITICAL, 5)
    assert metrics == 401


def test_a_device_reports_only_as_itself(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        response = service.send(report("SITE-2847-2"), service.enrol(DEVICE))
        assert service.store.observation("SITE-2847-2") is None
    assert response.status_code == 403
    assert set(response.json()) == {"error", "remedy"}


def test_no_valid_token_no_entry(tmp_path: Path) -> None:
    unknown = "Bearer edge_" + "A" * 43
    wrong = [None, "", "Bearer", "Bearer x", "Basic abc", unknown, unknown * 100]
    with running(tmp_path, limits=Limits(refused_per_address=(100.0, 100))) as service:
        for header in wrong:
            headers = {} if header is None else {"Authorization": header}
            responses = [
                service.client.post("/v1/exchange", content=report().to_bytes(), headers=headers),
                *(
                    service.client.get(path, headers=headers)
                    for path in ("/v1/config", "/v1/artifacts/a/b", "/v1/plan", "/v1/status", "/metrics")
                ),
            ]
            for response in responses:
                assert response.status_code == 401
                assert response.headers["www-authenticate"].startswith("Bearer")
                assert "token" in response.json()["error"]
        assert service.store.snapshot().devices == ()


def test_a_revoked_token_opens_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        token = service.enrol(DEVICE)
        assert service.send(report(), token).status_code == 200
        service.store.revoke_token(DEVICE)
        assert service.send(report(sequence=2), token).status_code == 401


def test_what_is_no_report_is_refused_by_name(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        headers = service.enrol(DEVICE)
        for body, word in ((b"", "report"), (b"{", "report"), (b"[]", "report"), (b'{"protocol": 2}', "protocol")):
            response = service.client.post("/v1/exchange", content=body, headers=headers)
            assert response.status_code == 400
            assert word in response.json()["error"]


def test_a_body_that_is_too_long_is_refused_while_it_is_read(tmp_path: Path) -> None:
    sent = 0

    def endless() -> object:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 65536

    with running(tmp_path) as service:
        headers = service.enrol(DEVICE)
        declared = service.client.post("/v1/exchange", content=b"x" * (256 * 1024 + 1), headers=headers)
        assert declared.status_code == 413
        try:
            status = service.client.post("/v1/exchange", content=endless(), headers=headers).status_code  # type: ignore[arg-type]
        except (httpx.WriteError, httpx.RemoteProtocolError):
            status = 413  # The server closed the connection while the client was still sending.
        assert status == 413
        assert service.client.get("/healthz").status_code == 200
    assert sent < 1000


def test_a_body_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(body_timeout_s=0.2)) as service:
        token = service.enrol(DEVICE)["Authorization"]
        with socket.create_connection(("127.0.0.1", service.server.port), 60) as peer:
            head = f"POST /v1/exchange HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: 2\r\n\r\n"
            peer.sendall(head.encode() + b"{")
            assert peer.recv(100).startswith(b"HTTP/1.1 408")


def test_an_encoded_body_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        headers = service.enrol(DEVICE) | {"Content-Encoding": "gzip"}
        assert service.client.post("/v1/exchange", content=b"x", headers=headers).status_code == 415


def test_a_device_that_asks_too_often_waits_and_others_do_not(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(per_device=(0.01, 3))) as service:
        eager, calm = service.enrol("A-1"), service.enrol("B-1")
        statuses = [service.send(report("A-1", n), eager) for n in range(1, 6)]
        assert [response.status_code for response in statuses] == [200, 200, 200, 429, 429]
        assert 1 <= int(statuses[-1].headers["retry-after"]) <= 100
        assert service.send(report("B-1"), calm).status_code == 200


def test_an_address_that_guesses_tokens_is_shut_out(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(refused_per_address=(0.01, 3))) as service:
        token = service.enrol(DEVICE)
        wrong = {"Authorization": "Bearer edge_" + "A" * 43}
        statuses = [service.client.get("/v1/config", headers=wrong).status_code for _ in range(5)]
        assert statuses == [401, 401, 401, 429, 429]
        # The right one does not help any more: otherwise guessing would go on at full speed until it is found.
        assert service.send(report(), token).status_code == 429


def test_a_stranger_behind_the_same_address_does_not_silence_the_devices(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(refused_per_address=(0.01, 3))) as service:
        token = service.enrol(DEVICE)
        assert service.send(report(), token).status_code == 200
        wrong = {"Authorization": "Bearer edge_" + "A" * 43}
        assert [service.client.get("/v1/config", headers=wrong).status_code for _ in range(5)][-1] == 429
        assert service.send(report(sequence=2), token).status_code == 200
        # Recognised is not let in: a token that was revoked meanwhile is looked up, and refused.
        service.store.revoke_token(DEVICE)
        assert service.send(report(sequence=3), token).status_code == 401


def test_an_address_has_a_limit_too(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(per_address=(0.01, 2))) as service:
        first, second, third = (service.enrol(name) for name in ("A-1", "B-1", "C-1"))
        assert service.send(report("A-1"), first).status_code == 200
        assert service.send(report("B-1"), second).status_code == 200
        assert service.send(report("C-1"), third).status_code == 429


@pytest.mark.slow
def test_reports_of_many_devices_share_transactions_and_none_is_lost(tmp_path: Path) -> None:
    with running(tmp_path, local=True) as service:
        names = [f"SITE-{number:04d}-1" for number in range(40)]
        tokens = {name: service.enrol(name) for name in names}

        def run(name: str) -> list[int]:
            return [service.send(report(name, sequence), tokens[name]).status_code for sequence in (1, 2, 3)]

        with ThreadPoolExecutor(16) as pool:
            statuses = [status for found in pool.map(run, names) for status in found]
        observations = service.store.observed(names)
        metrics = service.client.get("/metrics").text
    assert set(statuses) == {200}
    assert {name: row[2] for name, row in observations.items()} == dict.fromkeys(names, 3)
    assert 'reconciler_reports_total{outcome="taken"} 120.0' in metrics
    batches = float(metrics.split("reconciler_report_batch_size_count ")[1].split()[0])
    assert batches < 120, "concurrent reports should share a transaction"


def test_marks_of_a_tick_survive_the_reports_that_race_with_it(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        token = service.enrol(DEVICE)
        service.send(report(), token)
        epoch = service.store.begin_epoch()
        mark = DeviceObservation(name=DEVICE, updating_to="v1.4.2", updating_since=NOW)
        service.store.record(epoch, Decision(NOW, None, Facts(), observations=(mark,)))
        service.send(report(sequence=2, health="warning"), token)
        found = service.store.observation(DEVICE)
    assert found is not None
    assert (found[0].updating_to, found[0].health) == ("v1.4.2", Health.WARNING)


def test_the_config_is_the_devices_own_and_is_not_kept_by_anybody(tmp_path: Path) -> None:
    def config(device: str) -> SiteConfig | None:
        if device == "LOST-1":
            return None
        if device == "BROKEN-1":
            raise TerminalError("no such secret sites/hunter2")
        return SiteConfig(DIGEST, {"user-data": b"#cloud-config\n", "meta-data": f"host: {device}\n".encode()})

    with running(tmp_path, config=config) as service:
        mine = service.client.get("/v1/config", headers=service.enrol(DEVICE))
        lost = service.client.get("/v1/config", headers=service.enrol("LOST-1"))
        broken = service.client.get("/v1/config", headers=service.enrol("BROKEN-1"))
    assert SiteConfig.from_bytes(mine.content).files["meta-data"] == b"host: SITE-2847-1\n"
    assert mine.headers["cache-control"] == "no-store"
    assert lost.status_code == 404
    assert broken.status_code == 500 and "hunter2" not in broken.text


def test_the_receipt_is_stamped_by_the_server(tmp_path: Path) -> None:
    later = NOW + timedelta(hours=1)
    with running(tmp_path, now=lambda: later) as service:
        service.send(report(), service.enrol(DEVICE))
        found = service.store.observation(DEVICE)
    assert found is not None and found[0].last_seen == later
