"""How a command on the console talks to the agent that runs beside it: one question and one answer over a Unix socket.

Python 3.10, standard library only: runs as root on a device. Carries JSON; what a question means is `loop`'s, what is
made of an answer is `console`'s. The socket lies in the agent's own folder and is root's alone (0600). A caller that
says nothing costs the agent at most a second. Source: docs/reference/device.md, "Commands for a person".
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAME = "control.sock"
MAX_BYTES = 64 * 1024
PATIENCE_S = 1.0
ANSWER_S = 30.0
"""How long a command waits for an answer. The agent looks at its socket between two steps, which may take this long."""


class NotRunning(Exception):
    """Nobody listens: no agent runs here."""


class Silent(Exception):
    """An agent runs, and does not answer in time."""


class Control:
    """The agent's end. `fileno` is readable when somebody asks."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where the socket cannot be made. Whoever makes one holds the agent's lock: what lies there is a
        dead agent's."""
        self._path = folder / NAME
        with suppress(FileNotFoundError):
            self._path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with _near(folder) as near:
                before = os.umask(0o177)
                try:
                    self._socket.bind(f"{near}/{NAME}")
                finally:
                    os.umask(before)
            self._socket.listen(4)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def serve(self, answer: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        """Answer whoever asks, one caller. Never raises for what a caller does."""
        try:
            caller, _ = self._socket.accept()
        except OSError:
            return
        with caller, suppress(OSError, ValueError, RecursionError):
            question = json.loads(_line(caller, PATIENCE_S))
            if isinstance(question, dict):
                caller.settimeout(PATIENCE_S)
                caller.sendall(json.dumps(answer(question)).encode() + b"\n")

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
        with suppress(OSError):
            self._path.unlink()


def ask(folder: Path, question: Mapping[str, Any], timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """Ask the agent that works in `folder`. Raises NotRunning, or Silent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as caller:
        caller.settimeout(timeout_s)
        try:
            with _near(folder) as near:
                caller.connect(f"{near}/{NAME}")
        except PermissionError:
            raise Silent(f"{folder / NAME} may not be opened; run this as root") from None
        except OSError:
            raise NotRunning from None
        try:
            caller.sendall(json.dumps(question).encode() + b"\n")
            answer = json.loads(_line(caller, timeout_s))
        except (OSError, ValueError, RecursionError):
            answer = None
    if not isinstance(answer, dict):
        raise Silent("the agent runs, but does not answer: it is in a long step, or ends; ask again")
    return answer


def _line(end: socket.socket, patience_s: float) -> bytes:
    """One line, within so many seconds however it trickles. OSError: there is none."""
    ends, data = time.monotonic() + patience_s, b""
    while not data.endswith(b"\n"):
        left = ends - time.monotonic()
        if left <= 0 or len(data) > MAX_BYTES:
            raise TimeoutError("no whole line")
        end.settimeout(left)
        piece = end.recv(4096)
        if not piece:
            raise ConnectionError("no whole line")
        data += piece
    return data


@contextmanager
def _near(folder: Path) -> Iterator[str]:
    """A short name for a folder: a socket's address takes 107 bytes, and folders are deeper than that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
