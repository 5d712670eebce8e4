"""What the service manager is told, over a real socket: once that it is ready, then that it lives, as long as it does."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.adapters.service_manager import ServiceManager
from reconciler.controller.pulse import Pulse


class Listener:
    """The manager's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def heard(self, within_s: float = 60.0) -> str:
        """The next word; nothing where none comes."""
        self._socket.settimeout(within_s)
        try:
            return self._socket.recv(4096).decode()
        except TimeoutError:
            return ""

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    name = f"/tmp/sd-{secrets.token_hex(6)}"
    made = Listener(name if request.param == "path" else f"@sd-{secrets.token_hex(6)}")
    yield made
    made.close()
    Path(name).unlink(missing_ok=True)


def environment(listener: Listener, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": listener.address, "PATH": "/bin"} | more


def test_ready_alive_and_stopping_are_said(listener: Listener) -> None:
    known = environment(listener, WATCHDOG_USEC="300000", WATCHDOG_PID=str(os.getpid()))
    manager = ServiceManager(known)
    assert known == {"PATH": "/bin"}, "what it starts does not speak for it"
    assert manager.watchdog_s == 0.3
    manager.ready("serving\nhttps://x  y")
    assert listener.heard() == "READY=1\nSTATUS=serving https://x y"
    manager.watch(lambda: 0.0)
    manager.watch(lambda: 0.0)
    assert [listener.heard() for _ in range(3)] == ["WATCHDOG=1"] * 3
    manager.stopping()
    # Words of life come in between, and where this thread had to wait, any number of them.
    ends = time.monotonic() + 60
    while (word := listener.heard()) != "STOPPING=1":
        assert word == "WATCHDOG=1" and time.monotonic() < ends
    manager.close()
    while listener.heard(0.05):
        pass
    assert listener.heard(0.3) == "", "nothing more once it is closed"


def test_a_tick_that_hangs_is_not_said_to_be_alive(listener: Listener) -> None:
    manager, pulse = ServiceManager(environment(listener, WATCHDOG_USEC="150000")), Pulse()
    assert pulse.busy_s == 0.0
    with pulse.tick():
        time.sleep(0.2)
        assert pulse.busy_s > 0.15
        manager.watch(lambda: pulse.busy_s)
        assert listener.heard(0.4) == ""
    assert pulse.busy_s == 0.0 and listener.heard() == "WATCHDOG=1", "the loop goes on"
    manager.close()


@pytest.mark.parametrize(
    "more", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "many"}, {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}]
)
def test_without_a_watchdog_of_its_own_nothing_is_said_of_life(listener: Listener, more: dict[str, str]) -> None:
    manager = ServiceManager(environment(listener, **more))
    manager.watch(lambda: 0.0)
    assert manager.watchdog_s is None and listener.heard(0.2) == ""
    manager.close()


@pytest.mark.parametrize("address", ["", "relative/path", "/tmp/nobody-listens-here", "vsock:2:1"])
def test_where_nobody_listens_it_goes_on(address: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address} if address else {})
    manager.ready("x")
    manager.stopping()
    manager.close()
