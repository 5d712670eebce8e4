"""Owns time: steps it to the next due instant once controller and devices are idle, and runs both.

The controller is the real program in a child process, on the stepped clock; the devices are real agents on directory hardware
in this process, talking HTTP to it. The director decides nothing but when time moves. A controller that dies is started
again, and time stands still until it is back. Called by `demo`; the protocol of the socket is `adapters.clock_stepped`'s.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from reconciler.adapters.clock_stepped import from_micros, to_micros
from reconciler.agent.device import Device
from reconciler.ports import TerminalError

_LENGTH = struct.Struct("<q")
_START_S = 60.0
_IDLE_S = 90.0
_MOST_STARTS = 200
_HANDS = 4
_PROGRAM = "from reconciler.cli.main import main; main()"


class Time:
    """Virtual time in a file that the controller maps, and the socket at which it says that it is idle."""

    def __init__(self, path: Path, start: datetime) -> None:
        path.unlink(missing_ok=True)
        self._file = open(f"{path}.now", "w+b")  # noqa: SIM115 - mapped for as long as time runs
        self._file.write(_LENGTH.pack(to_micros(start)))
        self._file.flush()
        self._present = mmap.mmap(self._file.fileno(), _LENGTH.size)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        os.chmod(path, 0o600)
        self._listener.listen(16)
        self._stream: Any = None
        self._connection: socket.socket | None = None

    def now(self) -> datetime:
        """The present instant."""
        return from_micros(_LENGTH.unpack(self._present[:])[0])

    def set(self, to: datetime) -> None:
        """Jump. Time never goes back."""
        if to > self.now():
            self._present[:] = _LENGTH.pack(to_micros(to))

    def accept(self, timeout_s: float) -> bool:
        """Take the controller's connection; False if none came."""
        self._listener.settimeout(timeout_s)
        try:
            connection, _ = self._listener.accept()
        except TimeoutError:
            return False
        self.drop()
        connection.settimeout(_IDLE_S)
        self._connection, self._stream = connection, connection.makefile("rwb")
        return True

    def ask(self, question: str) -> Mapping[str, Any] | None:
        """Ask the controller and wait for its answer; None: it is gone."""
        if self._stream is None:
            return None
        try:
            self._stream.write(json.dumps({"ask": question}).encode() + b"\n")
            self._stream.flush()
            line = self._stream.readline()
        except TimeoutError:
            raise TerminalError(f"the controller was not idle for {_IDLE_S:g} s", needed_for="stepping time") from None
        except OSError:
            line = b""
        if not line:
            self.drop()
            return None
        answer: Mapping[str, Any] = json.loads(line)
        return answer

    def turn_away(self) -> None:
        """Hang up on whoever connected beside the controller: a `status` that only wanted to know the time."""
        self._listener.settimeout(0)
        with suppress(OSError):
            while True:
                self._listener.accept()[0].close()

    def drop(self) -> None:
        """Forget the connection."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(OSError):
                stream.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Time ends."""
        self.drop()
        self._listener.close()
        self._present.close()
        self._file.close()


class Controller:
    """`reconciler run` as a child process."""

    def __init__(self, config: Path, log: Path) -> None:
        self._config, self._log = config, log
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.lock = threading.Lock()

    def start(self) -> None:
        """Start it."""
        with open(self._log, "ab") as log, self.lock:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, "run", "--config", str(self._config), "--log", "json"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self.starts += 1

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def kill(self) -> bool:
        """SIGKILL, at whatever it is doing. Returns whether it ran."""
        with self.lock:
            process = self._process
            if process is None or process.poll() is not None:
                return False
            process.kill()
            process.wait()
            return True

    def stop(self, timeout_s: float = 30.0) -> int | None:
        """SIGTERM, and wait; SIGKILL if it does not end. Returns its exit code."""
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.wait()


class Director:
    """Controller, devices and time. One thread, which calls back after every step."""

    def __init__(self, time_: Time, controller: Controller, bells: Path, *, ring_s: int = 0) -> None:
        """`ring_s`: how long a device that is rung takes to call in."""
        self.time, self.controller, self._bells = time_, controller, bells
        self._ring = timedelta(seconds=ring_s)
        self._calls: dict[str, datetime] = {}
        """When a device that was rung, or has something to say, reports, whatever its interval says."""
        self.devices: dict[str, Device] = {}
        self._due: dict[str, datetime] = {}
        self._rung: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(_HANDS, thread_name_prefix="device")
        self.steps = self.device_steps = 0
        self.spent: dict[str, float] = {"devices": 0.0, "controller": 0.0, "starting": 0.0}

    def add(self, device: Device) -> None:
        """A device that begins to live now."""
        name = device.identity.device
        bell = self._bells / name
        bell.touch()
        self.devices[name], self._due[name] = device, self.time.now()
        self._rung[name] = bell.stat().st_mtime_ns

    def run(self, until: Callable[[], bool], deadline: datetime, needed_for: str) -> None:
        """Let time run until `until` is true, asked at most once in ten virtual minutes. TerminalError: not by `deadline`."""
        asked: datetime | None = None
        while True:
            self.settle()
            now = self.time.now()
            if asked is None or now - asked >= timedelta(minutes=10):
                asked = now
                if until():
                    return
            if now >= deadline:
                raise TerminalError(
                    f"{needed_for} has not happened by {deadline:%Y-%m-%d %H:%M} UTC", needed_for="the demo"
                )
            self.jump(deadline)

    def settle(self) -> datetime | None:
        """Work until nobody has anything to do at this instant; returns when the controller wants to be called."""
        while True:
            self._step_devices()
            until = self._await_controller()
            if not self._hear_bells() and not self._due_now():
                return until

    def pass_until(self, to: datetime) -> None:
        """Let time run to an instant."""
        self.settle()
        while self.time.now() < to:
            self.jump(to)
            self.settle()

    def jump(self, most: datetime) -> None:
        """To the next instant at which anything is due, `most` at the latest. All are idle."""
        self._until = self._until_next(most)
        self.time.set(self._until)
        self.steps += 1
        if self.time.ask("time") is None:
            self._await_controller()

    def _until_next(self, most: datetime) -> datetime:
        instants = [most, *self._due.values(), *self._calls.values()]
        if self._controller_until is not None:
            instants.append(self._controller_until)
        return min(instants)

    _controller_until: datetime | None = None
    _until: datetime | None = None

    # ------------------------------------------------ devices

    def _due_now(self) -> list[str]:
        now = self.time.now()
        never = datetime.max.replace(tzinfo=UTC)
        return [name for name, due in self._due.items() if min(due, self._calls.get(name, never)) <= now]

    def call(self, name: str, at: datetime) -> None:
        """Let a device report at an instant, and do nothing before: it is idle, and next to report within its interval."""
        self._due[name] = self._calls[name] = at

    def _call_in(self, now: datetime) -> None:
        """Whose call is due reports with its next step. One that boots reports when it is up, without being asked."""
        for name in [name for name, at in self._calls.items() if at <= now]:
            del self._calls[name]
            if not self.devices[name].booting:
                self.devices[name].call_in()
                self._due[name] = now

    def _step_devices(self) -> None:
        started = time.perf_counter()
        while due := self._due_now():
            now = self.time.now()

            self._call_in(now)

            def step(name: str, now: datetime = now) -> tuple[str, datetime]:
                return name, self.devices[name].step(now)

            for name, following in self._pool.map(step, due):
                self._due[name] = following
            self.device_steps += len(due)
        self.spent["devices"] += time.perf_counter() - started

    def _hear_bells(self, now: datetime | None = None) -> bool:
        """Devices that were rung report in a moment."""
        heard = False
        for name, device in self.devices.items():
            rung = (self._bells / name).stat().st_mtime_ns
            if rung != self._rung[name]:
                self._rung[name] = rung
                # One that boots reports when it is up; nobody is there who could hear.
                if not device.booting:
                    self._calls[name] = (now or self.time.now()) + self._ring
                    heard = True
        return heard

    # ------------------------------------------------ the controller

    def _await_controller(self) -> datetime | None:
        """Wait until it is idle, starting it (again) where it does not run."""
        started = time.perf_counter()
        while True:
            answer = self.time.ask("idle")
            if answer is not None:
                self.spent["controller"] += time.perf_counter() - started
                until = answer["until"]
                self._controller_until = None if until is None else from_micros(until)
                return self._controller_until
            self._revive()

    def _revive(self) -> None:
        started = time.perf_counter()
        give_up = time.monotonic() + _START_S
        while True:
            if self.controller.pid is None:
                if self.controller.starts >= _MOST_STARTS:
                    raise TerminalError(
                        "the controller keeps dying", needed_for="the demo", remedy="see controller.log"
                    )
                self.controller.start()
            if self.time.accept(0.2):
                break
            if time.monotonic() > give_up:
                raise TerminalError(
                    "the controller does not come up", needed_for="the demo", remedy="see controller.log"
                )
        self.spent["starting"] += time.perf_counter() - started

    def real_time(self, controller: Controller) -> None:
        """Step the devices by the system's clock, and start a controller that has ended. Ends by KeyboardInterrupt alone."""
        self._due = dict.fromkeys(self._due, datetime.now(UTC))
        while True:
            now = datetime.now(UTC)
            self._call_in(now)
            for name in [name for name, due in self._due.items() if due <= now]:
                self._due[name] = self.devices[name].step(datetime.now(UTC))
            self._hear_bells(now)
            if controller.pid is None:
                controller.start()
            left = (min(self._due.values()) - datetime.now(UTC)).total_seconds()
            time.sleep(min(1.0, max(0.05, left)))

    def close(self) -> None:
        """Stop everything. Devices keep their folders."""
        self.controller.stop()
        self._pool.shutdown()
        self.time.close()


def killer(controller: Controller, times: Sequence[float], ended: threading.Event) -> Callable[[], int]:
    """Kill the controller so many real seconds after each other, from a thread; returns a function that counts the kills."""
    killed = [0]

    def run() -> None:
        for delay in times:
            if ended.wait(delay):
                return
            while not ended.is_set() and not controller.kill():
                ended.wait(0.01)
            killed[0] += 1

    threading.Thread(target=run, name="killer", daemon=True).start()
    return lambda: killed[0]
