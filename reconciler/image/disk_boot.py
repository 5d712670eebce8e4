"""The ESP of an install disk: signed boot loader out of the slot image, grub.cfg, and the variables that choose a slot.

Shim and GRUB are those that the image holds, with their distribution's signatures: nothing of the builder's machine
boots a device, and Secure Boot can stay on. grub.cfg is written once and never edited; what a device's agent edits is
`EFI/edge/grubenv`. What the variables mean, and in which order they are written: docs/reference/boot.md. Called by
`image.disk`. Needs debugfs, mkfs.vfat and mtools; no root.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.image.disk_slot import program
from reconciler.image.process import PATH
from reconciler.ports import TerminalError
from reconciler.protocol import grubenv

SHIM = "/usr/lib/shim/shimx64.efi.signed"
GRUB = "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
KERNEL, INITRD = "/boot/vmlinuz", "/boot/initrd.img"
ENVIRONMENT, BACKUP = "EFI/edge/grubenv", "EFI/edge/grubenv.bak"
_MAX_LINKS = 16
_PURPOSE = "the boot loader of an install disk"

GRUB_CFG = r"""# Chooses the slot to boot. Written by `reconciler image disk`, never edited: variables stand in /EFI/edge/grubenv.
#   edge_default  a or b: the slot that is good
#   edge_trial    a or b: the slot to try once, while edge_tries is 1
#   edge_tries    1, or 0: the try is spent
# edge.trial=1 on the kernel's command line tells initrd and system that nobody has found this slot good yet.
# grubenv.bak holds edge_default again, for a grubenv that a power cut has torn.

# A user that nobody is: without it whoever holds a keyboard edits the kernel's command line and is root.
set superusers="nobody"
set pager=0
set gfxpayload=keep
set esp="$root"
regexp --set=1:disk '^([^,]+),' "$root"

set edge_default=""
set edge_trial=""
set edge_tries=""
load_env --file "($esp)/EFI/edge/grubenv" edge_default edge_trial edge_tries
if [ "$edge_default" != "a" -a "$edge_default" != "b" ]; then
  echo "edge: grubenv is not usable, taking grubenv.bak"
  set edge_trial=""
  set edge_tries=""
  load_env --file "($esp)/EFI/edge/grubenv.bak" edge_default
fi
if [ "$edge_default" != "a" -a "$edge_default" != "b" ]; then
  echo "edge: grubenv.bak is not usable, taking slot a"
  set edge_default="a"
fi

function boot_slot {
  if [ "$1" = "b" ]; then set part="gpt3"; else set part="gpt2"; fi
  echo "edge: slot $1"
  if linux "($disk,$part)/boot/vmlinuz" root=PARTLABEL=root-$1 ro edge.slot=$1 console=tty0 console=ttyS0,115200 panic=5 $2; then
    if initrd "($disk,$part)/boot/initrd.img"; then
      boot
    fi
  fi
  echo "edge: slot $1 does not start"
}

if [ "$edge_tries" = "1" ]; then
  if [ "$edge_trial" = "a" -o "$edge_trial" = "b" ]; then
    # Spent before the kernel starts. What cannot be saved is not tried: it would be tried for ever.
    set edge_tries="0"
    if save_env --file "($esp)/EFI/edge/grubenv" edge_default edge_trial edge_tries; then
      echo "edge: trial of slot $edge_trial"
      boot_slot "$edge_trial" edge.trial=1
    fi
  fi
fi

boot_slot "$edge_default"
if [ "$edge_default" = "b" ]; then boot_slot a; else boot_slot b; fi

echo "edge: neither slot starts; again in 10 s"
sleep 10
reboot
"""


@dataclass(frozen=True, slots=True)
class BootLoader:
    """Shim and GRUB as the image holds them; `vendor` is the folder below EFI/ where this GRUB looks for grub.cfg."""

    shim: bytes
    grub: bytes
    vendor: str

    def files(self) -> dict[str, bytes]:
        """Path on the ESP → bytes."""
        environment = grubenv.encode({"edge_default": "a", "edge_trial": "", "edge_tries": "0"})
        return {
            "EFI/BOOT/BOOTX64.EFI": self.shim,
            "EFI/BOOT/grubx64.efi": self.grub,
            f"EFI/{self.vendor}/grub.cfg": GRUB_CFG.encode("ascii"),
            ENVIRONMENT: environment,
            BACKUP: grubenv.encode({"edge_default": "a"}),
        }


def read_loader(disk: Path, at: int) -> BootLoader:
    """Take the boot loader out of the slot image that begins at byte `at` of `disk`, and see that it can be booted.

    Writes files beside `disk` for a moment. TerminalError: the image lacks shim, GRUB, kernel or initrd, or its GRUB
    names no folder for grub.cfg.
    """
    slot = _Slot(disk.parent, f"{disk.name}?offset={at}")
    for path, package in ((KERNEL, "a kernel"), (INITRD, "an initrd (initramfs-tools)")):
        _resolve(slot, path, package)
    shim = _take(slot, SHIM, "shim-signed")
    grub = _take(slot, GRUB, "grub-efi-amd64-signed")
    found = set(re.findall(rb"/EFI/(debian|ubuntu)\0", grub))
    if len(found) != 1:
        raise TerminalError(
            f"{GRUB} in the image names no folder that is known for its grub.cfg",
            needed_for=_PURPOSE,
            remedy="use the grub-efi-amd64-signed of Debian or Ubuntu",
        )
    return BootLoader(shim, grub, found.pop().decode("ascii"))


@dataclass(frozen=True, slots=True)
class _Slot:
    """The slot image as debugfs takes it: a name with an offset, in its folder, so that no path needs quoting."""

    folder: Path
    name: str

    def debugfs(self, command: str) -> str:
        argv = [program("debugfs", "e2fsprogs"), "-R", command, self.name]
        return call(argv, {}, self.folder).stdout.decode("utf-8", "replace")


def read_file(disk: Path, at: int, path: str) -> bytes | None:
    """A regular file of the slot image that begins at byte `at` of `disk`, symlinks followed; None: there is none.

    Writes a file beside `disk` for a moment.
    """
    slot = _Slot(disk.parent, f"{disk.name}?offset={at}")
    inode = _find(slot, path)
    return _dump(slot, inode) if inode is not None else None


def _dump(slot: _Slot, inode: str) -> bytes:
    slot.debugfs(f"dump {inode} taken")
    to = slot.folder / "taken"
    data = to.read_bytes() if to.is_file() else b""
    to.unlink(missing_ok=True)
    return data


def _take(slot: _Slot, path: str, package: str) -> bytes:
    data = _dump(slot, _resolve(slot, path, package))
    if not data.startswith(b"MZ"):
        raise TerminalError(
            f"{path} in the image is no EFI program",
            needed_for=_PURPOSE,
            remedy=f"build the image with {package} again",
        )
    return data


def _resolve(slot: _Slot, path: str, package: str) -> str:
    """`<inode>` of a regular file, symlinks followed within the image. TerminalError: not there."""
    inode = _find(slot, path)
    if inode is None:
        raise TerminalError(
            f"the image holds no {path}", needed_for=_PURPOSE, remedy=f"add {package} to the recipe, and build it again"
        )
    return inode


def _find(slot: _Slot, path: str) -> str | None:
    now = path
    for _ in range(_MAX_LINKS):
        said, link = "", None
        # Each folder on the way may be a link too (/lib, in a merged /usr).
        parts = now.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            here = "/" + "/".join(parts[:count])
            said = slot.debugfs(f'stat "{here}"')
            target = re.search(r'^Fast link dest: "(.*)"$', said, re.MULTILINE)
            if target is not None:
                link = posixpath.join(posixpath.dirname(here), target[1], *parts[count:])
                break
        if link is None:
            inode = re.search(r"^Inode: (\d+)\s+Type: regular\b", said, re.MULTILINE)
            return f"<{inode[1]}>" if inode is not None else None
        now = posixpath.normpath(link)
    return None


def make_esp(image: Path, size: int, files: Mapping[str, bytes], *, volume: int, epoch: int) -> None:
    """Write a FAT32 file system of `size` bytes with `files` to the new file `image`, the same bytes every time.

    Writes files beside `image` for a moment. TerminalError: a program is missing, or failed.
    """
    folder = image.parent
    with image.open("xb") as file:
        file.truncate(size)
    clock = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC", "MTOOLSRC": os.devnull, "MTOOLS_SKIP_CHECK": "1"}
    # Clusters of 2 KiB, 128 Ki of them: FAT32 begins at 65525.
    fat = [program("mkfs.vfat", "dosfstools"), "--invariant", "-F", "32", "-S", "512", "-s", "4", "-n", "EDGE-ESP"]
    must([*fat, "-i", f"{volume:08x}", image.name], clock, folder)
    for name in sorted({str(parent) for path in files for parent in Path(path).parents if str(parent) != "."}):
        must([program("mmd", "mtools"), "-i", image.name, f"::/{name}"], clock, folder)
    for path, data in sorted(files.items()):
        source = folder / "esp-file"
        source.write_bytes(data)
        must([program("mcopy", "mtools"), "-i", image.name, source.name, f"::/{path}"], clock, folder)
        source.unlink()


def call(argv: list[str], env: Mapping[str, str], cwd: Path, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a program in an environment of our own, `text` its standard input; whatever its status."""
    return subprocess.run(
        argv, env={"PATH": PATH, "LC_ALL": "C", **env}, cwd=cwd, input=text, capture_output=True, check=False
    )


def must(argv: list[str], env: Mapping[str, str], cwd: Path, text: bytes = b"") -> None:
    """Like `call`. TerminalError: it failed."""
    done = call(argv, env, cwd, text)
    if done.returncode != 0:
        said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        raise TerminalError(
            f"{Path(argv[0]).name} failed: {said[-1][:200] if said else f'status {done.returncode}'}",
            needed_for="making an install disk",
            remedy="look for a full disk; then run it again",
        )
