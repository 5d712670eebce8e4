"""The chunk index: one pass over an image tells its digest and its mapped blocks; bytes that lie about it are refused."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import struct
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.protocol import chunks
from reconciler.protocol.chunks import BLOCK_SIZE, ChunkIndex, ChunksError, index, runs_bytes
from reconciler.protocol.manifest import MAX_IMAGE_BYTES

HEAD = struct.Struct(">8sIQ32sII")
BLOCKS = {"0": bytes(BLOCK_SIZE), "a": b"a" * BLOCK_SIZE, "b": b"b" * BLOCK_SIZE, "z": b"\0" * 4095 + b"z"}
MIB = 1024 * 1024
layouts = st.text("0abz", min_size=1, max_size=40)


def image(layout: str, tail: bytes = b"") -> bytes:
    return b"".join(BLOCKS[word] for word in layout) + tail


def hash_of(word: str) -> bytes:
    return hashlib.sha256(BLOCKS[word]).digest()


def of(data: bytes) -> ChunkIndex:
    return index(io.BytesIO(data))


def plain(data: bytes) -> ChunkIndex:
    """The same as `index`, block by block, the slow way."""
    runs: list[tuple[int, int]] = []
    hashes = b""
    for number in range(-(-len(data) // BLOCK_SIZE)):
        block = data[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]
        if any(block):
            hashes += hashlib.sha256(block).digest()
            if runs and sum(runs[-1]) == number:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((number, 1))
    return ChunkIndex(len(data), "sha256:" + hashlib.sha256(data).hexdigest(), tuple(runs), hashes)


@given(layouts, st.binary(max_size=20))
def test_an_index_tells_the_digest_and_every_mapped_block(layout: str, tail: bytes) -> None:
    data = image(layout, tail)
    found = of(data)
    assert found == plain(data)
    mapped = [number for number, _ in found.blocks()]
    assert found.mapped_blocks == len(mapped)
    assert found.mapped_bytes == sum(len(data[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE]) for at in mapped)
    assert ChunkIndex.from_bytes(found.to_bytes()) == found


def test_an_image_of_zeros_has_no_mapped_block() -> None:
    found = of(bytes(3 * MIB + 17))
    assert (found.runs, found.hashes, found.mapped_bytes) == ((), b"", 0)
    assert found.digest == "sha256:" + hashlib.sha256(bytes(3 * MIB + 17)).hexdigest()
    assert ChunkIndex.from_bytes(found.to_bytes()) == found


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 1)],
        [(5 * MIB - 1, 1)],
        [(MIB - 10, 20)],
        [(4096, 4096), (MIB, 2 * MIB), (4 * MIB + 1, 4096)],
        [(0, 5 * MIB)],
        [(5 * MIB, 1234)],
        [],
    ],
)
def test_a_sparse_file_is_indexed_as_its_bytes_read(tmp_path: Path, spans: list[tuple[int, int]]) -> None:
    path, bits = tmp_path / "image", random.Random(1)
    with open(path, "wb") as out:
        out.truncate(5 * MIB + 1234)
        for at, length in spans:
            out.seek(at)
            out.write(bits.randbytes(length))
    with open(path, "rb") as file:
        file.seek(77)
        assert index(file) == plain(path.read_bytes())


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    with open(path, "wb") as out:
        out.truncate(64 * MIB)
        out.seek(40 * MIB)
        out.write(b"x" * MIB)
    with open(path, "rb") as file:
        try:
            assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 40 * MIB
        except (OSError, AssertionError):
            pytest.skip("the file system below the tests' folder tells of no holes")
        asked: list[int] = []
        read = os.read

        def counted(descriptor: int, length: int) -> bytes:
            asked.append(length)
            return read(descriptor, length)

        monkeypatch.setattr("os.read", counted)
        assert index(file).runs == ((40 * MIB // BLOCK_SIZE, MIB // BLOCK_SIZE),)
    assert sum(asked) == MIB


def test_where_holes_are_not_told_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").write_bytes(image("0ab0"))
    seek = os.lseek

    def ignorant(descriptor: int, at: int, how: int) -> int:
        if how == os.SEEK_DATA:
            raise OSError(errno.EINVAL, "no holes here")
        return seek(descriptor, at, how)

    monkeypatch.setattr("os.lseek", ignorant)
    with open(tmp_path / "image", "rb") as file:
        assert index(file) == plain(image("0ab0"))


def test_a_pipe_is_indexed_whatever_pieces_it_gives() -> None:
    data = image("0ab0z", b"tail") * 100
    reader, writer = os.pipe()

    def feed() -> None:
        with open(writer, "wb", buffering=0) as out:
            for at in range(0, len(data), 30_011):
                out.write(data[at : at + 30_011])

    thread = threading.Thread(target=feed)
    thread.start()
    with open(reader, "rb", buffering=0) as file:
        assert index(file) == plain(data)
    thread.join()


def test_an_image_that_cannot_have_an_index_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ChunksError, match="empty"):
        of(b"")
    monkeypatch.setattr(chunks, "MAX_IMAGE_BYTES", 3 * MIB)
    with pytest.raises(ChunksError, match="more than"):
        of(bytes(4 * MIB))
    monkeypatch.setattr(chunks, "MAX_INDEX_BYTES", 4096)
    with pytest.raises(ChunksError, match="chunk index"):
        of(b"x" * MIB)
    with pytest.raises(ChunksError, match="has 8"):
        plain(b"x" * MIB).to_bytes()
    with pytest.raises(ChunksError, match="has 8"):
        ChunkIndex.from_bytes(bytes(8192))
    assert not any("_hash_all" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("size", [MIB - 1, MIB, 2 * MIB - 1, 3 * MIB])
def test_a_file_whose_size_changes_meanwhile_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    (tmp_path / "image").write_bytes(b"x" * (2 * MIB))
    read = os.read

    def resizing(descriptor: int, length: int) -> bytes:
        os.truncate(tmp_path / "image", size)
        return read(descriptor, length)

    monkeypatch.setattr("os.read", resizing)
    with open(tmp_path / "image", "rb") as file, pytest.raises(ChunksError, match="changed its size"):
        index(file)


def test_an_error_of_the_disk_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "broken")

    broken: BinaryIO = Broken(b"x")
    with pytest.raises(OSError, match="broken"):
        index(broken)


# ------------------------------------------------------------ what a device lacks


@given(layouts, layouts)
def test_missing_are_the_blocks_that_no_other_image_holds(wanted: str, held: str) -> None:
    new, old = of(image(wanted)), of(image(held))
    lacking = [number for number, word in enumerate(wanted) if word != "0" and word not in held]
    runs = new.missing(old)
    assert [number for first, count in runs for number in range(first, first + count)] == lacking
    assert all(sum(before) < after[0] for before, after in pairwise(runs))
    assert new.missing(old.known()) == runs
    assert runs_bytes(runs, new.image_size) == BLOCK_SIZE * len(lacking)


def test_nothing_and_everything_is_missing() -> None:
    found = of(image("0ab0b", b"short"))
    assert found.missing(set()) == found.runs == ((1, 2), (4, 2))
    assert found.missing(found) == ()
    assert found.missing({hash_of("b")}) == ((1, 1), (5, 1))
    assert runs_bytes(found.missing({hash_of("b")}), found.image_size) == BLOCK_SIZE + 5


# ------------------------------------------------------------ hostile bytes


GOOD = of(image("0ab0z", b"tail"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"magic": b"GZIPGZIP"}, "no chunk index"),
        ({"magic": b"EDGECHK\x02"}, "version 2"),
        ({"block_size": 8192}, "8192"),
        ({"block_size": 0}, "blocks of 0"),
        ({"image_size": 0}, "of 0 bytes"),
        ({"image_size": MAX_IMAGE_BYTES + 1}, "not of 1 to"),
        ({"image_size": 2**64 - 1}, "not of 1 to"),
        ({"image_size": 4 * BLOCK_SIZE}, "past an image"),
        ({"run_count": 2**32 - 1}, "4294967295 runs"),
        ({"run_count": 1}, "1 runs"),
        ({"blocks": 2**32 - 1}, "4294967295 blocks"),
        ({"blocks": 3}, "3 blocks"),
        ({"runs": ((1, 2), (3, 2))}, "touches"),
        ({"runs": ((4, 2), (1, 2))}, "touches"),
        ({"runs": ((1, 2), (2, 2))}, "touches"),
        ({"runs": ((1, 4), (7, 0))}, "empty"),
        ({"runs": ((1, 2), (2**32 - 1, 2**32 - 1))}, "past an image"),
        ({"runs": ((1, 2), (4, 1))}, "hold 3 blocks"),
        ({"runs": ((1, 2), (4, 3))}, "past an image"),
        ({"trailing": b"\0"}, "bytes, not those"),
    ],
)
def test_an_index_that_lies_is_refused(change: dict[str, object], reason: str) -> None:
    values: dict[str, object] = {
        "magic": b"EDGECHK\x01",
        "block_size": BLOCK_SIZE,
        "image_size": GOOD.image_size,
        "digest": bytes.fromhex(GOOD.digest[7:]),
        "run_count": len(GOOD.runs),
        "blocks": GOOD.mapped_blocks,
        **change,
    }
    runs = values.pop("runs", GOOD.runs)
    trailing = values.pop("trailing", b"")
    assert isinstance(runs, tuple)
    assert isinstance(trailing, bytes)
    body = b"".join(struct.pack(">II", *run) for run in runs)
    with pytest.raises(ChunksError, match=reason):
        ChunkIndex.from_bytes(HEAD.pack(*values.values()) + body + GOOD.hashes + trailing)


def test_the_form_is_the_documented_one() -> None:
    head = HEAD.pack(b"EDGECHK\x01", 4096, 5 * 4096 + 4, bytes.fromhex(GOOD.digest[7:]), 2, 4)
    runs = struct.pack(">4I", 1, 2, 4, 2)
    hashes = hash_of("a") + hash_of("b") + hash_of("z") + hashlib.sha256(b"tail").digest()
    assert GOOD.to_bytes() == head + runs + hashes


@given(st.data())
def test_bytes_are_refused_or_are_the_one_form_of_an_index(data: st.DataObject) -> None:
    raw = bytearray(GOOD.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 79))
        raw[at] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1, 64, 60, 59, 8, 0]))])
    try:
        found = ChunkIndex.from_bytes(cut)
    except ChunksError:
        return
    assert found.to_bytes() == cut
    assert 0 < found.mapped_bytes <= found.image_size
    assert sum(1 for _ in found.blocks()) == found.mapped_blocks


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for given_bytes in (data, b"EDGECHK\x01" + data):
        with pytest.raises(ChunksError):
            ChunkIndex.from_bytes(given_bytes)


def test_a_digest_binds_nothing_but_is_kept() -> None:
    other = replace(GOOD, digest="sha256:" + "0" * 64)
    assert ChunkIndex.from_bytes(other.to_bytes()) == other
