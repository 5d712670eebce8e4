"""Places of values in a fleet repo's files, and the same value in an older text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from reconciler.repo.positions import Positions, counterpart, line_of, lines_by_path

WAVES = b"""\
apiVersion: fleet/v1
kind: Waves
metadata: {name: waves}
spec:
  waves:
    - name: canary
      sites: [A, B]
      image: v1
    - {name: all, percent: 100, image: v2}
"""


def site(name: str) -> bytes:
    return f"apiVersion: fleet/v1\nkind: Site\nmetadata: {{name: {name}}}\nspec: {{suspended: true}}\n".encode()


def positions(**files: bytes) -> Positions:
    reads: dict[str, Callable[[], bytes]] = {
        name.replace("__", "/") + ".yaml": partial(bytes, data) for name, data in files.items()
    }
    return Positions(reads)


@pytest.mark.parametrize(
    ("keys", "line", "text", "exact"),
    [
        (("spec", "waves", 0, "image"), 8, "image: v1", True),
        (("spec", "waves", 1, "image"), 9, "- {name: all, percent: 100, image: v2}", True),
        (("spec", "waves", 0, "sites", 1), 7, "sites: [A, B]", True),
        (("spec", "waves", 0, "paused"), 6, "- name: canary", False),
        (("spec", "order"), 4, "spec:", False),
    ],
)
def test_a_value_is_found_or_what_surrounds_it(keys: tuple[str | int, ...], line: int, text: str, exact: bool) -> None:
    found = positions(waves=WAVES).where("Waves", "", keys)
    assert found is not None
    assert (found.path, found.line, found.text, found.exact) == ("waves.yaml", line, text, exact)


def test_the_name_in_the_document_counts() -> None:
    known = positions(sites__A=site("B"), sites__B=site("A"), sites__C=b"]")
    for name, path in (("A", "sites/B.yaml"), ("B", "sites/A.yaml")):
        found = known.where("Site", name, ("spec", "suspended"))
        assert found is not None
        assert found.path == path
    assert known.where("Site", "C", ("spec",)) is None
    assert known.where("Fleet", "", ("spec",)) is None


def test_lines_are_asked_for_once_a_file() -> None:
    known = positions(waves=WAVES, sites__A=site("A"))
    asked = [
        known.where("Waves", "", ("spec", "waves", 1, "image")),
        known.where("Site", "A", ("spec", "suspended")),
        known.where("Waves", "", ("spec", "waves", 1, "percent")),
        known.where("Waves", "", ("spec", "waves", 0, "image")),
    ]
    assert lines_by_path(one for one in asked if one) == {"sites/A.yaml": [4], "waves.yaml": [8, 9]}


ALL = ("spec", "waves", 1, "image")


@pytest.mark.parametrize(
    ("old", "way"),
    [
        (WAVES, ALL),
        (WAVES.replace(b"percent: 100", b"percent: 90"), ALL),
        (WAVES.replace(b"image: v2", b"image: v1"), None),
        (WAVES.replace(b"name: all", b"name: rest"), None),
        (
            WAVES.replace(b"    - name: canary\n      sites: [A, B]\n      image: v1\n", b""),
            ("spec", "waves", 0, "image"),
        ),
        (b"]", None),
        (b"spec: {}\n", None),
        (b"", None),
    ],
)
def test_the_same_value_in_an_older_text(old: bytes, way: tuple[str | int, ...] | None) -> None:
    assert counterpart(WAVES, ALL, old) == way


def test_entries_without_a_name_are_found_by_what_they_are() -> None:
    older = WAVES.replace(b"[A, B]", b"[B, C, A]")
    assert counterpart(WAVES, ("spec", "waves", 0, "sites", 1), older) == ("spec", "waves", 0, "sites", 0)
    assert line_of(older, ("spec", "waves", 0, "sites", 0)) == 7
