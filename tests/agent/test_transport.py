"""HTTP that misbehaves: redirects, endless bodies, broken connections, other people's certificates."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reconciler.agent.transport import HttpTransport, NotFound, Server, TransportError
from reconciler.protocol.assignment import AppTarget
from tests.agent.conftest import Releases
from tests.agent.world import QUICK, START, TOKEN, Keys, Office, Site, office_at, send
from tests.support.system import need

pytestmark = pytest.mark.system


def _transport(office: Office, **options: object) -> HttpTransport:
    return HttpTransport(Server(office.url, TOKEN, timeout_s=60, **options))  # type: ignore[arg-type]


def test_a_connection_is_kept_and_renewed_when_the_other_end_has_closed_it(office: Office) -> None:
    (office.root / "artifacts" / "f").write_bytes(b"x" * 10)
    peers: list[object] = []

    def note(request: BaseHTTPRequestHandler) -> bool:
        peers.append(request.client_address)
        request.close_connection = len(peers) == 2
        return False

    office.before = note
    transport = _transport(office)
    for _ in range(4):
        assert transport.read(f"{office.url}/v1/artifacts/f", 10) == b"x" * 10
    assert len(set(peers)) == 2
    transport.close()


def test_one_byte_more_than_allowed(office: Office) -> None:
    (office.root / "artifacts" / "f").write_bytes(b"x" * 11)
    transport = _transport(office)
    with pytest.raises(TransportError, match="announces 11 bytes"):
        transport.read(f"{office.url}/v1/artifacts/f", 10)
    transport.close()


def test_a_body_without_an_end_is_cut_at_the_limit(office: Office) -> None:
    sent = []

    def endless(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(200)
        request.end_headers()
        request.close_connection = True
        try:
            while True:
                request.wfile.write(b"x" * 65536)
                sent.append(1)
        except OSError:
            return True

    office.before = endless
    transport = _transport(office)
    with pytest.raises(TransportError, match="more than 100000 bytes"):
        transport.read(f"{office.url}/x", 100_000)
    transport.close()
    assert len(sent) < 1000


def test_a_body_that_ends_early(office: Office) -> None:
    def short(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        request.wfile.write(b"x" * 10)
        request.close_connection = True
        return True

    office.before = short
    transport = _transport(office)
    with pytest.raises(TransportError, match=r"broke off|ended after"):
        transport.read(f"{office.url}/x", 1000)
    transport.close()


def test_a_server_that_says_nothing(office: Office) -> None:
    wait = threading.Event()
    office.before = lambda _: wait.wait(60)
    transport = HttpTransport(Server(office.url, TOKEN, timeout_s=0.2))
    with pytest.raises(TransportError, match="timed out"):
        transport.exchange(b"{}")
    wait.set()
    transport.close()


def _redirecting(to: str) -> object:
    def redirect(request: BaseHTTPRequestHandler) -> bool:
        if request.path.startswith("/from"):
            send(request, 302, b"", {"Location": to})
            return True
        return False

    return redirect


def test_a_redirect_to_another_host_is_refused_and_no_token_leaks(office: Office, keys: Keys, tmp_path: Path) -> None:
    with office_at(tmp_path, keys) as other:
        office.before = _redirecting(f"{other.url}/stolen")  # type: ignore[assignment]
        transport = _transport(office)
        with pytest.raises(TransportError, match="another host"):
            transport.read(f"{office.url}/from", 10)
        assert other.requests == []
        transport.close()


def test_a_redirect_on_the_same_host_is_followed_but_not_for_ever(office: Office) -> None:
    (office.root / "artifacts" / "f").write_bytes(b"here")
    office.before = _redirecting("/v1/artifacts/f")  # type: ignore[assignment]
    transport = _transport(office)
    assert transport.read(f"{office.url}/from", 10) == b"here"
    office.before = _redirecting("/from/again")  # type: ignore[assignment]
    with pytest.raises(TransportError, match="more than 3 times"):
        transport.read(f"{office.url}/from", 10)
    transport.close()


def test_a_report_is_never_redirected(office: Office) -> None:
    def moved(request: BaseHTTPRequestHandler) -> bool:
        send(request, 307, b"", {"Location": "/v1/exchange"})
        return True

    office.before = moved
    transport = _transport(office)
    with pytest.raises(TransportError, match="307"):
        transport.exchange(b"{}")
    transport.close()


def test_statuses_and_the_servers_wish(office: Office) -> None:
    transport = _transport(office)
    with pytest.raises(NotFound):
        transport.read(f"{office.url}/v1/artifacts/none", 10)

    def busy(request: BaseHTTPRequestHandler) -> bool:
        send(request, 503, b"later", {"Retry-After": "77"})
        return True

    office.before = busy
    with pytest.raises(TransportError) as caught:
        transport.config()
    assert (caught.value.status, caught.value.retry_after_s) == (503, 77)
    transport.close()


@pytest.mark.parametrize("url", ["http://reconciler.example/", "ftp://h/", "nonsense", "https://"])
def test_addresses_that_no_token_is_sent_to(url: str) -> None:
    with pytest.raises(ValueError, match="server"):
        Server(url, TOKEN)


def test_a_token_is_shown_nowhere() -> None:
    assert TOKEN not in repr(Server("https://h/", TOKEN))
    with pytest.raises(ValueError, match="token") as caught:
        Server("https://h/", "bad token\n")
    assert "bad token" not in str(caught.value)


def test_a_presigned_query_is_not_shown(office: Office) -> None:
    transport = _transport(office)
    with pytest.raises(TransportError) as caught:
        transport.read(f"{office.url}/v1/artifacts/none?X-Amz-Signature=secret", 10)
    assert "secret" not in str(caught.value)
    transport.close()


def test_file_addresses_are_for_those_who_allow_them(office: Office, tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"0123456789")
    url = f"{tmp_path.as_uri()}/a%20b"
    with pytest.raises(TransportError, match="not allowed"):
        _transport(office).read(url, 10)
    transport = _transport(office, allow_file_urls=True)
    assert transport.read(url, 10) == b"0123456789"
    start, chunks = transport.stream(url, 4, 10)
    assert (start, b"".join(chunks)) == (4, b"456789")
    with pytest.raises(TransportError, match="more than 9"):
        transport.read(url, 9)
    with pytest.raises(NotFound):
        transport.read(url + "x", 9)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[Path, ThreadingHTTPServer]:
    """A server with a certificate of its own making for localhost."""
    openssl = need("openssl")
    pem = tmp_path / "tls.pem"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(pem), "-out", f"{pem}.crt"]
    subprocess.run([openssl, "req", "-x509", *options, *names, *files], check=True, capture_output=True)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            send(self, 200, b"secure")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{pem}.crt", pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return Path(f"{pem}.crt"), server


def test_tls_is_verified(tls: tuple[Path, ThreadingHTTPServer]) -> None:
    authority, server = tls
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    port = server.server_address[1]
    try:
        trusting = HttpTransport(Server(f"https://localhost:{port}/", TOKEN, authority, 60))
        assert trusting.config() == b"secure"
        trusting.close()
        stranger = HttpTransport(Server(f"https://localhost:{port}/", TOKEN, None, 60))
        with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
            stranger.config()
        other_name = HttpTransport(Server(f"https://127.0.0.1:{port}/", TOKEN, authority, 60))
        with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
            other_name.config()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# ---------------------------------------------------------------- downloads through it


def test_the_server_is_away_and_the_work_goes_on(site: Site, office: Office, releases: Releases) -> None:
    opens = START + timedelta(hours=1)
    office.assign(releases.v2, window=((opens, opens + timedelta(hours=1)),))
    site.settle(START + timedelta(minutes=5))
    answers: list[int] = []

    def away(request: BaseHTTPRequestHandler) -> bool:
        answers.append(1)
        send(request, 503, b"")
        return True

    office.before = away
    site.settle(opens + timedelta(minutes=10))
    assert site.hardware.version().current == "v2"
    # It asked less and less often, never more than ten minutes apart.
    assert 8 < len(answers) < 40
    office.before = lambda _: False
    site.settle(opens + timedelta(minutes=25))
    assert office.last().image == "v2"
    assert office.last().previous == "v1"


def test_an_answer_that_is_none_changes_nothing(site: Site, office: Office) -> None:
    site.settle()
    before = site.tree()

    def garbage(request: BaseHTTPRequestHandler) -> bool:
        send(request, 200, b'{"bundle": 1}')
        return True

    office.before = garbage
    office.now += timedelta(seconds=60)
    site.settle()
    assert site.tree() == before
    assert not site.device.agent.reached
    assert "bundle" in site.device.agent.unreached_because


def test_a_trickle_does_not_keep_the_agent_from_its_reports(site: Site, office: Office, releases: Releases) -> None:
    site.device = site.new_device(type(QUICK)(slice_s=0.05, spread_s=0, least_window_s=0, report_jitter=0))
    stop = threading.Event()

    def trickling(request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith(".zst") or stop.is_set():
            return False
        request.send_response(200)
        request.send_header("Content-Length", str((releases.v2.folder / request.path.rsplit("/", 1)[1]).stat().st_size))
        request.end_headers()
        request.close_connection = True
        while not stop.wait(0.02):
            request.wfile.write(b"x")
            request.wfile.flush()
        return True

    office.before = trickling
    office.assign(releases.v2)
    # A full chunk never comes: none of these steps may wait for one.
    for _ in range(10):
        site.step()
        office.now += timedelta(seconds=61)
    assert [report.phase for report in office.reports].count("prefetching") > 3
    stop.set()


def test_a_clock_that_is_set_back_does_not_silence_the_device(site: Site, office: Office) -> None:
    office.now = START + timedelta(days=400)
    site.settle()
    count = len(office.reports)
    office.now = START
    site.settle()
    assert len(office.reports) == count + 1


UNREADABLE = [
    "http://[",
    "http://[x]/a/",
    "http://\u2100/a/",
    f"http://{'a' * 300}/a/",
    "http://exa mple/a/",
    "file://[/",
]


@pytest.mark.parametrize("url", UNREADABLE)
def test_an_address_that_cannot_be_read_is_an_error_of_transport(office: Office, url: str) -> None:
    transport = _transport(office, allow_file_urls=True)
    with pytest.raises(TransportError):
        transport.read(url, 10)
    transport.close()


def test_addresses_that_cannot_be_read_do_not_end_the_agent(site: Site, office: Office, releases: Releases) -> None:
    """Addresses are outside of what is signed: a wrong one is a download that fails."""
    office.sources_of_image = [url for url in UNREADABLE if url.isascii() and " " not in url]
    office.registry = "http://["
    office.assign(
        releases.v2, apps={"video-ingest": AppTarget("video-ingest", "stable", "sha256:" + "0" * 64, "2.8.0")}
    )
    site.settle(START + timedelta(minutes=5))
    assert {item.code for item in office.last().refusals} == {"not-fetched"}


@pytest.mark.parametrize("place", ["http://[bad", "//["])
def test_a_redirect_to_what_cannot_be_read(office: Office, place: str) -> None:
    def elsewhere(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(302)
        request.send_header("Location", place)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    office.before = elsewhere
    transport = _transport(office)
    with pytest.raises(TransportError, match="redirect to what cannot be read"):
        transport.read(f"{office.url}/x", 10)
    transport.close()


@pytest.mark.parametrize(
    "beginning", [b"HTTP/1.1 200 OK\r\nX-Padding: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
)
def test_a_head_that_trickles_is_cut_off(office: Office, beginning: bytes) -> None:
    ended = threading.Event()

    def trickle(request: BaseHTTPRequestHandler) -> bool:
        request.close_connection = True
        try:
            request.wfile.write(beginning)
            while not ended.wait(0.02):
                request.wfile.write(b"0")
                request.wfile.flush()
        except OSError:
            pass
        return True

    office.before = trickle
    transport = HttpTransport(Server(office.url, TOKEN, timeout_s=0.2))
    with pytest.raises(TransportError):
        transport.read(f"{office.url}/x", 1000)  # by itself it would go on for longer than a test may
    ended.set()
    transport.close()


def test_a_handshake_that_trickles_is_cut_off() -> None:
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            peer, _ = listening.accept()
            with peer, suppress(OSError):
                # A handshake record of 16 KiB that never ends.
                peer.sendall(b"\x16\x03\x03\x40\x00")
                while not ended.wait(0.02):
                    peer.sendall(b"\x02")

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        transport = HttpTransport(Server(f"https://127.0.0.1:{port}", TOKEN, timeout_s=0.2))
        with pytest.raises(TransportError):
            transport.config()
        ended.set()
        thread.join()
        transport.close()
