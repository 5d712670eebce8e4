"""Tells systemd how the agent is: ready, alive, stopping, and what it does. Speaks sd_notify's protocol over its socket.

Python 3.10, standard library only: runs as root on a device. Does nothing where nobody listens (no NOTIFY_SOCKET), and
never raises: an agent that cannot say how it is still works. Called by the loop alone, so that a loop that is stuck is
not said to be alive. Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

STATUS_CHARS = 200


class Notifier:
    """Talks to the service manager named in the environment, if there is one."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self._said = ""
        self.watchdog_s: float | None = None
        """The time without a sign of life after which the service manager ends this process; None: it does not."""
        with suppress(ValueError):
            if int(environment.get("WATCHDOG_PID", os.getpid())) == os.getpid():
                self.watchdog_s = int(environment["WATCHDOG_USEC"]) / 1e6 if "WATCHDOG_USEC" in environment else None

    def ready(self) -> None:
        """The agent has started: its settings, memory and machine could be read."""
        self._send("READY=1")

    def alive(self) -> None:
        """The loop goes on."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """What it does, in a line for people. Said again only when it has changed."""
        text = " ".join(text.split())[:STATUS_CHARS]
        if text != self._said:
            self._said = text
            self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The agent ends."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        # A name in the abstract namespace begins with a zero byte, which the environment cannot carry.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError):
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                # A manager that reads nothing must not be what the loop gets stuck at.
                self._socket.settimeout(1.0)
            self._socket.sendto(text.encode("utf-8", "replace"), address)
