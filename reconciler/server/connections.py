"""Connections of the HTTP service, bounded in time and number: who opens one and says nothing does not keep it.

uvicorn ends a connection that stays idle after an answer, but none that never asks, stops in the middle of a head, or
goes on with a body that nobody reads. Without this, whoever reaches the port could hold every file descriptor of the
controller, and with them its store and its git. Used by `server.run` alone.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""From the first byte to the end of a request's head. It is one packet; on a bad line that takes seconds."""

TAKE_S = 60.0
"""Longest time in which somebody takes nothing of an answer: its pieces wait in memory meanwhile."""

MOST = 4096
"""Connections at once, and never more than half of the descriptors that the process may open."""

_LOOK_S = 0.05
"""How often it is looked which connections have ended, while there are too many: looking costs as much as there are."""


class Listener(socket.socket):
    """The socket that is listened on. A connection beyond the most is closed as it comes: under TLS it is a descriptor long
    before it has shaken hands, and no protocol knows of it yet."""

    most = MOST

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self._accepted: list[socket.socket] = []
        self._looked_at = 0.0

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. ConnectionAbortedError, which an event loop takes for none: there are too many."""
        connection, address = super().accept()
        if self._full():
            connection.close()
            raise ConnectionAbortedError
        self._accepted.append(connection)
        return connection, address

    def _full(self) -> bool:
        most = min(self.most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        now = time.monotonic()
        if len(self._accepted) >= most and now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self._accepted = [one for one in self._accepted if one.fileno() != -1]
        return len(self._accepted) >= most


class BoundedLoop(asyncio.SelectorEventLoop):
    """An event loop whose TLS connections have shaken hands within the time that a head may take."""

    async def create_server(self, *of: Any, **more: Any) -> asyncio.Server:
        """As the loop's own."""
        if more.get("ssl") is not None:
            more.setdefault("ssl_handshake_timeout", BoundedProtocol.head_s)
        return await super().create_server(*of, **more)


class BoundedProtocol(H11Protocol):
    """One connection, which brings the whole head of a request in time."""

    head_s = HEAD_S
    take_s = TAKE_S
    _waiting: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """A request was answered; the next one may have begun already."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection ended."""
        self._rest()
        self._taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More waits to be sent than should."""
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self.take_s, self.transport.abort)

    def resume_writing(self) -> None:
        """What waited has been taken."""
        self._taken()
        super().resume_writing()

    def _taken(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _watch(self) -> None:
        """Run the clock while a head is awaited: bytes do not set it back, a request that is being answered stops it."""
        answered = self.cycle is None or self.cycle.response_complete
        # After an answer uvicorn's own clock runs until the first byte.
        if not answered or self.timeout_keep_alive_task is not None:
            self._rest()
        elif self._waiting is None and not self.transport.is_closing():
            self._waiting = self.loop.call_later(self.head_s, self.transport.abort)

    def _rest(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
