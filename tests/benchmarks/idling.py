"""What an agent costs that has nothing to do: its memory after an hour's worth of exchanges, and its time on a processor.

The device has two partitions, is assigned the release that it runs, and one container is there (`devices`). Plain and with TLS.
An hour's sixty exchanges are made in a minute; between two of them it sleeps, as it does in an hour. What it starts (the
healthcheck, the container runtime, chronyc) is counted apart: that is the image's. CPU is told as the part of one core that
sixty exchanges take of an hour.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from reconciler.server.run import Tls
from tests.agent.world import make_keys
from tests.benchmarks.devices import Bench, bench, fill
from tests.support.gpg import make_home
from tests.support.system import need

EXCHANGES = 60
"""Of an hour, at the default interval of 60 s."""
HOUR_S = 3600
BAR_MIB, BAR_CPU = 25.0, 0.1
_TICK = os.sysconf("SC_CLK_TCK")


def certificate(folder: Path) -> Tls:
    """A certificate of its own for loopback, with its key."""
    key, certificate = folder / "tls.key", folder / "tls.crt"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([need("openssl"), "req", "-x509", *options, *names, *files], check=True, capture_output=True)
    key.chmod(0o600)
    return Tls(certificate, key)


def cpu_s(pid: int) -> tuple[float, float]:
    """Seconds on a processor: its own, and those of what it started and waited for."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, started = (int(values[11]) + int(values[12])), (int(values[13]) + int(values[14]))
    return own / _TICK, started / _TICK


def _memory_mib(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) / 1024


def quiet() -> None:
    """The service's log is not what is measured."""
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def once(exchanges: int = EXCHANGES, *, secure: bool) -> dict[str, float]:
    """One agent, watched over so many exchanges: `rss` and `peak` in MiB, `cpu` and `started` in seconds an hour."""
    quiet()
    with tempfile.TemporaryDirectory() as name, make_home() as home:
        folder = Path(name)
        tls = certificate(folder) if secure else None
        with bench(folder / "device", make_keys(home), tls) as device:
            held = fill(device.root, "a", "v1")
            device.boot()
            # What it runs already: there is nothing to do, and gpgv has judged it.
            device.assign("v1", held)
            with device.agent() as pid:
                return _watched(device, pid, exchanges)


def _watched(device: Bench, pid: int, exchanges: int) -> dict[str, float]:
    # What it costs to start is paid once in the life of a device's boot.
    device.await_exchanges(3)
    first, before = device.exchanges(), cpu_s(pid)
    device.await_exchanges(first + exchanges)
    made, after = device.exchanges() - first, cpu_s(pid)
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
        yield (
            "what it starts: a healthcheck of one `echo`, `docker ps`; of one core (%)",
            started,
            "apart",
            BAR_CPU,
            10.0,
        )


_BACK_TO_BACK = """
from reconciler.agent import agent, loop
agent.Agent._later = lambda self, now, seconds: now
loop.TIDY_EVERY_S = TIDY_S
from reconciler.agent.main import main"""


def memory_over(exchanges: int, every: int = 500, tidy_s: float = 5.0) -> Iterator[tuple[int, float]]:
    """(exchanges made, resident MiB), over https, one exchange right after the other. `tidy_s` stands for the hour after which the
    agent tidies its memory: in some seconds it makes an hour's exchanges here."""
    quiet()
    with tempfile.TemporaryDirectory() as name, make_home() as home:
        folder = Path(name)
        with bench(folder / "device", make_keys(home), certificate(folder)) as device:
            launch = device.root / "launch.py"
            patched = _BACK_TO_BACK.replace("= TIDY_S", f"= {tidy_s}")
            launch.write_text(launch.read_text().replace("\nfrom reconciler.agent.main import main", patched))
            held = fill(device.root, "a", "v1")
            device.boot()
            device.assign("v1", held)
            with device.agent() as pid:
                for count in range(every, exchanges + 1, every):
                    device.await_exchanges(count)
                    yield device.exchanges(), _memory_mib(pid, "VmRSS")


if __name__ == "__main__":
    # With a number: the memory over so many exchanges, some fifteen of them a second.
    for row in memory_over(int(sys.argv[1])) if sys.argv[1:] else measure():
        print(row, flush=True)
