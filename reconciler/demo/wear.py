"""What a device's hardware tells an image's own checks: for how many hours it has been up.

A check that runs for hours before it finds something is what a soak is for. The healthcheck of a real device reads `/proc/uptime`;
time is virtual here, so a check in an image of the demo reads `$EDGE_DEVICE_ROOT/faults/hours-up` (`ok 3 hours`). Only devices
whose image has such a check are looked after. Decides nothing. Called by `follow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from reconciler.agent.device import Device

CHECKS = "usr/local/lib/edge/health.d"
NAME = "hours-up"
_HOUR = timedelta(hours=1)


class HoursUp:
    """Remembers who booted when."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[str, datetime]] = {}
        self._asks: dict[str, bool] = {}
        self._looked_at: datetime | None = None

    def pass_on(self, devices: Mapping[str, Device], changed: Iterable[str], now: datetime) -> list[str]:
        """Write the hours down for those that ask. `changed` have reported something new. Returns whose number has changed."""
        due = self.next_at()
        names = set(changed) | (set(self._since) if due is not None and due <= now else set())
        self._looked_at = now
        return [name for name in sorted(names) if not devices[name].booting and self._changes(name, devices[name], now)]

    def next_at(self) -> datetime | None:
        """When a number changes next; None: nobody asks."""
        if self._looked_at is None:
            return None
        looked = self._looked_at
        return min((since + ((looked - since) // _HOUR + 1) * _HOUR for _, since in self._since.values()), default=None)

    def _changes(self, name: str, device: Device, now: datetime) -> bool:
        file = device.hardware.root / "faults" / NAME
        if not self._reads_them(device):
            if self._since.pop(name, None) is not None:
                file.unlink(missing_ok=True)
            return False
        boot, since = self._since.get(name, ("", now))
        if boot != (present := device.hardware.boot_id()):
            boot, since = present, now
            self._since[name] = (boot, since)
        text = f"ok {(now - since) // _HOUR} hours\n"
        if file.is_file() and file.read_text() == text:
            return False
        file.write_text(text)
        return now > since

    def _reads_them(self, device: Device) -> bool:
        """Whether a check of the running image asks for the hours; read once an image."""
        slot = device.hardware.slots()[device.hardware.booted()]
        if slot.digest is None:
            return False
        if slot.digest not in self._asks:
            root = device.hardware.running_root()
            checks = sorted((root / CHECKS).glob("*")) if root is not None else []
            self._asks[slot.digest] = any(NAME in check.read_text(errors="replace") for check in checks)
        return self._asks[slot.digest]
