"""Makes an ext4 file system image from a folder, without root, and the same bytes every time.

`mke2fs -d` copies the folder. What would differ between two runs is fixed: UUID and hash seed come from the caller, the
clock is SOURCE_DATE_EPOCH, no configuration file of the machine is read, every file belongs to root, and `debugfs` sets
the four times of every inode (mke2fs copies ctime and atime from the folder). The result is checked by e2fsck. What
still decides the bytes is the version of e2fsprogs, which the manifest names. Called by `image.builder`.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

from reconciler.image.process import PATH, Surroundings, failed, run
from reconciler.ports import TerminalError

_MIB = 1 << 20
_BLOCK = 4096
_SMALLEST = 8 * _MIB
_FIRST_INODE = 11
_FEATURES = (
    "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
# In place of the machine's /etc/mke2fs.conf.
_CONFIG = f"[defaults]\n\tbase_features = {_FEATURES}\n[fs_types]\n\text4 = {{\n\t\tfeatures = {_FEATURES}\n\t}}\n"
# Set on every inode, so that neither the builder's user nor its clock is in the image. The *_extra fields are nanoseconds.
_TIMES = ("ctime", "atime", "mtime", "crtime")
_ZERO = ("uid", "gid", "ctime_extra", "atime_extra", "mtime_extra", "crtime_extra")


def tool(name: str) -> str:
    """Path of one of e2fsprogs' programs. TerminalError: not installed."""
    path = shutil.which(name, path=PATH)
    if path is None:
        raise TerminalError(
            f"{name} is not installed", needed_for="packing the image", remedy="apt-get install e2fsprogs"
        )
    return path


def image_size(root: Path) -> int:
    """Bytes of the image for a folder: its blocks and inodes, half as much again, the journal, in whole MiB, 8 at
    least.
    """
    blocks = inodes = 0
    for folder, folders, files in os.walk(root):
        inodes += len(folders) + len(files)
        for name in (*folders, *files):
            info = (Path(folder) / name).lstat()
            # By apparent size: how much of a file is a hole on the builder's disk must not matter.
            blocks += 1 + (info.st_size + _BLOCK - 1) // _BLOCK if stat.S_ISREG(info.st_mode) else 1
    need = (blocks * _BLOCK + inodes * 256) * 3 // 2
    need += max(6 * _MIB, need // 8)  # mke2fs makes a journal of 4 MiB in a small image, and a larger one as it grows
    return max(_SMALLEST, (need + _MIB - 1) // _MIB * _MIB)


def make_image(where: Surroundings, root: Path, image: Path, *, size: int, uuid: str, epoch: int) -> None:
    """Write `root` as an ext4 file system of `size` bytes to `image`. TerminalError names the stage `pack`."""
    clock = {
        "E2FSPROGS_FAKE_TIME": str(epoch),
        "SOURCE_DATE_EPOCH": str(epoch),
        "MKE2FS_CONFIG": str(where.scratch / "mke2fs.conf"),
    }
    (where.scratch / "mke2fs.conf").write_text(_CONFIG, encoding="ascii")
    count = _inodes(root)
    inodes = max(256, (count * 2 + 255) // 256 * 256)
    # fmt: off
    argv = [
        tool("mke2fs"), "-q", "-F", "-t", "ext4", "-O", f"none,{_FEATURES}", "-b", str(_BLOCK), "-I", "256", "-N", str(inodes),
        "-m", "0", "-L", "edge-root", "-U", uuid,
        "-E", f"hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard",
        "-d", str(root), str(image), f"{size // 1024}k",
    ]
    # fmt: on
    made = run(where, "pack", argv, clock)
    if made.status != 0:
        raise failed("pack", f"mke2fs: {made.last}", where.log)
    _normalise(where, image, count, epoch, clock)
    checked = run(where, "pack", [tool("e2fsck"), "-fn", str(image)], clock)
    if checked.status != 0:
        raise failed("pack", f"e2fsck finds faults in the image: {checked.last}", where.log)


def _inodes(root: Path) -> int:
    """How many inodes the folder's entries have; hard links share one."""
    seen = set()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            info = (Path(folder) / name).lstat()
            seen.add((info.st_dev, info.st_ino))
    return len(seen)


def _normalise(where: Surroundings, image: Path, count: int, epoch: int, clock: dict[str, str]) -> None:
    """Set owner and times of the root folder, of lost+found, and of every inode that mke2fs handed out in a row."""
    lines = []
    for inode in (2, *range(_FIRST_INODE, _FIRST_INODE + count + 1)):
        lines += [f"sif <{inode}> {field} @{epoch}" for field in _TIMES]
        lines += [f"sif <{inode}> {field} 0" for field in _ZERO]
    script = where.scratch / "inodes"
    script.write_text("\n".join(lines) + "\n", encoding="ascii")
    done = run(where, "pack", [tool("debugfs"), "-w", "-f", str(script), str(image)], clock)
    refused = re.search(rb"^(?!debugfs: sif <)(?!debugfs *$).+$", done.out, re.MULTILINE)
    if done.status != 0 or refused is not None:
        said = refused.group().decode("utf-8", "replace") if refused else done.last
        raise failed("pack", f"debugfs: {said}", where.log)
    used = run(where, "pack", [tool("debugfs"), "-R", "stats", str(image)], clock).out
    total, free = (re.search(rb"^%s: *(\d+)" % name, used, re.MULTILINE) for name in (b"Inode count", b"Free inodes"))
    if total is None or free is None or int(total[1]) - int(free[1]) != _FIRST_INODE + count:
        raise failed("pack", "the image holds another number of files than its folder", where.log)
