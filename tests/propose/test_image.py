"""The next release of the image: its number, what it moves, and when there is nothing to propose."""

from __future__ import annotations

import pytest

from reconciler.propose.base import Move
from reconciler.propose.image import Unchanged, bump, next_release, source_release
from tests.propose.fleets import after, base, document, files

BASE = "  base: {distribution: ubuntu, suite: jammy, snapshot: 20251115T000000Z}\n  packages: {curl: 1-1}\n"
DATED = {"images/v1.3.yaml": document("Image", "v1.3", BASE).encode()}


def test_the_next_release_has_the_next_patch_number_of_the_highest() -> None:
    assert next_release(base(files())) == "v1.2.1"
    assert next_release(base(files() | DATED)) == "v1.3.1"
    ten = {"images/v1.3.10.yaml": document("Image", "v1.3.10", "  withdrawn: no\n").encode()}
    start = base(files() | DATED | ten)
    # A withdrawn release keeps its number, and nothing is made from it.
    assert next_release(start) == "v1.3.11" and source_release(start, None) == "v1.3"


def test_pins_and_snapshot_are_told_as_moves() -> None:
    start = base(files() | DATED)
    change = bump(start, "v1.4.0", None, {"curl": "1-2", "jq": "1.6"}, "20251215T000000Z")
    assert change.moves == (
        Move("snapshot", "20251115T000000Z", "20251215T000000Z"),
        Move("curl", "1-1", "1-2"),
        Move("jq", None, "1.6"),
    )
    assert "curl: 1-1 → 1-2" in change.told and "jq: not pinned → 1.6" in change.told
    assert after(start, change).images()["v1.4.0"].packages == {"curl": "1-2", "jq": "1.6"}


def test_a_refreshed_release_without_a_move_is_not_proposed() -> None:
    start = base(files() | DATED)
    with pytest.raises(Unchanged, match=r"v1\.3 holds: 1 pin and the snapshot 20251115T000000Z"):
        bump(start, "v1.4.0", None, {"curl": "1-1"}, "20251115T000000Z", refreshed=True)
    assert bump(start, "v1.4.0", None, {"curl": "1-1"}, "20251115T000000Z").moves == ()
    assert bump(start, "v1.4.0", None, {"curl": "1-1"}, "20251215T000000Z", refreshed=True).dated
    with pytest.raises(Unchanged, match="and no snapshot"):
        bump(base(files()), "v1.4.0", None, {"curl": "1-1"}, refreshed=True)


def test_a_release_that_fixes_nothing_is_refreshed_by_the_mirrors_alone() -> None:
    """Neither pins nor snapshot: another day's build has other packages in it, and no document could tell."""
    bare = b"apiVersion: fleet/v1\nkind: Image\nmetadata: {name: v1.9.0}\nspec:\n  family: edge-golden\n  recipe: edge-golden/\n"
    series = b"  base: {distribution: debian, suite: bookworm}\n"
    for text in (bare, bare + series):
        start = base(files() | {"images/v1.9.0.yaml": text})
        change = bump(start, "v1.9.1", None, {}, refreshed=True)
        assert change.moves == () and any("what the mirrors have when it is built" in line for line in change.says)
        assert after(start, change).images()["v1.9.1"].packages == {} and change.dated
    dated = bare + series.replace(b"}", b", snapshot: 20251115T000000Z}")
    with pytest.raises(Unchanged):
        bump(base(files() | {"images/v1.9.0.yaml": dated}), "v1.9.1", None, {}, "20251115T000000Z", refreshed=True)
