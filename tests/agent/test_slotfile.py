"""A slot as an open file: zeros skipped, read from any block, each piece left alone while it is hashed."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reconciler.agent.disk import Disk
from reconciler.agent.slotfile import SlotFile, read_from_disk
from tests.agent.test_writer import LARGE, MIB


@given(st.lists(st.tuples(st.sampled_from([0, 1, 4095, 4096, 4097, 9000]), st.booleans()), max_size=12))
@example([])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_pieces_come_the_slot_holds_them(tmp_path: Path, pieces: Sequence[tuple[int, bool]]) -> None:
    parts = [(b"x" if holds else b"\0") * length for length, holds in pieces]
    data, path = b"".join(parts), tmp_path / "slot"
    path.write_bytes(b"")
    slot = SlotFile(os.open(path, os.O_RDWR | os.O_TRUNC), "slot", len(data), Disk())
    for part in parts:
        slot.write(part)
    assert slot.place() == len(data)
    slot.finish()
    assert path.read_bytes() == data
    assert b"".join(bytes(piece) for piece in read_from_disk(path, 0, len(data) + 9)) == data


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 4096, 5 * MIB, 8 * MIB])
@pytest.mark.parametrize("direct", [True, False, None], ids=["direct", "refused", "refused-late"])
def test_a_slot_is_read_from_any_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, direct: bool | None
) -> None:
    path = tmp_path / "slot"
    with open(path, "wb") as file:
        for at in range(0, len(LARGE), 4096):
            if any(block := LARGE[at : at + 4096]):
                file.seek(at)
                file.write(block)
    if direct is False:

        def refused(*_: object) -> int:
            raise OSError(errno.EINVAL, "no O_DIRECT here")

        monkeypatch.setattr("fcntl.fcntl", refused)
    if direct is None:
        ask, read, flags = fcntl.fcntl, os.preadv, [0]

        def noted(descriptor: int, command: int, flag: int) -> int:
            flags.append(flag)
            return int(ask(descriptor, command, flag))

        def picky(descriptor: int, buffers: list[memoryview], at: int) -> int:
            if flags[-1]:
                raise OSError(errno.EINVAL, "not aligned as this disk wants it")
            return read(descriptor, buffers, at)

        monkeypatch.setattr("fcntl.fcntl", noted)
        monkeypatch.setattr("os.preadv", picky)
    for end in (start, start + 1, start + 4096, len(LARGE), len(LARGE) + MIB):
        found = b"".join(bytes(piece) for piece in read_from_disk(path, start, end))
        assert found == LARGE[start:end]


def test_a_piece_stays_as_it_is_until_the_one_after_the_next(tmp_path: Path) -> None:
    """A thread hashes it meanwhile."""
    path = tmp_path / "slot"
    path.write_bytes(LARGE)
    pieces, before = read_from_disk(path, 0, len(LARGE)), memoryview(b"")
    at = 0
    for piece in pieces:
        assert before == LARGE[at - len(before) : at]
        before, at = piece, at + len(piece)
    assert before == LARGE[at - len(before) : at]
    assert at == len(LARGE)
