"""The ext4 reader against what was put into the image, and e2fsprogs' own count: names, contents, holes, both block maps."""

from __future__ import annotations

import os
import random
import re
import stat
from pathlib import Path

import pytest

from reconciler.image.gate_ext4 import JOURNAL, RESIZE, ROOT, Entry, Unreadable, Volume
from tests.support.gate_images import File, Folder, Hard, Link, Planted, debugfs, make_image

pytestmark = pytest.mark.system
EXT2 = ("-b", "1024", "-O", "none,filetype,sparse_super,resize_inode")  # block maps instead of extents
WITH_JOURNAL = (
    "-b",
    "4096",
    "-O",
    "none,has_journal,extent,filetype,64bit,flex_bg,sparse_super,metadata_csum,resize_inode",
)
ODD = random.Random(7)
TREE: dict[str | bytes, Planted] = {
    "a/plain": "hello\n",
    "a/empty": "",
    "a/big": ODD.randbytes(3_500_000),
    "a/sparse": File(b"\0" * 70_000 + b"end", size=2_000_000),
    "a/short": Link("plain"),
    "a/long": Link("x" * 200),
    "a/same": Hard("a/plain"),
    b"a/\xff\xfe\n\t \x01": b"odd name",
    "b/c/d/e": Folder(0o700),
    **{f"many/{number:05}-{'n' * 200}": "" for number in range(300)},
}


def read(image: Path) -> dict[bytes, Entry]:
    with Volume(image) as volume:
        return {entry.path: entry for entry in volume.entries()}


@pytest.mark.parametrize("options", [(), EXT2, WITH_JOURNAL], ids=["extents", "maps", "journal"])
def test_names_modes_and_contents_are_those_that_were_put_in(options: tuple[str, ...], tmp_path: Path) -> None:
    image = make_image(tmp_path, TREE, options=(*options, "-N", "512") if options else ("-N", "512"), size="16m")
    there: dict[bytes, os.stat_result] = {}
    top = os.fsencode(tmp_path / "root")
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            there[os.path.relpath(path, top)] = os.lstat(path)
    with Volume(image) as volume:
        entries = {entry.path: entry for entry in volume.entries()}
        assert set(entries) - {b"lost+found"} == set(there)
        for path, info in there.items():
            inode = entries[path].inode
            assert inode.mode == info.st_mode
            if stat.S_ISREG(info.st_mode):
                content = (tmp_path / "root" / os.fsdecode(path)).read_bytes()
                assert inode.size == len(content) and volume.read(inode, len(content) + 1) == content
                assert volume.read(inode, 3) == content[:3]
            elif stat.S_ISLNK(info.st_mode):
                assert volume.read(inode) == os.readlink(os.path.join(top, path))
        assert entries[b"a/same"].inode.number == entries[b"a/plain"].inode.number
        assert not volume.slack


@pytest.mark.parametrize("options", [("-N", "512"), (*EXT2, "-N", "512"), (*WITH_JOURNAL, "-N", "512")])
def test_what_is_free_is_what_e2fsprogs_calls_free(options: tuple[str, ...], tmp_path: Path) -> None:
    image = make_image(tmp_path, TREE, options=options, size="16m")
    stats = debugfs(image, "stats")
    free = re.search(r"^Free blocks: +(\d+)", stats, re.MULTILINE)
    assert free is not None
    with Volume(image) as volume:
        for entry in volume.entries():
            volume.runs(entry.inode)
        volume.runs(volume.inode(ROOT))
        for number in (RESIZE, JOURNAL):
            if volume.inode(number).links:
                volume.runs(volume.inode(number))
        assert volume.used.count(0) == int(free[1])


def test_holes_are_not_read_but_filled_in(tmp_path: Path) -> None:
    image = make_image(tmp_path, {"x": File(b"a" * 5000, size=40_000_000)}, size="8m")
    with Volume(image) as volume:
        (entry,) = (entry for entry in volume.entries() if entry.path == b"x")
        assert sum(len(data) for _, data in volume.stream(entry.inode)) <= 8192
        assert volume.read(entry.inode, 6000) == b"a" * 5000 + bytes(1000)


def test_an_offset_in_a_file_is_read_as_the_file_system_there(tmp_path: Path) -> None:
    image = make_image(tmp_path, {"x": "y"})
    moved = tmp_path / "moved"
    moved.write_bytes(b"\1" * 4096 + image.read_bytes() + b"\1" * 4096)
    with Volume(moved, 4096) as volume:
        assert b"x" in {entry.path for entry in volume.entries()}
        assert list(volume.around()) == []


@pytest.mark.parametrize("feature", ["inline_data", "encrypt", "meta_bg", "bigalloc"])
def test_a_feature_that_is_not_known_is_said_and_not_passed(feature: str, tmp_path: Path) -> None:
    image = make_image(tmp_path, {"x": "y"})
    bits = {
        "inline_data": (0x60, 0x8000),
        "encrypt": (0x60, 0x10000),
        "meta_bg": (0x60, 0x10),
        "bigalloc": (0x64, 0x200),
    }
    at, bit = bits[feature]
    data = bytearray(image.read_bytes())
    word = int.from_bytes(data[1024 + at : 1028 + at], "little") | bit
    data[1024 + at : 1028 + at] = word.to_bytes(4, "little")
    image.write_bytes(bytes(data))
    with pytest.raises(Unreadable, match=feature):
        Volume(image)


def test_a_damaged_image_ends_in_a_refusal_and_never_in_anything_else(tmp_path: Path) -> None:
    """Bytes turned over at random: read, or `Unreadable`. No other error, no loop, no memory without end."""
    image = make_image(tmp_path, {"a/b": "c" * 9000, "d": Link("a/b"), "e": Link("f" * 100)}, size="8m")
    whole, spoilt = image.read_bytes(), tmp_path / "spoilt"
    drawn = random.Random(3)
    interesting = [at for at in range(len(whole)) if whole[at]]
    spoilt.write_bytes(whole)
    for _ in range(200):
        places = [drawn.choice(interesting) for _ in range(drawn.randint(1, 4))]
        with spoilt.open("r+b") as file:
            for at in places:
                os.pwrite(file.fileno(), bytes([drawn.randrange(256)]), at)
        try:
            with Volume(spoilt) as volume:
                for entry in volume.entries():
                    volume.xattrs(entry.inode)
                    volume.read(entry.inode, 1 << 20)
                volume.unused_inodes(set())
        except Unreadable:
            pass
        with spoilt.open("r+b") as file:
            for at in places:
                os.pwrite(file.fileno(), whole[at : at + 1], at)
    (tmp_path / "short").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Unreadable, match="cut off"):
        Volume(tmp_path / "short")
