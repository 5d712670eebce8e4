"""Looking into packed data ends, however much is packed in it."""

from __future__ import annotations

import io
import tarfile

import pytest

from reconciler.image.gate_packed import Bounds, unpack


@pytest.mark.parametrize(
    ("bounds", "said"),
    [(Bounds(members=50), "too many members"), (Bounds(seconds=0.0), "more than 0 seconds of work"), (Bounds(), None)],
)
def test_an_archive_of_very_many_members_is_not_looked_into_for_ever(bounds: Bounds, said: str | None) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for number in range(60):
            member = tarfile.TarInfo(f"{number}")
            member.type = tarfile.DIRTYPE if number % 2 else tarfile.REGTYPE
            archive.addfile(member)
    packed = data.getvalue()
    found = unpack(packed, lambda: [(0, packed)], False, bounds)
    assert list(found) == ([("unread", said)] if said else [])
