"""Runs healthcheck.sh and reads its JSON. Whatever goes wrong is itself a critical check: silence is never good health.

Python 3.10, standard library only: runs as root on a device. The script is the image's own (recipe `edge-golden`);
its exit status is read together with its output, and the worse of the two counts.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from reconciler.protocol.canonical import Fields, Malformed, clip, load
from reconciler.protocol.report import MAX_CHECKS, MESSAGE_CHARS, Check

MAX_OUTPUT = 256 * 1024
_NAME = "healthcheck"


def run(script: Path, arguments: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> tuple[Check, ...]:
    """Run `script --json` with only `environment`, a PATH and a locale; its checks, `skipped` ones left out. Never
    raises."""
    if not script.is_file():
        return _critical(f"the image has no {script.name}")
    try:
        process = subprocess.Popen(
            [str(script), "--json", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C",
                **environment,
            },
            start_new_session=True,
        )
    except OSError as error:
        return _critical(f"{script.name} cannot be run: {error.strerror}")
    ends = time.monotonic() + timeout_s
    try:
        data = _output(process, ends)
        status = process.wait(max(ends - time.monotonic(), 0.0))
    except (subprocess.TimeoutExpired, TimeoutError):
        # The whole session: a check that hangs is often a child of the script.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return _critical(f"{script.name} gave no answer within {timeout_s:g} s")
    finally:
        if process.stdout is not None:
            process.stdout.close()
    return read(data, status)


def _output(process: subprocess.Popen[bytes], ends: float) -> bytes:
    """What a program writes until it ends, a byte more than may be read of it at most. TimeoutError: it does not end.

    By hand, since a file for it would have to lie somewhere, and the modules that make one are large for an agent at rest.
    """
    assert process.stdout is not None
    data, descriptor = b"", process.stdout.fileno()
    while (left := ends - time.monotonic()) > 0:
        ready, _, _ = select.select([descriptor], [], [], min(left, 0.2))
        if ready:
            piece = os.read(descriptor, 65536)
            if not piece:
                return data
            data = (data + piece)[: MAX_OUTPUT + 1]
        elif process.poll() is not None:
            # The script has ended; what it left running holds the pipe, and is no part of it.
            return data
    raise TimeoutError


def read(data: bytes, status: int) -> tuple[Check, ...]:
    """The script's output and exit status → checks, in its order. Never raises."""
    try:
        checks = _parse(data)
    except Malformed as error:
        return _critical(f"exit status {status}, and {error.reason}")
    worst = {0: "ok", 1: "warning", 2: "critical"}.get(status)
    if worst is None:
        return _with_fault(checks, f"exit status {status}")
    statuses = {check.status for check in checks}
    if worst == "critical" and "critical" not in statuses:
        return _with_fault(checks, "exit status 2 without a critical check")
    return checks


def _parse(data: bytes) -> tuple[Check, ...]:
    fields = Fields(load(data, MAX_OUTPUT, "its output"), "its output")
    found: dict[str, Check] = {}
    for item in fields.items("checks", MAX_CHECKS, missing_ok=False):
        part = Fields(item, "a check")
        name = part.text("name", 64)
        word = part.word("status", ("ok", "warning", "critical", "unknown", "skipped"))
        message = part.value.get("message", "")
        if word != "skipped":
            found[name] = Check(name, word, clip(message, MESSAGE_CHARS) if isinstance(message, str) else "")
    return tuple(found.values())


def _with_fault(checks: tuple[Check, ...], message: str) -> tuple[Check, ...]:
    """The checks and one about the script itself; a report takes no name twice, and so many checks at most."""
    others = tuple(check for check in checks if check.name != _NAME)
    return (*others[: MAX_CHECKS - 1], *_critical(message))


def _critical(message: str) -> tuple[Check, ...]:
    return (Check(_NAME, "critical", clip(message, MESSAGE_CHARS)),)
