"""Carries one connection: bytes from stdin to a TCP port of loopback and back to stdout, until either end closes.

Started by QEMU for every connection that a machine makes (`machine.Machine`, `ports`). It ends with QEMU, however that
ends: its stdin is closed then.
"""

from __future__ import annotations

import os
import select
import socket
import sys

CHUNK = 1 << 18


def main() -> None:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20) as server:
        server.settimeout(None)
        while True:
            ready, _, _ = select.select([0, server], [], [])
            if server in ready:
                data = server.recv(CHUNK)
                if not data:
                    return
                _write(data)
            if 0 in ready:
                data = os.read(0, CHUNK)
                if not data:
                    return
                server.sendall(data)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    try:
        main()
    except OSError:
        sys.exit(1)
