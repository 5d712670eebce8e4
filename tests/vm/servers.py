"""The servers that machines under test talk to: an S3 store whose requests are counted, a container registry, the reconciler.

All real programs on loopback: moto's S3, Debian's docker-registry, `reconciler run` as a process of its own; and a clock. A machine
reaches them under the same addresses (`machine.Machine`, `ports`), so that plain HTTP stays on loopback for it too, and an
address that was signed for one end is right at the other.
"""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import boto3

from tests.support.aws import moto_server

BUCKET = "vlt-edge-images"
RECONCILER = (sys.executable, "-c", "from reconciler.cli.main import main; main()")
ROOT = Path(__file__).parents[2]
_PIECE = 1 << 18


@dataclass
class Request:
    """A request to the store, and how many bytes of its answer have gone out so far."""

    method: str
    path: str
    begins_at: int = 0
    sent: int = 0

    @property
    def is_image(self) -> bool:
        """Whether an image's bytes were asked for."""
        return self.method == "GET" and self.path.endswith(".img.zst")


@dataclass
class Store:
    """The image store: where it answers, what it was asked, and a hand on the tap of its images."""

    url: str = ""
    seen: list[Request] = field(default_factory=list)
    _stop_at: int | None = None
    _turn: threading.Condition = field(default_factory=threading.Condition)

    @property
    def port(self) -> int:
        """Its port on loopback."""
        return urlsplit(self.url).port or 0

    def images_asked(self, since: int = 0) -> list[Request]:
        """Requests for images' bytes by devices, from the request of that number on. The signer's own are not presigned."""
        return [request for request in self.seen[since:] if request.is_image]

    def stop_at(self, place: int | None) -> None:
        """Let no byte of an image from `place` on go out (None: let all go)."""
        with self._turn:
            self._stop_at = place
            self._turn.notify_all()

    def watched(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """The store's WSGI application with this in front of it."""

        def answer(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
            presigned = "X-Amz-Signature" in environ.get("QUERY_STRING", "")
            request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            begins = environ.get("HTTP_RANGE", "").removeprefix("bytes=").partition("-")[0]
            request.begins_at = int(begins) if begins.isdigit() else 0
            if presigned:
                self.seen.append(request)
            for data in app(environ, start):
                for at in range(0, len(data), _PIECE):
                    piece = data[at : at + _PIECE]
                    if presigned and request.is_image:
                        self._wait(request.begins_at + request.sent + len(piece))
                    yield piece
                    request.sent += len(piece)

        return answer

    def _wait(self, place: int) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._stop_at is None or place <= self._stop_at)


@contextmanager
def running_store() -> Iterator[Store]:
    """An S3 with one empty bucket. Test credentials must be in the environment."""
    store = Store()
    with moto_server(store.watched) as url:
        store.url = url
        # moto's buckets are the process's, and outlive its servers: those of an office before this one are still there.
        request = urllib.request.Request(f"{url}/moto-api/reset", method="POST")
        urllib.request.urlopen(request, timeout=60).close()
        boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket=BUCKET)
        try:
            yield store
        finally:
            store.stop_at(None)


@contextmanager
def running_time() -> Iterator[int]:
    """A time server that tells this machine's clock: SNTP (RFC 4330) over TCP, a packet a connection. Its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            packet = self.request.recv(48, socket.MSG_WAITALL)
            if len(packet) == 48:
                now = _ntp_time()
                # No leap, version 4, server; stratum 1, a poll of 2^4 s, precision of 2^-20 s; asked for at `origin`.
                head = struct.pack(">BBbbII4s", 0x24, 1, 4, -20, 0, 0, b"TEST")
                self.request.sendall(head + struct.pack(">Q8sQQ", now, packet[40:48], now, _ntp_time()))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A machine that is cut off hangs up."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def _ntp_time() -> int:
    """Now: seconds since 1900 and their fraction, 32 bits each."""
    return (int((time.time() + 2208988800) * (1 << 32))) & 0xFFFFFFFFFFFFFFFF


class Controller:
    """`reconciler run` over a settings file, until `close`. Its log is a file beside the settings."""

    def __init__(self, config: Path) -> None:
        self.config, self.log = config, config.with_name("controller.log")
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it."""
        assert self._child is None, "it runs"
        with self.log.open("ab") as log:
            argv = [*RECONCILER, "run", "--config", str(self.config), "--log", "json"]
            self._child = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def close(self) -> None:
        """Stop it as a service manager does."""
        child, self._child = self._child, None
        if child is None:
            return
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def is_on(self) -> bool:
        """Whether it runs."""
        return self._child is not None and self._child.poll() is None

    def run(self, *arguments: str, timeout_s: float = 600) -> str:
        """Another command of the program beside it; what it printed. AssertionError: it failed."""
        done = subprocess.run(
            [*RECONCILER, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=os.environ,
        )
        assert done.returncode == 0, f"reconciler {' '.join(arguments)}: {done.stderr[-3000:]}"
        return done.stdout

    def tail(self, lines: int = 25) -> str:
        """The last lines of its log, for a message."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:]) if self.log.exists() else ""


def wait_until(
    what: str, condition: Callable[[], bool], timeout_s: float, say: Callable[[], str], every_s: float = 0.5
) -> float:
    """Wait until a condition holds; how many seconds that took. AssertionError: not within the time; `say` tells more."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"{what}: not within {timeout_s:g} s\n{say()}")
        time.sleep(every_s)
    return time.monotonic() - began
