"""Connections of the HTTP service, bounded in time and number: who opens one and says nothing does not keep it.

uvicorn ends a connection that stays idle after an answer, but none that never asks, stops in the middle of a head, or
goes on with a body that nobody reads. Without this, whoever reaches the port could hold every file descriptor of the
controller, and with them its store and its git. Used by `server.run` alone.
"""

from __future__ import annotations

import asyncio
import resource
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""From the first byte to the end of a request's head. It is one packet; on a bad line that takes seconds."""

TAKE_S = 60.0
"""Longest time in which somebody takes nothing of an answer: its pieces wait in memory meanwhile."""

MOST = 4096
"""Connections at once, and never more than half of the descriptors that the process may open."""


class BoundedProtocol(H11Protocol):
    """One connection, which brings the whole head of a request in time. A new one beyond the most is closed."""

    head_s = HEAD_S
    take_s = TAKE_S
    most = MOST
    _waiting: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > min(self.most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2):
            self.transport.close()
            return
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
