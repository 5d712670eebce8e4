"""Adopting a running fleet: proofs for what its waves already run in health. Pure. Called by `reconciler adopt`.

Decides which waves are proven as they are: every device of the wave (suspended and pinned ones apart) reports, runs the
release that git asks for, and is in good health; nothing is claimed about soaks that nobody has watched. A wave is adopted
only where every earlier wave that asks for the release is. Source: contract, fine print 14.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from reconciler.model.desired import Desired, WaveSpec
from reconciler.model.observed import DeviceObservation, Health, Snapshot
from reconciler.model.plan import Facts, VerdictFact
from reconciler.planner import waves_of_sites

_GOOD = (Health.OK, Health.WARNING)


@dataclass(frozen=True, slots=True)
class Adopted:
    """What to record, and a line for each wave and release, adopted or not."""

    facts: Facts
    tags_set: Mapping[str, Mapping[str, str | None]]
    lines: tuple[str, ...]


def adopt(desired: Desired, observed: Snapshot, now: datetime) -> Adopted:
    """Proofs for every wave that runs what git asks of it, and the tags that stand where they should."""
    devices = _devices_of_waves(desired, observed, now)
    known = {(proof.wave, proof.key) for proof in observed.proofs if not proof.closed}
    proofs: list[VerdictFact] = []
    lines: list[str] = []
    members: dict[str, dict[str, tuple[str, ...]]] = {}
    broken: set[str] = set()
    for spec in desired.waves.waves:
        sites, found = devices[spec.name]
        for key in _asked(spec):
            why_not = _why_not(desired, spec, key, sites, found, observed, now)
            if (spec.name, key) in known:
                lines.append(f"{spec.name}: {key} is proven already")
            elif key in broken:
                lines.append(f"{spec.name}: {key} is not adopted: an earlier wave is not")
            elif why_not is not None:
                broken.add(key)
                lines.append(f"{spec.name}: {key} is not adopted: {why_not}")
            else:
                proofs.append(VerdictFact(spec.name, key, now))
                taken = set(observed.members.get(key, {}).get(spec.name, ()))
                members.setdefault(key, {})[spec.name] = tuple(site for site in sites if site not in taken)
                lines.append(f"{spec.name}: {key} is adopted, with {len(found)} devices of {len(sites)} sites")
    facts = Facts(proofs=tuple(proofs), members={key: waves for key, waves in members.items() if any(waves.values())})
    return Adopted(facts, _tags(desired, observed), tuple(lines))


def _asked(spec: WaveSpec) -> list[str]:
    images = [spec.image] if spec.image is not None else []
    return [*images, *(f"{app}@{version}" for app, version in sorted(spec.apps.items()))]


def _devices_of_waves(
    desired: Desired, observed: Snapshot, now: datetime
) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Wave → its sites, and of their devices those that count: suspended and pinned ones do not."""
    waves = waves_of_sites(desired, observed, now)
    out: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for spec in desired.waves.waves:
        sites = tuple(sorted(site for site, wave in waves.items() if wave == spec.name))
        counted: list[str] = []
        for site in sites:
            place = desired.sites[site]
            pinned = set() if place.pin is None else set(place.pin.devices or place.devices)
            if not place.suspended:
                counted += [name for name in place.devices if name not in pinned]
        out[spec.name] = (sites, tuple(counted))
    return out


def _why_not(
    desired: Desired,
    spec: WaveSpec,
    key: str,
    sites: tuple[str, ...],
    devices: tuple[str, ...],
    observed: Snapshot,
    now: datetime,
) -> str | None:
    """Why a wave is not adopted on a release, or None."""
    if sites and not devices:
        return "it has no device that counts"
    seen = {device.name: device for device in observed.devices}
    stale = timedelta(seconds=desired.fleet.stale_after)
    for name in devices:
        device = seen.get(name)
        if device is None or device.last_seen is None or now - device.last_seen > stale:
            return f"{name} does not report"
        if not _runs(desired, device, key):
            return f"{name} does not run it"
        if device.health not in _GOOD:
            return f"{name} is {device.health.value}"
    return None


def _runs(desired: Desired, device: DeviceObservation, key: str) -> bool:
    app, at_sign, version = key.partition("@")
    if not at_sign:
        return device.image == key
    running = device.apps.get(app)
    return running is not None and running.digest == desired.apps[app].releases[version]


def _tags(desired: Desired, observed: Snapshot) -> dict[str, dict[str, str | None]]:
    """Tags that point where git wants them, and that nobody here has set: taken over as if set here."""
    out: dict[str, dict[str, str | None]] = {}
    for index, spec in enumerate(desired.waves.waves):
        tag = desired.tag_of(index)
        for app, version in spec.apps.items():
            wanted = desired.apps[app].releases[version]
            stands = observed.tags.get(app, {}).get(tag)
            if stands == wanted and observed.tags_set.get(app, {}).get(tag) != wanted:
                out.setdefault(app, {})[tag] = wanted
    return out
