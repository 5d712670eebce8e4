"""Keeps the registry token that devices are given, and renews it in a thread beside the requests. Called by `server.serving`.

Decides when to ask for a new one and how long the old one may be handed out. An exchange never waits for it: while there is
none, devices are given no registry, keep what they have, and ask again with their next report. The token is never logged;
that it cannot be had is, once a cause. Source: design §5, "Protocol".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from reconciler.ports import PortError, TransientError
from reconciler.protocol.exchange import RegistryToken

_log = structlog.get_logger("reconciler.server")

LEAST = timedelta(minutes=5)
"""What a token must still hold to be handed out: a device that gets it shall be able to pull with it."""
READ_AGAIN = timedelta(minutes=10)
"""When a token without an end is asked for again: it may have been changed."""
AGAIN = timedelta(seconds=30)
"""When one that could not be had is asked for again."""


class TokenSource(Protocol):
    """Where tokens come from (`adapters.registry_tokens`). It may block."""

    def fetch(self) -> RegistryToken:
        """A new token. TransientError, TerminalError: none now."""


class PullTokens:
    """The token of the moment. Safe from any thread; asks for the first one when it is made."""

    def __init__(self, source: TokenSource, now: Callable[[], datetime]) -> None:
        self._source, self._now, self._lock = source, now, threading.Lock()
        self._held: RegistryToken | None = None
        self._due_at = now()
        self._asking: threading.Thread | None = None
        self._cause: str | None = None
        self.current()

    def current(self) -> RegistryToken | None:
        """The token, if one is known that holds for another five minutes. Returns at once."""
        now = self._now()
        with self._lock:
            if self._asking is None and now >= self._due_at:
                self._asking = threading.Thread(target=self._renew, name="registry-token", daemon=True)
                self._asking.start()
            held = self._held
        if held is None or (held.expires_at is not None and held.expires_at - now < LEAST):
            return None
        return held

    def settle(self, timeout_s: float) -> None:
        """Wait until a request under way has ended."""
        asking = self._asking
        if asking is not None:
            asking.join(timeout_s)

    def _renew(self) -> None:
        token, due_at = None, self._now() + AGAIN
        try:
            token = self._source.fetch()
            asked_at = self._now()
            # At half of its life: a device that waits for its window gets the next one long before this one ends.
            half = READ_AGAIN if token.expires_at is None else (token.expires_at - asked_at) / 2
            due_at = asked_at + max(half, AGAIN)
            if self._cause is not None:
                _log.info("registry token renewed")
            self._cause = None
        except PortError as error:
            wish = error.retry_after_s if isinstance(error, TransientError) else None
            due_at = self._now() + max(AGAIN, timedelta(seconds=wish or 0))
            if str(error) != self._cause:
                self._cause = str(error)
                _log.warning("no new registry token for devices", cause=self._cause)
        finally:
            with self._lock:
                self._held, self._due_at, self._asking = token or self._held, due_at, None
