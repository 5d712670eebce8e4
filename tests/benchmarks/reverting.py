"""From a revert to a device that is healthy on its previous slot, without the boot itself.

The parts that are the agent's: from the instant in which the assignment is recorded to the reboot that it asks for (report, gpgv,
hashing the slot, intent, boot flags), and from the start of its process after that boot to the report by which the controller
knows it idle and healthy on the release before. The slot holds 1.6 GiB, more than the golden image; the healthcheck takes a second;
the device reports every second, so the wait for the next report is in it once. Nothing was running in the page cache: the slot is
read past it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from reconciler.model.observed import Health
from tests.agent.world import make_keys
from tests.benchmarks.devices import Bench, bench, fill
from tests.benchmarks.idling import certificate, quiet
from tests.support.gpg import make_home

MAPPED, CHECK_S = 1638 << 20, 1.0
BAR_S = 10.0
LONGEST_S = 180.0


def once(mapped: int = MAPPED, check_s: float = CHECK_S) -> tuple[float, float]:
    """Seconds from the assignment to the request to reboot, and from the agent's start to its report."""
    quiet()
    with tempfile.TemporaryDirectory() as name, make_home() as home:
        folder = Path(name)
        keys, tls = make_keys(home), certificate(folder)
        with bench(folder / "device", keys, tls) as device:
            before = fill(device.root, "b", "v1", mapped=mapped, check_s=check_s)
            fill(device.root, "a", "v2", check_s=check_s)
            assert device.boot() == "a"
            with device.agent():
                device.await_exchanges(3)
                first = time.monotonic()
                device.assign("v1", before)
                _await("the reboot", (device.root / "rebooted").exists)
                to_reboot = time.monotonic() - first
            assert device.boot() == "b"
            second = time.monotonic()
            with device.agent():
                _await("the report", lambda: _is_back(device))
                return to_reboot, time.monotonic() - second


def _is_back(device: Bench) -> bool:
    seen = device.observed()
    return seen is not None and (seen.image, seen.health, seen.phase) == ("v1", Health.OK, "idle")


def _await(what: str, is_there: Callable[[], bool]) -> None:
    ends = time.monotonic() + LONGEST_S
    while not is_there():
        if time.monotonic() > ends:
            raise RuntimeError(f"{what} did not come within {LONGEST_S:g} s")
        time.sleep(0.02)


def measure() -> Iterator[tuple[str, float, str, float, float]]:
    """(work, ours in s, yardstick, its s, bar)."""
    to_reboot, after = once()
    yield "revert: from the assignment to the reboot, 1.6 GiB in the slot (s)", to_reboot, "a part of 10 s", BAR_S, 1.0
    yield "revert: from the agent's start to healthy on the previous slot (s)", after, "a part of 10 s", BAR_S, 1.0
    yield "revert: both, without the boot itself (s)", to_reboot + after, "10 s", BAR_S, 1.0


if __name__ == "__main__":
    for row in measure():
        print(row)
