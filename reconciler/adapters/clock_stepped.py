"""Time owned by another process (a director), as a `ports.Clock`. For the demo and for end-to-end tests.

Time stands still while anybody works, and jumps to the next due instant when all are idle. The director writes the
present instant into `SOCKET.now` (microseconds since the epoch, eight bytes, little-endian) and listens on `SOCKET`. It
asks `idle`; the answer comes once the controller waits with nothing to do, and names the instant it waits for. After a
step it asks `time`. So the controller decides nothing about time but when it is idle, and one that was killed simply
connects again. Where the director is gone for good, time has ended: `wait` raises TerminalError.

With `every_s`, waits end on multiples of it since the epoch alone: what comes in between is heard at the next one, as the
simulator's ticks are. `spend` lets work beside the loop take virtual time: a build its half hour.
"""

from __future__ import annotations

import json
import mmap
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reconciler.ports import TerminalError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LENGTH = struct.Struct("<q")


def to_micros(instant: datetime) -> int:
    """An aware datetime → microseconds since the epoch."""
    return (instant - _EPOCH) // timedelta(microseconds=1)


def from_micros(value: int) -> datetime:
    """Microseconds since the epoch → an aware datetime, UTC."""
    return _EPOCH + timedelta(microseconds=value)


class SteppedClock:
    """`ports.Clock` whose time a director owns. Safe from any thread. TerminalError: no director at `path`."""

    def __init__(self, path: Path, every_s: int | None = None) -> None:
        self._changed = threading.Condition()
        self._every = None if every_s is None else timedelta(seconds=every_s)
        self._sleeping: list[datetime] = []
        self._woken = self._waiting = self._gone = self._closed = False
        self._until: datetime | None = None
        self._working = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with open(f"{path}.now", "rb") as file:
                self._present = mmap.mmap(file.fileno(), _LENGTH.size, prot=mmap.PROT_READ)
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise TerminalError(
                f"no director answers at {path}: {error.strerror or error}",
                needed_for="the stepped clock of the settings",
                remedy="start what owns the time first, or set `clock: {type: system}`",
            ) from None
        self._server = threading.Thread(target=self._serve, name="stepped-clock", daemon=True)
        self._server.start()

    def now(self) -> datetime:
        """The director's present instant, UTC."""
        return from_micros(_LENGTH.unpack(self._present[: _LENGTH.size])[0])

    def wait(self, until: datetime | None) -> bool:
        """True once `wake` was called, False once `until` is reached. TerminalError: the director is gone."""
        with self._changed:
            self._until, self._waiting = until, True
            self._changed.notify_all()
            try:
                while True:
                    if self._hears():
                        self._woken = False
                        return True
                    if not self._before_until():
                        return False
                    if self._gone:
                        raise TerminalError("the director has gone, and time with it", needed_for="waiting")
                    self._changed.wait()
            finally:
                self._waiting = False

    def wake(self) -> None:
        """End a wait in progress, or the next one at once."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time does not jump while this is held: for work beside the thread that waits."""
        with self._changed:
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def spend(self, seconds: float) -> None:
        """Let virtual time pass, in a thread that holds `working`; what waits behind it waits too. Returns early where the
        director is gone: time has ended."""
        due = self.now() + timedelta(seconds=seconds)
        with self._changed:
            self._sleeping.append(due)
            self._changed.notify_all()
            try:
                while self.now() < due and not self._gone:
                    self._changed.wait()
            finally:
                self._sleeping.remove(due)
                self._changed.notify_all()

    def close(self) -> None:
        """Leave the director. A wait in progress ends as if it had gone."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._server.join(5)
        self._socket.close()
        self._present.close()

    def _serve(self) -> None:
        """Answer the director until it is gone."""
        try:
            with self._socket.makefile("rwb") as stream:
                for line in stream:
                    question = json.loads(line).get("ask")
                    answer = self._idle() if question == "idle" else self._stepped()
                    stream.write(json.dumps(answer).encode() + b"\n")
                    stream.flush()
        except (OSError, ValueError):
            pass  # Closed, or talking nonsense: either way nobody owns the time any more.
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def _idle(self) -> dict[str, object]:
        """Block until nothing is to be done before the instant that is waited for."""
        with self._changed:
            while not (self._waiting and not self._hears() and self._rests() and self._before_until()):
                if self._closed:
                    raise OSError("nobody answers any more")
                self._changed.wait()
            instants = list(self._sleeping)
            if self._until is not None:
                instants.append(self._on_step(self._until))
            if self._woken:
                instants.append(self._on_step(self.now()))
            return {"until": to_micros(min(instants)) if instants else None}

    def _rests(self) -> bool:
        """Whether nobody works beside the loop: nobody is there, or all wait for the one that lets time pass."""
        if not self._sleeping:
            return self._working == 0
        return min(self._sleeping) > self.now()

    def _hears(self) -> bool:
        """Whether a wake was called, and is heard at this instant."""
        return self._woken and self._on_step(now := self.now()) == now

    def _before_until(self) -> bool:
        return self._until is None or self.now() < self._on_step(self._until)

    def _on_step(self, instant: datetime) -> datetime:
        """The first multiple of `every_s` at or after an instant."""
        return instant if self._every is None else _EPOCH - (_EPOCH - instant) // self._every * self._every

    def _stepped(self) -> dict[str, object]:
        with self._changed:
            self._changed.notify_all()
        return {}
