"""What checks say that are not ok, by the newest row of each device's health log: a few lines behind an explanation.

An explanation says why a plan does what it does, and a warning stops nothing; whoever asks about a device wants to know of it all
the same. Reads a store, decides nothing. Called by `server` and by `cli.explain`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from reconciler.controller.words import clean
from reconciler.model.events import HealthChange
from reconciler.model.scalars import format_instant
from reconciler.planner.explain import Explanation
from reconciler.planner.explain_parts import DeviceExplanation
from reconciler.planner.explain_site import SiteExplanation
from reconciler.ports_events import EventLog

MOST = 20
"""Devices of a site that are looked at."""


def ailing_lines(log: EventLog, said: Explanation) -> list[str]:
    """For people: the checks that are not ok, of the device or of the site's devices; nothing for a wave. Those that the
    explanation has already are left out. PortError: the store does not answer."""
    devices: tuple[DeviceExplanation, ...] = ()
    if isinstance(said, DeviceExplanation):
        devices = (said,)
    elif isinstance(said, SiteExplanation):
        devices = tuple(said.devices[:MOST])
    told = {device.device: {check.name for check in device.checks} for device in devices}
    return list(_lines(newest(log, told), told))


def newest(log: EventLog, names: Iterable[str]) -> dict[str, HealthChange]:
    """Device → the newest row of its log, of those that have one."""
    return {name: rows[0] for name in names if (rows := log.health_log(name, 1))}


def _lines(rows: Mapping[str, HealthChange], told: Mapping[str, set[str]]) -> Iterator[str]:
    for name, row in rows.items():
        wrong = [check for check in row.checks if check.name not in told[name]]
        if wrong and row.health != "ok":
            yield f"  health of {name}: {row.health} since {format_instant(row.at)}"
        for check in wrong if row.health != "ok" else ():
            message = f": {clean(check.message)}" if check.message else ""
            yield f"    {clean(check.name)}: {check.status}{message}"
