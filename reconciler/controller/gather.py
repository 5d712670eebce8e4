"""The first step of a tick: everything the planner is to know, as one `World`. Reads; changes nothing but its own caches.

Git where it is due or has rung (`source`), devices from the store (only what changed), artifacts, tags and secret versions
where they are due. What cannot be read now keeps its last value, and a condition says so; what has never been read
yields no world at all, since a plan against an unknown image store would build everything again.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from reconciler.controller.conditions import Finding, Type
from reconciler.controller.pace import Poll
from reconciler.controller.source import Source
from reconciler.model.desired import Desired
from reconciler.model.observed import Artifact, DeviceObservation, Snapshot
from reconciler.ports import ImageStore, PortError, Registry, Secrets, Store, TransientError
from reconciler.repo.render import config_digests, secret_refs

_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class World:
    """What one tick knows. It costs what changed: devices are handed on as they are reported, and looked up by name."""

    now: datetime
    desired: Desired
    observed: Snapshot
    """What the stores hold: everything but the devices."""
    changed: Iterable[DeviceObservation]
    """Observations recorded since the last tick that took them; all of them at first. May be iterated more than once."""
    news: bool
    """Whether `observed` differs from what the last tick that took it was given."""
    store: Store

    @property
    def commit(self) -> str:
        """The commit in force."""
        return self.desired.commit or ""

    def devices(self, names: Sequence[str]) -> Mapping[str, DeviceObservation]:
        """Some devices as they are recorded now; those that are not on record are left out."""
        return {name: seen for name, (seen, _, _) in self.store.observed(names).items()} if names else {}

    def everyone(self) -> Sequence[DeviceObservation]:
        """Every device. It costs the fleet: for what is rare, and for tests."""
        return self.store.snapshot().devices


class Everyone:
    """All observations on record, read in pages: a fleet is not held in memory twice. `cursor` is how far it has read."""

    def __init__(self, store: Store) -> None:
        self._store, self.cursor = store, 0

    def __iter__(self) -> Iterator[DeviceObservation]:
        at = 0
        while True:
            page = self._store.changes_since(at, _PAGE)
            yield from page.devices
            if len(page.devices) < _PAGE:
                self.cursor = max(self.cursor, page.cursor)
                return
            at = page.cursor


@dataclass(slots=True)
class Polls:
    """When each outside system is read next."""

    images: Poll
    tags: Poll
    secrets: Poll

    def due_at(self) -> datetime | None:
        """The earliest of them; None: one is due now."""
        instants = [poll.due_at for poll in (self.images, self.tags, self.secrets)]
        return None if any(instant is None for instant in instants) else min(i for i in instants if i is not None)


class Gatherer:
    """Reads the world, once a tick. One thread; only `git_rang` and `stale` may be called from others."""

    def __init__(
        self,
        source: Source,
        store: Store,
        images: ImageStore,
        registry: Registry,
        secrets: Secrets,
        polls: Polls,
        rng: random.Random,
    ) -> None:
        self._source, self._store, self._images = source, store, images
        self._registry, self._secrets, self.polls, self._random = registry, secrets, polls, rng
        self._git_rang = threading.Event()
        self._everyone: Everyone | None = Everyone(store)
        self._cursor = 0
        self._pending: dict[str, DeviceObservation] = {}
        self._facts: Snapshot | None = None
        self._shared: Snapshot | None = None
        self._news = True
        self._artifacts: Mapping[str, Artifact] | None = None
        self._tags: dict[str, Mapping[str, str]] = {}
        self._tags_commit: str | None = None
        self._versions: Mapping[str, str] = {}
        self._rendered: tuple[Desired, Mapping[str, str], Desired] | None = None
        self._troubles: dict[str, str] = {}
        self._restored = False

    def git_rang(self) -> None:
        """The branch may have moved: ask git at the next tick. Safe from any thread."""
        self._git_rang.set()

    @property
    def rung(self) -> bool:
        """Whether the branch may have moved since the last tick."""
        return self._git_rang.is_set()

    @property
    def refused(self) -> tuple[str, str] | None:
        """The branch's head that is not acted on, and why; None where the head is in force."""
        return self._source.refused

    def facts_changed(self) -> None:
        """The loop has written facts or tags: read them again at the next tick."""
        self._facts = None

    def epoch_raised(self, epoch: int) -> None:
        """The writer's epoch is another one now."""
        self._source.renewed(epoch)

    def stores_changed(self) -> None:
        """The loop has changed an artifact or a tag: read them at the next tick, not at the next poll."""
        self.polls.images.now()
        self.polls.tags.now()

    def gather(self, now: datetime) -> tuple[World | None, list[Finding]]:
        """The world, or None where too little is known to plan; and what was found out about the conditions.

        Errors of the store pass through: without it there is no tick.
        """
        findings: list[Finding] = []
        if not self._restored:
            findings += self._source.restore()
            self._restored = True
        if self._git_rang.is_set():
            self._git_rang.clear()
            self._source.poll.now()
        findings += self._source.refresh(now, self._random.random())
        self._read_devices()
        desired = self._source.desired
        if desired is None:
            return None, findings
        self._read_stores(desired, now)
        findings.append(self._stores_finding())
        if self._artifacts is None:
            return None, findings
        changed = self._everyone or tuple(self._pending.values())
        return World(now, self._with_config(desired), self._observed(), changed, self._news, self._store), findings

    def taken(self) -> None:
        """The world was planned: what was new in it is news no more."""
        if self._everyone is not None:
            self._cursor, self._everyone = self._everyone.cursor, None
        self._pending.clear()
        self._news = False

    def _observed(self) -> Snapshot:
        """What the stores hold; the same object as long as nothing of it has changed."""
        if self._facts is None:
            self._facts = self._store.facts()
        update = {"artifacts": self._artifacts, "tags": dict(self._tags), "secret_versions": dict(self._versions)}
        observed = self._facts.model_copy(update=update)
        if self._shared is None or observed != self._shared:
            self._shared, self._news = observed, True
        return self._shared

    def due_at(self) -> datetime | None:
        """When something outside is to be read next; None: now."""
        stores, git = self.polls.due_at(), self._source.poll.due_at
        if git is None or self._git_rang.is_set():
            return None
        # Before a commit is in force nothing but git is of interest.
        if self._source.desired is None:
            return git
        return None if stores is None else min(stores, git)

    def _read_devices(self) -> None:
        """What was recorded since the last reading, kept until a plan has taken it: a tick may fail in between."""
        if self._everyone is None:
            changes = self._store.changes_since(self._cursor)
            self._cursor = changes.cursor
            self._pending.update((device.name, device) for device in changes.devices)

    def _with_config(self, desired: Desired) -> Desired:
        """The commit's desired state with the digests of the sites' configurations, made again only where it matters."""
        if self._rendered is None or self._rendered[0] is not desired or self._rendered[1] != self._versions:
            config = config_digests(desired.sites, desired.fleet, self._versions)
            self._rendered = (desired, dict(self._versions), replace(desired, config=config))
        return self._rendered[2]

    # ------------------------------------------------ image store, registry, secrets

    def _read_stores(self, desired: Desired, now: datetime) -> None:
        if self._tags_commit != desired.commit:
            # Another commit may name other apps and other secrets.
            self.polls.tags.now()
            self.polls.secrets.now()
            self._tags_commit = desired.commit
        for name, poll, read in (
            ("image store", self.polls.images, self._read_images),
            ("registry", self.polls.tags, self._read_tags),
            ("secrets", self.polls.secrets, self._read_versions),
        ):
            if not poll.is_due(now):
                continue
            try:
                read(desired)
            except PortError as error:
                asked = error.retry_after_s if isinstance(error, TransientError) else None
                poll.failed(now, self._random.random(), asked)
                self._troubles[name] = str(error)
            else:
                poll.answered(now, self._random.random())
                self._troubles.pop(name, None)

    def _read_images(self, desired: Desired) -> None:
        self._artifacts = dict(self._images.artifacts())

    def _read_tags(self, desired: Desired) -> None:
        self._tags = {name: dict(self._registry.tags(app.repository)) for name, app in sorted(desired.apps.items())}

    def _read_versions(self, desired: Desired) -> None:
        self._versions = dict(self._secrets.versions(secret_refs(desired.sites.values())))

    def _stores_finding(self) -> Finding:
        if not self._troubles:
            return Finding(Type.STORES_READY, True, "AllAnswer", "image store, registry and secrets answer")
        message = "; ".join(f"{name}: {error}" for name, error in sorted(self._troubles.items()))
        return Finding(Type.STORES_READY, False, "NotAnswering", message)
