"""The two ends of a socket, as systemd puts them together: a listener that hands each connection to a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.adapters.signer_process import ProcessSigner
from reconciler.ports import TerminalError, TransientError
from tests.support.processes import wait_until

PROGRAM = [sys.executable, "-c", "from reconciler.cli.main import main; main()"]


class Listener:
    """Answers each connection with `reconciler relay answer -- COMMAND`, as a socket unit with Accept=yes would."""

    def __init__(self, path: Path, command: list[str]) -> None:
        self.path, self.answerers = path, list[subprocess.Popen[bytes]]()
        self._command = [*PROGRAM, "relay", "answer", "--", *command]
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._socket.accept()
                with link:
                    self.answerers.append(subprocess.Popen(self._command, stdin=link))

    def answerer(self) -> subprocess.Popen[bytes]:
        """The first. It may say something before it is on the list."""
        wait_until(lambda: self.answerers)
        return self.answerers[0]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for answerer in self.answerers:
            answerer.kill()
            answerer.wait()


Behind = Callable[[str], list[str]]


@pytest.fixture
def listeners() -> Iterator[list[Listener]]:
    made: list[Listener] = []
    yield made
    for listener in made:
        listener.close()


@pytest.fixture
def behind(tmp_path: Path, listeners: list[Listener]) -> Behind:
    """Put a shell's script behind a socket; the command that asks there."""

    def put(script: str) -> list[str]:
        listeners.append(Listener(tmp_path / "s", ["sh", "-c", script]))
        return [*PROGRAM, "relay", "ask", str(tmp_path / "s")]

    return put


def test_input_output_errors_and_the_exit_code_are_as_if_it_ran_here(behind: Behind) -> None:
    data = bytes(range(256)) * 4096
    done = subprocess.run(
        behind("cat; echo told >&2; exit 7"), input=data, capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (7, b"told\n")
    assert done.stdout == data


def test_who_stops_to_ask_ends_the_commands_input(behind: Behind, tmp_path: Path, listeners: list[Listener]) -> None:
    """As a killed controller ends its build."""
    seen = tmp_path / "seen"
    asker = subprocess.Popen(behind(f"echo begun; cat >/dev/null; echo ended >{seen}"), stdin=-1, stdout=-1)
    assert asker.stdout is not None and asker.stdin is not None
    assert asker.stdout.readline() == b"begun\n"
    assert not seen.exists()
    asker.kill()
    asker.wait()
    listeners[0].answerer().wait(timeout=60)
    assert seen.read_text() == "ended\n"
    asker.stdin.close()
    asker.stdout.close()


def test_a_command_that_was_killed_is_told_from_one_that_failed(behind: Behind) -> None:
    done = subprocess.run(behind("kill -9 $$"), stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGKILL


def test_an_answer_that_is_cut_off_is_no_answer(behind: Behind, listeners: list[Listener]) -> None:
    asker = subprocess.Popen(behind("echo begun; sleep 60"), stdin=-1, stdout=-1, stderr=-1)
    assert asker.stdout is not None
    assert asker.stdout.readline() == b"begun\n"
    listeners[0].answerer().kill()
    _, errors = asker.communicate(timeout=60)
    assert asker.returncode == 3
    assert b"was ended before it was done" in errors


def test_where_nobody_answers_it_says_so(tmp_path: Path) -> None:
    command = [*PROGRAM, "relay", "ask", str(tmp_path / "none")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith(b"error: nobody answers at ")


def test_to_answer_takes_a_socket() -> None:
    command = [*PROGRAM, "relay", "answer", "true"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"StandardInput=socket" in done.stderr


@pytest.mark.slow
def test_the_controllers_adapter_hears_signature_refusal_and_silence_through_it(behind: Behind, tmp_path: Path) -> None:
    script = """read -r line; case $line in
      *v1.0*) printf signature;;
      *v2.0*) echo 'error: it was built from other files; needed for signing v2.0; make a new release' >&2; exit 1;;
      *) echo 'error: the store does not answer; needed for signing v3.0; try again' >&2; exit 3;;
    esac"""
    signer = ProcessSigner(behind(script), timeout_s=60)
    assert signer.sign_release("v1.0", "0" * 40) == b"signature"
    with pytest.raises(TerminalError, match="the signer refused: it was built from other files"):
        signer.sign_release("v2.0", "0" * 40)
    with pytest.raises(TransientError, match="the store does not answer"):
        signer.sign_release("v3.0", "0" * 40)
    with pytest.raises(TransientError, match="nobody answers"):
        ProcessSigner([*PROGRAM, "relay", "ask", str(tmp_path / "gone")], timeout_s=60).sign_release("v1.0", "0" * 40)


def test_what_it_carries_is_bounded_in_memory(behind: Behind) -> None:
    """A gigabyte of output would not be held: it is passed on a chunk at a time, and waits where nobody reads."""
    asker = subprocess.Popen(behind("head -c 50000000 /dev/zero"), stdin=subprocess.DEVNULL, stdout=-1)
    assert asker.stdout is not None
    out = asker.stdout
    wait_until(lambda: fcntl.ioctl(out, termios.FIONREAD, b"\0" * 4) != b"\0" * 4)
    time.sleep(0.5)
    status = Path(f"/proc/{asker.pid}/status").read_text()
    assert int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) < 60_000
    total = 0
    while data := os.read(asker.stdout.fileno(), 1 << 20):
        total += len(data)
    assert (total, asker.wait()) == (50_000_000, 0)
    asker.stdout.close()
