"""Install disks under the hands of a test: copies, what the ESP says, and what a slot holds, without root."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from reconciler.image.disk import Disk, Partition
from reconciler.image.disk_boot import BACKUP, ENVIRONMENT
from reconciler.protocol import grubenv
from tests.support.system import need

CHUNK = 1 << 20


def copy(disk: Disk, to: Path) -> Disk:
    """A disk of its own for a machine: the same bytes, holes left out."""
    to.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(disk.path), str(to)], check=True)
    to.chmod(0o600)
    return replace(disk, path=to)


def environment(disk: Disk, name: str = ENVIRONMENT) -> dict[str, str]:
    """The variables of a GRUB environment on the ESP."""
    return dict(re.findall(r"^(\w+)=(.*)$", read_esp(disk, name).decode("ascii"), re.MULTILINE))


def set_environment(disk: Disk, name: str = ENVIRONMENT, /, *, data: bytes | None = None, **variables: str) -> None:
    """Write variables (or any bytes) to a GRUB environment on the ESP, as the device's agent would."""
    write_esp(disk, name, grubenv.encode(variables) if data is None else data)


def read_esp(disk: Disk, name: str) -> bytes:
    """A file of the ESP."""
    return _mtools("mtype", disk, f"::/{name}")


def write_esp(disk: Disk, name: str, data: bytes) -> None:
    """Put a file on the ESP, over one of that name."""
    source = disk.path.with_name("esp-file")
    source.write_bytes(data)
    _mtools("mcopy", disk, "-o", str(source), f"::/{name}")
    source.unlink()


def remove_environment(disk: Disk, *names: str) -> None:
    """Take files off the ESP."""
    for name in names or (ENVIRONMENT, BACKUP):
        _mtools("mdel", disk, f"::/{name}")


def _mtools(program: str, disk: Disk, *arguments: str) -> bytes:
    argv = [need(program, "mtools"), "-i", f"{disk.path}@@{disk.layout.esp.start}", *arguments]
    surroundings = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    return subprocess.run(argv, env=surroundings, capture_output=True, check=True).stdout


def write_slot(disk: Disk, slot: Partition, image: Path) -> None:
    """Write an image to a slot."""
    with image.open("rb") as source, disk.path.open("r+b") as file:
        file.seek(slot.start)
        shutil.copyfileobj(source, file, CHUNK)


def wipe_slot(disk: Disk, slot: Partition) -> None:
    """Leave a slot without a file system."""
    with disk.path.open("r+b") as file:
        file.seek(slot.start)
        file.write(bytes(CHUNK))


def digest_of(disk: Disk, slot: Partition, size: int) -> str:
    """sha256 (64 hex digits) of the first `size` bytes of a slot."""
    digest = hashlib.sha256()
    with disk.path.open("rb") as file:
        file.seek(slot.start)
        while size > 0 and (data := file.read(min(CHUNK, size))):
            digest.update(data)
            size -= len(data)
    return digest.hexdigest()


def file_of(image: Path, path: str) -> bytes:
    """A file of an ext4 image, of which `path` is the name itself, not a link."""
    out = subprocess.run(
        [need("debugfs", "e2fsprogs"), "-R", f"cat {path}", str(image)], capture_output=True, check=True
    )
    assert out.stdout, f"{image} holds no {path}"
    return out.stdout


def names_in(image: Path, folder: str) -> list[str]:
    """Names in a folder of an ext4 image."""
    out = subprocess.run(
        [need("debugfs", "e2fsprogs"), "-R", f"ls -p {folder}", str(image)], capture_output=True, text=True, check=True
    ).stdout
    return [line.split("/")[5] for line in out.splitlines() if line.startswith("/")]


def change(disk: Disk, slot: Partition, *commands: str, **files: bytes) -> None:
    """Change a slot's ext4 file system by debugfs's commands; `files` are there under their names to be written."""
    folder = disk.path.with_name("changes")
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "commands").write_text("".join(f"{command}\n" for command in commands))
    argv = [need("debugfs", "e2fsprogs"), "-w", "-f", "commands", f"{disk.path}?offset={slot.start}"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True)
    # It ends with 0 whatever happened; its own name and version are all that it may say there.
    said = [line for line in done.stderr.splitlines() if not line.startswith("debugfs ")]
    assert not said, said
    shutil.rmtree(folder)
