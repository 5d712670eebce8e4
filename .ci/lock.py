"""Writes .ci/requirements*.txt from what .venv holds: the closure of pyproject.toml's dependencies, pinned, without URLs."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def closure(wanted: list[str]) -> dict[str, str]:
    """Name → version of every distribution that the requirements pull in here."""
    found: dict[str, str] = {}
    queue, seen = [Requirement(text) for text in wanted], set()
    while queue:
        requirement = queue.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if (name, tuple(sorted(requirement.extras))) in seen:
            continue
        seen.add((name, tuple(sorted(requirement.extras))))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        for text in distribution.requires or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in (*requirement.extras, "")):
                queue.append(child)
    return found


def main() -> None:
    """Write both files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    run = closure(project["dependencies"])
    dev = closure(project["optional-dependencies"]["dev"])
    lines = [f"{name}=={run[name]}" for name in sorted(run)]
    head = "# What the product runs on: the closure of pyproject.toml's dependencies, pinned. Renewed by `make lock`."
    (ROOT / ".ci/requirements.txt").write_text("\n".join([head, *lines]) + "\n")
    lines = [f"{name}=={dev[name]}" for name in sorted(dev.keys() - run.keys())]
    head = "# What its tests need beside that, pinned. Renewed by `make lock`."
    (ROOT / ".ci/requirements-dev.txt").write_text("\n".join([head, "-r requirements.txt", *lines]) + "\n")


if __name__ == "__main__":
    main()
