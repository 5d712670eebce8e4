"""How long things take in virtual time: one table that the simulator's machines and the forecast share. Pure.

The two must agree to the second, or a forecast would move a device to another night than the simulator does. Whoever
changes a duration changes it here. A fleet's own words bound them: a flash takes no longer than `flashDuration`.
All durations are whole seconds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from reconciler.model.desired import Desired, FleetSpec

TICK_S = 10
"""Ticks fall on multiples of this since the epoch: a burst of reports is one tick's work, and two engines find the same one."""
RING_S = 1
"""From the tick that rings a device until it calls in."""
SPREAD_S = 300
"""Devices begin spread over this much of a window's beginning, or a tenth of it (`agent.work.Timing.spread_s`)."""
BUILD_S, SIGN_S, PUBLISH_S = 1800, 10, 120
"""A build of the golden image on a build machine; the signature; the upload with its reading back."""
PULL_S, RESTART_S, CONFIGURE_S, CHECK_S = 60, 20, 10, 60
"""Of an app's release: its pull and its restart. Applying a configuration. Hashing a slot that should hold the image already."""
IMAGE_BYTES = 1_800_000_000
"""A golden image as it is downloaded, where the store does not say how large it is."""
UPLINK_BPS = 50_000_000
"""A site's line, bits a second, where git does not say."""


@dataclass(frozen=True, slots=True)
class Timings:
    """The durations that hold in one fleet."""

    write_s: int
    boot_s: int
    report_every_s: int


def timings(fleet: FleetSpec) -> Timings:
    """What a flash of this fleet takes: 11 parts of 20 of `flashDuration` write the slot, 4 of 20 reboot (11 and 4 minutes of 20,
    as measured on an XR4000), bounded so that a healthy update runs into no time-out."""
    write = min(fleet.flash_duration * 11 // 20, fleet.update_timeout // 2)
    boot = min(fleet.flash_duration * 4 // 20, fleet.boot_timeout // 2, fleet.update_timeout // 4)
    return Timings(max(write, 1), max(boot, 1), fleet.report_every)


def download_s(desired: Desired, site: str, size: int | None) -> int:
    """Seconds in which one device of a site has fetched `size` bytes: the site's devices share its line evenly."""
    spec = desired.sites[site]
    rate = spec.uplink or desired.fleet.uplink or UPLINK_BPS
    return -(-(size or IMAGE_BYTES) * 8 * len(spec.devices) // rate)


def report_offset_s(device: str, every_s: int) -> int:
    """Where in the interval a device reports: a fleet does not report in step. Seconds in [0, every_s)."""
    return int.from_bytes(hashlib.sha256(f"report {device}".encode()).digest()[:4], "big") % every_s


def window_share(device: str) -> float:
    """Where in the spread of a window's beginning a device starts, in [0, 1): as the agent computes it (`Work._opens`)."""
    return int.from_bytes(hashlib.sha256(device.encode()).digest()[:4], "big") / 2**32
