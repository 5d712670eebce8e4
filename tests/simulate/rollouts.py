"""A small rollout to draw, to repeat and to replay: the fleet of `tests.review.repos` raised to another release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from reconciler.model.desired import Desired
from reconciler.repo.folder import File
from reconciler.repo.load import load_tree
from reconciler.simulate.course import Course, Merge
from tests.review.repos import AT, fleet_files, waves


def course(new: str | None = None, **changes: Any) -> Course:
    """`new` is the Waves document that is merged; every wave on v1.4.2 unless said."""
    files = {path.removeprefix("fleet/"): str(data).encode() for path, data in fleet_files().items()}
    merge = Merge(AT, {"waves.yaml": (new or waves("v1.4.2")).encode()}, "Promote v1.4.2")
    return replace(Course(files, AT - timedelta(seconds=1), (merge,), seed=1), **changes)


def desired_of(files: Mapping[str, bytes]) -> Desired:
    """Files as the fleet that they say."""
    entries = [File(path, path, "100644", len(data)) for path, data in sorted(files.items())]
    loaded = load_tree(entries, lambda blob: files[blob])
    assert loaded.desired is not None, loaded.problems
    return loaded.desired
