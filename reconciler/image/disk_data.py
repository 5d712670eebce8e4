"""The data partition of an install disk: an empty ext4 file system, or one with a site's seed and a device's enrolment.

Decides what may be a seed. The file system's features are those that both variants' e2fsprogs know, and it can grow
while it is mounted: the image does so at its first boot. Everything else below /data the image makes by itself. The
same bytes every time. Called by `image.disk` and, to read a seed, by `reconciler image disk`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reconciler.image.disk_boot import must
from reconciler.image.disk_slot import program
from reconciler.image.ext4 import inode_settings, surroundings
from reconciler.ports import TerminalError
from reconciler.repo.render import is_masked

LABEL = "EDGE-DATA"
# What cloud-init's NoCloud reads, and the configuration's digest, which the agent reports.
REQUIRED, OPTIONAL = ("meta-data", "user-data"), ("network-config", "vendor-data", "digest")
MAX_SEED_BYTES = 1 << 20
# On the data partition; a device sees the second as /var/lib/edge-agent.
SEED, ENROLMENT = "cidata", "edge"
_FEATURES = (
    "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
_TIMES = ("ctime", "atime", "mtime", "crtime")
_ZEROS = ("uid", "gid", "ctime_extra", "atime_extra", "mtime_extra", "crtime_extra")


def read_seed(folder: Path) -> dict[str, bytes]:
    """A folder's seed, name → bytes. TerminalError: a file is missing, or would not be read by anything."""
    if not folder.is_dir():
        raise _wrong(f"{folder} is no folder", "name the folder that `reconciler site render SITE --output` wrote")
    names = sorted(path.name for path in folder.iterdir())
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise _wrong(f"{folder} holds no {missing[0]}", "write it with `reconciler site render SITE --output`")
    foreign = [name for name in names if name not in (*REQUIRED, *OPTIONAL)]
    if foreign:
        raise _wrong(
            f"{folder} holds {foreign[0]!r}, which cloud-init would not read",
            f"leave in it {', '.join((*REQUIRED, *OPTIONAL))}",
        )
    found = {}
    for name in names:
        path = folder / name
        if not path.is_file() or path.stat().st_size > MAX_SEED_BYTES:
            raise _wrong(f"{path} is no file of at most {MAX_SEED_BYTES >> 20} MiB", "render the seed again")
        found[name] = path.read_bytes()
    if not found["user-data"].startswith(b"#cloud-config"):
        raise _wrong(f"{folder / 'user-data'} does not begin with #cloud-config", "render the seed again")
    if b"instance-id:" not in found["meta-data"]:
        raise _wrong(f"{folder / 'meta-data'} has no instance-id, so cloud-init would never run", "render it again")
    if is_masked(found["user-data"]):
        raise _wrong(
            f"{folder / 'user-data'} names a secret where its value should stand",
            "render it with --secrets or --config, which say where the values are",
        )
    return found


def make_data(image: Path, size: int, folders: Mapping[str, Mapping[str, bytes]], *, uuid: str, epoch: int) -> None:
    """Write an ext4 file system of `size` bytes to the new file `image`, with these folders: name → file → bytes.

    Everything belongs to root, and nobody else may look in. Writes beside `image`. TerminalError: mke2fs or debugfs
    failed.
    """
    scratch = image.parent
    tree = scratch / "data"
    tree.mkdir(mode=0o755)
    tree.chmod(0o755)
    count = 0
    for folder, files in sorted(folders.items()):
        if not files:
            continue
        (tree / folder).mkdir(mode=0o700)
        for name, content in sorted(files.items()):
            path = tree / folder / name
            path.touch(mode=0o600)
            path.write_bytes(content)
        count += 1 + len(files)
    clock = surroundings(scratch, _FEATURES, epoch)
    # fmt: off
    argv = [
        program("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", "-O", f"none,{_FEATURES}", "-b", "4096", "-I", "256", "-m", "0",
        "-L", LABEL, "-U", uuid, "-E", f"hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard",
        "-d", tree.name, image.name, f"{size >> 10}k",
    ]
    # fmt: on
    must(argv, clock, scratch)
    script = scratch / "inodes"
    script.write_text("".join(inode_settings(count, epoch, _TIMES, _ZEROS)), encoding="ascii")
    must([program("debugfs", "e2fsprogs"), "-w", "-f", script.name, image.name], clock, scratch)
    must([program("e2fsck", "e2fsprogs"), "-fn", image.name], clock, scratch)


def _wrong(what: str, remedy: str) -> TerminalError:
    return TerminalError(what, needed_for="the seed of an install disk", remedy=remedy)
