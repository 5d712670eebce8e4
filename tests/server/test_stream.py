"""The stream of what happens: everybody is told, nobody is told twice, and who does not listen is let go."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from reconciler.adapters.sql import SqlStore
from reconciler.model.access import OperatorToken, Scope
from reconciler.model.events import MOST_MESSAGE, Event, EventKind
from reconciler.server import stream as module
from reconciler.server.connections import BoundedProtocol
from reconciler.server.options import Limits
from reconciler.server.tokens import hash_token, make_token
from tests.controller.staging import Stage, observed
from tests.server.service import NOW, Service, running
from tests.support.processes import wait_until


@dataclass
class Told:
    """One message of a stream."""

    kind: str
    id: str | None
    data: Any


class Listener:
    """Reads a stream in a thread."""

    def __init__(self, service: Service, headers: dict[str, str], path: str = "/v1/events/stream") -> None:
        self.told: list[Told] = []
        self.comments = 0
        self.status, self.retry = 0, ""
        self._service, self._headers, self._path = service, headers, path
        self._stopped = False
        self._opened, self._changed = threading.Event(), threading.Condition()
        self.ended = threading.Event()
        self._client = httpx.Client(base_url=service.server.address, timeout=60, trust_env=False)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._opened.wait(60)

    def _read(self) -> None:
        try:
            with self._client.stream("GET", self._path, headers=self._headers) as answer:
                self.status = answer.status_code
                self.type = answer.headers.get("content-type", "")
                fields: dict[str, str] = {}
                for line in answer.iter_lines():
                    if line.startswith(":"):
                        self.comments += 1
                    elif line:
                        name, _, value = line.partition(": ")
                        fields[name] = value
                    elif fields:
                        self._take(fields)
                        fields = {}
                    self._opened.set()
                    if self._stopped:
                        return
        except httpx.HTTPError:
            pass
        finally:
            self._client.close()
            self._opened.set()
            self.ended.set()
            with self._changed:
                self._changed.notify_all()

    def _take(self, fields: dict[str, str]) -> None:
        self.retry = fields.get("retry", self.retry)
        if "event" in fields:
            with self._changed:
                self.told.append(Told(fields["event"], fields.get("id"), json.loads(fields["data"])))
                self._changed.notify_all()

    def wait(self, kind: str, count: int = 1, within_s: float = 60.0) -> list[Told]:
        """Messages of a kind, once there are so many."""
        with self._changed:
            enough = lambda: len([told for told in self.told if told.kind == kind]) >= count  # noqa: E731
            assert self._changed.wait_for(enough, within_s), self.told
            return [told for told in self.told if told.kind == kind]

    def close(self) -> None:
        """Go away at the next line; a client cannot be closed under its reader."""
        self._stopped = True


class Scene:
    """A service with boards, and a reader's token."""

    def __init__(self, service: Service, stage: Stage) -> None:
        self.service, self.store, self.stage = service, service.store, stage
        token = make_token()
        self.store.access.add_operator(
            hash_token(token), OperatorToken("r", frozenset({Scope.READ, Scope.METRICS}), NOW, None)
        )
        self.headers = {"Authorization": f"Bearer {token}"}
        self.token_hash = hash_token(token)
        self.number = 0
        self.listeners: list[Listener] = []

    def listen(self, last: int | None = None, **headers: str) -> Listener:
        more = {} if last is None else {"Last-Event-ID": str(last)}
        self.listeners.append(Listener(self.service, self.headers | more | headers))
        return self.listeners[-1]

    def happens(self, count: int = 1, message: str = "failed") -> None:
        self.number += count
        numbers = range(self.number - count, self.number)
        flags = [Event(None, NOW, EventKind.DEVICE_FLAGGED, f"k{n}", device="S0-1", message=message) for n in numbers]
        self.store.add_events(None, flags)

    def until_listen(self, count: int, within_s: float = 60.0) -> None:
        """Wait until the service counts so many listeners."""
        name, until = "reconciler_event_stream_clients", time.monotonic() + within_s
        while True:
            shown = httpx.get(f"{self.service.server.address}/metrics", headers=self.headers, trust_env=False).text
            found = [line for line in shown.splitlines() if line.startswith(name)]
            if found == [f"{name} {count}.0"]:
                return
            assert time.monotonic() < until, (found, shown[:200])
            time.sleep(0.05)


@contextmanager
def scene(tmp_path: Path, **limits: Any) -> Iterator[Scene]:
    """The service, and a stage on its own connection to the same store."""
    from reconciler.adapters.sql import open_store

    other = open_store(tmp_path / "store.db")
    stage = Stage(store=other)
    easy = replace(Limits(), per_device=(1e6, 10**6), **limits)
    with running(tmp_path, boards=stage.boards, limits=easy) as service:
        made = Scene(service, stage)
        try:
            yield made
        finally:
            stage.boards.close()
            for listener in made.listeners:
                listener.close()
                assert listener.ended.wait(60)
    other.close()


def test_what_happens_is_told_once_to_everybody(tmp_path: Path) -> None:
    with scene(tmp_path) as on:
        on.stage.tick(*on.stage.everybody())
        first, second = on.listen(), on.listen()
        assert (first.status, first.type) == (200, "text/event-stream; charset=utf-8")
        (board,) = first.wait("board")
        assert board.data["generation"] == 1 and board.data["states"]["failed"] == 0 and board.id is None
        on.happens(2)
        for listener in (first, second):
            told = listener.wait("device-flagged", 2)
            assert [one.id for one in told] == ["1", "2"] and told[0].data["device"] == "S0-1"
        assert first.retry == "2000"
        on.stage.tick(observed("S3-1", health="warning"))
        assert first.wait("board", 2)[-1].data["generation"] == 2


def test_a_report_that_turns_critical_is_on_the_stream_with_the_loops_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody comes to look by themselves.
    monkeypatch.setattr(module, "LOOK_S", 250.0)
    monkeypatch.setattr(module, "HEARTBEAT_S", 250.0)
    with scene(tmp_path) as on:
        on.stage.tick(*on.stage.everybody())
        listener = on.listen()
        listener.wait("board")
        on.stage.tick(observed("S0-1", "v1.4.2", health="critical", health_since=NOW))
        assert listener.wait("board", 2)[-1].data["states"]["critical"] == 1


def test_who_comes_again_is_told_what_they_missed(tmp_path: Path) -> None:
    with scene(tmp_path) as on:
        on.happens(3)
        again = on.listen(last=1)
        assert [told.id for told in again.wait("device-flagged", 2)] == ["2", "3"]
        on.happens()
        assert [told.id for told in again.wait("device-flagged", 3)] == ["2", "3", "4"]
        fresh = on.listen()
        on.happens()
        assert [told.id for told in fresh.wait("device-flagged")] == ["5"]


def test_who_missed_too_much_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_MISSED", 3)
    with scene(tmp_path) as on:
        on.happens(5)
        listener = on.listen(last=1)
        (reset,) = listener.wait("reset")
        assert reset.id == "5" and not [told for told in listener.told if told.kind == "device-flagged"]


def test_a_burst_is_told_whole_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 7)
    with scene(tmp_path) as on:
        listener = on.listen()
        on.happens(50)
        assert [told.id for told in listener.wait("device-flagged", 50)] == [str(n) for n in range(1, 51)]


def test_silence_is_broken_by_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    with scene(tmp_path) as on:
        listener = on.listen()
        wait_until(lambda: listener.comments >= 2)


def test_only_so_many_may_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    with scene(tmp_path, stream_clients=4) as on:
        first, _ = on.listen(), on.listen()
        # One token has half of the places.
        assert on.service.client.get("/v1/events/stream", headers=on.headers).status_code == 429
        mine, token = on.headers, make_token()
        on.store.access.add_operator(hash_token(token), OperatorToken("s", frozenset({Scope.READ}), NOW, None))
        on.headers = {"Authorization": f"Bearer {token}"}
        assert [on.listen().status, on.listen().status] == [200, 200]
        on.headers = mine
        refused = on.service.client.get("/v1/events/stream", headers=on.headers)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "30"
        first.close()
        # The place of one that has gone is free again.
        wait_until(lambda: on.listen().status == 200)


def test_a_client_whose_token_is_revoked_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STILL_S", 0.0)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    with scene(tmp_path) as on:
        listener = on.listen()
        assert not listener.ended.wait(0.3)
        on.store.access.revoke_operator("r", NOW)
        assert listener.ended.wait(60)


@pytest.mark.slow
def test_a_client_that_does_not_read_is_let_go_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports: list[int] = []
    # The one who reads gets all the time that it needs.
    patience_s = property(lambda connection: 0.5 if connection.client[1] in ports else 250.0)
    monkeypatch.setattr(BoundedProtocol, "take_s", patience_s)
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    # What the kernel may hold for the one who does not read: what it gives a sender at most, and what the test gives the reader.
    held = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2]) + 2 * 65_536
    with scene(tmp_path) as on, raw(on) as reader, raw(on, receive_bytes=65_536) as deaf:
        sent = 0
        ports.append(deaf.getsockname()[1])
        while sent < held + (1 << 20):
            on.happens(50, "é" * MOST_MESSAGE)
            told = b""
            while told.count(b"event: device-flagged") < 50 or not told.endswith(b"\n\n\r\n"):
                piece = reader.recv(1 << 20)
                assert piece, "the one who reads was let go"
                told += piece
            sent += len(told)
        on.until_listen(1)
        with suppress(ConnectionResetError):
            while deaf.recv(1 << 20):
                pass


@contextmanager
def raw(on: Scene, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    """A stream on a plain socket, after its head; with a receive buffer of its own size if given."""
    with socket.socket() as peer:
        if receive_bytes is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        peer.settimeout(60)
        peer.connect(("127.0.0.1", on.service.server.port))
        token = on.headers["Authorization"]
        peer.sendall(f"GET /v1/events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode())
        assert b"200" in peer.recv(200)
        yield peer


def test_a_client_for_whom_too_much_waits_is_let_go() -> None:
    client = module._Client()
    for _ in range(module.BACKLOG):
        assert client.give(b"x" * 10)
    assert client.give(b"one more") is False
    assert (client.pieces.qsize(), client.pieces.get_nowait()) == (1, b""), (
        "what waited is dropped, and it is told to end"
    )


def test_the_end_of_the_loop_ends_the_stream(tmp_path: Path) -> None:
    with scene(tmp_path) as on:
        listener = on.listen()
        on.stage.boards.close()
        assert listener.ended.wait(60)
        assert on.service.client.get("/v1/events/stream", headers=on.headers).status_code == 503


def test_a_store_that_is_busy_delays_what_is_told_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reconciler.ports import TransientError

    with scene(tmp_path) as on:
        listener = on.listen()
        whole = SqlStore.events
        failed: list[int] = []

        def busy(self: SqlStore, **asked: Any) -> Any:
            if len(failed) < 2:
                failed.append(1)
                raise TransientError("the store is busy")
            return whole(self, **asked)

        monkeypatch.setattr(SqlStore, "events", busy)
        on.happens(2)
        assert [told.id for told in listener.wait("device-flagged", 2)] == ["1", "2"]
        assert len(failed) == 2


def test_pages_listen_without_a_login_where_they_are_read_without_one(tmp_path: Path) -> None:
    from reconciler.adapters.sql import open_store

    other = open_store(tmp_path / "store.db")
    stage = Stage(store=other)
    with running(tmp_path, boards=stage.boards, local=True) as service:
        listener = Listener(service, {}, "/events/stream")
        assert listener.status == 200
        assert service.client.get("/v1/events/stream").status_code == 401
        stage.boards.close()
        assert listener.ended.wait(60)
        listener.close()
    other.close()
