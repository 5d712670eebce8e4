"""An HTTP proxy on loopback that forwards to a real server and breaks what it is told to break, once each.

A test names faults with `proxy.next(...)`; each request whose method (and part of its path) matches takes the first one:
`answer` (an exact status and body, without asking the server), `hang` (no answer until the test ends), `drop` (the
connection ends half-way through the answer's body), `lost` (the server acts, the answer never comes), `wrong` (one byte of
the answer's body is another).
"""

from __future__ import annotations

import http.client
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Fault:
    """One fault: what to do, for which method and path."""

    do: str
    method: str = ""
    path: str = ""
    status: int = 503
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up on a fault are what these tests are about: nothing to print."""


class FaultProxy:
    """`with FaultProxy(upstream_url) as proxy:` then `proxy.url`; `proxy.seen` are the requests as (method, path)."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.seen: list[tuple[str, str]] = []
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def next(self, do: str, method: str = "", path: str = "", times: int = 1, **more: object) -> None:
        """Break the next matching request(s)."""
        with self._lock:
            self._faults += [Fault(do, method, path, **more) for _ in range(times)]  # type: ignore[arg-type]

    def mend(self) -> None:
        """Forget the faults that no request has met."""
        with self._lock:
            self._faults.clear()

    @property
    def left(self) -> int:
        """Faults that no request has met yet."""
        return len(self._faults)

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.seen.append((method, path))
            for fault in self._faults:
                if fault.method in ("", method) and fault.path in path:
                    self._faults.remove(fault)
                    return fault
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def handle_any(self) -> None:
                body = self._body()
                fault = proxy._take(self.command, self.path)
                if fault is not None and fault.do == "hang":
                    proxy._over.wait(250)
                    self.close_connection = True
                    return
                if fault is not None and fault.do == "answer":
                    self._answer(fault.status, fault.headers, fault.body)
                    return
                # A header that comes more than once, `Accept` for one, means all of its values.
                asked = {name: ", ".join(self.headers.get_all(name, [])) for name in self.headers}
                status, headers, content = proxy._forward(self.command, self.path, asked, body)
                if fault is not None and fault.do == "lost":
                    self.close_connection = True
                    return
                if fault is not None and fault.do == "wrong":
                    content = content[:-1] + bytes([content[-1] ^ 1])
                keep = len(content) // 2 if fault is not None and fault.do == "drop" else None
                self._answer(status, headers, content, keep)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

            def _body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length", "0")))
                parts = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return parts

            def _answer(self, status: int, headers: dict[str, str], content: bytes, keep: int | None = None) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                        self.send_header(name, value)
                length = headers.get("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content if keep is None else content[:keep])
                if keep is not None:
                    self.close_connection = True

        return Handler

    def _forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        drop = ("transfer-encoding", "connection", "expect", "content-length")
        connection = http.client.HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=60)
        try:
            kept = {name: value for name, value in headers.items() if name.lower() not in drop}
            connection.request(method, path, body=body, headers=kept)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()
