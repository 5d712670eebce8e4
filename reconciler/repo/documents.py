"""The kinds of fleet documents as whole files: header, name and spec in one model a kind, and which file holds which.

Decides what the header of a document must say and where each kind lives in the fleet repo. The specs are
`model.desired`'s. Used by the loader, and by the schema generator, so that both say the same. Source: contract, "Fleet documents".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from reconciler.model.desired import AppSpec, FleetSpec, ImageSpec, Metadata, Part, SiteSpec, WavesSpec
from reconciler.model.scalars import Name, Release

KINDS = ("Fleet", "Image", "App", "Waves", "Site", "Scenario")
FOLDERS: Mapping[str, str] = {"images": "Image", "apps": "App", "sites": "Site", "tests": "Scenario"}
FILES: Mapping[str, str] = {"fleet": "Fleet", "waves": "Waves"}
SUFFIXES = (".yaml", ".yml", ".json")
NEEDED: Mapping[str, str] = {"Fleet": "fleet.yaml", "Waves": "waves.yaml"}


class NamedMetadata(Metadata):
    """Metadata of what other documents refer to by name."""

    name: Name = Field(description="The document's name: letters, digits and '-', 63 at most", examples=["SITE-2847"])


class ImageMetadata(Metadata):
    """Metadata of an image: its name is the release."""

    name: Release = Field(description="The release: v and one to three numbers", examples=["v1.4.2"])


class Document(Part):
    """What every document begins with."""

    api_version: Literal["fleet/v1"] = Field(description="Version of the document format", examples=["fleet/v1"])


class FleetDocument(Document):
    """Defaults and places that hold for the whole fleet. One a fleet repo, in fleet.yaml."""

    model_config = ConfigDict(title="Fleet")

    kind: Literal["Fleet"] = Field(description="Kind of document")
    metadata: Metadata = Field(description="What names the document")
    spec: FleetSpec = Field(description="Defaults and places that hold for the whole fleet")


class ImageDocument(Document):
    """One release of the golden image, in images/RELEASE.yaml."""

    model_config = ConfigDict(title="Image")

    kind: Literal["Image"] = Field(description="Kind of document")
    metadata: ImageMetadata = Field(description="What names the document")
    spec: ImageSpec = Field(description="The release")


class AppDocument(Document):
    """One app and its releases, in apps/NAME.yaml."""

    model_config = ConfigDict(title="App")

    kind: Literal["App"] = Field(description="Kind of document")
    metadata: NamedMetadata = Field(description="What names the document")
    spec: AppSpec = Field(description="The app")


class WavesDocument(Document):
    """The rollout: which sites run which releases, in which order. One a fleet repo, in waves.yaml."""

    model_config = ConfigDict(title="Waves")

    kind: Literal["Waves"] = Field(description="Kind of document")
    metadata: Metadata = Field(description="What names the document")
    spec: WavesSpec = Field(description="The rollout")


class SiteDocument(Document):
    """One location and its devices, in sites/NAME.yaml."""

    model_config = ConfigDict(title="Site")

    kind: Literal["Site"] = Field(description="Kind of document")
    metadata: NamedMetadata = Field(description="What names the document")
    spec: SiteSpec = Field(description="The site")


class AnyDocument(Document):
    """The header alone: what is checked of a document whose kind cannot be told."""

    kind: Literal["Fleet", "Image", "App", "Waves", "Site", "Scenario"] = Field(description="Kind of document")
    metadata: Metadata = Field(description="What names the document")
    spec: Any = Field(description="What the kind holds")


_MODELS: dict[str, type[BaseModel]] = {
    "Fleet": FleetDocument,
    "Image": ImageDocument,
    "App": AppDocument,
    "Waves": WavesDocument,
    "Site": SiteDocument,
}


def model_of(kind: str) -> type[BaseModel]:
    """The whole-file model of a kind. Scenarios are loaded late: `plan` and most of `validate` do without them."""
    if kind == "Scenario" and kind not in _MODELS:
        from reconciler.repo.scenario_document import ScenarioDocument

        _MODELS[kind] = ScenarioDocument
    return _MODELS[kind]


class Place(NamedTuple):
    """What a path in the fleet repo is for: a document of `kind`, or (None) nothing that is loaded."""

    kind: str | None
    stem: str


@lru_cache(maxsize=65536)
def place_of(path: str) -> Place:
    """`sites/SITE-2847.yaml` → a Site named SITE-2847. Only the listed folders and files hold documents."""
    folder, _, name = path.rpartition("/")
    stem = name.rpartition(".")[0] if name.endswith(SUFFIXES) else ""
    if not stem or name[0] == ".":
        return Place(None, name)
    return Place(FOLDERS.get(folder) if folder else FILES.get(stem), stem)


def home_of(kind: str) -> str:
    """Where documents of a kind live, for messages."""
    folder = next((folder for folder, of in FOLDERS.items() if of == kind), None)
    return f"{folder}/" if folder else NEEDED.get(kind, "")
