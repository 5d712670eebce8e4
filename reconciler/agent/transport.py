"""HTTP from the device: exchanges with the server, and bytes from wherever they may be had. Bounded, timed, verified
by TLS.

Python 3.10, standard library only: runs as root on a device. The device's token goes to the server alone; redirects are
followed on the same host only; an answer longer than announced or allowed ends the connection. Bytes fetched here
prove nothing: whoever fetches compares digests.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from reconciler.agent import VERSION
from reconciler.protocol.exchange import MAX_ANSWER_BYTES, MAX_CONFIG_BYTES

TIMEOUT_S = 20.0
WHOLE_S = 60.0
MAX_REDIRECTS = 3
MAX_ADDRESSES = 12
"""Of one host's name, so many are tried."""
CHUNK = 256 * 1024
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class TransportError(Exception):
    """It did not work now. `status` is the HTTP status where there was one, `retry_after_s` the server's wish."""

    def __init__(self, reason: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after_s = retry_after_s


class NotFound(TransportError):
    """The address exists no more, or never did."""


class Transport(Protocol):
    """What the agent needs of the network. Every method may raise TransportError."""

    def exchange(self, report: bytes) -> bytes:
        """Send a report; the answer's bytes."""

    def config(self) -> bytes:
        """The site's rendered configuration."""

    def read(self, url: str, limit: int, headers: Mapping[str, str] | None = None) -> bytes:
        """A small file of at most `limit` bytes."""

    def stream(
        self, url: str, offset: int, limit: int, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Iterator[bytes]]:
        """Bytes from `offset` on, or from 0 where the other end cannot resume; the true start comes first.

        At most `limit` bytes of the whole file are delivered; one byte more is a TransportError.
        """


@dataclass(frozen=True)
class Server:
    """Where to report. `ca_file` replaces the system's authorities. Plain http is for loopback alone."""

    url: str
    token: str = field(repr=False)
    ca_file: Path | None = None
    timeout_s: float = TIMEOUT_S
    allow_file_urls: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"server {self.url!r} is not an address; write https://host/")
        try:
            _origin(parts)
        except TransportError:
            raise ValueError(f"server {self.url!r} has no valid port; write https://host:port/") from None
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ValueError(f"server {self.url!r} would receive the token in clear text; write https://")
        if not self.token or not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise ValueError("the token is empty or holds characters that a header cannot carry")


def split(url: str) -> SplitResult:
    """The parts of an address that came from elsewhere. TransportError: it cannot be read."""
    try:
        return urlsplit(url)
    except ValueError:
        raise TransportError("an address cannot be read") from None


Origin = tuple[str, str, int]


@dataclass(frozen=True)
class _Reply:
    """A response and the connection it comes over, which is nobody else's until the body was read."""

    response: http.client.HTTPResponse
    origin: Origin
    connection: http.client.HTTPConnection


def _origin(parts: SplitResult) -> Origin:
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise TransportError("the address has no valid port") from None
    return parts.scheme, parts.hostname or "", port


class HttpTransport:
    """`Transport` over http.client, with one connection kept open per host. For one thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._base = server.url.rstrip("/") + "/"
        self._home = _origin(urlsplit(self._base))
        self._connections: dict[Origin, http.client.HTTPConnection] = {}
        self._tls: ssl.SSLContext | None = None

    def close(self) -> None:
        """Close every connection."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def exchange(self, report: bytes) -> bytes:
        return self._whole("POST", self._base + "v1/exchange", MAX_ANSWER_BYTES, report, {})

    def config(self) -> bytes:
        return self._whole("GET", self._base + "v1/config", MAX_CONFIG_BYTES, None, {})

    def read(self, url: str, limit: int, headers: Mapping[str, str] | None = None) -> bytes:
        if url.startswith("file:"):
            _, chunks = self._file(url, 0, limit)
            return b"".join(chunks)
        return self._whole("GET", url, limit, None, headers or {})

    def stream(
        self, url: str, offset: int, limit: int, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Iterator[bytes]]:
        if url.startswith("file:"):
            return self._file(url, offset, limit)
        asked = dict(headers or {})
        if offset:
            asked["Range"] = f"bytes={offset}-"
        reply = self._request("GET", url, None, asked)
        start = 0
        if reply.response.status == 206:
            start = offset
            if not reply.response.getheader("Content-Range", "").startswith(f"bytes {offset}-"):
                reply.connection.close()
                raise TransportError(f"{_shown(url)} sent another part than was asked for")
        return start, self._body(reply, url, limit - start)

    # ------------------------------------------------------------

    def _whole(self, method: str, url: str, limit: int, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        """A whole body, within a time that does not grow with a trickle."""
        ends, parts = time.monotonic() + WHOLE_S, []
        for data in self._body(self._request(method, url, body, headers), url, limit):
            parts.append(data)
            if time.monotonic() > ends:
                raise TransportError(f"{_shown(url)} took longer than {WHOLE_S:g} s")
        return b"".join(parts)

    def _body(self, reply: _Reply, url: str, limit: int) -> Iterator[bytes]:
        """The body in chunks, never more than `limit`. The connection is kept only after a complete body."""
        response, received, complete = reply.response, 0, False
        length = response.length
        try:
            if length is not None and length > limit:
                raise TransportError(f"{_shown(url)} announces {length} bytes; at most {limit} are taken")
            while length is None or received < length:
                # What is there now, and not a full chunk: a trickle must not keep the agent from its reports.
                wanted = min(CHUNK, limit - received + 1)
                # A chunk's length is a line of its own, which may trickle too.
                with self._deadline(reply.connection.sock) if response.chunked else nullcontext():
                    data = response.read1(wanted if length is None else min(wanted, length - received))
                received += len(data)
                if received > limit:
                    raise TransportError(f"{_shown(url)} sends more than {limit} bytes")
                if not data:
                    break
                yield data
            if length is not None and received < length:
                raise TransportError(f"{_shown(url)} ended after {received} of {length} bytes")
            response.close()  # its bytes are all read: the connection is free for the next request
            complete = not response.will_close
        except (OSError, http.client.HTTPException) as error:
            raise TransportError(f"{_shown(url)} broke off: {_cause(error)}") from None
        finally:
            if complete:
                self._connections[reply.origin] = reply.connection
            else:
                reply.connection.close()

    def _request(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> _Reply:
        """Send a request and return the response to a success; redirects on the same host are followed."""
        ends = time.monotonic() + WHOLE_S
        for _ in range(MAX_REDIRECTS + 1):
            if time.monotonic() > ends:
                raise TransportError(f"{_shown(url)} took longer than {WHOLE_S:g} s to redirect")
            parts = split(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise TransportError(f"{_shown(url)} is no http or https address")
            origin = _origin(parts)
            reply = self._send(origin, method, parts, body, self._headers(origin, body, headers))
            response = reply.response
            if response.status in (200, 206):
                return reply
            reply.connection.close()
            place = response.getheader("Location")
            reason = f"{_shown(url)} answers {response.status} {response.reason}"
            if response.status not in (301, 302, 303, 307, 308) or place is None or method != "GET":
                kind = NotFound if response.status in (404, 410) else TransportError
                raise kind(reason, status=response.status, retry_after_s=_seconds(response.getheader("Retry-After")))
            try:
                url = urljoin(url, place)
            except ValueError:
                raise TransportError(f"{reason}, a redirect to what cannot be read", status=response.status) from None
            if _origin(split(url)) != origin:
                raise TransportError(f"{reason}, a redirect to another host, which is refused", status=response.status)
        raise TransportError(f"{_shown(url)} redirects more than {MAX_REDIRECTS} times")

    def _headers(self, origin: Origin, body: bytes | None, extra: Mapping[str, str]) -> dict[str, str]:
        headers = {"User-Agent": f"edge-agent/{VERSION}", "Accept-Encoding": "identity", **extra}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if origin == self._home:
            headers["Authorization"] = f"Bearer {self._server.token}"
        elif "Authorization" in headers and origin[0] != "https" and origin[1] not in _LOOPBACK:
            raise TransportError(f"{origin[1]} would receive a token in clear text")
        return headers

    def _send(
        self, origin: Origin, method: str, parts: SplitResult, body: bytes | None, headers: Mapping[str, str]
    ) -> _Reply:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        for fresh in (False, True):
            kept = self._connections.pop(origin, None)
            if kept is not None and fresh:
                kept.close()
                kept = None
            connection = kept or self._connect(origin)
            try:
                with self._deadline(connection.sock):
                    connection.request(method, target, body=body, headers=dict(headers))
                    response = connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                # A kept connection may have been closed by the other end meanwhile; a new one is tried once.
                if kept is not None and not fresh:
                    continue
                raise TransportError(f"{origin[1]}:{origin[2]} cannot be reached: {_cause(error)}") from None
            return _Reply(response, origin, connection)
        raise TransportError(f"{origin[1]}:{origin[2]} cannot be reached")

    def _connect(self, origin: Origin) -> http.client.HTTPConnection:
        scheme, host, port = origin
        tls = self._context() if scheme == "https" else None
        connection = None
        try:
            connection = http.client.HTTPConnection(host, port, timeout=self._server.timeout_s)
            connection.sock = _dial(host, port, self._server.timeout_s)
            if tls is not None:
                connection.sock = tls.wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
                with self._deadline(connection.sock):
                    connection.sock.do_handshake()
        except (OSError, http.client.HTTPException, ValueError) as error:
            if connection is not None:
                connection.close()
            raise TransportError(f"{host[:100]}:{port} cannot be reached: {_cause(error)}") from None
        # One small request a minute: waiting for more to send only adds delay.
        with suppress(OSError):
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    @contextmanager
    def _deadline(self, sock: socket.socket) -> Iterator[None]:
        """End a conversation that takes too long as a whole: a socket's timeout begins anew with every byte, so an end that
        sends one now and then would keep the agent from its reports for days."""
        cut = threading.Event()
        timer = threading.Timer(3 * self._server.timeout_s, _cut, (sock, cut))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        # What was cut off looks like an end: half a head would pass for a whole one.
        if cut.is_set():
            raise TimeoutError("it trickles")

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            ca_file = self._server.ca_file
            try:
                tls = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
            except OSError as error:
                wrong = (
                    "holds no certificate" if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror}"
                )
                raise TransportError(f"the authorities' file {ca_file} (caFile in the settings) {wrong}") from None
            tls.minimum_version = ssl.TLSVersion.TLSv1_2
            self._tls = tls
        return self._tls

    def _file(self, url: str, offset: int, limit: int) -> tuple[int, Iterator[bytes]]:
        if not self._server.allow_file_urls:
            raise TransportError("file addresses are not allowed on this device")
        path = Path(unquote(split(url).path))

        def chunks() -> Iterator[bytes]:
            received = offset
            try:
                with open(path, "rb") as file:
                    file.seek(offset)
                    while data := file.read(CHUNK):
                        received += len(data)
                        if received > limit:
                            raise TransportError(f"{path.name} has more than {limit} bytes")
                        yield data
            except FileNotFoundError:
                raise NotFound(f"{path.name} does not exist", status=404) from None
            except (OSError, ValueError) as error:
                raise TransportError(f"{path.name} cannot be read: {error}") from None

        return offset, chunks()


def _dial(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connection to one of a host's addresses, as socket.create_connection makes it. However many there are, and none of
    them answers, it takes three times `timeout_s` at the most. Raises OSError or ValueError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    share_s, failed = min(timeout_s, 3 * timeout_s / max(len(found), 1)), OSError("the name has no address")
    for family, kind, protocol, _, address in found[:MAX_ADDRESSES]:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            sock.settimeout(max(share_s, 3 * timeout_s / MAX_ADDRESSES))
            sock.connect(address)
            sock.settimeout(timeout_s)
        except OSError as error:
            failed = error
            sock.close()
        else:
            return sock
    raise failed


def _shown(url: str) -> str:
    """An address without its query: presigned ones carry a credential there."""
    parts = split(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"[:300]


def _cut(sock: socket.socket, cut: threading.Event) -> None:
    cut.set()
    # The plain socket's method: that of a TLS socket would drop the encryption under its reader's feet.
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 7 else None


def _cause(error: Exception) -> str:
    if isinstance(error, (http.client.InvalidURL, ValueError)) and not isinstance(error, OSError):
        # It would quote the address with its query, or a header with its token.
        return "the address or a header holds characters that may not be sent"
    return f"{type(error).__name__}: {error}"[:200]
