"""Scenario files: bytes → `Scenario`, or every problem with its line and column.

Decides nothing of policy and opens no file: bytes are handed in, and so is the fleet repo's own desired state, for a
scenario without documents. Called by `reconciler test`, by `repo.load` and by tests. Source: contract, "Scenario".
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from reconciler.model.desired import API_VERSION, AppSpec, Desired, FleetSpec, ImageSpec, Metadata, SiteSpec, WavesSpec
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.model.scalars import release_key
from reconciler.repo import reader
from reconciler.repo.problem import InvalidInput, Problem
from reconciler.repo.scenario import ScenarioSpec, generated_sites, instants, releases_to_make
from reconciler.repo.scenario_run import Scenario

M = TypeVar("M", bound=BaseModel)
Path = tuple[str | int, ...]
OwnDesired = Callable[[], Desired]
"""The fleet repo's own desired state; raises `InvalidInput` where it does not load."""

KINDS: Mapping[str, type[BaseModel]] = {
    "Fleet": FleetSpec,
    "Image": ImageSpec,
    "App": AppSpec,
    "Waves": WavesSpec,
    "Site": SiteSpec,
}


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
    """One reading. Problems gather in `problems`; `read` raises when any of them is an error."""

    path: str
    data: bytes
    value: Any
    own: OwnDesired | None
    problems: list[Problem] = field(default_factory=list)
    spots: dict[reader.Where, reader.Spot] = field(default_factory=dict)

    def read(self) -> tuple[Scenario, tuple[Problem, ...]]:
        name, spec = self._document()
        self._stop_at_errors()
        assert spec is not None
        desired = self._desired(spec)
        self._stop_at_errors()
        assert desired is not None
        snapshot = self._snapshot(spec, desired)
        self._stop_at_errors()
        scenario = Scenario(self.path, name, desired, snapshot, spec.now, spec.expect)
        return scenario, tuple(sorted(self.problems))

    def _document(self) -> tuple[str, ScenarioSpec | None]:
        value = self.value
        if not isinstance(value, Mapping):
            self._problem((), "this is not a document; write apiVersion, kind: Scenario, metadata and spec")
            return "", None
        for key in value:
            if key not in ("apiVersion", "kind", "metadata", "spec"):
                self._problem((key,), f"unknown key {key!r}; a document has apiVersion, kind, metadata and spec")
        if value.get("apiVersion") != API_VERSION:
            self._problem(("apiVersion",), f"apiVersion is {value.get('apiVersion')!r}; write {API_VERSION}")
        if value.get("kind") != "Scenario":
            self._problem(("kind",), f"kind is {value.get('kind')!r}; a scenario's is Scenario")
            return "", None
        metadata = self._validate(Metadata, value.get("metadata"), ("metadata",))
        spec = self._validate(ScenarioSpec, value.get("spec"), ("spec",))
        return metadata.name if metadata else "", spec

    # ------------------------------------------------------------ desired state

    def _desired(self, spec: ScenarioSpec) -> Desired | None:
        if spec.documents:
            found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
            raw_sites = self._documents(spec, found)
            base = None
        else:
            base = self._own_desired()
            if base is None:
                return None
            found = {"Image": dict(base.images), "App": dict(base.apps), "Site": dict(base.sites)}
            found |= {"Fleet": {"": base.fleet}, "Waves": {"": base.waves}}
            raw_sites = {}
        self._sites(spec, found["Site"], raw_sites)
        waves = next(iter(found["Waves"].values()), None)
        if waves is None:
            self._problem(("spec", "documents"), "no Waves document; a scenario's documents need one (kind: Waves)")
            return None
        if not found["Site"]:
            self._problem(("spec",), "the scenario has no sites; write sites: {count: 10, timezone: UTC}")
            return None
        asked = _releases_asked(waves, found["Site"].values())
        for release in sorted(releases_to_make(spec, asked)):
            if _is_release(release):
                found["Image"].setdefault(release, ImageSpec())
        fleet = next(iter(found["Fleet"].values()), FleetSpec())
        config = {**(base.config if base else {}), **spec.config}
        return Desired(fleet, waves, found["Image"], found["App"], found["Site"], config, base.commit if base else None)

    def _own_desired(self) -> Desired | None:
        if self.own is None:
            self._problem(
                ("spec",),
                "the scenario has no documents, and there is no fleet repo to take them from; name it with --fleet",
            )
            return None
        return self.own()

    def _documents(self, spec: ScenarioSpec, found: dict[str, dict[str, Any]]) -> dict[str, tuple[Path, Any]]:
        """Fill `found` with the models of the documents. Sites come back as written: they may complete a made one."""
        raw_sites: dict[str, tuple[Path, Any]] = {}
        for number, document in enumerate(spec.documents or ()):
            at: Path = ("spec", "documents", number)
            for key in document:
                if key not in ("apiVersion", "kind", "metadata", "spec"):
                    self._problem(
                        (*at, key), f"unknown key {key!r}; a document has apiVersion, kind, metadata and spec"
                    )
            if document.get("apiVersion", API_VERSION) != API_VERSION:
                self._problem((*at, "apiVersion"), f"apiVersion is {document['apiVersion']!r}; write {API_VERSION}")
            kind = str(document.get("kind"))
            if kind not in KINDS:
                self._problem((*at, "kind"), f"kind is {kind!r}; write one of {', '.join(KINDS)}")
                continue
            metadata = self._validate(Metadata, document.get("metadata"), (*at, "metadata"))
            if metadata is None:
                continue
            if metadata.name in found[kind] or (metadata.name in raw_sites and kind == "Site"):
                self._problem((*at, "metadata", "name"), f"{kind} {metadata.name!r} is written twice; keep one")
            elif kind in ("Fleet", "Waves") and found[kind]:
                self._problem((*at, "kind"), f"a second {kind} document; keep one")
            elif kind == "Site":
                raw_sites[metadata.name] = ((*at, "spec"), document.get("spec"))
            elif (model := self._validate(KINDS[kind], document.get("spec", {}), (*at, "spec"))) is not None:
                found[kind][metadata.name] = model
        return raw_sites

    def _sites(self, spec: ScenarioSpec, found: dict[str, Any], raw: dict[str, tuple[Path, Any]]) -> None:
        """Sites that are made, then those written out; one written out completes a made one of its name, key by key."""
        made: dict[str, dict[str, Any]] = generated_sites(spec.sites) if spec.sites is not None else {}
        written = {name: (("spec", "sites", name), site) for name, site in _written(spec).items()}
        for name in sorted(set(raw) & set(written)):
            self._problem(raw[name][0], f"site {name!r} is written under `sites` and as a document; keep one")
        for name, (at, site) in {**written, **raw}.items():
            whole = {**made.pop(name, {}), **site} if isinstance(site, Mapping) else site
            if at[1] == "sites" and isinstance(whole, dict):
                whole.setdefault("devices", [f"{name}-1"])
                whole.setdefault("timezone", spec.sites.timezone if spec.sites is not None else "UTC")
            model = self._validate(SiteSpec, whole, at)
            if model is not None:
                found[name] = model
        if made:
            first = next(iter(made.values()))
            model = self._validate(SiteSpec, first, ("spec", "sites"))
            for name in made if model is not None else ():
                found[name] = model.model_copy(update={"devices": (f"{name}-1",)})  # type: ignore[union-attr]

    # ------------------------------------------------------------ observed state

    def _snapshot(self, spec: ScenarioSpec, desired: Desired) -> Snapshot:
        observed = spec.observed
        site_of = {device: name for name, site in desired.sites.items() for device in site.devices}
        devices: list[DeviceObservation] = []
        names = [*site_of] if observed.defaults is not None else []
        names += [name for name in observed.devices if name not in site_of or observed.defaults is None]
        defaults_fine = True
        for name in names:
            own = observed.devices.get(name)
            if own is None and not defaults_fine:
                continue
            if own is not None and name not in site_of and "site" not in own:
                self._stranger(name, site_of)
            raw = {"site": site_of.get(name), **(observed.defaults or {}), **(own or {}), "name": name}
            at: Path = ("spec", "observed", "devices", name) if own is not None else ("spec", "observed", "defaults")
            device = self._validate(DeviceObservation, instants(raw, spec.now), at)
            if device is not None:
                devices.append(device)
            elif own is None:
                defaults_fine = False
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

    def _stranger(self, name: str, site_of: Mapping[str, str]) -> None:
        near = difflib.get_close_matches(name, site_of, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        self._problem(
            ("spec", "observed", "devices", name),
            f"device {name!r} is a device of no site{hint} To observe one that git does not know, give its `site`",
            severity="warning",
        )

    # ------------------------------------------------------------ problems

    def _validate(self, model: type[M], value: Any, at: Path) -> M | None:
        if not isinstance(value, Mapping):
            what = "is missing" if value is None else f"is {value!r}"
            self._problem(at, f"{at[-1]} {what}; write a mapping")
            return None
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for item in error.errors(include_url=False, include_context=False):
                key, unknown = item["loc"][-1] if item["loc"] else "", item["type"] == "extra_forbidden"
                message = f"{key}: {item['msg'].removeprefix('Value error, ')}"
                if unknown:
                    message = f"unknown key {key!r}"
                self._problem((*at, *item["loc"]), message, code="unknown-key" if unknown else "invalid")
            return None

    def _problem(self, at: Path, message: str, severity: Any = "error", code: str = "invalid") -> None:
        if not self.spots:
            self.spots.update(reader.locate(self.data))
        spot, exact = reader.nearest(self.spots, at)
        line, column = (spot.key_line, spot.key_column) if exact and code == "unknown-key" else (spot.line, spot.column)
        self.problems.append(Problem(self.path, line, column, message, severity, code))

    def _stop_at_errors(self) -> None:
        if any(problem.severity == "error" for problem in self.problems):
            raise InvalidInput(self.problems)


def _written(spec: ScenarioSpec) -> Mapping[str, Any]:
    return spec.sites.written if spec.sites is not None else {}


def _releases_asked(waves: WavesSpec, sites: Any) -> Iterator[str]:
    yield from (wave.image for wave in waves.waves if wave.image is not None)
    yield from (site.pin.image for site in sites if site.pin is not None)


def _is_release(text: str) -> bool:
    try:
        release_key(text)
    except ValueError:
        return False
    return True
