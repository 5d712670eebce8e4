"""What the routes of the rollout answer, as models: the source of their part of `/v1/openapi.json`. Decides nothing.

The answers themselves are made by `server.facts` and `server.releases`; tests hold the two together. Keys are camelCase, instants
UTC as `2026-01-15T01:30:00Z`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from reconciler.server.documents import ConditionState, Document, Flagged, WaveState

Kind = Literal["device", "site", "wave"]


class Reading(Document):
    """What every answer begins with. `at` is the instant of the tick that it tells of, `commit` what was in force in it."""

    api_version: str
    kind: str
    at: str
    commit: str | None
    as_of: str | None = Field(
        description="Where the controller has not planned since it started: the instant of the plan on record that this is from"
    )


class WavesDocument(Reading):
    """A page of waves, first to last, and what is of the whole fleet."""

    waves: list[WaveState]
    next: str | None
    flagged: list[Flagged] = Field(description="The first hundred; `GET /v1/devices?flagged=true` has all")
    flagged_in_all: int
    conditions: list[ConditionState]
    states: dict[str, int] = Field(description="How many devices are in each state; see `state` of a device")
    next_change_at: str | None = Field(description="The earliest `until` of a hold")
    wake_at: str | None = Field(description="When the plan may say something else without a new report")
    refused: RefusedHead | None


class RefusedHead(Document):
    """The branch's head, where it is not acted on, and why."""

    commit: str
    message: str


class AppRunning(Document):
    """An app on a device: a version where git knows the digest, else the digest."""

    running: str | None
    target: str | None


class DeviceEntry(Document):
    """A device. `state` is the worst that holds: `failed`, `critical`, `silent`, `never-seen`, `updating`, `held`, `warning`,
    `good`. `holds` are the reasons why something wanted does not start, by `image`, `configuration`, or the app's name."""

    name: str
    site: str
    wave: str | None
    state: str
    health: str
    image: str | None
    target: str | None
    updating_to: str | None
    holds: dict[str, str]
    last_seen: str | None
    health_since: str | None
    image_since: str | None
    worse: bool = Field(description="Whether checks are worse than before the last update")
    conflict: bool
    suspended: bool
    pinned: bool
    flagged: bool
    apps: dict[str, AppRunning]


class DevicesDocument(Reading):
    """A page of devices, by name. `total` counts all pages."""

    total: int
    devices: list[DeviceEntry]
    next: str | None


class Slots(Document):
    """What a device's slots hold: `running` has been marked good, `inactive` could be switched to, `previous` ran before."""

    running: str | None
    inactive: str | None
    previous: str | None


class EventEntry(Document):
    """Something that happened."""

    id: int
    at: str
    kind: str
    commit: str | None
    wave: str | None
    site: str | None
    device: str | None
    release: str | None
    reason: str
    message: str


class CheckEntry(Document):
    """A check that was not `ok`."""

    name: str
    status: str
    message: str


class HealthEntry(Document):
    """A device's health from an instant on."""

    at: str
    health: str
    release: str | None
    checks: list[CheckEntry]
    worse: list[str]


class DeviceDocument(Reading):
    """Everything about one device. `explanation` is what `reconciler explain --output json` prints (without lines of git),
    `observation` what is recorded of it, as in the observed snapshot; null where it has never reported."""

    device: DeviceEntry
    slots: Slots
    explanation: dict[str, Any]
    observation: dict[str, Any] | None
    events: list[EventEntry] = Field(description="The newest first")
    health: list[HealthEntry] = Field(description="Where its health changed, the newest first")


class ExplanationDocument(Document):
    """What `reconciler explain --output json` prints of a device, a site or a wave; `text` is the same for people."""

    api_version: str
    kind: str
    of: str
    at: str
    commit: str | None
    text: list[str]


class SiteEntry(Document):
    """A site: the state of its worst device, and how many devices are in each."""

    name: str
    wave: str | None
    state: str
    devices: int
    counts: dict[str, int]
    lab: bool
    suspended: bool
    timezone: str


class SitesDocument(Reading):
    """A page of sites, by name."""

    sites: list[SiteEntry]
    next: str | None


class HoldEntry(Document):
    """Why something wanted is not done now. `count` devices are held by it, of which `devices` names the first; 0 where it is
    about a release in a wave."""

    reason: str
    wave: str | None
    image: str | None
    app: str | None
    release: str | None
    count: int
    devices: list[str]
    until: str | None
    message: str


class HoldsDocument(Reading):
    """A page of holds, in the order of the plan."""

    holds: list[HoldEntry]
    next: str | None


class ReleaseEntry(Document):
    """A release: of the image (`v1.4.2`), or of an app (`video-ingest@2.8.0`). `state` is that of the artifact; null for apps."""

    release: str
    app: str | None
    state: str | None
    digest: str | None
    size: int | None
    named: bool = Field(description="Whether git names it")
    withdrawn: str | None
    waves: list[str] = Field(description="Waves that ask for it")
    proofs: list[str] = Field(description="Waves that have passed their gate for it")
    failures: list[str] = Field(description="Waves whose gate failed for it")
    devices: int = Field(description="Devices that run it")


class ReleasesDocument(Reading):
    """A page of the releases that git names, the image store holds, or devices run; of the image first, the newest first."""

    releases: list[ReleaseEntry]
    next: str | None


class SignatureState(Document):
    """`accepted`, `refused`, `absent`, or `unknown` where it cannot be looked at now; `key` is the primary fingerprint."""

    state: str
    key: str | None
    message: str


class ArtifactFacts(Document):
    """What the artifact's manifest says. `packages` maps names to versions."""

    folder: str
    file: str
    size: int
    compression: str
    image_size: int
    digest: str
    commit: str | None
    committed_at: str | None
    inputs: str | None
    builder: str | None
    builder_type: str | None
    packages: dict[str, str]


class ReleaseDocument(Reading):
    """One release, with its artifact where the image store holds one (`artifact` null: none, or it cannot be read: `trouble`)."""

    release: ReleaseEntry
    running: dict[str, int] = Field(description="Wave → devices that run it; the empty name is for devices in no wave")
    signature: SignatureState | None
    artifact: ArtifactFacts | None
    trouble: str | None


class Changed(Document):
    """A package's version in the first release and in the second."""

    name: str
    before: str
    after: str


class PackageOf(Document):
    """A package that one of the two releases has."""

    name: str
    version: str


class PackageDiffDocument(Reading):
    """What differs between the packages of two image releases, by name."""

    before: str
    after: str
    added: list[PackageOf]
    removed: list[PackageOf]
    changed: list[Changed]
    same: int


class AskedEntry(Document):
    """One change of the desired state, as the review of its merge told it."""

    text: str = Field(description="For people: `wave canary: image v1.4.1 → v1.4.2`")
    kind: str = Field(description="Fleet, Waves, Wave, Image, App, Site or Recipe")
    name: str
    what: str = Field(description="`added`, `removed` or `changed`")
    field: str | None
    from_: str | None = Field(alias="from")
    to: str | None
    file: str
    line: int | None


class ReleaseEvents(Document):
    """What happened of one release while a commit was in force."""

    release: str | None = Field(description="`v1.4.2`, or `video-ingest@2.8.0`; null: what is about no release")
    earlier: bool = Field(description="Whether a commit before this one asked for the release, as far as git tells")
    asked_by: str | None = Field(
        description="The newest commit that asked for it until then; null: about no release, or not known"
    )
    events: dict[str, int] = Field(description="Kind → how many")


class CommitEntry(Document):
    """A commit that came into force. What git knows of it is null where the mirror cannot tell now."""

    commit: str
    at: str = Field(description="When it came into force")
    in_force: bool
    author: str | None
    message: str | None
    committed_at: str | None
    signer: str | None
    asked: list[AskedEntry] | None = Field(
        description="What it changed in the desired state against the commit in force before it, the rollout first, the first"
        " hundred changes; null: there was none before it, or git does not know them here"
    )
    asked_in_all: int | None = Field(description="How many changes there are")
    events: dict[str, int] = Field(description="Kind → how many events there are of it, of the first thousand")
    releases: list[ReleaseEvents] = Field(description="The same events by the release that they are about")


class CommitsDocument(Reading):
    """A page of commits, newest first."""

    commits: list[CommitEntry]
    refused: RefusedHead | None
    next: str | None


class EventsDocument(Document):
    """A page of events, newest first, or oldest first behind `after`."""

    api_version: str
    kind: str
    events: list[EventEntry]
    next: str | None
    last: int = Field(description="The number of the newest event of all")


WavesDocument.model_rebuild()
