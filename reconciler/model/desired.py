"""Desired state: the fleet documents as frozen models, one class a kind, and the `Desired` they add up to.

A model holds what one document says; whether documents fit each other is `reconciler.repo`'s to check. Field names are
camelCase in YAML and snake_case here; durations are whole seconds, times of day minutes since midnight, instants UTC.
Source: contract, "Fleet documents".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

from reconciler.model.scalars import (
    Bandwidth,
    Budget,
    BudgetField,
    CameraAddress,
    Digest,
    Duration,
    Fingerprint,
    Flag,
    Host,
    Instant,
    Name,
    Percentage,
    Release,
    Text,
    TimeOfDay,
    Version,
    release_key,
)

API_VERSION = "fleet/v1"


class Part(BaseModel):
    """Base of everything inside a document: frozen, camelCase, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )


class Metadata(Part):
    """What names a document."""

    name: Text = Field(description="The document's name")
    labels: Mapping[str, str] = Field(default_factory=dict, description="Free labels, text to text")
    annotations: Mapping[str, str] = Field(default_factory=dict, description="Free notes, text to text")


class Window(Part):
    """A daily maintenance window in local time, half-open. `end` before `start` crosses midnight."""

    start: TimeOfDay = Field(description='Local time at which the window opens, as "02:00"')
    end: TimeOfDay = Field(
        description='Local time at which it closes; "24:00" is the end of the day, before `start` the next day'
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Window:
        if self.start == self.end:
            raise ValueError("start and end are equal, so the window is empty; for the whole day write 00:00 to 24:00")
        if self.start == 1440:
            raise ValueError("start is 24:00; a window that opens at midnight starts at 00:00")
        return self


class Freeze(Part):
    """A calendar interval, half-open, in which nothing moves forward."""

    from_: Instant = Field(alias="from", description="First instant of the freeze, UTC")
    to: Instant = Field(description="First instant after the freeze, UTC")
    why: Text = Field(default="freeze", description="Shown wherever the freeze holds something")

    @model_validator(mode="after")
    def _ordered(self) -> Freeze:
        if self.to <= self.from_:
            raise ValueError("`to` is not after `from`, so the freeze is empty; put the later instant in `to`")
        return self


class RollbackPolicy(Part):
    """How devices go back."""

    ignore_window: Literal["true", "all", "false"] = Field(
        default="true",
        description="Who goes back outside the window: true (critical devices), all, or false (nobody)",
        json_schema_extra={"enum": ["true", "all", "false", True, False]},
    )

    @field_validator("ignore_window", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value


class FleetSpec(Part):
    """Defaults and places that hold for the whole fleet."""

    images: Annotated[str, Field(pattern=r"^(s3|file)://[^\s]+$")] = Field(
        default="s3://edge-images/", description="Where image artifacts are stored, as s3://bucket/prefix/"
    )
    registry: Annotated[
        str, Field(pattern=r"^[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?(?:/[a-z0-9][a-z0-9._/-]*)?$")
    ] = Field(default="registry.invalid", description="Host (and port) of the container registry that holds the apps")
    release_keys: tuple[Fingerprint, ...] = Field(
        default=(), description="Fingerprints of the keys that sign releases; narrows the controller's settings"
    )
    window: Window = Field(default=Window(start=120, end=240), description="Maintenance window of sites that set none")
    uplink: Bandwidth | None = Field(
        default=None, description="Line of sites that name none: how fast a release reaches them"
    )
    report_every: Duration = Field(default=60, description="How often a device reports")
    stale_after: Duration = Field(default=900, description="Silence after which a device counts as offline")
    critical_for: Duration = Field(default=600, description="Unbroken critical health after which a device has failed")
    update_timeout: Duration = Field(default=7200, description="Open-window time after which an update has timed out")
    boot_timeout: Duration = Field(default=1800, description="Silence after a reboot was announced that times it out")
    attempts: Annotated[int, Field(ge=1, le=100)] = Field(
        default=3, description="Update attempts a device has for one release"
    )
    flash_duration: Duration = Field(
        default=1200, description="Time a flash needs inside the window; the download does not count"
    )
    on_failure: Literal["hold", "rollback"] = Field(
        default="hold", description="What failed devices do: hold, or return to their previous release at once"
    )
    rollback: RollbackPolicy = Field(default=RollbackPolicy(), description="How devices go back")
    freezes: tuple[Freeze, ...] = Field(
        default=(), description="Intervals in which nothing moves forward; going back is always possible"
    )
    paused: Flag = Field(default=False, description="Stops every promotion, retag and restart; not rollback")
    tag_drift: Literal["restore", "report"] = Field(
        default="restore", description="What happens to a tag that somebody else moved"
    )

    @field_validator("attempts", mode="before")
    @classmethod
    def _attempts(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


class Base(Part):
    """The distribution an image is built from."""

    distribution: Text = Field(description="Distribution, as ubuntu or debian")
    suite: Text = Field(description="Suite, as jammy or bookworm")
    snapshot: Text | None = Field(default=None, description="Date or address of a package snapshot")


class ImageSpec(Part):
    """One release of the golden image."""

    family: Name = Field(default="edge-golden", description="Family; artifacts are named FAMILY-RELEASE-YYYYMMDD")
    base: Base | None = Field(default=None, description="What the image is built from")
    packages: Mapping[str, str] = Field(default_factory=dict, description="Pinned packages, name to version")
    recipe: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-][A-Za-z0-9._/-]*$")] | None = Field(
        default=None, description="Folder of the recipe, beside this file"
    )
    withdrawn: Text | None = Field(default=None, description="Why this release is banned; nothing moves to it")


class AppSpec(Part):
    """One app and its releases."""

    repository: Annotated[str, Field(pattern=r"^[a-z0-9]+(?:[._/-][a-z0-9]+)*$")] = Field(
        description="Repository in the registry"
    )
    window: Literal["any", "site"] = Field(
        default="any", description="When devices may restart: any time, or in the site's window"
    )
    releases: Mapping[Version, Digest] = Field(description="Releases: version to digest")


class WaveSpec(Part):
    """An ordered group of sites, with the releases it shall run."""

    name: Name = Field(description="Name of the wave")
    sites: tuple[Name, ...] | None = Field(
        default=None, description="Sites listed by name; a wave has these, or `percent`"
    )
    percent: Percentage | None = Field(default=None, description="Cumulative percentage of all sites that are not lab")
    image: Release | None = Field(default=None, description="Image release that the wave shall run")
    apps: Mapping[Name, Version] = Field(default_factory=dict, description="App releases that the wave shall run")
    soak: Duration = Field(description="Continuous good health before the next wave may follow")
    app_soak: Duration | None = Field(default=None, description="The same for app releases; as soak unless said")
    max_failed: BudgetField = Field(
        default=Budget(count=0), description="Failed devices tolerated: a count or a percentage"
    )
    max_offline: BudgetField = Field(
        default=Budget(count=0), description="Silent devices tolerated: a count or a percentage"
    )
    max_in_flight: BudgetField = Field(default=Budget(percent=100), description="Devices updated at the same time")
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")] | None = Field(
        default=None, description="Tag that the wave's devices follow; the wave's name, or `stable` for the last wave"
    )
    paused: Flag = Field(default=False, description="Stops this wave")

    @model_validator(mode="after")
    def _has_members(self) -> WaveSpec:
        if (self.sites is None) == (self.percent is None):
            raise ValueError(f"wave {self.name!r} needs either `sites` or `percent`; write one of them")
        return self


class WavesSpec(Part):
    """The rollout."""

    order: Annotated[str, Field(max_length=63)] = Field(
        default="", description="A word; change it, and other sites are drawn early next time"
    )
    waves: Annotated[tuple[WaveSpec, ...], Field(min_length=1)] = Field(description="The waves, first to last")


class Pin(Part):
    """Sets devices of a site apart from their wave."""

    image: Release = Field(description="Release that the pinned devices run")
    devices: tuple[Name, ...] | None = Field(default=None, description="Devices pinned; all of the site unless said")
    why: Text = Field(description="Why; shown wherever the pin matters")


class Vpn(Part):
    """How a site's devices reach home."""

    type: Literal["wireguard", "ipsec"] = Field(description="Kind of tunnel")
    secret_ref: Annotated[str, Field(pattern=r"^[A-Za-z0-9/_+=.@-]{1,512}$")] = Field(
        description="Name of the secret that holds the tunnel's configuration; never the secret itself"
    )


class SiteSpec(Part):
    """One location and its devices."""

    timezone: Text = Field(description="IANA time zone, as Europe/Berlin")
    devices: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)] = Field(
        description="Names of the site's devices"
    )
    window: Window | None = Field(default=None, description="Maintenance window; the fleet's unless said")
    uplink: Bandwidth | None = Field(
        default=None, description="The site's line, shared by its devices; the fleet's unless said"
    )
    lab: Flag = Field(default=False, description="A lab site: never drawn for a percentage, not counted")
    suspended: Flag = Field(default=False, description="Nothing is done here, and nothing here is counted")
    pin: Pin | None = Field(default=None, description="Sets devices of this site apart")
    ntp: tuple[Host, ...] = Field(default=(), description="Time servers")
    vpn: Vpn | None = Field(default=None, description="Tunnel, its secret by reference")
    cameras: tuple[CameraAddress, ...] = Field(
        default=(), description="Cameras that healthcheck.sh tries: a host, with its port where that is not 554"
    )
    labels: Mapping[str, str] = Field(default_factory=dict, description="Free labels, text to text")


@dataclass(frozen=True, slots=True)
class Desired:
    """What the commit in force asks for: every document, joined and checked. Compiled for planning by `planner.roster`.

    `config` maps a site to the digest of its rendered configuration (design §4.10); a site without one is not configured.
    """

    fleet: FleetSpec
    waves: WavesSpec
    images: Mapping[str, ImageSpec]
    apps: Mapping[str, AppSpec]
    sites: Mapping[str, SiteSpec]
    config: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None

    def tag_of(self, wave_index: int) -> str:
        """The tag that a wave's devices follow: its own word, its name, or `stable` for the last."""
        wave = self.waves.waves[wave_index]
        if wave.tag is not None:
            return wave.tag
        return "stable" if wave_index == len(self.waves.waves) - 1 else wave.name

    def releases_in_order(self) -> tuple[str, ...]:
        """Every image release that git names, lowest first."""
        return tuple(sorted(self.images, key=lambda name: (release_key(name), name)))
