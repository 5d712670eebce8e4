"""`reconciler relay`: asks a command of another user over a Unix socket, as if it had been run here.

The two ends of one socket. `answer` runs a fixed command for one connection, which systemd accepted and gave it as standard input
(`Accept=yes`, `StandardInput=socket`); `ask` connects, sends its own standard input, and gives back the command's output, errors
and exit code. So the controller asks signer and builder without a right to become them, and cannot choose what they run. Who may
connect is the socket's mode. Called by the units of `systemd-units`, and by the controller as `keys.signer.command` and
`builder.command`; decides nothing, and reads nothing of what it carries. Source: design §6; systemd.socket(5).

From the asker: bytes, until it has no more. To the asker: frames of kind (o, e, x), length (4 bytes, big-endian) and bytes: output,
errors, and last the exit code as text.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click

OUTPUT, ERRORS, EXIT = b"o", b"e", b"x"
Send = Callable[[bytes, bytes], None]
_CHUNK = 1 << 16
_HEAD = struct.Struct(">cI")


@click.group(short_help="Ask a command of another user over a socket; answer there.")
def relay() -> None:
    """Ask a command of another user over a Unix socket, or be the one that answers. For signer and builder under systemd."""


@relay.command(short_help="Run the command behind a socket, as if it were here.")
@click.argument("socket_path", metavar="SOCKET", type=click.Path(path_type=Path))
def ask(socket_path: Path) -> None:
    """Run the command behind SOCKET: its input is this one's, and so are its output, its errors and its exit code.

    Exit code 3: nobody answers there, or the answer is cut off.
    """
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(socket_path))
        except OSError as error:
            _unanswered(socket_path, f"nobody answers at {socket_path} ({error.strerror or error})")
        threading.Thread(target=_send_input, args=(link,), name="relay-input", daemon=True).start()
        while (frame := _received(link)) is not None:
            kind, data = frame
            if kind == EXIT:
                # Not sys.exit: the thread may sit in a read of standard input for ever.
                _flush_and_exit(int(data))
            stream = sys.stdout.buffer if kind == OUTPUT else sys.stderr.buffer
            stream.write(data)
            stream.flush()
    _unanswered(socket_path, f"the command behind {socket_path} was ended before it was done")


@relay.command(short_help="Answer one connection with a command; for systemd.")
@click.argument("command", nargs=-1, required=True)
def answer(command: tuple[str, ...]) -> None:
    """Run COMMAND for the connection that is this command's standard input, and send back what comes of it.

    The end of the asker's input, or of the asker, is the end of COMMAND's input.
    """
    try:
        link = socket.socket(fileno=os.dup(0))
    except OSError:
        raise click.UsageError("standard input is no socket: this is for a unit with StandardInput=socket") from None
    lock = threading.Lock()

    def send(kind: bytes, data: bytes) -> None:
        with lock, contextlib.suppress(OSError):
            link.sendall(_HEAD.pack(kind, len(data)) + data)

    try:
        child = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
    except OSError as error:
        text = f"error: {command[0]} cannot be run ({error.strerror}); needed for answering; correct the unit's ExecStart\n"
        send(ERRORS, text.encode())
        send(EXIT, b"3")
        raise SystemExit(3) from None
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    threading.Thread(target=_feed, args=(link, child.stdin.fileno()), name="relay-feed", daemon=True).start()
    carriers = [
        threading.Thread(target=_carry, args=(stream.fileno(), kind, send), name=f"relay-{kind.decode()}")
        for stream, kind in ((child.stdout, OUTPUT), (child.stderr, ERRORS))
    ]
    for carrier in carriers:
        carrier.start()
    status = child.wait()
    for carrier in carriers:
        carrier.join()
    # As a shell says it: the asker tells a command that was killed from one that failed.
    status = status if status >= 0 else 128 - status
    send(EXIT, str(status).encode())
    _flush_and_exit(status)


def _send_input(link: socket.socket) -> None:
    """Everything on standard input, then the end of it."""
    with contextlib.suppress(OSError):
        while data := os.read(0, _CHUNK):
            link.sendall(data)
        link.shutdown(socket.SHUT_WR)


def _feed(link: socket.socket, to: int) -> None:
    """What the asker sends, to the command; its end too."""
    with contextlib.suppress(OSError):
        while data := link.recv(_CHUNK):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(to, rest) :]
    with contextlib.suppress(OSError):
        os.close(to)


def _carry(source: int, kind: bytes, send: Send) -> None:
    """One stream of the command, as frames. Read to its end also where nobody hears it: the command shall not wait for ever."""
    while data := os.read(source, _CHUNK):
        send(kind, data)


def _received(link: socket.socket) -> tuple[bytes, bytes] | None:
    """The next frame; None: the connection ended before one was whole."""
    head = _exactly(link, _HEAD.size)
    if head is None:
        return None
    kind, length = _HEAD.unpack(head)
    if kind not in (OUTPUT, ERRORS, EXIT) or length > _CHUNK:
        return None
    data = _exactly(link, length)
    return None if data is None or (kind == EXIT and not data.isdigit()) else (kind, data)


def _exactly(link: socket.socket, length: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < length:
        try:
            data = link.recv(length - len(parts))
        except OSError:
            return None
        if not data:
            return None
        parts += data
    return bytes(parts)


def _unanswered(path: Path, wrong: str) -> NoReturn:
    from reconciler.ports import TransientError

    raise TransientError(
        wrong,
        needed_for="asking the signer or the builder",
        remedy=f"see that the socket's unit is started (systemctl list-sockets {path}) and what its journal says",
    )


def _flush_and_exit(status: int) -> NoReturn:
    """End now, whatever a thread still reads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
