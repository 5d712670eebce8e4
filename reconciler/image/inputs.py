"""What an image release is made from, as one digest. Pure, but for reading the recipe's files.

The builder writes the digest into the manifest; the signer computes it again from git, and signs nothing whose digest
differs. So it covers what git names and what this program brings along, and nothing else: the release, its Image document
(but for `withdrawn`, which changes no byte), the recipe's files with their modes, the version and type of this builder, and
the agent that goes into the image. Source: design §4.9, "keyed by the digest of what it was made from".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reconciler.image import agent_app
from reconciler.model.desired import ImageSpec
from reconciler.ports import TerminalError

BUILDER_VERSION = "3"
"""Raised whenever the same inputs would give other bytes."""


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A file of a recipe: its path below the folder, whether it is executable, and the sha256 of its bytes."""

    path: str
    executable: bool
    sha256: str


def read_recipe(recipe: Path) -> tuple[RecipeFile, ...]:
    """A recipe's files, sorted by path. TerminalError: no folder, or anything in it but files and folders."""
    if not recipe.is_dir():
        raise TerminalError(
            f"there is no recipe folder {recipe.name!r}",
            needed_for="building the image",
            remedy="correct Image.spec.recipe",
        )
    files = []
    for path in sorted(recipe.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(recipe).as_posix()
        if path.is_symlink() or not path.is_file():
            raise TerminalError(
                f"recipe file {name} is not a regular file",
                needed_for="building the image",
                remedy="make links in setup.sh",
            )
        executable = bool(path.stat().st_mode & 0o100)
        files.append(RecipeFile(name, executable, hashlib.sha256(path.read_bytes()).hexdigest()))
    return tuple(files)


def inputs_digest(release: str, spec: ImageSpec, files: Iterable[RecipeFile], kind: str = "files") -> str:
    """`sha256:…` over everything that decides an image's bytes, as far as git and this program say it.

    `kind` is the builder's type in the settings: `distribution` (the image then holds this program's agent) or `files`.
    """
    document = {
        "builder": BUILDER_VERSION,
        "type": kind,
        "agent": agent_app.digest() if kind == "distribution" else None,
        "release": release,
        "spec": spec.model_dump(mode="json", by_alias=True, exclude={"withdrawn"}),
        "recipe": sorted([file.path, file.executable, file.sha256] for file in files),
    }
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()
