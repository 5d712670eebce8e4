"""Makes an ext4 file system image from a folder, without root, and the same bytes every time.

`mke2fs -d` copies the folder. What would differ between two runs is fixed: UUID and hash seed come from the caller, the
clock is SOURCE_DATE_EPOCH, no configuration file of the machine is read, files get the build's time where they are newer,
and `debugfs` sets what mke2fs copies and nobody can set in a folder (ctime, atime, fractions of seconds). The result is
checked by e2fsck. What still decides the bytes is the version of e2fsprogs, which the manifest names. Called by
`image.builder`; the data partition (`image.disk_data`) is made the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.image.process import Surroundings, bound, failed, program, run
from reconciler.model.scalars import format_size
from reconciler.ports import TerminalError

_MIB = 1 << 20
_BLOCK, _INODE = 4096, 256
FREE = 16 * _MIB
"""Free space in an image beside what its files need: it is mounted read-only, so only for what is mis-estimated."""
_SMALLEST = 8 * _MIB
_FIRST_INODE = 11
# No journal and no room to grow: a slot is mounted read-only.
_FEATURES = (
    "ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
# Set on every inode, so that neither the builder's user nor its clock is in the image. The *_extra fields are nanoseconds.
_TIMES = ("ctime", "atime")
_NANOSECONDS = ("ctime_extra", "atime_extra", "mtime_extra")
_OWNERS = ("uid", "gid")
Inside = Callable[[Sequence[str]], list[str]]


def tool(name: str) -> str:
    """Path of one of e2fsprogs' programs. TerminalError: not installed."""
    return program(name, "e2fsprogs", "packing the image")


@dataclass(frozen=True, slots=True)
class Census:
    """What a folder holds: data blocks, and inodes without the folder itself (hard links share one)."""

    blocks: int
    inodes: int

    @property
    def size(self) -> int:
        """Bytes of the image: blocks and inodes, one block in 32 for the file system's own and `FREE` bytes, in whole MiB."""
        need = self.blocks * _BLOCK + _table(self.inodes) * _INODE
        return max(_SMALLEST, (need + need // 32 + FREE + _MIB - 1) // _MIB * _MIB)


def census(where: Surroundings, root: Path, inside: Inside) -> Census:
    """Count what is in a folder, as one that sees all of it. TerminalError names the stage `pack`."""
    argv = inside(["find", str(root), "-mindepth", "1", "-printf", "%y %s %D:%i %f\\0"])
    done = run(where, "pack", argv, most=1 << 30, logged=False)
    if done.status != 0:
        raise failed("pack", f"the root cannot be read ({done.last})", where.log)
    seen: dict[bytes, int] = {}
    names = 0
    for entry in done.out.split(b"\0")[:-1]:
        kind, size, inode, name = entry.split(b" ", 3)
        # By apparent size: how much of a file is a hole on the builder's disk must not matter, nor how large its folders are.
        # One block more for a file's extents, and one for a folder or a long link.
        seen[inode] = 1 + -(-int(size) // _BLOCK) if kind == b"f" else 1
        names += 2 * (8 + len(name))
    return Census(sum(seen.values()) + names // _BLOCK, len(seen))


def make_image(
    where: Surroundings,
    root: Path,
    image: Path,
    *,
    uuid: str,
    epoch: int,
    began: int,
    most: int,
    inside: Inside = list,
    keeps_owners: bool = False,
) -> None:
    """Write `root` as an ext4 file system to `image`. `inside` makes a command one that sees the root's owners, which the
    image keeps or (`keeps_owners` false) does not. Files that are newer than `epoch` (seconds), or were written since the
    build `began`, get the time `epoch`. TerminalError names the stage `pack`: more than `most` bytes would be needed, too.
    """
    clock = surroundings(where.scratch, _FEATURES, epoch)
    argv = [
        "find",
        str(root),
        "-newermt",
        f"@{min(epoch, began - 1)}",
        "-exec",
        "touch",
        "--no-dereference",
        f"--date=@{epoch}",
        "{}",
        "+",
    ]
    touched = run(where, "pack", inside(argv))
    if touched.status != 0:
        raise failed("pack", f"times cannot be set ({touched.last})", where.log)
    counted = census(where, root, inside)
    must_fit(counted.size, most, where.log)
    # fmt: off
    argv = [
        tool("mke2fs"), "-q", "-F", "-t", "ext4", "-O", f"none,{_FEATURES}", "-b", str(_BLOCK), "-I", str(_INODE),
        "-N", str(_table(counted.inodes)), "-m", "0", "-L", "edge-root", "-U", uuid,
        "-E", f"hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,nodiscard",
        "-d", str(root), str(image), f"{counted.size // 1024}k",
    ]
    # fmt: on
    made = run(where, "pack", inside(argv), clock)
    if made.status != 0:
        raise failed("pack", f"mke2fs: {made.last}", where.log)
    _normalise(where, image, counted.inodes, epoch, clock, keeps_owners=keeps_owners)
    checked = run(where, "pack", bound([tool("e2fsck"), "-fn", str(image)]), clock)
    if checked.status != 0:
        raise failed("pack", f"e2fsck finds faults in the image: {checked.last}", where.log)


def must_fit(size: int, most: int, see: Path) -> None:
    """TerminalError: an image of so many bytes does not fit into a slot of `most`. `see` is where to look."""
    if size > most:
        raise TerminalError(
            f"stage 'pack' of the build failed: the image has {format_size(size)}, and a slot has {format_size(most)}",
            needed_for="building the image",
            remedy="leave packages or files out of the recipe, or have larger slots: builder.slotSize (`image build "
            f"--slot-size`) and the install disks' --slot-size, on devices that are installed anew; see {see}",
        )


def surroundings(scratch: Path, features: str, epoch: int) -> dict[str, str]:
    """The environment in which e2fsprogs see the clock at `epoch` and, in place of the machine's /etc/mke2fs.conf, a
    configuration with these features, which is written into `scratch`."""
    text = f"[defaults]\n\tbase_features = {features}\n[fs_types]\n\text4 = {{\n\t\tfeatures = {features}\n\t}}\n"
    config = scratch / "mke2fs.conf"
    config.write_text(text, encoding="ascii")
    return {"E2FSPROGS_FAKE_TIME": str(epoch), "SOURCE_DATE_EPOCH": str(epoch), "MKE2FS_CONFIG": str(config)}


def inode_settings(count: int, epoch: int, times: Sequence[str], zeros: Sequence[str]) -> Iterator[str]:
    """debugfs' commands that set fields of the root folder, of lost+found, and of the `count` inodes that mke2fs handed out
    in a row: `times` to `epoch`, `zeros` to 0."""
    for inode in (2, *range(_FIRST_INODE, _FIRST_INODE + count + 1)):
        yield from (f"sif <{inode}> {field} @{epoch}\n" for field in times)
        yield from (f"sif <{inode}> {field} 0\n" for field in zeros)


def _table(inodes: int) -> int:
    """How many inodes the image gets: those in use, the reserved ones, and an eighth more."""
    return max(256, (inodes + inodes // 8 + _FIRST_INODE + 255) // 256 * 256)


def _normalise(
    where: Surroundings, image: Path, count: int, epoch: int, clock: dict[str, str], *, keeps_owners: bool
) -> None:
    """Set the times (and owners) of the root folder, of lost+found, and of every inode that mke2fs handed out in a row."""
    zeros = _NANOSECONDS if keeps_owners else (*_NANOSECONDS, *_OWNERS)
    script = where.scratch / "inodes"
    with script.open("w", encoding="ascii") as out:
        # mke2fs copies mtime, which `touch` has bounded, and takes the fake clock for lost+found's.
        out.writelines(inode_settings(count, epoch, _TIMES, zeros))
    argv = bound([tool("debugfs"), "-w", "-f", str(script), str(image)])
    done = run(where, "pack", argv, clock, most=1 << 30, logged=False)
    refused = re.search(rb"^(?!debugfs: sif <)(?!debugfs *$).+$", done.out, re.MULTILINE)
    if done.status != 0 or refused is not None:
        said = refused.group().decode("utf-8", "replace") if refused else done.last
        raise failed("pack", f"debugfs: {said}", where.log)
    used = run(where, "pack", bound([tool("debugfs"), "-R", "stats -h", str(image)]), clock).out
    total, free = (re.search(rb"^%s: *(\d+)" % name, used, re.MULTILINE) for name in (b"Inode count", b"Free inodes"))
    if total is None or free is None or int(total[1]) - int(free[1]) != _FIRST_INODE + count:
        raise failed("pack", "the image holds another number of files than its folder", where.log)
