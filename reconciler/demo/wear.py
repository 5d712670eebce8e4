"""What a device's hardware tells an image's own checks: for how many hours it has decoded, and how many cameras.

A check that finds something only after hours is what a soak is for. Time is virtual here, so a check in an image of the demo reads
`$EDGE_DEVICE_ROOT/faults/decoding` (`ok 3 hours, 6 cameras`), where one in the field asks the decoder. Only devices whose image
has such a check are looked after. Decides nothing. Called by `follow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from reconciler.agent.device import Device

CHECKS = "usr/local/lib/edge/health.d"
NAME = "decoding"
_HOUR = timedelta(hours=1)


class Wear:
    """Remembers who booted when."""

    def __init__(self, cameras: Mapping[str, int]) -> None:
        """`cameras`: device → how many it decodes."""
        self._cameras = cameras
        self._since: dict[str, tuple[str, datetime]] = {}
        self._asks: dict[str, bool] = {}
        self._looked_at: datetime | None = None

    def pass_on(self, devices: Mapping[str, Device], changed: Iterable[str], now: datetime) -> list[str]:
        """Write it down for those that ask. `changed` have reported something new. Returns whose hours have changed."""
        due = self.next_at()
        names = set(changed) | (set(self._since) if due is not None and due <= now else set())
        self._looked_at = now
        return [name for name in sorted(names) if not devices[name].booting and self._changes(name, devices[name], now)]

    def next_at(self) -> datetime | None:
        """When the hours of one change next; None: nobody asks."""
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
        text = f"ok {(now - since) // _HOUR} hours, {self._cameras.get(name, 0)} cameras\n"
        if file.is_file() and file.read_text() == text:
            return False
        file.write_text(text)
        return now > since

    def _reads_them(self, device: Device) -> bool:
        """Whether a check of the running image asks for it; read once an image."""
        slot = device.hardware.slots()[device.hardware.booted()]
        if slot.digest is None:
            return False
        if slot.digest not in self._asks:
            root = device.hardware.running_root()
            checks = sorted((root / CHECKS).glob("*")) if root is not None else []
            self._asks[slot.digest] = any(NAME in check.read_text(errors="replace") for check in checks)
        return self._asks[slot.digest]
