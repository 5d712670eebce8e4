"""Observed state: what devices report and what the stores hold, as one snapshot.

`Snapshot` is the contract's JSON (`--observed FILE`), value for value; `planner.columns` turns it into arrays. Optional
parts may be left out; a device of the fleet that is not listed has never reported. Source: contract, "Observed snapshot".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from reconciler.model.desired import Part
from reconciler.model.scalars import Bytes, Count, Digest, Flag, Instant, Name, Release, Version

NO_CONFIG = "sha256:" + "0" * 64
"""Recorded of a device that says it has no configuration: it reports another one than it should have, and is sent its own.
A device that has never reported has None, and is not."""


class Health(StrEnum):
    """Result of the device's healthcheck; `warning` counts as good."""

    UNKNOWN = "unknown"
    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


class ArtifactState(StrEnum):
    """How far the artifact of a release has come."""

    ABSENT = "absent"
    BUILT = "built"
    SIGNED = "signed"
    PUBLISHED = "published"
    BROKEN = "broken"


class Artifact(Part):
    """One release in the image store."""

    state: ArtifactState = ArtifactState.ABSENT
    digest: Digest | None = None
    size: Bytes | None = Field(default=None, description="Bytes that a device downloads: the packed image")


@dataclass(frozen=True, slots=True)
class Holding:
    """What an image store holds of one release: `size` bytes in `folders`, of which the latest day's (or the published one) is the
    artifact. `state` is ABSENT where there is no artifact among them: an upload or a removal was cut off. `removing`: the
    removal has begun. `day` is the artifact's, from its folder's name."""

    release: str
    state: ArtifactState
    folders: tuple[str, ...]
    size: int
    day: date
    digest: str | None = None
    published_at: datetime | None = None
    removing: bool = False


class RunningApp(Part):
    """An app on a device."""

    digest: Digest
    since: Instant | None = None


class Boot(Part):
    """A run of reports under one boot id: the last sequence number in it, and when it was first and last heard of."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    sequence: Annotated[int, Field(ge=0)]
    first_sequence: Annotated[int, Field(ge=0)]
    since: Instant
    seen: Instant


Reported = Annotated[str, Field(min_length=1, max_length=128)]
"""What a device says it runs: a release, or anything else, since devices are not trusted to know git."""


MOST_CHECKS = 16
"""Worse checks kept a device: a million devices may have the same bad release."""
MOST_MESSAGE = 200
"""Characters kept of what a check says."""


class CheckChange(Part):
    """A check that is worse than before the last update. `before` is None where there was no such check."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    before: Health | None = None
    now: Health
    message: Annotated[str, Field(max_length=MOST_MESSAGE)] = Field(default="", description="What it says now")
    since: Instant = Field(description="Since when it says `now`, on this image")


CheckChanges = Annotated[tuple[CheckChange, ...], Field(max_length=MOST_CHECKS)]
"""The worst first. A device may have more: their names alone are kept."""


class Attempt(Part):
    """What was worse during the last attempt at a release, or `app@version`: while it runs, and afterwards where it failed."""

    release: Reported
    checks: CheckChanges


class ClockSeen(Part):
    """A device's clock that is not right."""

    synchronised: Flag = Field(default=False, description="Whether its time service says that it is right")
    ahead_s: int = Field(description="By how many seconds it was ahead of the recorder's at the last report")


MOST_REFUSALS = 4


class RefusalSeen(Part):
    """Something that a device would not do, or that went wrong on it: its code and sentence, and since when it says so."""

    code: Annotated[str, Field(min_length=1, max_length=64)]
    reason: Annotated[str, Field(max_length=MOST_MESSAGE)] = ""
    serial: tuple[int, int] | None = Field(default=None, description="Serial of the assignment that it was about")
    since: Instant


class DeviceObservation(Part):
    """What is known of one device. Times are those of the recorder's clock."""

    name: Name
    site: Name | None = None
    image: Reported | None = None
    image_since: Instant | None = None
    previous_image: Reported | None = None
    inactive_slot: Reported | None = None
    health: Health = Health.UNKNOWN
    health_since: Instant | None = None
    health_before_update: Health | None = None
    checks_worse: tuple[str, ...] = Field(default=(), description="Checks that are worse than before the update")
    checks: CheckChanges = Field(default=(), description="The same checks: how they were, and what they say now")
    attempt: Attempt | None = Field(
        default=None, description="The last attempt in which checks were worse; kept where it failed"
    )
    last_seen: Instant | None = None
    phase: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="What the device said it was doing: idle, prefetching, writing, rebooting, trial, …"
    )
    updating_to: Reported | None = None
    updating_since: Instant | None = None
    rebooting_since: Instant | None = None
    restarting_since: Instant | None = None
    restarting_app: Name | None = None
    configuring_since: Instant | None = None
    attempt_failed_at: Instant | None = Field(default=None, description="When an update attempt last failed")
    failed_attempts: Mapping[str, Count] = Field(default_factory=dict)
    reported_attempts: Mapping[str, tuple[int, int]] = Field(
        default_factory=dict,
        description="Failed attempts as the device counts them (time-outs are not among them), and how many were charged",
    )
    rescued_from: Mapping[str, Instant] = Field(
        default_factory=dict, description="Releases it was rescued from, and when"
    )
    apps: Mapping[Name, RunningApp] = Field(default_factory=dict)
    config: Digest | None = None
    serial: tuple[int, int] | None = Field(
        default=None, description="Serial (epoch, n) of the last assignment accepted"
    )
    clock: ClockSeen | None = Field(default=None, description="Its clock, where that is not right")
    refusals: Annotated[tuple[RefusalSeen, ...], Field(max_length=MOST_REFUSALS)] = Field(
        default=(), description="What it refused or could not do, the newest last"
    )
    conflict: Flag = Field(default=False, description="The recorder saw two devices claim this name")
    boot: Boot | None = Field(default=None, description="The boot that the device reports from")
    rival: Boot | None = Field(default=None, description="The boot that the present one displaced; it must stay silent")

    @field_validator("health", "checks", "failed_attempts", "apps", mode="before")
    @classmethod
    def _left_out(cls, value: Any, info: ValidationInfo) -> Any:
        """null is what a device has not said, here as in every other optional entry."""
        if value is not None or info.field_name is None:
            return value
        return cls.model_fields[info.field_name].get_default(call_default_factory=True)

    @field_validator("checks_worse", mode="before")
    @classmethod
    def _checks(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class OfRelease(Part):
    """What is on record of a release: of an image (`image`), or of an app (`app` and `release`)."""

    image: Release | None = None
    app: Name | None = None
    release: Version | None = None
    at: Instant

    @model_validator(mode="after")
    def _of_one(self) -> OfRelease:
        given = tuple(value is not None for value in (self.image, self.app, self.release))
        if given not in ((True, False, False), (False, True, True)):
            raise ValueError("this names no release, or two; write either `image`, or `app` and its `release`")
        return self

    @property
    def key(self) -> str:
        """`v1.4.2` for an image, `video-ingest@2.8.0` for an app: how a release is named across the snapshot."""
        return self.image if self.image is not None else f"{self.app}@{self.release}"


class Verdict(OfRelease):
    """A proof or a failure on record."""

    wave: Name
    closed: Flag = False


class Proposal(OfRelease):
    """A revert that was proposed."""


def artifact_states(value: Any) -> Any:
    """Artifacts as written, where a state alone is a shorthand (contract, Scenario)."""
    if not isinstance(value, Mapping):
        return value
    return {name: {"state": item} if isinstance(item, str) else item for name, item in value.items()}


class Snapshot(Part):
    """Everything observed at one time."""

    model_config = ConfigDict(extra="forbid")

    api_version: Literal["fleet/v1"] | None = None
    kind: Literal["Observed"] | None = None
    at: Instant | None = Field(default=None, description="When the snapshot was taken")
    devices: tuple[DeviceObservation, ...] = ()
    artifacts: Mapping[Release, Artifact] = Field(default_factory=dict)
    tags: Mapping[Name, Mapping[str, Digest | None]] = Field(default_factory=dict)
    tags_set: Mapping[Name, Mapping[str, Digest | None]] = Field(default_factory=dict)
    proofs: tuple[Verdict, ...] = ()
    failures: tuple[Verdict, ...] = ()
    members: Mapping[str, Mapping[Name, tuple[Name, ...]]] = Field(default_factory=dict)
    proposals: tuple[Proposal, ...] = ()
    secret_versions: Mapping[str, str] = Field(
        default_factory=dict, description="Secret names to version ids; never values"
    )

    @field_validator("artifacts", mode="before")
    @classmethod
    def _states(cls, value: Any) -> Any:
        return artifact_states(value)
