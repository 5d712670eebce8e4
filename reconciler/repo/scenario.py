"""Scenarios: a given/then test of a fleet's policy, as the model of its document and what it stands for.

Decides what a scenario's shorthands mean and turns them into the planner's input (`Desired`, `Snapshot`, an instant).
It reads no file and never plans: `repo.scenario_read` finds and places the documents, `repo.scenario_run` judges a plan
against `expect`. Called by those two and by the schema generator. Source: contract, "Scenario", and fine print 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator, model_validator

from reconciler.model.desired import Part, Window
from reconciler.model.observed import Artifact, Proposal, Verdict, artifact_states
from reconciler.model.plan import ActionKind, Reason, Why
from reconciler.model.scalars import Digest, Instant, Name, Release, Text

Raw = Mapping[str, Any]
"""A part of a document as written: text scalars, lists and mappings. Validated once it is known what it completes."""

NOW = "now"


class ScenarioSites(Part):
    """Sites made by number, and sites written out beside them (any other key: a site's name, with its spec)."""

    model_config = ConfigDict(extra="allow")

    count: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=0, description="How many sites to make: SITE-0001 and so on, with one device each (SITE-0001-1)"
    )
    timezone: Text = Field(default="UTC", description="IANA time zone of the sites that are made")
    window: Window | None = Field(
        default=None, description="Window of the sites that are made; the fleet's unless said"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        """A list of written-out sites, each `{name: …, …}` or a whole Site document, is the mapping by name."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            return value
        sites: dict[str, Any] = {}
        for item in value:
            name, spec = _written_site(item)
            if name in sites:
                raise ValueError(f"site {name!r} is written twice; keep one")
            sites[name] = spec
        return sites

    @model_validator(mode="after")
    def _are_sites(self) -> ScenarioSites:
        for name, spec in self.written.items():
            if not isinstance(spec, Mapping):
                raise ValueError(
                    f"{name!r} is neither count, timezone nor window, nor a site with its spec; "
                    f"write {name}: {{timezone: UTC, devices: [{name}-1]}}"
                )
        return self

    @property
    def written(self) -> Mapping[str, Any]:
        """Sites written out, by name."""
        return self.model_extra or {}


class ScenarioObserved(Part):
    """What is observed: a snapshot in short. `defaults` fills every device of every site, `devices` overrides."""

    defaults: Raw | None = Field(
        default=None, description="What every device of the fleet reports unless it says otherwise"
    )
    devices: Mapping[Name, Raw] = Field(
        default_factory=dict, description="Devices by name, each with what it reports otherwise than `defaults`"
    )
    artifacts: Mapping[Release, Artifact] = Field(
        default_factory=dict, description="Artifacts by release; the state alone will do"
    )
    tags: Mapping[Name, Mapping[str, Digest | None]] = Field(default_factory=dict, description="Tags in the registry")
    tags_set: Mapping[Name, Mapping[str, Digest | None]] = Field(
        default_factory=dict, description="What the reconciler last set"
    )
    proofs: tuple[Verdict, ...] = Field(default=(), description="Proofs on record")
    failures: tuple[Verdict, ...] = Field(default=(), description="Failures on record")
    members: Mapping[str, Mapping[Name, tuple[Name, ...]]] = Field(
        default_factory=dict, description="Sites that a wave took for a release: release, wave, sites"
    )
    proposals: tuple[Proposal, ...] = Field(default=(), description="Reverts proposed before")
    secret_versions: Mapping[str, str] = Field(default_factory=dict, description="Secret names to version ids")

    @field_validator("artifacts", mode="before")
    @classmethod
    def _states(cls, value: Any) -> Any:
        return artifact_states(value)

    @field_validator("devices", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """The snapshot's list of devices is taken as well; a name listed twice is a name that two devices claim."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            return value
        devices: dict[str, Any] = {}
        for item in value:
            if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
                raise ValueError("a device in a list needs its `name`; write - {name: SITE-0001-1, …}")
            name = item["name"]
            devices[name] = {**devices[name], **item, "conflict": "true"} if name in devices else item
        return devices


class ExpectedAction(Part):
    """One entry of `expect.actions`: matches an action on the keys it gives."""

    kind: ActionKind | None = Field(default=None, description="What is done, as `flash`")
    image: str | None = Field(default=None, description="Release of the image that is built, signed or published")
    device: str | None = Field(default=None, description="The device")
    site: str | None = Field(default=None, description="Its site")
    wave: str | None = Field(default=None, description="Its wave, or that of the tag")
    from_: str | None = Field(default=None, alias="from", description="Release that it comes from")
    to: str | None = Field(default=None, description="Release that it goes to")
    why: Why | None = Field(default=None, description="What for, as `promote` or `rollback`")
    method: str | None = Field(default=None, description="How a slot gets the release: a download, or a switch")
    app: str | None = Field(default=None, description="The app")
    release: str | None = Field(default=None, description="The app's release")
    tag: str | None = Field(default=None, description="Tag that is moved")
    config: str | None = Field(default=None, description="Digest of the configuration that is sent")
    count: Annotated[int, Field(ge=0)] = Field(default=1, description="How many actions this entry stands for")

    @property
    def wanted(self) -> dict[str, str | None]:
        """The keys it gives, as a plan's JSON names them."""
        names = self.model_fields_set - {"count"}
        given = {("from" if name == "from_" else name): getattr(self, name) for name in names}
        order = [field.alias or name for name, field in type(self).model_fields.items()]
        return {key: None if given[key] is None else str(given[key]) for key in order if key in given}


class ExpectedHold(Part):
    """One entry of `expect.holds`: at least one hold must match the keys it gives."""

    reason: Reason | None = Field(default=None, description="Why it is held")
    wave: str | None = Field(default=None, description="The hold's wave")
    device: str | None = Field(
        default=None, description="Among the hold's devices; or it has none, and this is in its wave"
    )
    devices: tuple[str, ...] | None = Field(default=None, description="Exactly these devices, in any order")
    image: str | None = Field(default=None, description="Release of the image that is held")
    app: str | None = Field(default=None, description="The app that is held")
    release: str | None = Field(default=None, description="The app's release that is held")
    until: Instant | None = Field(default=None, description="The instant at which it can change")
    message: str | None = Field(default=None, description="Text that the hold's message contains")


class Expect(Part):
    """What the plan must say."""

    actions: tuple[ExpectedAction, ...] | None = Field(
        default=None, description="Every action of the plan; an empty list means none"
    )
    holds: tuple[ExpectedHold, ...] = Field(default=(), description="Each must match a hold")
    no_holds: tuple[ExpectedHold, ...] = Field(default=(), description="None of these may match a hold")
    waves: Mapping[Name, Raw] = Field(
        default_factory=dict, description="Waves by name, each with what its status must say"
    )
    facts: Raw | None = Field(
        default=None, description="Facts by list; each entry must match one, and an empty list means none"
    )
    next_change_at: Instant | None = Field(
        default=None, description="The plan's nextChangeAt; null where nothing is due"
    )

    @field_validator("actions", mode="before")
    @classmethod
    def _actions_said(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("nothing stands here, so no action would be looked at; write [] where none is expected")
        return value

    @field_validator("waves", mode="before")
    @classmethod
    def _waves_by_name(cls, value: Any) -> Any:
        """The plan's list of waves is taken as well, each with its `name`."""
        if isinstance(value, Sequence) and not isinstance(value, str):
            if not all(isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in value):
                raise ValueError("a wave in a list needs its `name`; write - {name: canary, state: soaking}")
            return {item["name"]: item for item in value}
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Expect:
        if not self.model_fields_set:
            raise ValueError("expect says nothing, so the scenario could not fail; write actions or holds")
        return self


class ScenarioSpec(Part):
    """Given (`documents`, `sites`, `observed`) at the instant `now`, the plan must be as `expect` says."""

    documents: tuple[Raw, ...] | None = Field(
        default=None, description="Fleet documents, apiVersion optional; the repo's own where there are none"
    )
    sites: ScenarioSites | None = Field(default=None, description="Sites made by number, or written out")
    now: Instant = Field(description="The instant at which to plan, UTC")
    observed: ScenarioObserved = Field(default=ScenarioObserved(), description="What is observed")
    config: Mapping[Name, Digest] = Field(
        default_factory=dict, description="Digest of the rendered configuration, by site; only these are configured"
    )
    expect: Expect = Field(description="What the plan must say")


def _written_site(item: Any) -> tuple[str, Any]:
    if isinstance(item, Mapping):
        if isinstance(item.get("name"), str):
            return item["name"], {key: value for key, value in item.items() if key != "name"}
        metadata = item.get("metadata")
        if isinstance(metadata, Mapping) and isinstance(metadata.get("name"), str):
            return metadata["name"], item.get("spec", {})
    raise ValueError(
        "a site in a list needs its `name`; write - {name: SITE-0001, timezone: UTC, devices: [SITE-0001-1]}"
    )


def generated_sites(sites: ScenarioSites) -> dict[str, dict[str, Any]]:
    """The sites made by number, as raw specs by name."""
    out: dict[str, dict[str, Any]] = {}
    for number in range(1, sites.count + 1):
        name = f"SITE-{number:04d}"
        out[name] = {"timezone": sites.timezone, "devices": [f"{name}-1"]}
        if sites.window is not None:
            out[name]["window"] = sites.window
    return out


def instants(value: Any, now: Any) -> Any:
    """A raw observation with `now` replaced by the scenario's instant wherever an instant can stand."""
    if isinstance(value, Mapping):
        return {key: now if item == NOW and _is_instant(key) else instants(item, now) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [instants(item, now) for item in value]
    return value


def _is_instant(key: str) -> bool:
    return key in ("lastSeen", "at", "since") or key.endswith("Since")


def releases_to_make(spec: ScenarioSpec, waves_and_pins: Iterator[str]) -> set[str]:
    """Releases of images that git must know, so that a missing Image document is made with defaults.

    These are the releases that waves and pins ask for, those with an artifact, those on record (proofs, failures,
    members, proposals), and those of `observed.defaults`: what a whole fleet runs came from git. A release that a
    single device reports, and nothing else names, is not made: so a scenario can show an image that git does not know.
    """
    observed = spec.observed
    named = set(waves_and_pins) | set(observed.artifacts)
    named |= {record.image for record in (*observed.proofs, *observed.failures) if record.image}
    named |= {proposal.image for proposal in observed.proposals if proposal.image}
    named |= set(observed.members)
    if observed.defaults is not None:
        keys = ("image", "previousImage", "inactiveSlot")
        named |= {observed.defaults[key] for key in keys if isinstance(observed.defaults.get(key), str)}
    return named
