"""One build on its way: what is built from what, and what makes its root file system.

The nouns that `image.builder` and the two makers of roots (`image.rootfs`, `image.bareroot`) share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from reconciler.image.process import Ended, Surroundings
from reconciler.model.desired import ImageSpec

PINS = "pins"
"""The file of `NAME VERSION` lines that the scripts are handed."""


@dataclass(frozen=True, slots=True)
class Job:
    """One build: `epoch` is its commit's time in seconds, `tools` what else decides the bytes, `where` its folders,
    `slot_bytes` what it must fit into."""

    release: str
    spec: ImageSpec
    name: str
    commit: str
    inputs: str
    epoch: int
    tools: Mapping[str, str]
    where: Surroundings
    slot_bytes: int

    @property
    def recipe(self) -> Path:
        """The copy of the recipe that the scripts run from."""
        return self.where.scratch / "recipe"

    @property
    def pins(self) -> Path:
        """The file of pins."""
        return self.where.scratch / PINS

    @property
    def identity(self) -> str:
        """What tells this image from every other: a device drops what it wrote over the root of another one."""
        return f"{self.release}-{self.inputs}"

    @property
    def root(self) -> Path:
        """The root file system."""
        return self.where.scratch / "root"

    def variables(self) -> dict[str, str]:
        """What every script is told beside its root, as the recipe's README says."""
        return {"SITE_ID": "golden", "RELEASE": self.release, "SOURCE_DATE_EPOCH": str(self.epoch)}


class Maker(Protocol):
    """What the root is made of, and how the recipe's scripts get at it."""

    kind: str
    """The builder's type in the settings: `distribution` or `files`."""
    keeps_owners: bool
    """Whether files belong to whom they belong to in the root; else all of them to root."""
    vendor: str | None
    """The distribution whose packages are in it; None: there are none."""
    folders: tuple[Path, ...]
    """Where it writes beside the work folder."""

    def tools(self) -> Mapping[str, str]:
        """What decides the root's bytes beside the inputs: program → version. TerminalError: one is missing."""

    def packages(self, job: Job) -> int:
        """Make `job.root`, a root file system before setup.sh. Returns the time (seconds) that nothing in it is newer than."""

    def script(self, job: Job, stage: str, name: str, arguments: Sequence[str] = (), *, change: bool = True) -> Ended:
        """Run a script of the recipe on the root; `change`: it may write to it."""

    def inside(self, argv: Sequence[str]) -> list[str]:
        """A command as one that sees the root's files with their owners, and may change them."""


def plain_modes(folder: Path) -> None:
    """Give a folder and all in it the modes 755 and 644, executables 755, whatever the builder's umask is."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
