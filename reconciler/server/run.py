"""Runs the HTTP service in a thread beside the loop. Refuses to listen on the network without TLS.

Called by `controller.bootstrap` and by tests. The socket is bound before the thread starts, so that a port in use is an
error with a remedy and not a line in a log.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import uvicorn
from starlette.types import ASGIApp

from reconciler.ports import TerminalError
from reconciler.server.connections import BoundedLoop, BoundedProtocol, Listener

_START_S = 60.0
_STOP_S = 15.0


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of the server's certificate (with its chain) and of its private key (mode 0600)."""

    certificate: Path
    key: Path


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, tls: Tls | None) -> None:
    """TerminalError: tokens and secrets would cross the network in the clear, or the key is open to others."""
    if tls is None and not is_loopback(host):
        raise TerminalError(
            f"will not listen on {host} without TLS: it is not loopback, and tokens would be readable on the way",
            needed_for="the HTTP service",
            remedy="set `server.tls` (certificate and key), or bind 127.0.0.1",
        )
    if tls is None:
        return
    for path in (tls.certificate, tls.key):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise TerminalError(
                f"cannot read {path}: {error.strerror}", needed_for="TLS", remedy="name the PEM file in `server.tls`"
            ) from None
        if path == tls.key and stat.S_IMODE(mode) & 0o077:
            raise TerminalError(
                f"{path} may be read by others (mode {stat.S_IMODE(mode):04o})",
                needed_for="TLS",
                remedy=f"chmod 600 {path}",
            )


class HttpServer:
    """A uvicorn server in a thread of its own. Use as a context manager, or call `start` and `stop`."""

    def __init__(self, app: ASGIApp, host: str, port: int, tls: Tls | None = None) -> None:
        check_exposure(host, tls)
        self._host, self._port = host, port
        try:
            config = uvicorn.Config(
                app,
                log_config=None,
                # A line for each broken request would let whoever reaches the port fill the disk.
                log_level="critical",
                access_log=False,
                server_header=False,
                # Whoever forwards for others must not be able to name the address that limits are counted by.
                proxy_headers=False,
                lifespan="on",
                http=BoundedProtocol,
                ws="none",
                timeout_keep_alive=75,
                timeout_graceful_shutdown=5,
                backlog=512,
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
            )
            config.load()
        except OSError as error:
            raise TerminalError(
                f"the certificate and key cannot be used: {error.strerror or error}",
                needed_for="TLS",
                remedy="give a PEM certificate chain and the private key that belongs to it",
            ) from None
        self._server = uvicorn.Server(config)
        self._secure = tls is not None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def port(self) -> int:
        """The port that is bound: the one asked for, or the system's choice for 0."""
        return self._port

    @property
    def address(self) -> str:
        """The service's address."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._secure else 'http'}://{host}:{self._port}"

    def start(self) -> None:
        """Bind, and return once requests are served. TerminalError: the address cannot be bound, or starting failed."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # The protocol is named: asyncio sets TCP_NODELAY only then, and without it every answer waits 40 ms for an ACK.
        bound = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self._host, self._port))
        except OSError as error:
            bound.close()
            raise TerminalError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror or error}",
                needed_for="the HTTP service",
                remedy="stop what uses the port, or set another `server.bind`",
            ) from None
        self._port = int(bound.getsockname()[1])
        self._thread = threading.Thread(target=self._run, args=(bound,), name="http", daemon=True)
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(_START_S / 0.01)):
            if self._server.started:
                return
            if not self._thread.is_alive():
                break
            waited.wait(0.01)
        self.stop()
        raise TerminalError(
            f"the service did not start: {type(self._failure).__name__ if self._failure else 'no answer'}",
            needed_for="the HTTP service",
            remedy="see the controller's log",
        )

    def _run(self, bound: socket.socket) -> None:
        try:
            with asyncio.Runner(loop_factory=BoundedLoop) as runner:
                runner.run(self._server.serve(sockets=[bound]))
        except BaseException as error:  # noqa: BLE001  kept for whoever waits in `start`
            self._failure = error
        finally:
            bound.close()

    def stop(self) -> None:
        """Answer what is being served, then end. Safe to call twice."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def __enter__(self) -> HttpServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
