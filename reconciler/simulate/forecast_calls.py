"""Which updates are taken back before they have begun, because what stopped meanwhile must not start. Pure.

The rule of `controller.assign` (`Assigner._called_off`) over the forecast's own record. Called by `forecast` alone.
"""

from __future__ import annotations

from reconciler.model.desired import Desired
from reconciler.model.observed import Snapshot
from reconciler.model.plan import Plan
from reconciler.model.scalars import release_key
from reconciler.planner.live import Live

NOT_BEGUN = (None, "idle", "prefetching")
"""Phases in which a device has not begun to write."""


class CallsOff:
    """Remembers which releases devices were told to run, and what had stopped when it was last asked."""

    def __init__(self, desired: Desired) -> None:
        self._desired = desired
        self._asked = _asked(desired)
        self._sites = {name: site for site, spec in desired.sites.items() for name in spec.devices}
        self._acting: dict[str, str] = {}
        self._stops: object = None

    def told(self, device: str, release: str) -> None:
        """A device was told to run a release."""
        self._acting[device] = release

    def after(self, plan: Plan, shared: Snapshot, live: Live) -> list[str]:
        """Devices in flight that may not begin any more, after this plan; asked again only when something else has stopped."""
        failed = frozenset(verdict.key for verdict in shared.failures if not verdict.closed)
        failed |= {fact.key for fact in plan.facts.failures}
        frozen = any(freeze.from_ <= plan.at < freeze.to for freeze in self._desired.fleet.freezes)
        stops = (failed, frozen)
        if stops == self._stops:
            return []
        self._stops = stops
        state, out = live.state, []
        if state is None:
            return []
        timed_out = {fact.device for fact in plan.facts.timeouts}
        for name in sorted(self._acting):
            row, release = state.roster.row_of[name], self._acting[name]
            if int(state.obs.updating_to[row]) != state.obs.release_code.get(release, -1):
                del self._acting[name]
                continue
            forward = not self._goes_back(state.obs.release_names, row, release, live)
            stopped = release in failed or frozen or self._paused(live.wave_of(self._sites[name]))
            if name not in timed_out and (release not in self._asked or (forward and stopped)):
                out.append(name)
        return out

    def _paused(self, wave: str | None) -> bool:
        desired = self._desired
        return desired.fleet.paused or any(spec.paused for spec in desired.waves.waves if spec.name == wave)

    @staticmethod
    def _goes_back(names: list[str], row: int, release: str, live: Live) -> bool:
        assert live.state is not None
        code = int(live.state.obs.image[row])
        try:
            return code >= 0 and release_key(release) < release_key(names[code])
        except ValueError:
            return False


def _asked(desired: Desired) -> set[str]:
    """Image releases that git asks for and has not withdrawn."""
    asked = {wave.image for wave in desired.waves.waves if wave.image is not None}
    asked |= {site.pin.image for site in desired.sites.values() if site.pin is not None}
    return {release for release in asked if release in desired.images and desired.images[release].withdrawn is None}
