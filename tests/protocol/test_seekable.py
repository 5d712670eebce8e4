"""The table of frames behind a packed image: read back as written, and nothing is made of one that is not about the file."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.protocol import seekable
from reconciler.protocol.seekable import Frame

MAGIC = bytes.fromhex("28b52ffd")


def written(path: Path, sizes: Sequence[tuple[int, int]], table: bytes | None = None) -> tuple[Frame, ...] | None:
    """What is read of a file of frames that are a magic and zeros, and a table."""
    data = b"".join(MAGIC + bytes(packed - 4) for packed, _ in sizes)
    path.write_bytes(data + (seekable.table(sizes) if table is None else table))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return seekable.read(descriptor)
    finally:
        os.close(descriptor)


@given(st.lists(st.tuples(st.integers(4, 40), st.integers(0, 2**32 - 1)), min_size=1, max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
    found = written(tmp_path / "packed", sizes)
    assert found is not None
    assert [(frame.end - frame.start, frame.length) for frame in found] == sizes
    assert found[0][:3] == (0, sizes[0][0], 0)
    for before, frame in pairwise(found):
        assert (frame.start, frame.place) == (before.end, before.place + before.length)


def test_the_bytes_are_those_of_the_format() -> None:
    """By hand, from the format's own text."""
    assert seekable.table([(5, 7), (6, 8)]) == bytes.fromhex(
        "5e2a4d18" "19000000"  "05000000" "07000000"  "06000000" "08000000"  "02000000" "00" "b1ea928f"
    )  # fmt: skip


def test_a_table_with_checksums_is_read(tmp_path: Path) -> None:
    """As zstd's own example programs write it."""
    entries = struct.pack("<III", 9, 4096, 0xAAAAAAAA) + struct.pack("<III", 5, 1, 0xBBBBBBBB)
    table = struct.pack("<II", 0x184D2A5E, len(entries) + 9) + entries + struct.pack("<IBI", 2, 0x80, 0x8F92EAB1)
    assert written(tmp_path / "packed", [(9, 0), (5, 0)], table) == (Frame(0, 9, 0, 4096), Frame(9, 14, 4096, 1))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_table_is_none_or_about_the_whole_file(tmp_path: Path, data: st.DataObject) -> None:
    sizes = [(10, 4096), (20, 4096), (30, 100)]
    table = bytearray(seekable.table(sizes))
    for _ in range(data.draw(st.integers(1, 3))):
        table[data.draw(st.integers(0, len(table) - 1))] = data.draw(st.integers(0, 255))
    keep = data.draw(st.integers(0, len(table)))
    found = written(tmp_path / "packed", sizes, bytes(table[:keep]) if data.draw(st.booleans()) else bytes(table))
    if found is not None:
        assert found[0].start == 0
        assert found[-1].end == 60
        assert [frame.start for frame in found[1:]] == [frame.end for frame in found[:-1]]


@pytest.mark.parametrize(
    "data",
    [b"", b"x", MAGIC, b"not zstd at all, and long enough for a foot", seekable.table([]), seekable.table([(4, 1)])],
)
def test_a_file_without_frames_has_none(tmp_path: Path, data: bytes) -> None:
    assert written(tmp_path / "packed", [], data) is None


def test_no_table_has_more_frames_than_are_read() -> None:
    assert seekable.table([(4, 1)] * seekable.MAX_FRAMES)
    with pytest.raises(ValueError, match="4096 at most"):
        seekable.table([(4, 1)] * (seekable.MAX_FRAMES + 1))
