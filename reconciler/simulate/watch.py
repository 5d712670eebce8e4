"""Who is told what truly happens on a simulated device, as it happens. Decides nothing. Called by `hardware` and `device`."""

from __future__ import annotations

from datetime import datetime


class Watch:
    """Told what truly happens on devices, as it happens. Does nothing; whoever watches overrides what it needs."""

    def parked(self, device: str, last_at: datetime, every_s: int) -> None:
        """From `last_at` on, the device reports every `every_s` seconds, and says and hears nothing new: that is not played."""

    def woken(self, device: str, last_at: datetime) -> None:
        """Its reports are played again, or it fell silent. The last one that was not played came at `last_at`."""

    def began(self, device: str, release: str, at: datetime, *, waived: bool) -> None:
        """It starts to write its other slot. `waived`: its assignment says that no window binds it."""

    def armed(self, device: str, release: str | None, at: datetime, *, waived: bool) -> None:
        """It will try its other slot, which is recorded to hold `release`, with the reboot that follows at once."""

    def ended(self, device: str, release: str | None, at: datetime, outcome: str) -> None:
        """What it began is over: `good` (`release` was marked good), `fell-back` (the trial is over and the old slot runs),
        `failed` (the write did not end well) or `dropped` (the write was left: called off, or the power went)."""

    def booted(self, device: str, slot: str, at: datetime) -> None:
        """The boot loader chose a slot."""

    def app_runs(self, device: str, app: str, digest: str | None, at: datetime) -> None:
        """Another release of an app runs, or none."""

    def configured(self, device: str, digest: str | None, at: datetime) -> None:
        """Another configuration is in force."""

    def accepted(self, device: str, serial: tuple[int, int], at: datetime) -> None:
        """It put an assignment in force."""

    def health(self, device: str, at: datetime, *, critical: bool) -> None:
        """Its true health changed to or from critical."""


NOBODY = Watch()
"""Watches nothing."""
