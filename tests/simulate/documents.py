"""A `Desired` as the files of a fleet repo, for runs that begin with files: JSON, which is YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reconciler.model.desired import API_VERSION, Desired, Part


def files_of(desired: Desired) -> dict[str, bytes]:
    """Path → document, of every document of the fleet, and a recipe for each image that names one."""
    out = {
        "fleet.yaml": _document("Fleet", "fleet", desired.fleet),
        "waves.yaml": _document("Waves", "waves", desired.waves),
    }
    for kind, folder, parts in (
        ("Image", "images", desired.images),
        ("App", "apps", desired.apps),
        ("Site", "sites", desired.sites),
    ):
        for name, part in parts.items():
            out[f"{folder}/{name}.yaml"] = _document(kind, name, part)
    for spec in desired.images.values():
        if spec.recipe is not None:
            out[f"images/{spec.recipe}/setup.sh"] = b"#!/bin/sh\n"
    return out


def changes(before: Desired, after: Desired) -> dict[str, bytes | None]:
    """What a commit changes from one to the other."""
    old, new = files_of(before), files_of(after)
    out: dict[str, bytes | None] = {path: data for path, data in new.items() if old.get(path) != data}
    return out | dict.fromkeys(old.keys() - new.keys())


def _document(kind: str, name: str, part: Part) -> bytes:
    spec = part.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    document = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": _written(spec)}
    return json.dumps(document).encode()


def _written(value: Any, key: str = "") -> Any:
    """What a model dumps is not always what a document says: durations, budgets, times of day and rates are text there."""
    if isinstance(value, Mapping):
        if value and value.keys() <= {"count", "percent"} and key.startswith("max"):
            return f"{value['percent']}%" if value.get("percent") is not None else str(value.get("count"))
        return {name: _written(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_written(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        if key in ("start", "end"):
            return f"{value // 60:02d}:{value % 60:02d}"
        if key == "uplink":
            return f"{value // 1000}kbit"
        if key not in ("percent", "attempts"):
            return f"{value}s"
    return value
