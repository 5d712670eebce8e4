"""What happens in the demo fleet, as the events that a forecast is made of: so the two can be laid side by side.

Reads the controller's log, its last plan and its record of the devices, from beside it; decides nothing. Instants are the
controller's. Called by `follow` after every step of time. Source: `simulate.trace`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from reconciler.demo.summary import Line
from reconciler.model.desired import Desired
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.model.scalars import parse_instant
from reconciler.planner import waves_of_sites
from reconciler.simulate.trace import Entry, Event, Exposure, Kind, Trace, calendar_of, exposure

_STEPS = {"build": Kind.BUILT, "sign": Kind.SIGNED, "publish": Kind.PUBLISHED, "propose-revert": Kind.PROPOSED}


class Tail:
    """The log's lines that are new since the last reading. A line that is not whole yet waits for the next."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def read(self) -> Iterator[Line]:
        """What was written meanwhile."""
        with open(self._path, "rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        for text in whole.splitlines():
            try:
                fields = json.loads(text)
                yield Line(parse_instant(fields.pop("at")), str(fields.pop("event")), fields)
            except (ValueError, KeyError, AttributeError, TypeError):
                continue


class Chronicle:
    """The events since a merge. `desired` is the commit that it brought into force, `before` what devices ran until then."""

    def __init__(self, desired: Desired, before: Snapshot, at: datetime) -> None:
        self.desired, self.started_at = desired, at
        self.events: list[Event] = [Event(at, Kind.MERGED, detail=desired.commit or "")]
        self._sites = {name: site for site, spec in desired.sites.items() for name in spec.devices}
        self._wave_of = waves_of_sites(desired, before, at)
        self._runs = {device.name: self._keys(device) for device in before.devices}
        self._failed = {device.name: dict(device.failed_attempts) for device in before.devices}
        self._states: dict[tuple[str, str], str] = {}

    # ------------------------------------------------ what is read

    def hear(self, line: Line) -> Iterator[Event]:
        """A line of the log."""
        fields, event = line.fields, line.event
        if event in ("proof", "gate failed"):
            kind = Kind.PROVEN if event == "proof" else Kind.STOPPED
            yield self._add(Event(line.at, kind, wave=str(fields["wave"]), key=str(fields["release"])))
        words = str(fields.get("action", "")).split()
        parts = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        if event == "action" and words and parts.get("device") in self._sites and words[0] in ("flash", "restart"):
            name = parts["device"]
            key = parts["to"] if words[0] == "flash" else self._version(parts["app"], parts["to"])
            yield self._add(self._on(line.at, Kind.TOLD, name, key, str(fields.get("why") or words[0])))
        if event == "done" and words and words[0] in _STEPS:
            key = parts.get("image") or f"{parts.get('app')}@{parts.get('release')}"
            yield self._add(Event(line.at, _STEPS[words[0]], key=key, detail=str(fields.get("detail", ""))))
        if event == "timed out" and str(fields.get("device")) in self._sites:
            yield self._add(self._on(line.at, Kind.TIMED_OUT, str(fields["device"]), str(fields["release"])))

    def look(self, device: DeviceObservation) -> Iterator[Event]:
        """A device as it was last recorded."""
        if device.name not in self._sites:
            return
        was, now = self._runs.get(device.name, {}), self._keys(device)
        self._runs[device.name] = now
        for key in was.keys() - now.keys():
            left = max((at for at in now.values() if at is not None), default=None)
            yield self._add(self._on(left or self.started_at, Kind.LEFT, device.name, key))
        for key in now.keys() - was.keys():
            yield self._add(self._on(now[key] or self.started_at, Kind.ARRIVED, device.name, key))
        failed, self._failed[device.name] = self._failed.get(device.name, {}), dict(device.failed_attempts)
        for key, count in device.failed_attempts.items():
            if count > failed.get(key, 0):
                at = device.attempt_failed_at or self.started_at
                yield self._add(self._on(at, Kind.ATTEMPT_FAILED, device.name, key))

    def states(self, plan: Mapping[str, Any]) -> Iterator[tuple[Event, Mapping[str, Any]]]:
        """Waves whose state has changed in a plan, each with what the plan says of it."""
        if plan.get("commit") != self.desired.commit:
            return
        at = parse_instant(plan["at"])
        for wave in plan["waves"]:
            of_apps = ((f"{app}@{of['release']}", of) for app, of in sorted(wave.get("apps", {}).items()))
            for key, of in ((wave["image"], wave), *of_apps):
                place = (wave["name"], key)
                if key is not None and self._states.get(place) != of["state"]:
                    self._states[place] = of["state"]
                    yield self._add(Event(at, Kind.STATE, wave=wave["name"], key=key, detail=of["state"])), of

    # ------------------------------------------------ what came of it

    def calendar(self, plan: Mapping[str, Any]) -> tuple[Entry, ...]:
        """When each wave started, arrived and proved what something happened to since the merge."""
        touched = {(event.wave, event.key) for event in self.events if event.kind is Kind.TOLD}
        asked = [
            (wave["name"], key, wave["devices"])
            for wave in plan["waves"]
            for key in (wave["image"], *(f"{app}@{of['release']}" for app, of in sorted(wave.get("apps", {}).items())))
        ]
        keys = {key for _, key in touched}
        asked = [place for place in asked if place[1] in keys]
        return calendar_of(Trace(self.started_at, parse_instant(plan["at"]), self._sorted(), asked))

    def exposure(self, entries: Iterable[Entry]) -> Exposure:
        """The most devices at once on a release that their wave had not proven."""
        return exposure(self._sorted(), {entry.key for entry in entries})

    def _sorted(self) -> list[Event]:
        return sorted(self.events, key=lambda event: event.at)

    # ------------------------------------------------ parts

    def _add(self, event: Event) -> Event:
        self.events.append(event)
        return event

    def _on(self, at: datetime, kind: Kind, device: str, key: str, detail: str = "") -> Event:
        site = self._sites[device]
        return Event(at, kind, wave=self._wave_of.get(site), site=site, device=device, key=key, detail=detail)

    def _keys(self, device: DeviceObservation) -> dict[str, datetime | None]:
        """What a device runs, and since when."""
        out = {device.image: device.image_since} if device.image is not None else {}
        return out | {self._version(name, app.digest): app.since for name, app in device.apps.items()}

    def _version(self, app: str, digest: str) -> str:
        spec = self.desired.apps.get(app)
        found = next((v for v, of in spec.releases.items() if of == digest), None) if spec is not None else None
        return f"{app}@{found or digest}"
