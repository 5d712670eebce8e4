"""From a revert to a device that is healthy on its previous slot, without the boot itself.

The parts that are the agent's: from the instant in which the assignment is recorded to the reboot that it asks for (report, gpgv,
hashing the slot, intent, boot flags), and from the start of its process after that boot to the report by which the controller
knows it idle and healthy on the release before. The slot holds 1.6 GiB, more than the golden image; the healthcheck takes a second,
or a fifth of one; the device reports every second, so the wait for the next report is in it once. Nothing is in the page cache: the
slot is read past it. Seconds on a processor, of the agent and of what it starts, are told beside: on a machine with other work they
and the seconds in which the healthcheck sleeps are what counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.model.observed import Health
from tests.agent.world import make_keys
from tests.benchmarks.devices import Bench, bench, fill
from tests.benchmarks.idling import certificate, cpu_s, quiet
from tests.support.gpg import make_home

MAPPED, CHECK_S = 1638 << 20, 1.0
BAR_S = 10.0
LONGEST_S = 180.0


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds from the assignment to the request to reboot, and from the agent's start to its report; on a processor in both."""

    to_reboot: float
    after: float
    cpu: float


def once(mapped: int = MAPPED, check_s: float = CHECK_S) -> Times:
    """One revert, with so many bytes in the slot and a healthcheck that takes so long."""
    quiet()
    with tempfile.TemporaryDirectory() as name, make_home() as home:
        folder = Path(name)
        keys, tls = make_keys(home), certificate(folder)
        with bench(folder / "device", keys, tls) as device:
            before = fill(device.root, "b", "v1", mapped=mapped, check_s=check_s)
            fill(device.root, "a", "v2", check_s=check_s)
            assert device.boot() == "a"
            with device.agent() as pid:
                device.await_exchanges(3)
                first, cpu = time.monotonic(), -sum(cpu_s(pid))
                device.assign("v1", before)
                _await("the reboot", (device.root / "rebooted").exists)
                to_reboot = time.monotonic() - first
                cpu += sum(cpu_s(pid))
            assert device.boot() == "b"
            second = time.monotonic()
            with device.agent() as pid:
                _await("the report", lambda: _is_back(device))
                return Times(to_reboot, time.monotonic() - second, cpu + sum(cpu_s(pid)))


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
    for check_s in (0.2, CHECK_S):
        found = once(check_s=check_s)
        what = f"healthcheck of {check_s:g} s (s)"
        yield f"revert: assignment to reboot, {what}", found.to_reboot, "a part of 10 s", BAR_S, 1.0
        yield f"revert: start to healthy, {what}", found.after, "a part of 10 s", BAR_S, 1.0
        yield f"revert: both, without the boot; {what}", found.to_reboot + found.after, "10 s", BAR_S, 1.0
        yield f"revert: of it on a processor; {what}", found.cpu, "a part of 10 s", BAR_S, 1.0


if __name__ == "__main__":
    for row in measure():
        print(row)
