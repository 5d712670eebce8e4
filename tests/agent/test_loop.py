"""The loop: what systemd hears of it, what happens when it gets stuck, and what a clock that is set does to what waits."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

import reconciler
from reconciler.agent.loop import SET_CLOCK_S, Steady
from reconciler.agent.machine import State
from reconciler.agent.notify import Notifier
from reconciler.agent.timing import Timing
from tests.agent.conftest import Releases
from tests.agent.world import DEVICE, SITE, START, TOKEN, Office, Site

ROOT = Path(reconciler.__file__).parents[1]


class Manager:
    """Hears what systemd would hear."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(60)
        self.heard: list[str] = []

    def until(self, word: str) -> None:
        while word not in self.heard[-1:]:
            self.heard.append(self.socket.recv(4096).decode())

    def later(self, seconds: float) -> list[str]:
        """What is said within so many seconds."""
        ends, found = time.monotonic() + seconds, []
        while (left := ends - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                found.append(self.socket.recv(4096).decode())
            except TimeoutError:
                break
        self.socket.settimeout(60)
        return found


@pytest.fixture
def manager() -> Iterator[Manager]:
    folder = Path(f"/tmp/notify-{time.monotonic_ns():x}")
    folder.mkdir(0o700)
    made = Manager(folder)
    yield made
    made.socket.close()
    made.path.unlink()
    folder.rmdir()


# ---------------------------------------------------------------- the notifier


def test_it_speaks_the_managers_protocol(manager: Manager) -> None:
    pid = os.getpid()
    notifier = Notifier({"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(pid)})
    assert notifier.watchdog_s == 30
    notifier.ready()
    notifier.alive()
    notifier.status("writing\n v2")
    notifier.status("writing v2")
    notifier.stopping()
    notifier.close()
    manager.until("STOPPING=1")
    assert manager.heard == ["READY=1", "WATCHDOG=1", "STATUS=writing v2", "STOPPING=1"]


def test_an_abstract_address_is_one(manager: Manager) -> None:
    name = f"edge-agent-test-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + name)
        heard.settimeout(60)
        notifier = Notifier({"NOTIFY_SOCKET": "@" + name})
        notifier.ready()
        assert heard.recv(100) == b"READY=1"
        notifier.close()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "vsock:2:1"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
    ],
)
def test_where_nobody_listens_nothing_happens(environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    assert notifier.watchdog_s is None
    notifier.ready()
    notifier.alive()
    notifier.close()


# ---------------------------------------------------------------- the loop as a service


def _start(site: Site, office: Office, tmp_path: Path, **environment: str) -> subprocess.Popen[bytes]:
    (tmp_path / "token").write_text(TOKEN)
    settings = {"device": DEVICE, "site": SITE, "server": office.url, "tokenFile": str(tmp_path / "token")}
    (tmp_path / "agent.json").write_text(json.dumps({**settings, "root": str(site.root)}))
    command = [sys.executable, "-W", "error", "-m", "reconciler.agent.main", "run", "--config", "agent.json"]
    return subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, stderr=subprocess.PIPE
    )


@pytest.mark.system
def test_systemd_hears_ready_alive_and_stopping(site: Site, office: Office, tmp_path: Path, manager: Manager) -> None:
    """Alive comes three times within the time that would end it, whether there is something to do or not."""
    process = _start(site, office, tmp_path, NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="600000")
    try:
        manager.until("READY=1")
        manager.until("STATUS=idle")
        # Where the machine has much to do now, it shows a little later.
        assert any(manager.later(1.0).count("WATCHDOG=1") >= 3 for _ in range(60))
        process.send_signal(signal.SIGTERM)
        manager.until("STOPPING=1")
    finally:
        process.kill() if process.poll() is None and "STOPPING=1" not in manager.heard else None
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.system
def test_a_loop_that_is_stuck_says_nothing(site: Site, office: Office, tmp_path: Path, manager: Manager) -> None:
    """A server that keeps the agent waiting is one step; nobody says in its stead that the loop goes on."""
    hung, over = threading.Event(), threading.Event()

    def hang(_: BaseHTTPRequestHandler) -> bool:
        hung.set()
        over.wait(60)
        return False

    office.before = hang
    process = _start(site, office, tmp_path, NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="300000")
    try:
        manager.until("READY=1")
        assert hung.wait(60)
        manager.later(0.1)  # what it had said before
        assert manager.later(1.0) == []
    finally:
        over.set()
        process.kill()
        process.communicate(timeout=60)


# ---------------------------------------------------------------- a clock that is set


def test_a_clock_that_is_set_is_noticed_and_one_that_runs_is_not() -> None:
    steady, at = Steady(), datetime(2030, 1, 1, tzinfo=UTC)
    assert steady.moved(at, 100.0) is None
    assert steady.moved(at + timedelta(seconds=60), 160.0) is None
    assert steady.moved(at + timedelta(seconds=120 + SET_CLOCK_S / 2), 220.0) is None, "it is slewed"
    assert steady.moved(datetime(1970, 1, 1, tzinfo=UTC), 280.0) == datetime(1970, 1, 1, tzinfo=UTC) - (
        at + timedelta(seconds=180 + SET_CLOCK_S / 2)
    )
    assert steady.moved(datetime(1970, 1, 1, 0, 1, tzinfo=UTC), 340.0) is None


SLOW = Timing(settle_s=120, recheck_s=10, spread_s=0, least_window_s=0, slice_s=60, report_jitter=0)


@pytest.mark.system
@pytest.mark.parametrize("by", [timedelta(days=365 * 56), -timedelta(days=30)])
def test_a_trial_is_given_its_time_though_the_clock_is_set_meanwhile(
    site: Site, office: Office, releases: Releases, by: timedelta
) -> None:
    """As on a device whose clock battery is dead: it boots into its trial in 1970, and chrony sets the clock a minute later."""
    site.device = site.new_device(SLOW)
    office.assign(releases.v2)
    while site.device.agent.work.state is not State.REBOOTING:
        site.step()
    (site.root / "faults" / "time").write_text("critical chrony has no source")
    site.settle(office.now + timedelta(seconds=30))
    assert site.device.agent.work.state is State.TRIAL
    office.now += by
    site.device.clock_moved(by)
    site.step()
    assert site.device.agent.work.state is State.TRIAL, "nobody has waited for so long"
    (site.root / "faults" / "time").unlink()
    site.settle(office.now + timedelta(seconds=60))
    assert site.hardware.version().current == "v2"


@pytest.mark.system
def test_waits_and_reports_go_on_as_they_would_have(site: Site, office: Office, releases: Releases) -> None:
    office.sources_of_image = ["http://127.0.0.1:9/"]
    office.assign(releases.v2, expires_at=START + timedelta(days=4000))
    site.settle()
    agent = site.device.agent
    reports_at, waits = agent.reports_at, agent.notes.waiting("v2", office.now)
    assert reports_at is not None
    assert waits is not None
    by = timedelta(days=1000)
    site.device.clock_moved(by)
    assert agent.reports_at == reports_at + by
    assert agent.notes.waiting("v2", office.now + by) == waits + by


@pytest.mark.system
@pytest.mark.parametrize("now", [datetime(1970, 1, 1, 0, 10, tzinfo=UTC), datetime(2099, 6, 1, tzinfo=UTC)])
def test_a_device_that_boots_in_another_year_does_nothing_and_says_why(
    site: Site, office: Office, releases: Releases, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though an image waits on it, and though a server hands it another assignment."""
    from reconciler.agent.hardware import Clock

    opens = START + timedelta(hours=1)
    office.assign(releases.v2, window=((opens, opens + timedelta(hours=1)),))
    site.settle(START + timedelta(minutes=5))
    before = {
        name: value for name, value in site.tree().items() if not name.startswith(("run/boot.json", "agent/state"))
    }
    site.device.power_cycle()
    monkeypatch.setattr(site.hardware, "clock", lambda: Clock(False))
    right, office.now = office.now, now
    site.settle(now + timedelta(minutes=10))
    office.now = right
    office.assign(releases.v2, window_waived=True)
    office.now = now + timedelta(minutes=10)
    site.settle(now + timedelta(minutes=20))
    code = "assignment-from-the-future" if now.year < 2030 else "assignment-expired"
    codes = {item.code for item in office.last().refusals}
    assert codes == ({code, "signature-future"} if now.year < 2030 else {code})
    assert any("not synchronised" in item.reason for item in office.last().refusals)
    after = {
        name: value for name, value in site.tree().items() if not name.startswith(("run/boot.json", "agent/state"))
    }
    assert after == before
    # The clock is set right, and everything goes on.
    by = opens - office.now
    office.now = opens
    site.device.clock_moved(by)
    monkeypatch.setattr(site.hardware, "clock", lambda: Clock(True, 0.0))
    site.settle(opens + timedelta(minutes=5))
    assert (office.last().image, office.last().refusals) == ("v2", ())


def test_the_manager_never_gets_a_wrong_word(manager: Manager) -> None:
    """A line break would end a word and begin another: nothing that a server says gets to speak for the agent."""
    notifier = Notifier({"NOTIFY_SOCKET": str(manager.path)})
    notifier.status("idle; the server says\nMAINPID=1\nWATCHDOG=1")
    assert manager.socket.recv(1000) == b"STATUS=idle; the server says MAINPID=1 WATCHDOG=1"
    notifier.close()
