"""Who hears what truly happens on devices, and on the line to the controller: the controller's record and the oracle.

Hands on and judges nothing. Called by the machines and by the network; made by `run`.
"""

from __future__ import annotations

from datetime import datetime

from reconciler.protocol.exchange import SiteConfig
from reconciler.simulate.controller import SimController
from reconciler.simulate.oracle import Oracle
from reconciler.simulate.watch import Watch


class World(Watch):
    """Listens to every device. `oracle` is set once there is one."""

    def __init__(self, controller: SimController) -> None:
        self.controller = controller
        self.oracle: Oracle | None = None
        self._writes: set[str] = set()

    def parked(self, device: str, last_at: datetime, every_s: int) -> None:
        """It goes on reporting the same."""
        self.controller.parked(device, announce=True)
        if self.oracle is not None:
            self.oracle.parks(device, parked=True)

    def woken(self, device: str, last_at: datetime) -> None:
        """Its reports are heard one by one again, or it falls silent."""
        self.controller.unparked(device, last_at, announce=True)
        if self.oracle is not None:
            # In this order: the reports up to the last were heard.
            self.oracle.heard(last_at, device)
            self.oracle.parks(device, parked=False)

    def began(self, device: str, release: str, at: datetime, *, waived: bool) -> None:
        """It writes its other slot."""
        self._writes.add(device)
        if self.oracle is not None:
            self.oracle.began(at, device, release, waived=waived)

    def armed(self, device: str, release: str | None, at: datetime, *, waived: bool) -> None:
        """It will boot its other slot: what it has just written, or what was there."""
        if self.oracle is None:
            return
        if release is None:
            self.oracle.reboots(at, device, "a slot of which nothing is recorded", waived=waived)
            return
        if device not in self._writes:
            self._writes.add(device)
            self.oracle.began(at, device, release, waived=waived)
        self.oracle.reboots(at, device, release, waived=waived)

    def ended(self, device: str, release: str | None, at: datetime, outcome: str) -> None:
        """It is over."""
        self._writes.discard(device)
        if self.oracle is not None:
            fell_back = outcome == "fell-back"
            failed = fell_back or outcome == "failed"
            self.oracle.ended(at, device, release, good=outcome == "good", counts=failed, fell_back=fell_back)

    def booted(self, device: str, slot: str, at: datetime) -> None:
        """It boots."""
        if self.oracle is not None:
            self.oracle.booted(at, device)

    def app_runs(self, device: str, app: str, digest: str | None, at: datetime) -> None:
        """Another release of an app runs."""
        if self.oracle is not None:
            self.oracle.app_runs(at, device, app)

    def accepted(self, device: str, serial: tuple[int, int], at: datetime) -> None:
        """A word is in force."""
        if self.oracle is not None:
            self.oracle.accepted(at, device, serial)

    def health(self, device: str, at: datetime, *, critical: bool) -> None:
        """Its health changed."""
        if self.oracle is not None:
            self.oracle.health(at, device, critical=critical)

    # ------------------------------------------------ `network.Controller`

    def exchange(self, device: str, report: bytes, now: datetime) -> bytes:
        """A device calls in; the oracle hears of reports that count."""
        before = self.controller.service.reports
        answer = self.controller.exchange(device, report, now)
        if self.oracle is not None and self.controller.service.reports > before:
            self.oracle.heard(now, device)
        return answer

    def config(self, device: str, now: datetime) -> SiteConfig:
        """A device fetches its site's files."""
        return self.controller.config(device, now)
