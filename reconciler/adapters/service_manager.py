"""Tells the service manager (systemd) how the controller is: ready, alive, stopping. Speaks sd_notify's protocol over its socket.

Does nothing where nobody listens (no NOTIFY_SOCKET), and never raises: a controller that cannot say how it is still works. That it
is alive is said by a thread of its own, and only while `busy_s` is below the time that the manager waits: a tick that hangs is not
said to be alive, a loop that waits for its next one is. Called by `cli.run`. Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, MutableMapping
from contextlib import suppress

_STATUS = 200
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """Whoever started this process, if it wants to know. Safe from any thread, and from a signal handler."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_s: float | None = None
        """The time without a sign of life after which the manager ends this process; None: it does not."""
        with suppress(ValueError):
            if int(environment.get("WATCHDOG_PID", os.getpid())) == os.getpid() and "WATCHDOG_USEC" in environment:
                self.watchdog_s = int(environment["WATCHDOG_USEC"]) / 1e6 or None
        # What this process starts is not the service, and must not speak for it.
        for name in _OURS:
            environment.pop(name, None)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def ready(self, status: str = "") -> None:
        """The service has started: it answers."""
        self._send("READY=1" + (f"\nSTATUS={' '.join(status.split())[:_STATUS]}" if status else ""))

    def watch(self, busy_s: Callable[[], float]) -> None:
        """Say from now on that the loop goes on, while `busy_s`, seconds that the tick under way has taken, allows it."""
        if self.watchdog_s is None or self._thread is not None or not self._address:
            return
        longest = self.watchdog_s

        def tell() -> None:
            while True:
                if busy_s() < longest:
                    self._send("WATCHDOG=1")
                if self._ended.wait(longest / 3):
                    return

        self._thread = threading.Thread(target=tell, name="watchdog", daemon=True)
        self._thread.start()

    def stopping(self) -> None:
        """The service ends."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Say nothing more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _send(self, text: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        # A name in the abstract namespace begins with a zero byte, which the environment cannot carry.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # A socket for each word: rare as they are, no thread has to wait for another.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
            speaker.settimeout(1.0)
            speaker.sendto(text.encode("utf-8", "replace"), address)
