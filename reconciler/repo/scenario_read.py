"""Scenario files: bytes → `Scenario`, or every problem with its line and column.

Decides nothing of policy and opens no file: bytes are handed in, and so is the fleet repo's own desired state, for a
scenario without documents. Documents of a scenario are checked as those of a fleet repo are, with one exception: what
`validate` refuses because it could never work is let through, since a scenario may be there to show just that.
Called by `reconciler test`, by tests and by whoever checks a fleet repo's tests/. Source: contract, "Scenario".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from reconciler.model.desired import API_VERSION, Desired, FleetSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.model.scalars import release_key
from reconciler.repo import reader
from reconciler.repo.check import Fleet, check_fleet
from reconciler.repo.check_document import check_document
from reconciler.repo.documents import KINDS, model_of
from reconciler.repo.finding import Finding, placed
from reconciler.repo.near import did_you_mean
from reconciler.repo.parse import Parsed
from reconciler.repo.problem import InvalidInput, Problem
from reconciler.repo.reader import Where
from reconciler.repo.scenario import ScenarioSpec, generated_sites, instants, releases_to_make
from reconciler.repo.scenario_run import Scenario
from reconciler.repo.site_index import SiteIndex
from reconciler.repo.wording import complaint, key_text, show

M = TypeVar("M", bound=BaseModel)
OwnDesired = Callable[[], Desired]
"""The fleet repo's own desired state; raises `InvalidInput` where it does not load."""

SHOWABLE = frozenset(("never-passes", "no-wave", "window-too-short", "percent-order", "never-fresh", "never-in-time"))
"""Codes of findings that a scenario may be there to show: the plan says what comes of them."""


def read_scenario(path: str, data: bytes, own: OwnDesired | None = None) -> tuple[Scenario, tuple[Problem, ...]]:
    """One scenario file → the scenario and its warnings. Raises `InvalidInput` with every problem of the file."""
    try:
        value = reader.read(data)
    except reader.Refused as refused:
        faults = [Problem(path, fault.line, fault.column, fault.message, code=fault.code) for fault in refused.faults]
        raise InvalidInput(faults) from None
    return _Reader(path, data, value, own).read()


@dataclass(slots=True)
class _Reader:
    """One reading. What it finds gathers in `findings`; `read` raises when any of it is an error."""

    path: str
    data: bytes
    value: Any
    own: OwnDesired | None
    findings: list[Finding] = field(default_factory=list)
    documents: list[tuple[Parsed, Where]] = field(default_factory=list)

    def read(self) -> tuple[Scenario, tuple[Problem, ...]]:
        document = self._document()
        self._stop_at_errors()
        spec: ScenarioSpec = document.spec
        desired = self._desired(spec)
        self._stop_at_errors()
        assert desired is not None
        snapshot = self._snapshot(spec, desired)
        self._stop_at_errors()
        scenario = Scenario(self.path, document.metadata.name, desired, snapshot, spec.now, spec.expect)
        return scenario, tuple(sorted(placed(self.path, self.data, self.findings)))

    def _document(self) -> Any:
        value = self.value
        if not isinstance(value, Mapping):
            self._add(
                (), f"{show(value)} where a document is expected; begin with apiVersion: {API_VERSION}, kind: Scenario"
            )
            return None
        if value.get("kind", "Scenario") != "Scenario":
            self._add(("kind",), f"kind: {show(value['kind'])} where a scenario is expected; write kind: Scenario")
            return None
        return self._validate(model_of("Scenario"), value, ())

    # ------------------------------------------------------------ desired state

    def _desired(self, spec: ScenarioSpec) -> Desired | None:
        base = None if spec.documents else self._own_desired()
        if base is not None:
            self._keep("Fleet", "fleet", base.fleet, ("spec",))
            self._keep("Waves", "waves", base.waves, ("spec",))
            for kind, specs in (("Image", base.images), ("App", base.apps), ("Site", base.sites)):
                for name, each in specs.items():
                    self._keep(kind, name, each, ("spec",))
        elif not spec.documents:
            return None
        completed = self._written_documents(spec)
        self._sites(spec, completed)
        found = {kind: {d.name: d.spec for d, _ in self.documents if d.kind == kind} for kind in KINDS}
        if not found["Waves"]:
            self._unless_errors(
                ("spec", "documents"), "no Waves document; a scenario's documents need one (kind: Waves)"
            )
            return None
        if not found["Site"]:
            self._unless_errors(("spec",), "the scenario has no sites; write sites: {count: 10, timezone: UTC}")
            return None
        waves: WavesSpec = next(iter(found["Waves"].values()))
        for release in sorted(releases_to_make(spec, _releases_asked(waves, found["Site"].values()))):
            if _is_release(release) and release not in found["Image"]:
                self._keep("Image", release, ImageSpec(), ("spec",))
                found["Image"][release] = ImageSpec()
        if not found["Fleet"]:
            self._keep("Fleet", "fleet", FleetSpec(), ("spec",))
        self._check_together()
        self._stop_at_errors()
        fleet = next(iter(found["Fleet"].values()), FleetSpec())
        config = {**(base.config if base else {}), **spec.config}
        named = {kind: {str(name): each for name, each in found[kind].items()} for kind in ("Image", "App", "Site")}
        commit = base.commit if base else None
        return Desired(fleet, waves, named["Image"], named["App"], named["Site"], config, commit)

    def _own_desired(self) -> Desired | None:
        if self.own is None:
            self._add(("spec",), "no documents, and there is no fleet repo to take them from; name it with --fleet")
            return None
        return self.own()

    def _written_documents(self, spec: ScenarioSpec) -> set[str]:
        """Keep the documents that are valid; the names of sites made by `sites` that a document completes."""
        made = generated_sites(spec.sites) if spec.sites is not None else {}
        completed: set[str] = set()
        for number, raw in enumerate(spec.documents or ()):
            at: Where = ("spec", "documents", number)
            kind = raw.get("kind")
            if kind not in KINDS or kind == "Scenario":
                kinds = ", ".join(known for known in KINDS if known != "Scenario")
                if kind is None:
                    self._add(at, f"{key_text(at)} has no kind; write one of {kinds}")
                else:
                    near = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
                    self._add((*at, "kind"), f"kind: {show(kind)} is no kind of fleet document ({kinds}){near}")
                continue
            document = {"apiVersion": API_VERSION, **raw}
            name = raw["metadata"].get("name") if isinstance(raw.get("metadata"), Mapping) else None
            if kind in ("Fleet", "Waves"):
                document.setdefault("metadata", {"name": kind.lower()})
            if kind == "Site" and name in made and isinstance(raw.get("spec"), Mapping):
                document["spec"] = {**made[name], **raw["spec"]}
                completed.add(name)
            model: Any = self._validate(model_of(kind), document, at)
            if model is not None:
                self._keep(kind, model.metadata.name, model.spec, at, checked=False)
        return completed

    def _sites(self, spec: ScenarioSpec, completed: set[str]) -> None:
        """Sites made by number and sites written out under `sites`, which complete a made one of their name."""
        if spec.sites is None:
            return
        made = {name: raw for name, raw in generated_sites(spec.sites).items() if name not in completed}
        for name, raw in spec.sites.written.items():
            whole = {"timezone": spec.sites.timezone, "devices": [f"{name}-1"], **made.pop(name, {}), **raw}
            site = self._validate(SiteSpec, whole, ("spec", "sites", name))
            if site is not None:
                self._keep("Site", name, site, ("spec", "sites", name), checked=False)
        first: SiteSpec | None = None
        for name, raw in made.items():
            first = first or self._validate(SiteSpec, raw, ("spec", "sites"))
            if first is None:
                return
            each = first.model_copy(update={"devices": (f"{name}-1",)})
            self._keep("Site", name, each, ("spec", "sites"), checked=name != "SITE-0001")

    def _keep(self, kind: str, name: str, spec: Any, at: Where, *, checked: bool = True) -> None:
        """Keep a document for the join, and check it by itself unless it is ours or was checked before."""
        path = key_text(at) if at[-1] != "sites" and len(at) > 1 else f"{key_text(at)} ({kind} {name})"
        self.documents.append((Parsed(path, "", kind, name, spec), at))
        if checked:
            return
        for found in check_document(spec):
            below = found.where[1:] if at[:2] == ("spec", "sites") else found.where
            self._take(found, (*at, *below))

    def _check_together(self) -> None:
        documents: dict[str, dict[str, Parsed]] = {kind: {} for kind in KINDS}
        places: dict[str, Where] = {}
        for document, at in self.documents:
            documents[document.kind][document.path] = document
            places[document.path] = at
        sites = documents["Site"]
        for path, found in check_fleet(Fleet(documents, SiteIndex().changed((), sites.values(), sites))):
            at = places.get(path, ("spec",))
            below = found.where[1:] if at[:2] == ("spec", "sites") else found.where
            self._take(found, (*at, *below))

    def _take(self, found: Finding, where: Where) -> None:
        """Keep a finding of the fleet's checks if it is an error that no scenario can mean."""
        if found.severity == "error" and found.code not in SHOWABLE:
            self.findings.append(Finding(where, found.message, found.code, "error", found.at_key))

    # ------------------------------------------------------------ observed state

    def _snapshot(self, spec: ScenarioSpec, desired: Desired) -> Snapshot:
        observed = spec.observed
        site_of = {device: name for name, site in desired.sites.items() for device in site.devices}
        names = dict.fromkeys(site_of) if observed.defaults is not None else {}
        names |= dict.fromkeys(observed.devices)
        devices: list[DeviceObservation] = []
        for name in names:
            own = observed.devices.get(name)
            if own is not None and name not in site_of and "site" not in own:
                near = did_you_mean(name, site_of)
                message = (
                    f"device {name!r} is in no site{near or '; to observe one that git does not know, give its site'}"
                )
                self._add(("spec", "observed", "devices", name), message, "unknown-device", at_key=True, warning=True)
            raw = {"site": site_of.get(name), **(observed.defaults or {}), **(own or {}), "name": name}
            device = self._device(raw, spec, own)
            if device is None and own is None:
                break  # the defaults are at fault: said once, not for every device
            devices += [] if device is None else [device]
        return Snapshot(
            devices=tuple(sorted(devices, key=lambda device: device.name)),
            artifacts=observed.artifacts,
            tags=observed.tags,
            tags_set=observed.tags_set,
            proofs=observed.proofs,
            failures=observed.failures,
            members=observed.members,
            proposals=observed.proposals,
            secret_versions=observed.secret_versions,
        )

    def _device(
        self, raw: Mapping[str, Any], spec: ScenarioSpec, own: Mapping[str, Any] | None
    ) -> DeviceObservation | None:
        """One device. A fault of a key that it does not give itself is the defaults'."""
        whole = {key: value for key, value in instants(raw, spec.now).items() if value is not None}
        try:
            return DeviceObservation.model_validate(whole, by_alias=True, by_name=False)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                told = complaint(detail, DeviceObservation)
                given = own is not None and bool(told.where) and told.where[0] in own
                at: Where = ("spec", "observed", "devices", raw["name"]) if given else ("spec", "observed", "defaults")
                finding = Finding((*at, *told.where), told.message, told.code, "error", told.at_key)
                if finding not in self.findings:
                    self.findings.append(finding)
            return None

    # ------------------------------------------------------------ findings

    def _validate(self, model: type[M], value: Mapping[str, Any], at: Where) -> M | None:
        try:
            return model.model_validate(value, by_alias=True, by_name=False)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
                    continue  # "short" only because its items are bad, which is told
                told = complaint(detail, model)
                where = (*at, *told.where)
                self.findings.append(Finding(where, told.message, told.code, "error", told.at_key))
            return None

    def _add(
        self, where: Where, message: str, code: str = "scenario", *, at_key: bool = False, warning: bool = False
    ) -> None:
        self.findings.append(Finding(where, message, code, "warning" if warning else "error", at_key))

    def _unless_errors(self, where: Where, message: str) -> None:
        """Something is missing: said only where nothing that was refused explains it."""
        if all(found.severity == "warning" for found in self.findings):
            self._add(where, message)

    def _stop_at_errors(self) -> None:
        if any(found.severity == "error" for found in self.findings):
            raise InvalidInput(placed(self.path, self.data, self.findings))


def _releases_asked(waves: WavesSpec, sites: Iterable[SiteSpec]) -> Iterator[str]:
    yield from (wave.image for wave in waves.waves if wave.image is not None)
    yield from (site.pin.image for site in sites if site.pin is not None)


def _is_release(text: str) -> bool:
    try:
        release_key(text)
    except ValueError:
        return False
    return True
