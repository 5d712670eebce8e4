"""A recipe's data: which variant builds a release, from which package sources, with which packages.

Reads `*.yaml` in the recipe's top (one variant each, chosen by the distribution and suite of `Image.spec.base`),
and packages.txt. Every problem is reported with file, line and column. Decides nothing about how the
packages are had (`image.mirrors`, `image.debs`). Called by `image.rootfs` and `image bump`.
Interface of the files: README.md of the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from reconciler.model.desired import Base, ImageSpec, Part
from reconciler.model.scalars import Name
from reconciler.repo import reader
from reconciler.repo.problem import InvalidInput, Problem

PACKAGES = "packages.txt"
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._~/-]*$")]
Suite = Annotated[str, Field(pattern=r"^(?:[A-Za-z0-9][A-Za-z0-9._~/-]*|/)$")]
Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
Version = Annotated[str, Field(pattern=r"^[0-9][A-Za-z0-9.+~:-]*$")]
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_MODULE = r"^[A-Za-z0-9_*?\[\].,/+-]+$"


class Source(Part):
    """Where packages come from: suites and components of a mirror, signed by a key."""

    mirror: Name = Field(description="Name of the mirror; a key of the settings' builder.mirrors")
    suites: Annotated[tuple[Suite, ...], Field(min_length=1)] = Field(
        description="Suites, as bookworm-updates; a folder with a slash behind it for a flat repository"
    )
    components: tuple[Word, ...] = Field(default=("main",), description="Components; none for a flat repository")
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]+$")] = Field(
        description="OpenPGP key file that signs it: on the builder's machine with a leading slash, else of the recipe"
    )


class Variant(Part):
    """One distribution that the recipe is put on. All that differs between variants."""

    distribution: Name = Field(description="Distribution, as debian")
    suite: Name = Field(description="Suite, as bookworm")
    architecture: Literal["amd64"] = Field(default="amd64", description="Architecture")
    sources: Annotated[tuple[Source, ...], Field(min_length=1)] = Field(description="Package sources")
    packages: Mapping[Package, str] = Field(default_factory=dict, description="Package to why, beside packages.txt")
    modules: tuple[Annotated[str, Field(pattern=_MODULE)], ...] = Field(
        default=(), description="Kernel modules that stay, as patterns, beside modules.txt"
    )
    variables: Mapping[
        Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], Annotated[str, Field(pattern=r"^[ -~]*$")]
    ] = Field(default_factory=dict, description="Told to the scripts, and kept in the image")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a release is built from, read: the variant, its file, and all packages, the shared ones too."""

    folder: Path
    file: Path
    variant: Variant
    packages: tuple[str, ...]
    spots: dict[reader.Where, reader.Spot]

    def problem(self, where: reader.Where, message: str) -> InvalidInput:
        """An error at a place of the variant's file."""
        spot, _ = reader.nearest(self.spots, where)
        return InvalidInput([Problem(str(self.file), spot.line, spot.column, message, code="recipe")])


def read(folder: Path, spec: ImageSpec) -> Recipe:
    """The recipe in `folder` for an Image document. InvalidInput: every problem of its files, each with its place."""
    files = sorted(folder.glob("*.yaml"))
    problems: list[Problem] = []
    variants: dict[Path, tuple[Variant, dict[reader.Where, reader.Spot]]] = {}
    for file in files:
        try:
            variants[file] = _variant(file)
        except InvalidInput as error:
            problems += error.problems
    shared, found = _names(folder / PACKAGES, problems), spec.base
    if problems:
        raise InvalidInput(problems)
    chosen = [file for file, (made, _) in variants.items() if found is not None and _fits(made, found)]
    if len(chosen) != 1 or found is None:
        raise InvalidInput([_no_variant(folder, found, {file: made for file, (made, _) in variants.items()}, chosen)])
    file = chosen[0]
    variant, spots = variants[file]
    return Recipe(folder, file, variant, tuple(sorted({*shared, *variant.packages})), spots)


def _fits(variant: Variant, base: Base) -> bool:
    return (variant.distribution, variant.suite) == (base.distribution, base.suite)


def _no_variant(folder: Path, base: Base | None, variants: Mapping[Path, Variant], chosen: list[Path]) -> Problem:
    """Why no variant, or more than one, is to be built."""
    if chosen:
        message = f"{chosen[0].name} is of the same distribution and suite; keep one of the two"
        return Problem(str(chosen[1]), 1, 1, message, code="recipe")
    there = ", ".join(f"{made.distribution}/{made.suite} ({file.name})" for file, made in variants.items())
    if base is None:
        message = f"the Image document names no `base`; add one of the recipe's: {there or 'it has none'}"
    else:
        name = f"{base.distribution}-{base.suite}.yaml"
        message = (
            f"no variant is of {base.distribution}/{base.suite}, which the Image document's `base` names; there is "
            f"{there or 'none'}: correct `base`, or add a variant, as {name}"
        )
    return Problem(str(folder), 1, 1, message, code="recipe")


def _variant(file: Path) -> tuple[Variant, dict[reader.Where, reader.Spot]]:
    """One variant's file, and where everything stands in it."""
    data = file.read_bytes()
    try:
        tree = reader.read(data)
    except reader.Refused as refused:
        raise InvalidInput(
            Problem(str(file), fault.line, fault.column, fault.message, code=fault.code) for fault in refused.faults
        ) from None
    spots = reader.locate(data)
    if not isinstance(tree, dict):
        raise InvalidInput(
            [Problem(str(file), 1, 1, "is no mapping; write keys and values, as `distribution: debian`")]
        )
    try:
        return Variant.model_validate({key: value for key, value in tree.items() if value is not None}), spots
    except ValidationError as error:
        faults = error.errors()
        # A list whose items are all wrong is not also too short.
        inner = {fault["loc"][:-1] for fault in faults} | {fault["loc"][:-2] for fault in faults}
        told = [fault for fault in faults if not (fault["type"] == "too_short" and fault["loc"] in inner)]
        raise InvalidInput(_problem(file, found, spots) for found in told) from None


def _problem(file: Path, found: Any, spots: dict[reader.Where, reader.Spot]) -> Problem:
    """One complaint of pydantic, with its place, its key, cause and remedy."""
    where = tuple(part for part in found["loc"] if part != "[key]")
    spot, exact = reader.nearest(spots, where)
    exact = exact and "[key]" not in found["loc"]
    key = ".".join(str(part) for part in where) or "the file"
    at_key = (spot.key_line, spot.key_column)
    if found["type"] == "extra_forbidden":
        known = sorted(Source.model_fields if where[0] == "sources" else Variant.model_fields)
        return Problem(
            str(file), *at_key, f"unknown key `{key}`; it may be one of {', '.join(known)}", code="unknown-key"
        )
    if found["type"] == "missing":
        return Problem(str(file), *at_key, f"`{key}` is missing; add it (see README.md of the recipe)", code="missing")
    if found["type"] == "too_short":
        return Problem(str(file), *at_key, f"`{key}` is empty; write at least one item", code="empty")
    text = str(found["msg"])
    message = f"`{key}` is {reader.clip(str(found['input']))}: {text[:1].lower()}{text[1:]}; correct it"
    return Problem(str(file), *((spot.line, spot.column) if exact else at_key), message, code=str(found["type"]))


def _names(file: Path, problems: list[Problem]) -> dict[str, str]:
    """packages.txt: a package a line, then why. A missing file is an empty one."""
    names: dict[str, str] = {}
    for number, column, text in _rows(file):
        name, _, why = text.partition(" ")
        wrong = None
        if not _PACKAGE.fullmatch(name):
            wrong = f"{reader.clip(name)} is no package's name; write lower-case letters, digits and + - ."
        elif name in names:
            wrong = f"{name} is listed twice; keep one line"
        elif not why.strip():
            wrong = f"{name} has no reason; write why it is there behind its name"
        if wrong is not None:
            problems.append(Problem(str(file), number, column, wrong, code="packages"))
        names[name] = why.strip()
    return names


def _rows(file: Path) -> Iterator[tuple[int, int, str]]:
    """Line, column and text of every line that is neither empty nor a comment."""
    lines = file.read_text("utf-8", "replace").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield number, len(line) - len(line.lstrip()) + 1, text
