"""The first step of a tick: everything the planner is to know, as one `World`. Reads; changes nothing but its own caches.

Git where it is due or has rung (`source`), devices from the store (only what changed), artifacts, tags and secret versions
where they are due. What cannot be read now keeps its last value, and a condition says so; what has never been read
yields no world at all, since a plan against an unknown image store would build everything again.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from reconciler.controller.conditions import Finding, Type
from reconciler.controller.pace import Poll
from reconciler.controller.source import Source
from reconciler.model.desired import Desired
from reconciler.model.observed import Artifact, DeviceObservation, Snapshot
from reconciler.ports import ImageStore, PortError, Registry, Secrets, Store, TransientError
from reconciler.repo.render import config_digests, secret_refs


@dataclass(frozen=True, slots=True)
class World:
    """What one tick knows. `changed` are the observations recorded since the tick before."""

    now: datetime
    desired: Desired
    observed: Snapshot
    changed: tuple[DeviceObservation, ...] = ()

    @property
    def commit(self) -> str:
        """The commit in force."""
        return self.desired.commit or ""

    def device(self, name: str) -> DeviceObservation | None:
        """A device's observation. Costs a pass over all devices at its first use."""
        return self._by_name().get(name)

    def _by_name(self) -> Mapping[str, DeviceObservation]:
        found = self._names
        if not found:
            found.update((device.name, device) for device in self.observed.devices)
        return found

    _names: dict[str, DeviceObservation] = field(default_factory=dict, repr=False, compare=False)


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
        self._cursor = 0
        self._devices: dict[str, DeviceObservation] = {}
        self._facts: Snapshot | None = None
        self._artifacts: Mapping[str, Artifact] | None = None
        self._tags: dict[str, Mapping[str, str]] = {}
        self._tags_commit: str | None = None
        self._versions: Mapping[str, str] = {}
        self._config: tuple[object, Mapping[str, str]] = (None, {})
        self._troubles: dict[str, str] = {}
        self._restored = False

    def git_rang(self) -> None:
        """The branch may have moved: ask git at the next tick. Safe from any thread."""
        self._git_rang.set()

    @property
    def rung(self) -> bool:
        """Whether the branch may have moved since the last tick."""
        return self._git_rang.is_set()

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
        changed = self._read_devices()
        desired = self._source.desired
        if desired is None:
            return None, findings
        self._read_stores(desired, now)
        findings.append(self._stores_finding())
        if self._artifacts is None:
            return None, findings
        if self._facts is None:
            self._facts = self._store.snapshot()
        observed = self._facts.model_copy(
            update={
                "devices": tuple(self._devices.values()),
                "artifacts": self._artifacts,
                "tags": dict(self._tags),
                "secret_versions": dict(self._versions),
                "at": now,
            }
        )
        return World(now, self._with_config(desired), observed, changed), findings

    def due_at(self) -> datetime | None:
        """When something outside is to be read next; None: now."""
        stores, git = self.polls.due_at(), self._source.poll.due_at
        if git is None or self._git_rang.is_set():
            return None
        # Before a commit is in force nothing but git is of interest.
        if self._source.desired is None:
            return git
        return None if stores is None else min(stores, git)

    def _read_devices(self) -> tuple[DeviceObservation, ...]:
        changes = self._store.changes_since(self._cursor)
        self._cursor = changes.cursor
        self._devices.update((device.name, device) for device in changes.devices)
        return changes.devices

    def _with_config(self, desired: Desired) -> Desired:
        """The commit's desired state with the digests of the sites' configurations, made again only where it matters."""
        key = (desired.commit, tuple(sorted(self._versions.items())))
        if self._config[0] != key:
            self._config = (key, config_digests(desired.sites, desired.fleet, self._versions))
        return replace(desired, config=self._config[1])

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
