"""Ports of this machine's loopback, brought to the loopback of a container that has no network of its own.

Sockets belong to the network namespace that they were made in, whoever holds them: this process listens in the container's,
and connects in its own. Nothing runs in the container for it, and it has no other way out. So plain HTTP stays on loopback
for a device in a container too, and an address that was signed for one end is right at the other.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

_NEW_NETWORK = 0x40000000
_FREE_BIND = 15
_PIECE = 1 << 18


class Loopback:
    """`ports` of 127.0.0.1 in the network namespace of a process, until `close` or the end of this process."""

    def __init__(self, pid: int, ports: Sequence[int]) -> None:
        """OSError: the process is gone, or this one is not root."""
        self._listening: list[socket.socket] = []
        self._failed: OSError | None = None
        # A thread of its own: where it went it stays, and ends.
        there = threading.Thread(target=self._listen, args=(pid, ports))
        there.start()
        there.join()
        if self._failed is not None:
            self.close()
            raise self._failed
        for listener in self._listening:
            threading.Thread(target=_serve, args=(listener,), daemon=True).start()

    def _listen(self, pid: int, ports: Sequence[int]) -> None:
        try:
            with open(f"/proc/{pid}/ns/net") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NEW_NETWORK) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, f"the network namespace of {pid} cannot be entered: {os.strerror(number)}")
            for port in ports:
                listener = socket.socket()
                self._listening.append(listener)
                # The device may not have brought its loopback up yet.
                listener.setsockopt(socket.IPPROTO_IP, _FREE_BIND, 1)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("127.0.0.1", port))
                listener.listen(32)
        except OSError as error:
            self._failed = error

    def close(self) -> None:
        """Take no more connections. Those that are open end with their other end."""
        for listener in self._listening:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def _serve(listener: socket.socket) -> None:
    port = 0
    with suppress(OSError):
        port = listener.getsockname()[1]
        while True:
            caller, _ = listener.accept()
            threading.Thread(target=_carry, args=(caller, port), daemon=True).start()


def _carry(caller: socket.socket, port: int) -> None:
    """Bytes to and fro, until either end closes."""
    with caller, suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=20) as server:
        for end in (caller, server):
            # One that was killed without a word keeps nobody waiting for ever.
            end.settimeout(120)
        other = {caller: server, server: caller}
        while True:
            ready, _, _ = select.select(list(other), [], [])
            for end in ready:
                data = end.recv(_PIECE)
                if not data:
                    return
                other[end].sendall(data)
