"""What an agent costs that has nothing to do: its memory after an hour's worth of exchanges, and its time on a processor.

The zip application as an image holds it, run by the system's own Python, against the real service over loopback, plain and
with TLS. An hour's sixty exchanges are made in a minute; between two of them it sleeps, as it does in an hour. What it starts
(the healthcheck, chronyc) is counted apart: that is the image's. CPU is told as the part of one core that sixty exchanges
take of an hour.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from reconciler.adapters.sql import open_store
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.factory import install
from reconciler.image.agent_app import application
from reconciler.server.app import create_app
from reconciler.server.options import Options, Policy
from reconciler.server.run import HttpServer, Tls
from reconciler.server.tokens import hash_token, make_token
from tests.agent.world import GOOD, build_image
from tests.support.system import need

DEVICE, SITE = "SITE-2847-1", "SITE-2847"
EXCHANGES = 60
"""Of an hour, at the default interval of 60 s."""
HOUR_S = 3600
BAR_MIB, BAR_CPU = 25.0, 0.1
_TICK = os.sysconf("SC_CLK_TCK")


@contextmanager
def _service(folder: Path, tls: Tls | None) -> Iterator[tuple[str, str]]:
    """The real service, asking for a report every second; its address and a device's token."""
    store = open_store(folder / "store.db")
    token = make_token()
    store.add_token(DEVICE, hash_token(token), datetime.now(UTC))
    options = replace(
        Options(store=store, now=lambda: datetime.now(UTC)),
        policy=lambda: replace(Policy(), report_every_s=1),
        tls=tls is not None,
    )
    with HttpServer(create_app(options), "127.0.0.1", 0, tls) as server:
        yield server.address, token
    store.close()


def _certificate(folder: Path) -> Tls:
    key, certificate = folder / "tls.key", folder / "tls.crt"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([need("openssl"), "req", "-x509", *options, *names, *files], check=True, capture_output=True)
    key.chmod(0o600)
    return Tls(certificate, key)


@contextmanager
def _agent(folder: Path, server: str, token: str, tls: Tls | None) -> Iterator[int]:
    """The agent on a device that runs an image; its process id."""
    root = folder / "device"
    image = folder / "v1.img"
    image.write_bytes(build_image(folder, "v1", GOOD))
    install(DirectoryHardware(root, slot_bytes=1 << 20), image, "v1")
    (folder / "token").write_text(token)
    (folder / "agent.pyz").write_bytes(application())
    settings = {"device": DEVICE, "site": SITE, "server": server, "tokenFile": str(folder / "token")}
    settings |= {"root": str(root), **({"caFile": str(tls.certificate)} if tls else {})}
    (folder / "agent.json").write_text(json.dumps(settings))
    python = next(path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(path).exists())
    command = [python, "-IB", str(folder / "agent.pyz"), "run", "--config", str(folder / "agent.json")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def _exchanges(store: Path) -> int:
    """How many reports of the device were recorded."""
    import sqlite3

    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        row = connection.execute("select sequence from observations where device = ?", (DEVICE,)).fetchone()
    return int(row[0]) if row else 0


def _wait_for(store: Path, count: int) -> None:
    ends = time.monotonic() + 30 + 3 * count
    while _exchanges(store) < count:
        if time.monotonic() > ends:
            raise RuntimeError(f"the agent has made {_exchanges(store)} exchanges, and {count} were waited for")
        time.sleep(0.2)


def _cpu_s(pid: int) -> tuple[float, float]:
    """Seconds on a processor: its own, and those of what it started and waited for."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, started = (int(values[11]) + int(values[12])), (int(values[13]) + int(values[14]))
    return own / _TICK, started / _TICK


def _memory_mib(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) / 1024


def _quiet() -> None:
    """The service's log is not what is measured."""
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def once(exchanges: int = EXCHANGES, *, secure: bool) -> dict[str, float]:
    """One agent, watched over so many exchanges: `rss` and `peak` in MiB, `cpu` and `started` in seconds an hour."""
    _quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tls = _certificate(folder) if secure else None
        with _service(folder, tls) as (server, token), _agent(folder, server, token, tls) as pid:
            store = folder / "store.db"
            # What it costs to start is paid once in the life of a device's boot.
            _wait_for(store, 2)
            first, before = _exchanges(store), _cpu_s(pid)
            _wait_for(store, first + exchanges)
            made, after = _exchanges(store) - first, _cpu_s(pid)
            scale = EXCHANGES / made
            return {
                "rss": _memory_mib(pid, "VmRSS"),
                "peak": _memory_mib(pid, "VmHWM"),
                "cpu": (after[0] - before[0]) * scale,
                "started": (after[1] - before[1]) * scale,
            }


def measure(exchanges: int = EXCHANGES) -> Iterator[tuple[str, float, str, float, float]]:
    """(work, ours, yardstick, its value, bar): memory in MiB, processor time in % of one core."""
    for secure, way in ((False, "http"), (True, "https")):
        found = once(exchanges, secure=secure)
        yield f"agent idle over {way}, resident (MiB)", found["rss"], "25 MiB", BAR_MIB, 1.0
        share = 100 * found["cpu"] / HOUR_S
        yield f"agent idle over {way}, of one core (%)", share, "0.1 %", BAR_CPU, 1.0
        started = 100 * found["started"] / HOUR_S
        yield "a healthcheck of one `cat` that it starts, of one core (%)", started, "apart", BAR_CPU, 10.0


if __name__ == "__main__":
    for row in measure():
        print(row)
