"""Writes down what the real controller decides, learns and hears, as events of the trace. Decides nothing.

Facts and actions are told when they are recorded, outcomes when they are written, and what a device runs when the controller first
saw it in a report. Called by `simulate.controller`, whose recorder, source and service it listens to. Source: `trace`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from reconciler.controller.assign import ON_DEVICES
from reconciler.controller.conditions import Finding, Type
from reconciler.model.desired import Desired
from reconciler.model.observed import DeviceObservation, Health
from reconciler.model.plan import Action, ActionKind, Facts
from reconciler.ports import Intent
from reconciler.simulate.trace import Event, Kind

Listener = Callable[[Event], object]
_OUTCOMES = {
    ActionKind.BUILD: Kind.BUILT,
    ActionKind.SIGN: Kind.SIGNED,
    ActionKind.PUBLISH: Kind.PUBLISHED,
    ActionKind.RETAG: Kind.RETAGGED,
    ActionKind.PROPOSE_REVERT: Kind.PROPOSED,
}


class Witness:
    """Tells `listener`. `wave_of` gives a site's wave as the planner has it now."""

    def __init__(self, listener: Listener, wave_of: Callable[[str], str | None]) -> None:
        self._tell, self._wave_of = listener, wave_of
        self._commit: str | None = None
        self._refused = ""
        self._sites: dict[str, str] = {}
        self._versions: dict[tuple[str, str], str] = {}
        self._tags: dict[str, str] = {}
        self._silent: set[str] = set()
        self._watched: list[tuple[datetime, str]] = []

    # ------------------------------------------------ the commit in force

    def in_force(self, desired: Desired) -> None:
        """What is asked for now: names of sites' devices, of releases and of tags. Releases named before stay known."""
        self._commit = desired.commit
        self._sites.update((name, site) for site, spec in desired.sites.items() for name in spec.devices)
        for app, spec in desired.apps.items():
            self._versions.update(((app, digest), version) for version, digest in spec.releases.items())
        self._tags = {desired.tag_of(number): wave.name for number, wave in enumerate(desired.waves.waves)}

    def site_of(self, device: str) -> str | None:
        """The site that git names a device at, or named it at last."""
        return self._sites.get(device)

    def judged(self, desired: Desired | None, findings: Iterable[Finding], now: datetime) -> None:
        """The branch was asked: a head came into force, or was not taken."""
        if desired is not None and desired.commit != self._commit:
            self.in_force(desired)
            self._tell(Event(now, Kind.MERGED, detail=desired.commit or ""))
        for finding in findings:
            if finding.type is Type.FLEET_VALID and finding.status is False:
                why = f"{finding.reason}: {finding.message}"
                # A controller that was started again judges the head once more.
                if why != self._refused:
                    self._refused = why
                    self._tell(Event(now, Kind.REFUSED, detail=why))

    # ------------------------------------------------ decisions and outcomes

    def decided(self, now: datetime, facts: Facts, new: Sequence[Intent]) -> None:
        """A decision is on record."""
        for verdicts, kind in ((facts.proofs, Kind.PROVEN), (facts.failures, Kind.STOPPED)):
            for fact in verdicts:
                self._tell(Event(now, kind, wave=fact.wave, key=fact.key))
        for key, waves in sorted(facts.members.items()):
            for wave, sites in sorted(waves.items()):
                for site in sites:
                    self._tell(Event(now, Kind.TAKEN, wave=wave, site=site, key=key))
        for late in facts.timeouts:
            released = late.key not in ("configure", "restart")
            self._of_device(
                now, Kind.TIMED_OUT, late.device, late.key if released else None, "" if released else late.key
            )
        for intent in new:
            if intent.action.kind in ON_DEVICES:
                fields = intent.action.fields
                detail = fields.get("why") or intent.action.kind.value
                self._of_device(now, Kind.TOLD, fields["device"] or "", self._key(intent.action), detail)

    def done(self, action: Action, now: datetime) -> None:
        """An action beside the devices had its effect."""
        kind = _OUTCOMES.get(action.kind)
        if kind is not None:
            tag = action.fields.get("tag") or ""
            self._tell(Event(now, kind, wave=self._tags.get(tag), key=self._key(action), detail=tag))

    def _key(self, action: Action) -> str | None:
        fields = action.fields
        if action.kind is ActionKind.CONFIGURE:
            return None
        if action.kind is ActionKind.FLASH:
            return fields["to"]
        if action.kind in (ActionKind.RESTART, ActionKind.RETAG):
            return self._app_key(fields["app"] or "", fields["to"] or "")
        return fields.get("image") or f"{fields.get('app')}@{fields.get('release')}"

    def _app_key(self, app: str, digest: str) -> str:
        """`video-ingest@2.8.0`; of a digest that git never named, the digest in the version's place."""
        return f"{app}@{self._versions.get((app, digest), digest)}"

    # ------------------------------------------------ reports and silence

    def heard(self, before: DeviceObservation | None, after: DeviceObservation, now: datetime) -> None:
        """A report was recorded: tell what it changed."""
        name = after.name
        if name in self._silent:
            self._silent.discard(name)
            heapq.heappush(self._watched, (now, name))
            self._of_device(now, Kind.HEARD, name)
        if before is None:
            before = DeviceObservation(name=name)
            heapq.heappush(self._watched, (now, name))
        if before.image != after.image:
            self._moved(now, name, before.image, after.image)
        if before.apps != after.apps:
            for app in sorted(before.apps.keys() | after.apps.keys()):
                old, new = before.apps.get(app), after.apps.get(app)
                keys = [None if found is None else self._app_key(app, found.digest) for found in (old, new)]
                if keys[0] != keys[1]:
                    self._moved(now, name, keys[0], keys[1])
        if before.failed_attempts != after.failed_attempts:
            for key, count in sorted(after.failed_attempts.items()):
                if count > before.failed_attempts.get(key, 0):
                    self._of_device(now, Kind.ATTEMPT_FAILED, name, key)
        was, is_ = before.health is Health.CRITICAL, after.health is Health.CRITICAL
        if was != is_:
            kind = Kind.CRITICAL if is_ else Kind.WELL
            self._of_device(now, kind, name, after.image, ", ".join(after.checks_worse))

    def _moved(self, now: datetime, device: str, old: str | None, new: str | None) -> None:
        if old is not None:
            self._of_device(now, Kind.LEFT, device, old)
        if new is not None:
            self._of_device(now, Kind.ARRIVED, device, new)

    def watch(self, devices: Iterable[DeviceObservation], stale: timedelta, now: datetime) -> None:
        """Whom to watch for silence from the start. Who is silent then has been it before: nothing is told of them."""
        for device in devices:
            if device.last_seen is None or device.last_seen + stale < now:
                self._silent.add(device.name)
            else:
                self._watched.append((device.last_seen, device.name))
        heapq.heapify(self._watched)

    def last_seen(self, device: str, at: datetime) -> None:
        """The record says another instant now, an earlier one perhaps."""
        if device not in self._silent:
            heapq.heappush(self._watched, (at, device))

    def silence(self, now: datetime, stale: timedelta, seen_at: Callable[[str], datetime | None]) -> None:
        """Tell who has fallen silent: nothing was heard for longer than `stale`."""
        while self._watched and self._watched[0][0] + stale < now:
            _, device = heapq.heappop(self._watched)
            at = seen_at(device)
            if at is None or device in self._silent:
                continue
            if at + stale < now:
                self._silent.add(device)
                self._of_device(now, Kind.SILENT, device)
            else:
                heapq.heappush(self._watched, (at, device))

    def _of_device(self, now: datetime, kind: Kind, device: str, key: str | None = None, detail: str = "") -> None:
        site = self._sites.get(device)
        wave = self._wave_of(site) if site is not None else None
        self._tell(Event(now, kind, wave, site, device, key, detail))
