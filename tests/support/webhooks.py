"""A receiver of webhooks on this machine: real HTTP, TLS where asked for, and the answers that a test wants.

It verifies signatures by an implementation of its own, written from the text of Standard Webhooks.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Says:
    """An answer: status, headers and body, after a wait, which ends with the receiver at the latest; `drip_s` lies between two
    bytes of the body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    after_s: float = 0.0
    drip_s: float = 0.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what some tests are about."""


class Receiver:
    """`says` are the answers in their order; when they are used up, the last one counts, and 200 where there are none."""

    def __init__(self, says: Iterable[Says] = (), certificate: tuple[Path, Path] | None = None) -> None:
        self.says = list(says)
        self.received: list[Received] = []
        self.on_request: Callable[[Received], object] = lambda _request: None
        self._arrived = threading.Condition()
        self._over = threading.Event()
        self._last = Says()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._answer(self)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Where it listens, with a path that is a secret."""
        return f"{self.scheme}://127.0.0.1:{self._server.server_address[1]}/services/T0/B0/hush"

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_for(self, count: int, timeout_s: float = 60) -> list[Received]:
        """Requests, once there are so many of them."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.received) >= count, timeout_s), self.received
            return list(self.received)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        request = Received(handler.path, {name.lower(): value for name, value in handler.headers.items()}, body)
        with self._arrived:
            self.received.append(request)
            if self.says:
                self._last = self.says.pop(0)
            says = self._last
            self._arrived.notify_all()
        self.on_request(request)
        if says.after_s:
            self._over.wait(says.after_s)
        handler.send_response(says.status)
        for name, value in ({"Content-Length": str(len(says.body))} | says.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        for part in [says.body] if not says.drip_s else [bytes([byte]) for byte in says.body]:
            handler.wfile.write(part)
            time.sleep(says.drip_s)


def verify(secret: str, request: Received, now: float, tolerance_s: int = 300) -> Any:
    """As a receiver does it: the payload where the signature holds and is fresh. ValueError: it does not, or is not."""
    key = base64.b64decode(secret[len("whsec_") :] if secret.startswith("whsec_") else secret)
    identity, stamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    if abs(now - int(stamp)) > tolerance_s:
        raise ValueError("the timestamp is too far away")
    expected = hmac.HMAC(key, b".".join([identity.encode(), stamp.encode(), request.body]), hashlib.sha256).digest()
    for versioned in request.headers["webhook-signature"].split(" "):
        version, _, signature = versioned.partition(",")
        if version == "v1" and hmac.compare_digest(base64.b64decode(signature), expected):
            return json.loads(request.body)
    raise ValueError("no signature matches")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "receiver.pem", folder / "receiver.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    private.chmod(0o600)
    return certificate, private
