"""Where virtual time begins: a snapshot, made whole, and what each device truly is at that instant. Pure.

The simulator builds its machines from `start_of`, the forecast its formulas, and both load the snapshot that it returns as the
controller's record: so they begin alike. `settled` is the beginning for whoever has no snapshot. Decides nothing about the
rollout. Source: the contract, "Observed snapshot"; design §6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Literal

from reconciler.model.desired import Desired, WaveSpec
from reconciler.model.observed import (
    Artifact,
    ArtifactState,
    Boot,
    DeviceObservation,
    Health,
    RunningApp,
    Snapshot,
    Verdict,
)
from reconciler.model.scalars import release_key
from reconciler.simulate.timings import IMAGE_BYTES, report_offset_s

Silent = Literal["stay", "return"]
"""What devices do that are silent at the start: say nothing for ever, or call in at their next report's instant."""
LONG_AGO = timedelta(days=30)
"""How long a settled fleet has run what it runs."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Ill(StrEnum):
    """What a device's critical health goes with: it leaves when that leaves."""

    DEVICE = "device"
    """Nothing that is rolled out: it was critical before the release came, or nobody knows since when."""
    IMAGE = "image"
    APP = "app"


class Doing(StrEnum):
    """What a device is in the middle of at the start."""

    NOTHING = "nothing"
    UPDATING = "updating"
    RESTARTING = "restarting"
    CONFIGURING = "configuring"


@dataclass(frozen=True, slots=True)
class DeviceStart:
    """One device at the start. Releases are names; None is "nothing", or nothing that is known."""

    name: str
    site: str | None
    booted: str | None
    """The release in the booted slot. None: never heard of, or nothing that has a name."""
    other: str | None
    """The release that the other slot holds whole."""
    previous: str | None
    apps: Mapping[str, str]
    """App → digest that runs."""
    config: str | None
    ill: Ill | None = None
    """With what its critical health goes; None: it is well."""
    ill_app: str | None = None
    """The app that it goes with, where `ill` is APP."""
    health: Health = Health.OK
    """What its healthcheck says while it is as it is at the start."""
    silent: bool = False
    """It does not report at the start."""
    returns_at: datetime | None = None
    """When it first calls in; None: never."""
    doing: Doing = Doing.NOTHING
    target: str | None = None
    """The release that it is being updated to (`v1.4.2`), or the app that it restarts; None where nobody knows."""

    def lives_from(self, at: datetime) -> datetime | None:
        """When a device that is in the middle of something goes on with it, of a run that begins at `at`: at once where it
        reports, with its first report where it is silent or nothing runs. None: never."""
        return self.returns_at if self.silent or self.booted is None else at


@dataclass(frozen=True, slots=True)
class Start:
    """The beginning of a run."""

    at: datetime
    observed: Snapshot
    """The controller's record at `at`: as observed, the reports of devices that are heard of carried on until now."""
    devices: Mapping[str, DeviceStart] = field(default_factory=dict)
    """Every device that git names or that was observed, by name."""


def first_report_at(device: str, every_s: int, at: datetime, *, in_step: bool = False) -> datetime:
    """The first instant, not before `at`, at which a device of this name reports. `in_step`: all devices at the same second."""
    since = int(-(-(at - _EPOCH) // timedelta(seconds=1)))
    late = (since - (0 if in_step else report_offset_s(device, every_s))) % every_s
    return _EPOCH + timedelta(seconds=since + (every_s - late) % every_s)


def start_of(
    observed: Snapshot,
    at: datetime,
    *desired: Desired,
    silent: Silent = "stay",
    heard: datetime | None = None,
    in_step: bool = False,
) -> Start:
    """What stands at `at` (UTC), for the commits that are in force in the run, the first of them first.

    A device counts as silent by the instant of the snapshot, where that names one that is past: a fleet does not fall silent
    because its snapshot lay about. A name that was observed twice is in conflict, as the planner takes it, and silent.
    `heard` is when the record says that devices were last heard of that report; their last report before `at` unless said.
    `in_step` lets all that report do so at the same second.
    """
    fleet = desired[0].fleet
    taken = min(observed.at, at) if observed.at is not None else at
    oldest = taken - timedelta(seconds=fleet.stale_after)
    claims = _claims(observed.devices)
    site_of = {
        name: site for commit in reversed(desired) for site, spec in commit.sites.items() for name in spec.devices
    }
    starts: dict[str, DeviceStart] = {}
    record: list[DeviceObservation] = []
    for name in sorted(claims.keys() | site_of.keys()):
        seen, site = claims.get(name), site_of.get(name)
        quiet = seen is None or seen.last_seen is None or seen.last_seen < oldest or seen.conflict
        silent_for_ever = quiet and silent == "stay"
        returns_at = None if silent_for_ever else first_report_at(name, fleet.report_every, at, in_step=in_step)
        if seen is not None and not quiet:
            assert returns_at is not None
            last = returns_at if returns_at == at else returns_at - timedelta(seconds=fleet.report_every)
            wanted = desired[0].config.get(site) if site is not None else None
            seen = _carried_on(seen, heard or last, wanted, in_step=in_step)
        if seen is not None:
            record.append(seen)
        starts[name] = _start(name, site, seen, quiet=quiet, returns_at=returns_at)
    return Start(at, observed.model_copy(update={"devices": tuple(record)}), starts)


def _claims(devices: Iterable[DeviceObservation]) -> dict[str, DeviceObservation]:
    """Observations by name. Of a name that was observed twice the one that the planner takes (`Columns.bind`)."""
    out: dict[str, DeviceObservation] = {}
    twice: dict[str, list[DeviceObservation]] = {}
    for device in devices:
        if device.name in out:
            twice.setdefault(device.name, [out[device.name]]).append(device)
        out[device.name] = device
    for name, several in twice.items():
        last = max(several, key=lambda device: device.model_dump_json())
        out[name] = last.model_copy(update={"conflict": True})
    return out


def _start(
    name: str, site: str | None, seen: DeviceObservation | None, *, quiet: bool, returns_at: datetime | None
) -> DeviceStart:
    if seen is None:
        return DeviceStart(name, site, None, None, None, {}, None, silent=True, returns_at=returns_at)
    ill, app = _illness(seen)
    doing, target = _doing(seen)
    return DeviceStart(
        name,
        site or seen.site,
        seen.image,
        seen.inactive_slot,
        seen.previous_image,
        {app: running.digest for app, running in seen.apps.items()},
        seen.config,
        ill,
        app,
        # What nobody has said yet is good news as long as nobody says otherwise.
        Health.OK if seen.health is Health.UNKNOWN or seen.image is None else seen.health,
        quiet,
        returns_at,
        doing,
        target,
    )


def _illness(seen: DeviceObservation) -> tuple[Ill | None, str | None]:
    """Critical health goes with what changed last before it began, where its beginning and that change are on record."""
    # Where nothing is booted no healthcheck runs: whatever is on record of its health, the next report does not say it again.
    if seen.health is not Health.CRITICAL or seen.image is None:
        return None, None
    since = seen.health_since
    if since is None:
        return Ill.DEVICE, None
    changes: list[tuple[datetime, str]] = [
        (running.since, app) for app, running in seen.apps.items() if running.since is not None
    ]
    if seen.image_since is not None:
        changes.append((seen.image_since, ""))
    earlier = [change for change in changes if change[0] <= since]
    if not earlier or (seen.health_before_update is Health.CRITICAL and not seen.checks_worse):
        return Ill.DEVICE, None
    app = max(earlier)[1]
    return (Ill.APP, app) if app else (Ill.IMAGE, None)


def _doing(seen: DeviceObservation) -> tuple[Doing, str | None]:
    if seen.updating_to is not None and seen.updating_to != seen.image:
        return Doing.UPDATING, seen.updating_to
    if seen.restarting_since is not None:
        return Doing.RESTARTING, seen.restarting_app
    return (Doing.CONFIGURING if seen.configuring_since is not None else Doing.NOTHING), None


def _carried_on(
    seen: DeviceObservation, heard: datetime, config: str | None, *, in_step: bool = False
) -> DeviceObservation:
    """The record of a device that has gone on reporting. A configuration that the snapshot leaves out is the wanted one."""
    heard = heard if in_step else max(seen.last_seen or heard, heard)
    changes: dict[str, object] = {"last_seen": heard}
    if seen.config is None and config is not None:
        changes["config"] = config
    if seen.boot is None:
        # A boot that nobody knows would look like a reboot at the first report, and begin every soak again.
        since = min(filter(None, (seen.image_since, seen.health_since, seen.last_seen, heard)))
        changes["boot"] = Boot.model_construct(
            id=f"start {seen.name}", sequence=0, first_sequence=0, since=since, seen=heard
        )
    return seen.model_copy(update=changes)


def leaves_out(seen: DeviceObservation) -> bool:
    """Whether an observation does not say what any report would: then the first report is news."""
    undated = seen.health_since is None or (seen.image is not None and seen.image_since is None)
    return undated or seen.health is Health.UNKNOWN


# ---------------------------------------------------------------- a fleet at rest


def settled(desired: Desired, at: datetime) -> Snapshot:
    """Everybody healthy, since long before `at`, on what their wave (or pin) asks for; its proofs and members on record.

    What is asked for is published, and so are the release before it, which the other slot holds, and releases without a recipe.
    Secrets have a version each. A device that no wave takes runs what the last wave asks for.
    """
    from reconciler.planner import waves_of_sites
    from reconciler.repo.load import with_config
    from reconciler.repo.render import secret_refs

    since = at - LONG_AGO
    versions = dict.fromkeys(secret_refs(desired.sites.values()), "1")
    config = (desired if desired.config else with_config(desired, versions)).config
    waves = {wave.name: wave for wave in desired.waves.waves}
    places = waves_of_sites(desired, Snapshot(), at)
    before = _one_lower(desired)
    devices: list[DeviceObservation] = []
    used: set[str] = set()
    for site, spec in sorted(desired.sites.items()):
        wave = waves.get(places.get(site, ""))
        apps = {
            app: RunningApp.model_construct(digest=desired.apps[app].releases[version], since=since)
            for app, version in sorted(wave.apps.items() if wave else ())
            if version in desired.apps[app].releases
        }
        for name in spec.devices:
            pinned = spec.pin is not None and (spec.pin.devices is None or name in spec.pin.devices)
            image = spec.pin.image if pinned and spec.pin is not None else (wave.image if wave else None)
            image = image or desired.waves.waves[-1].image
            previous = before.get(image) if image is not None else None
            used.update(release for release in (image, previous) if release is not None)
            every = desired.fleet.report_every
            heard = first_report_at(name, every, at)
            devices.append(
                DeviceObservation(
                    name=name,
                    site=site,
                    image=image,
                    image_since=since,
                    previous_image=previous,
                    inactive_slot=previous,
                    health=Health.OK,
                    health_since=since,
                    health_before_update=Health.OK,
                    last_seen=heard if heard == at else heard - timedelta(seconds=every),
                    apps=apps,
                    config=config.get(site),
                )
            )
    # What names no recipe is not built here: it was put into the store by hand, or it would never get there.
    used |= {name for name, spec in desired.images.items() if spec.recipe is None and spec.withdrawn is None}
    tags = dict(_tags(desired))
    return Snapshot(
        at=at,
        devices=tuple(devices),
        artifacts={name: _published(name) for name in sorted(used) if name in desired.images},
        tags=tags,
        tags_set=tags,
        proofs=tuple(_proofs(desired, since)),
        members=_members(desired, places),
        secret_versions=versions,
    )


def _one_lower(desired: Desired) -> dict[str, str]:
    """Release → the one that git names next below it, withdrawn ones left out."""
    names = [name for name in desired.releases_in_order() if desired.images[name].withdrawn is None]
    return {name: lower for lower, name in pairwise(names) if release_key(lower) < release_key(name)}


def _published(release: str) -> Artifact:
    digest = "sha256:" + hashlib.sha256(f"image {release}".encode()).hexdigest()
    return Artifact(state=ArtifactState.PUBLISHED, digest=digest, size=IMAGE_BYTES)


def _tags(desired: Desired) -> Iterator[tuple[str, dict[str, str | None]]]:
    for name, app in sorted(desired.apps.items()):
        asked = [(number, wave.apps.get(name)) for number, wave in enumerate(desired.waves.waves)]
        yield (
            name,
            {desired.tag_of(number): app.releases[v] for number, v in asked if v is not None and v in app.releases},
        )


def _asked(wave: WaveSpec) -> Iterator[dict[str, str]]:
    if wave.image is not None:
        yield {"image": wave.image}
    for app, release in sorted(wave.apps.items()):
        yield {"app": app, "release": release}


def _proofs(desired: Desired, at: datetime) -> Iterator[Verdict]:
    """A release that a later wave runs was proven by every wave before it."""
    waves = desired.waves.waves
    seen: set[tuple[str, str]] = set()
    for number, wave in enumerate(waves):
        for of in _asked(wave):
            for earlier in waves[: number + 1]:
                verdict = Verdict(wave=earlier.name, at=at, **of)
                if (earlier.name, verdict.key) not in seen:
                    seen.add((earlier.name, verdict.key))
                    yield verdict


def _members(desired: Desired, places: Mapping[str, str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Release → wave → the sites that it took, as the planner records them: with the first thing that a wave asks for."""
    out: dict[str, dict[str, tuple[str, ...]]] = {}
    for wave in desired.waves.waves:
        key = wave.image or next((f"{app}@{wave.apps[app]}" for app in sorted(wave.apps)), None)
        taken = tuple(sorted(site for site, name in places.items() if name == wave.name))
        if key is not None and taken:
            out.setdefault(key, {})[wave.name] = taken
    return out


def aged(snapshot: Snapshot, at: datetime) -> timedelta:
    """How old a snapshot is at `at`: by its own instant, or else by the last that was heard of anybody."""
    heard: Iterable[datetime] = (device.last_seen for device in snapshot.devices if device.last_seen is not None)
    taken = snapshot.at or max(heard, default=at)
    return max(at - taken, timedelta(0))


__all__ = [
    "DeviceStart",
    "Doing",
    "Ill",
    "Silent",
    "Start",
    "aged",
    "first_report_at",
    "settled",
    "start_of",
]
