"""Connections that ask for nothing: they end, and do not use up what the service needs for others."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path

import pytest

from reconciler.server.connections import BoundedProtocol, Listener
from reconciler.server.run import Tls
from tests.server.service import report, running
from tests.support.processes import wait_until
from tests.support.webhooks import make_certificate

pytestmark = pytest.mark.slow


def _ended(peer: socket.socket, drip: bytes, most_s: float = 60.0) -> bool:
    """Whether the other end closes while `drip` is sent now and then."""
    ends = time.monotonic() + most_s
    peer.settimeout(0.05)
    while time.monotonic() < ends:
        try:
            if drip:
                peer.sendall(drip)
            if peer.recv(65536) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def _left(peers: list[socket.socket], expected: int) -> bool:
    """Whether the other end closes all but so many, and keeps these."""
    left, ends = list(peers), time.monotonic() + 60
    while len(left) > expected and time.monotonic() < ends:
        left = [peer for peer in left if not _ended(peer, b"", 0.05)]
    return sum(not _ended(peer, b"", 0.2) for peer in left) == expected


def _shakes_hands(port: int) -> bool:
    """Whether a new connection is taken, and speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 60) as peer, context.wrap_socket(peer):
        return True
    return False


@pytest.mark.parametrize(
    ("beginning", "drip"),
    [
        (b"", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Padding: ", b"a"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"G"),
        (b"POST /v1/exchange HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", b"a"),
    ],
    ids=["says nothing", "never ends its head", "drips after an answer", "sends a body that was refused"],
)
def test_a_connection_that_brings_no_request_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beginning: bytes, drip: bytes
) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_s", 0.3)
    with running(tmp_path) as service, socket.create_connection(("127.0.0.1", service.server.port)) as peer:
        # Where this process is held up in between, the time for the head is over by now.
        with suppress(OSError):
            peer.sendall(beginning)
        assert _ended(peer, drip)


def test_a_kept_connection_outlives_the_wait_for_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_s", 60.0)
    complete = BoundedProtocol.on_response_complete

    def answered(connection: BoundedProtocol) -> None:
        # From here on a clock that ran for the next head would be over soon.
        BoundedProtocol.head_s = 0.1
        complete(connection)

    monkeypatch.setattr(BoundedProtocol, "on_response_complete", answered)
    with running(tmp_path) as service, socket.create_connection(("127.0.0.1", service.server.port)) as peer:
        for turn in range(2):
            time.sleep(0.4 * turn)
            peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            peer.settimeout(60)
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                more = peer.recv(65536)
                assert more, f"closed after {answer!r}"
                answer += more
            assert answer.startswith(b"HTTP/1.1 200")


def test_beyond_the_most_a_new_connection_is_closed_and_the_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Listener, "most", 5)
    with running(tmp_path) as service:
        headers = service.enrol("SITE-2847-1")
        assert service.send(report(), headers).status_code == 200
        idle = [socket.create_connection(("127.0.0.1", service.server.port)) for _ in range(20)]
        # The kept connection of a device is still served.
        assert service.send(report(sequence=2), headers).status_code == 200
        assert _left(idle, 4)
        for peer in idle:
            with suppress(OSError):
                peer.close()


def test_under_tls_who_shakes_no_hand_is_counted_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Listener, "most", 5)
    with running(tmp_path, serving=Tls(*make_certificate(tmp_path))) as service:
        idle = [socket.create_connection(("127.0.0.1", service.server.port)) for _ in range(20)]
        assert _left(idle, 5)
        for peer in idle:
            with suppress(OSError):
                peer.close()
        # Their places become free again.
        wait_until(lambda: _shakes_hands(service.server.port))
    (tmp_path / "again").mkdir()
    monkeypatch.setattr(BoundedProtocol, "head_s", 0.3)
    with (
        running(tmp_path / "again", serving=Tls(*make_certificate(tmp_path))) as service,
        socket.create_connection(("127.0.0.1", service.server.port)) as peer,
    ):
        assert _ended(peer, b"")


def test_a_body_of_two_lengths_hides_no_other_request(tmp_path: Path) -> None:
    hidden = b"0\r\n\r\nGET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for lengths in (
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(hidden),
        b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n" % len(hidden),
    ):
        with running(tmp_path) as service, socket.create_connection(("127.0.0.1", service.server.port)) as peer:
            peer.settimeout(60)
            peer.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\n" + lengths + b"\r\n" + hidden)
            said = b""
            while more := peer.recv(65536):
                said += more
        assert said.startswith(b"HTTP/1.1 400") and said.count(b"HTTP/1.1") == 1, said


def test_requests_that_are_none_leave_no_line_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as service:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", service.server.port)) as peer:
                peer.sendall(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
                assert peer.recv(100).startswith(b"HTTP/1.1 400")
    assert "Invalid HTTP" not in "".join(capfd.readouterr()) + caplog.text
