"""Turns a plan into assignments: what each device is told, and for how long. Pure, but for the signature it is handed.

Level-based: an assignment says what to run, not what to do, and the latest one alone holds. A device whose update was
given up (a time-out, a failed attempt) is told to stand still, so that an older word cannot make it start later by itself.
Whether something may start was decided by the planner; here its window is only written down in UTC. Called by `execute`.
Source: design §5 "Protocol"; contract, fine print 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from reconciler.controller.gather import World
from reconciler.model.desired import Desired
from reconciler.model.observed import ArtifactState, DeviceObservation
from reconciler.model.plan import Action, ActionKind, Plan
from reconciler.model.scalars import release_key
from reconciler.planner.live import Live
from reconciler.planner.windows import DAY, calendar, instant, micros
from reconciler.ports import AssignmentRow, ImageStore, Store, TerminalError
from reconciler.protocol.assignment import AppTarget, Assignment, AssignmentError, ImageTarget
from reconciler.protocol.bundle import seal
from reconciler.protocol.manifest import NAME as MANIFEST
from reconciler.protocol.manifest import Manifest, ManifestError

ON_DEVICES = frozenset({ActionKind.FLASH, ActionKind.CONFIGURE, ActionKind.RESTART})
_FAR_DAYS = 9
_NOT_BEGUN = (None, "idle", "prefetching")


@dataclass(frozen=True, slots=True)
class Target:
    """What an assignment asks for; equal targets need no new assignment. `acts`: it may be followed now or in a window."""

    image: ImageTarget | None = None
    apps: Mapping[str, AppTarget] = field(default_factory=dict)
    config: str | None = None
    acts: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """An assignment before it has a serial and a signature."""

    device: str
    target: Target
    window: tuple[tuple[datetime, datetime], ...] = ()
    waived: bool = False
    calls_off: bool = False
    """Takes back an update that has not begun: the device is in flight no more, and nothing is charged."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a device was told last, and until when that holds."""

    target: Target
    expires_at: datetime


class Assigner:
    """Knows what every device was told last, from memory, and from the store after a restart."""

    def __init__(self, store: Store, *, valid_s: int, nights: int) -> None:
        self._store, self._valid, self._nights = store, timedelta(seconds=valid_s), nights
        self._standing: dict[str, Standing | None] = {}
        self._acting: set[str] | None = None
        self._stops: object = None
        self._heard: set[str] = set()
        self._unsaid: dict[str, Draft] = {}
        self._waiting: dict[str, str] = {}
        self._sites: tuple[str | None, Mapping[str, str]] = ("", {})

    def drafts(
        self, world: World, plan: Plan, live: Live, artifact: Callable[[str], ImageTarget | None]
    ) -> tuple[Draft, ...]:
        """What devices are to be told after this plan, sorted by name. `artifact` reads a release's manifest.

        An action whose artifact or tag is not known (it vanished between two readings) gets no draft, and so no intent.
        """
        drafts: dict[str, Draft] = {}
        for action in plan.actions:
            if action.kind in ON_DEVICES:
                draft = self._for_action(world, action, artifact, live.wave_of)
                if draft is not None:
                    drafts[draft.device] = draft
        # What only says to stand still, or to fetch, is kept until it was recorded: the signature or the store may fail.
        for device in self._given_up(world, plan, live):
            self._unsaid[device] = Draft(device, Target())
        for device in self._called_off(world, plan, live):
            self._unsaid[device] = Draft(device, Target(), calls_off=True)
        for draft in self._prefetches(world, live, artifact):
            self._unsaid.setdefault(draft.device, draft)
        for device, draft in self._unsaid.items():
            drafts.setdefault(device, draft)
        return tuple(drafts[name] for name in sorted(drafts))

    def seal(
        self, drafts: Sequence[Draft], epoch: int, first: int, now: datetime, sign: Callable[[bytes], bytes]
    ) -> tuple[AssignmentRow, ...]:
        """Serials from `first` on, one signature for all. What `sign` raises passes through."""
        if not drafts:
            return ()
        expires_at = now + self._valid
        documents = [
            Assignment(
                device=draft.device,
                serial=(epoch, first + number),
                issued_at=now,
                expires_at=expires_at,
                image=draft.target.image,
                apps=draft.target.apps,
                config=draft.target.config,
                window=draft.window,
                window_waived=draft.waived,
            ).to_bytes()
            for number, draft in enumerate(drafts)
        ]
        bundles = seal(documents, epoch, now, sign)
        return tuple(
            AssignmentRow(
                device=draft.device,
                epoch=epoch,
                n=first + number,
                document=bundle.document,
                proof=bundle.proof,
                index=bundle.index,
                root=bundle.root_document,
                signature=bundle.signature,
                expires_at=expires_at,
            )
            for number, (draft, bundle) in enumerate(zip(drafts, bundles, strict=True))
        )

    def told(self, drafts: Sequence[Draft], now: datetime) -> None:
        """Remember what was recorded. Called once the transaction has been committed."""
        for draft in drafts:
            self._unsaid.pop(draft.device, None)
            self._standing[draft.device] = Standing(draft.target, now + self._valid)
            if self._acting is not None:
                self._acting.discard(draft.device)
                if draft.target.acts:
                    self._acting.add(draft.device)

    # ------------------------------------------------ what to tell

    def _for_action(
        self,
        world: World,
        action: Action,
        artifact: Callable[[str], ImageTarget | None],
        wave_of: Callable[[str], str | None],
    ) -> Draft | None:
        device = action.fields["device"] or ""
        site = self._site_of(world.desired, device)
        target = None if site is None else _target(world, action, artifact, wave_of(site))
        if target is None or site is None:
            return None
        window = self.window(world.desired, site, world.now)
        # The plan has decided that it may start now. Where the window is shut, that is a waiver.
        is_open = any(start <= world.now < end for start, end in window)
        return Draft(device, target, window, waived=not is_open)

    def _site_of(self, desired: Desired, device: str) -> str | None:
        if self._sites[0] != desired.commit:
            self._sites = (
                desired.commit,
                {name: site for site, spec in desired.sites.items() for name in spec.devices},
            )
        return self._sites[1].get(device)

    def window(self, desired: Desired, site: str, now: datetime) -> tuple[tuple[datetime, datetime], ...]:
        """The coming windows of a site, as an assignment names them."""
        spec = desired.sites[site]
        window = spec.window or desired.fleet.window
        at = micros(now)
        spans = calendar(spec.timezone, window.start, window.end).intervals(at, at + _FAR_DAYS * DAY)
        return tuple((instant(opens), instant(closes)) for opens, closes in spans[: self._nights])

    def _prefetches(self, world: World, live: Live, artifact: Callable[[str], ImageTarget | None]) -> Iterator[Draft]:
        """Devices that only wait for their window fetch meanwhile: an empty window means fetch, and nothing else."""
        targets: dict[str, Target | None] = {}
        self._waiting.update(live.waiting_for_window())
        for device, release in list(self._waiting.items()):
            if release not in targets:
                image = _image(world, release, artifact)
                targets[release] = None if image is None else Target(image=image)
            target, standing = targets[release], self._last(device)
            if target is None:
                continue
            del self._waiting[device]
            if standing is None or standing.target != target or standing.expires_at <= world.now:
                yield Draft(device, target)

    def _given_up(self, world: World, plan: Plan, live: Live) -> set[str]:
        """Devices that were told to act, are not in flight any more, and have not arrived."""
        if self._acting is None:
            # After a restart. Marks and assignments are written in one transaction, and so are time-outs and the word to
            # stand still: whoever was told to act and has not ended is marked.
            self._acting = set(live.marked())
            self._heard = set(self._acting)
        else:
            self._heard |= {device.name for device in world.changed if device.name in self._acting}
        acting = self._acting
        timed_out = {fact.device for fact in plan.facts.timeouts}
        late = {name for name in acting if (last := self._last(name)) is None or last.expires_at <= world.now}
        seen = world.devices(sorted((self._heard | timed_out) & acting))
        concerned, self._heard = sorted((self._heard | timed_out | late) & acting), set()
        out = set()
        for name in concerned:
            device, standing = seen.get(name), self._last(name)
            if name in late or device is None or standing is None:
                acting.discard(name)
            elif name in timed_out or not _in_flight(device):
                acting.discard(name)
                if not _arrived(device, standing.target):
                    out.add(name)
        return out

    def _called_off(self, world: World, plan: Plan, live: Live) -> Iterator[str]:
        """Devices that were told to update and have not begun, where the update may not begin any more.

        An assignment names the coming windows too, so that a device that was away tonight goes on tomorrow by itself. What
        has stopped meanwhile (a failed gate, a revert, a freeze) must not: only what is already flashing is not cut off.
        """
        failed = {verdict.key for verdict in world.observed.failures if not verdict.closed}
        failed |= {fact.key for fact in plan.facts.failures}
        frozen = any(freeze.from_ <= world.now < freeze.to for freeze in world.desired.fleet.freezes)
        stops = (world.commit, frozenset(failed), frozen)
        if stops == self._stops or self._acting is None:
            return
        self._stops = stops
        acting = sorted(name for name in self._acting if (last := self._last(name)) is not None and last.target.image)
        seen = world.devices(acting)
        asked = _asked(world.desired)
        for name in acting:
            device, standing = seen.get(name), self._last(name)
            if device is None or standing is None or standing.target.image is None or device.phase not in _NOT_BEGUN:
                continue
            release = standing.target.image.release
            site = self._site_of(world.desired, name)
            wave = live.wave_of(site) if site is not None else None
            forward = not _goes_back(device.image, release)
            if release not in asked or (forward and (release in failed or frozen or _paused(world.desired, wave))):
                self._acting.discard(name)
                yield name

    def _last(self, device: str) -> Standing | None:
        if device not in self._standing:
            row = self._store.assignment(device)
            self._standing[device] = None if row is None else _standing(row)
        return self._standing[device]


def _standing(row: AssignmentRow) -> Standing | None:
    try:
        told = Assignment.from_bytes(row.document)
    except AssignmentError:
        return None  # Written by a newer version; whatever it says, the next word replaces it.
    acts = told.window_waived or bool(told.window)
    return Standing(Target(told.image, dict(told.apps), told.config, acts), row.expires_at)


def _target(
    world: World, action: Action, artifact: Callable[[str], ImageTarget | None], wave: str | None
) -> Target | None:
    """What an action asks of its device; None where the parts are not known."""
    fields = action.fields
    if action.kind is ActionKind.CONFIGURE:
        return Target(config=fields["config"], acts=True)
    if action.kind is ActionKind.FLASH:
        image = _image(world, fields["to"] or "", artifact)
        return None if image is None else Target(image=image, acts=True)
    app, digest = fields["app"] or "", fields["to"] or ""
    spec = world.desired.apps.get(app)
    version = next((v for v, d in spec.releases.items() if d == digest), None) if spec is not None else None
    tag = _tag(world, app, version, wave)
    if spec is None or version is None or tag is None:
        return None
    return Target(apps={app: AppTarget(spec.repository, tag, digest, version)}, acts=True)


def _tag(world: World, app: str, version: str | None, wave: str | None) -> str | None:
    """The tag that the device's wave follows; of a device apart from its wave, the first tag of that release."""
    waves = world.desired.waves.waves
    for index, spec in enumerate(waves):
        if spec.name == wave or (wave is None and spec.apps.get(app) == version):
            return world.desired.tag_of(index)
    return None


def _image(world: World, release: str, artifact: Callable[[str], ImageTarget | None]) -> ImageTarget | None:
    found = world.observed.artifacts.get(release)
    return artifact(release) if found is not None and found.state is ArtifactState.PUBLISHED else None


class Artifacts:
    """Published artifacts as assignments name them: the raw image's digest is in the manifest. Each is read once, since
    what is published never changes."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images
        self._known: dict[str, ImageTarget] = {}

    def target(self, release: str) -> ImageTarget | None:
        """A published release; None where it is not in the store after all, or its manifest is another's. A store that does
        not answer: TransientError."""
        if release not in self._known:
            try:
                manifest = Manifest.from_bytes(self._images.read(release, MANIFEST))
                folder = self._images.folder(release)
            except (TerminalError, ManifestError):
                return None
            if folder is None or manifest.release != release:
                return None
            self._known[release] = ImageTarget(release, manifest.digest, folder)
        return self._known[release]


def _asked(desired: Desired) -> set[str]:
    """Image releases that git asks for and has not withdrawn."""
    asked = {wave.image for wave in desired.waves.waves if wave.image is not None}
    asked |= {site.pin.image for site in desired.sites.values() if site.pin is not None}
    return {release for release in asked if release in desired.images and desired.images[release].withdrawn is None}


def _paused(desired: Desired, wave: str | None) -> bool:
    return desired.fleet.paused or any(spec.paused for spec in desired.waves.waves if spec.name == wave)


def _goes_back(image: str | None, release: str) -> bool:
    """Whether a device that runs `image` goes back by running `release`: pauses and freezes do not bind that."""
    try:
        return image is not None and release_key(release) < release_key(image)
    except ValueError:
        return False


def _in_flight(device: DeviceObservation) -> bool:
    return any(
        since is not None for since in (device.updating_since, device.restarting_since, device.configuring_since)
    )


def _arrived(device: DeviceObservation, target: Target) -> bool:
    if target.image is not None and device.image != target.image.release:
        return False
    if target.config is not None and device.config != target.config:
        return False
    return all(name in device.apps and device.apps[name].digest == app.digest for name, app in target.apps.items())


def marks(draft: Draft, world: World) -> DeviceObservation | None:
    """What is recorded with an assignment that acts: the device is in flight from now on. None for the others."""
    target = draft.target
    if draft.calls_off:
        return DeviceObservation(name=draft.device, updating_to=None, updating_since=None, rebooting_since=None)
    if not target.acts:
        return None
    if target.image is not None:
        return DeviceObservation(name=draft.device, updating_to=target.image.release, updating_since=world.now)
    if target.config is not None:
        return DeviceObservation(name=draft.device, configuring_since=world.now)
    app = next(iter(target.apps))
    return DeviceObservation(name=draft.device, restarting_app=app, restarting_since=world.now)


def without(plan: Plan, devices: set[str]) -> Plan:
    """The plan without the actions on some devices: what could not be told them is not done, and so not recorded."""
    kept = tuple(a for a in plan.actions if a.kind not in ON_DEVICES or a.fields["device"] not in devices)
    return plan if len(kept) == len(plan.actions) else replace(plan, actions=kept)
