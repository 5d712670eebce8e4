"""What chrony says of a clock, and what it does not say, is read as what it is. With a real chronyd where there is one."""

from __future__ import annotations

import getpass
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.agent import clock
from reconciler.agent.hardware import Clock
from tests.support.system import need

RIGHT = "C0000201,192.0.2.1,3,1700000000.5,0.25,-0.1,0.1,3.2,0.0,0.1,0.02,0.001,64.2,Normal"


def _with(**columns: str) -> bytes:
    names = ["reference", "name", "stratum", "at", "offset", "last", "rms", "frequency", "rest", "skew"]
    names += ["delay", "dispersion", "interval", "leap"]
    values = dict(zip(names, RIGHT.split(","), strict=True))
    return (",".join({**values, **columns}.values()) + "\n").encode()


def test_a_synchronised_clock_says_how_far_it_is_ahead() -> None:
    assert clock.read(_with()) == Clock(True, -0.25)
    assert clock.read(_with(offset="-0.5")) == Clock(True, 0.5)
    assert clock.read(_with(leap="Insert second")).synchronised


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"506 Cannot talk to daemon\n",
        b"\xff\xfe",
        _with(leap="Not synchronised"),
        _with(stratum="0"),
        _with(stratum="16"),
        _with(stratum="x"),
        _with(reference="7F7F0101"),
        _with(offset="61"),
        _with(offset="-61"),
        _with(dispersion="60"),
        _with(delay="130"),
        _with(dispersion="nan"),
        _with() + _with(),
    ],
)
def test_whatever_else_it_says_the_clock_is_not_synchronised(answer: bytes) -> None:
    assert clock.read(answer) == Clock(False)


def _says(tmp_path: Path, text: str) -> list[str]:
    script = tmp_path / "chronyc"
    # Not by its first line, which takes no path with a blank.
    script.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(text)}\n")
    script.chmod(0o755)
    return [str(script)]


def test_a_program_that_is_absent_fails_or_never_answers(tmp_path: Path) -> None:
    assert clock.ask([str(tmp_path / "none")]) == Clock(False)
    assert clock.ask(_says(tmp_path, f"print({RIGHT!r})"), 60) == Clock(True, -0.25)
    assert clock.ask(_says(tmp_path, f"print({RIGHT!r}); raise SystemExit(1)"), 60) == Clock(False)
    assert clock.ask(_says(tmp_path, "import time; time.sleep(1000)"), 0.2) == Clock(False)


@pytest.fixture
def chronyd() -> Iterator[Callable[..., list[str]]]:
    """Starts a chronyd that touches no clock; the command that asks it."""
    program = need("chronyd", "chrony")
    started: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(*lines: str) -> list[str]:
        folder = Path("/tmp") / f"chrony-{time.monotonic_ns():x}"
        folder.mkdir(0o700)
        place = folder / "s"
        config = [f"bindcmdaddress {place}", "cmdport 0", f"pidfile {folder}/pid", *lines]
        (folder / "conf").write_text("\n".join(config) + "\n")
        command = [program, "-x", "-n", "-U", "-u", getpass.getuser(), "-f", str(folder / "conf")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append((process, folder))
        ends = time.monotonic() + 60
        while not place.exists():
            assert process.poll() is None and time.monotonic() < ends, "chronyd does not listen"
            time.sleep(0.02)
        return ["chronyc", "-n", "-c", "-h", str(place), "tracking"]

    yield start
    for process, folder in started:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder)


@pytest.mark.system
def test_a_real_daemon_without_a_source_is_not_synchronised(chronyd: Callable[..., list[str]]) -> None:
    assert clock.ask(chronyd("port 0")) == Clock(False)
    assert clock.ask(chronyd("port 0", "local stratum 8")) == Clock(False)


@pytest.mark.system
def test_a_real_daemon_with_a_source_is(chronyd: Callable[..., list[str]]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chronyd(f"port {port}", "bindaddress 127.0.0.1", "local stratum 8", "allow 127.0.0.1")
    command = chronyd("port 0", f"server 127.0.0.1 port {port} iburst minpoll -4 maxpoll -4", "maxupdateskew 1000000")
    ends = time.monotonic() + 120
    while not (found := clock.ask(command)).synchronised and time.monotonic() < ends:
        time.sleep(0.2)
    assert found.synchronised
    assert found.skew_s is not None
    assert abs(found.skew_s) < 1
