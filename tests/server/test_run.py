"""Starting and stopping: what the service will not listen on, TLS, and a clean end."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from reconciler.adapters.sql import open_store
from reconciler.model.access import Scope
from reconciler.ports import TerminalError
from reconciler.server.app import create_app
from reconciler.server.options import Options
from reconciler.server.run import HttpServer, Tls, is_loopback
from reconciler.server.tokens import FileToken, bearer, find, hash_token, make_token, read_operators, write_token
from tests.server.service import NOW
from tests.support.webhooks import make_certificate


def certificate(folder: Path) -> Tls:
    """A self-signed certificate for 127.0.0.1."""
    return Tls(*make_certificate(folder))


async def app(scope: AsgiScope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await PlainTextResponse("served")(scope, receive, send)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "edge.example", ""])
def test_without_tls_only_loopback_is_listened_on(host: str) -> None:
    with pytest.raises(TerminalError, match=r"without TLS.*bind 127\.0\.0\.1"):
        HttpServer(app, host, 0)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_what_loopback_is(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_with_tls_the_service_speaks_tls_and_says_so(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    store = open_store(tmp_path / "store.db")
    trusting = ssl.create_default_context(cafile=str(tls.certificate))
    given = create_app(Options(store=store, now=lambda: NOW, access=store.access, tls=True))
    with HttpServer(given, "127.0.0.1", 0, tls) as server:
        assert server.address.startswith("https://127.0.0.1:")
        response = httpx.get(f"{server.address}/healthz", verify=trusting, trust_env=False)
    assert response.status_code == 200
    assert "max-age" in response.headers["strict-transport-security"]
    store.close()


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    tls.key.chmod(0o644)
    with pytest.raises(TerminalError, match=r"may be read by others \(mode 0644\).*chmod 600"):
        HttpServer(app, "0.0.0.0", 0, tls)


def test_certificates_that_are_absent_or_none_are_named(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    with pytest.raises(TerminalError, match="cannot read"):
        HttpServer(app, "0.0.0.0", 0, Tls(tmp_path / "absent.pem", tls.key))
    tls.certificate.write_text("no certificate")
    with pytest.raises(TerminalError, match="cannot be used"):
        HttpServer(app, "0.0.0.0", 0, tls)


def test_a_port_in_use_is_an_error_with_a_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(TerminalError, match=r"Address already in use.*server\.bind"):
            HttpServer(app, "127.0.0.1", taken.getsockname()[1]).start()


def test_a_service_that_fails_to_start_says_so() -> None:
    async def failing(scope: AsgiScope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with pytest.raises(TerminalError, match="did not start"):
        HttpServer(failing, "127.0.0.1", 0).start()


def test_stopping_answers_what_is_being_served_and_leaves_no_thread() -> None:
    entered, go_on = threading.Event(), threading.Event()

    async def slow(scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            import asyncio

            entered.set()
            await asyncio.to_thread(go_on.wait, 60)
        await app(scope, receive, send)

    server = HttpServer(slow, "127.0.0.1", 0)
    server.start()
    got: list[str] = []
    address = server.address
    client = threading.Thread(target=lambda: got.append(httpx.get(address, trust_env=False, timeout=60).text))
    client.start()
    assert entered.wait(60)
    threading.Timer(0.2, go_on.set).start()
    server.stop()
    server.stop()
    client.join(60)
    assert got == ["served"]
    assert not [thread for thread in threading.enumerate() if thread.name == "http"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, trust_env=False)


def test_a_token_is_random_and_recognised_in_a_header() -> None:
    first, second = make_token(), make_token()
    assert first != second and len(first) == 48
    assert bearer(f"Bearer {first}") == bearer(f"bearer  {first} ") == first
    assert [bearer(text) for text in (None, "", first, f"Basic {first}", f"Bearer {first}x")] == [None] * 5


def test_a_file_of_operators_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "operators"
    token = make_token()
    path.write_text(f"# who may read\n\n{hash_token(token)}  # alice\n")
    assert read_operators(path) == (FileToken(hash_token(token), frozenset({Scope.ALL}), "alice"),)
    path.write_text(f"{hash_token(token)}\n{token}\n")
    with pytest.raises(TerminalError, match=r"operators:2:1: is not the sha256") as caught:
        read_operators(path)
    assert token not in str(caught.value)
    with pytest.raises(TerminalError, match="No such file"):
        read_operators(tmp_path / "absent")


def test_a_scope_stands_after_the_hash_and_none_is_all(tmp_path: Path) -> None:
    path = tmp_path / "operators"
    old, whole, narrow, two = (hash_token(make_token()) for _ in range(4))
    text = f"{old}\n{whole} all # alice, 2026\n{narrow}  read  # the pull requests' checks\n{two} read,metrics #!\n"
    path.write_text(text)
    assert read_operators(path) == (
        FileToken(old, frozenset({Scope.ALL}), "line-1"),
        FileToken(whole, frozenset({Scope.ALL}), "alice"),
        FileToken(narrow, frozenset({Scope.READ}), "line-3"),
        FileToken(two, frozenset({Scope.READ, Scope.METRICS}), "line-4"),
    )
    assert find(narrow, read_operators(path)) == FileToken(narrow, frozenset({Scope.READ}), "line-3")
    assert find(hash_token("other"), read_operators(path)) is None
    for word in ("reed", "read all", "READ", "read,", "read,reed"):
        path.write_text(f"{old}\n{narrow} {word}\n")
        with pytest.raises(TerminalError, match=r"operators:2:66: is not a scope.*read, metrics, acknowledge, all"):
            read_operators(path)


def test_a_tokens_file_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    write_token(tmp_path / "A-1.token", "edge_x")
    assert (tmp_path / "A-1.token").stat().st_mode & 0o777 == 0o600
    with pytest.raises(TerminalError, match="File exists"):
        write_token(tmp_path / "A-1.token", "edge_y")
    assert (tmp_path / "A-1.token").read_text() == "edge_x\n"
