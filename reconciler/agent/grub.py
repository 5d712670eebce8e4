"""GRUB's variables on the ESP: which slot boots by default, and which is tried once.

Python 3.10, standard library only: runs as root on a device. Keeps `bootloader.BootLoader` by the rules of
docs/reference/boot.md. FAT knows no atomic replacement, so two files hold the default, and one of them is whole and right
at every instant: `grubenv.bak` is put right before `grubenv` is touched, and each is on the disk before the next step. A
file that has its 1024 bytes is written in place, over the same sectors, so that neither the allocation table nor a size
changes; all that is said stands in its first sector. Called by `partitioned`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from reconciler.agent.disk import Disk
from reconciler.agent.hardware import BootFlags, HardwareError
from reconciler.protocol import grubenv

FOLDER = Path("EFI/edge")
ENVIRONMENT, BACKUP = "grubenv", "grubenv.bak"
SLOTS = ("a", "b")
FIRST = "a"
"""What GRUB takes where neither file names a default."""
_READ_AT_MOST = 64 * 1024
_WHERE = "the boot loader's variables"
_REMEDIES = {
    errno.EROFS: "; it is mounted read-only, as after an error: check it with fsck.vfat, and restart edge-esp.service",
    errno.ENOSPC: "; the ESP is full: remove what does not belong there",
    errno.EIO: "; the disk refuses it: look at its SMART data, and replace it",
}


def mounted(esp: Path) -> None:
    """HardwareError: nothing is mounted at `esp`."""
    if not os.path.ismount(esp):
        raise HardwareError(
            f"the ESP is not mounted at {esp}, and {_WHERE} are on it; see `systemctl status edge-esp.service`"
        )


class GrubLoader:
    """`bootloader.BootLoader` for GRUB with the grub.cfg of `reconciler image disk`."""

    def __init__(self, esp: Path, disk: Disk, *, check: Callable[[Path], None] = mounted) -> None:
        """`esp` is where the ESP is mounted; `check` is asked before each use, so that nothing is ever written to the
        folder below a mount that is missing. A folder serves as well, with a `check` that says nothing."""
        self._esp, self._disk, self._check = esp, disk, check

    def flags(self) -> BootFlags:
        variables, default = self._variables()
        trial = variables.get("edge_trial")
        if trial not in SLOTS:
            return BootFlags(default)
        return BootFlags(default, trial, 1 if variables.get("edge_tries") == "1" else 0)

    def arm(self, slot: str) -> None:
        _known(slot)
        flags = self.flags()
        if flags.trial not in (None, slot):
            # Torn between two trials, the file could arm the one that is over.
            self._put(flags.default)
        self._put(flags.default, slot)

    def disarm(self) -> None:
        self._put(self.flags().default)

    def mark_good(self, slot: str) -> None:
        _known(slot)
        # Where `grubenv` is torn already, both may be for a moment; GRUB then takes one of two slots that are both good.
        self._put(slot)

    def mend(self, running: str | None = None) -> None:
        variables, default = self._variables()
        if not os.access(self._esp, os.W_OK):
            raise HardwareError(f"the ESP at {self._esp} cannot be written{_REMEDIES[errno.EROFS]}")
        if variables:
            # `grubenv` is in force, an armed trial in it included.
            self._write(BACKUP, _backup(default))
            return
        if running is not None and _default(self._read(BACKUP)) is None:
            default = running
        self._put(default)

    def _put(self, default: str, trial: str | None = None) -> None:
        """The copy first: while `grubenv` is torn, it is what GRUB goes by."""
        self._write(BACKUP, _backup(default))
        self._write(ENVIRONMENT, _environment(default, trial))

    # ------------------------------------------------------------ as GRUB reads them

    def _variables(self) -> tuple[Mapping[str, str], str]:
        """What `grubenv` says, nothing where its default is unusable; and the default, from whichever file has it."""
        data = self._read(ENVIRONMENT)
        default = _default(data)
        if default is not None:
            return grubenv.decode(data), default
        return {}, _default(self._read(BACKUP)) or FIRST

    def _read(self, name: str) -> bytes:
        self._check(self._esp)
        try:
            with open(self._esp / FOLDER / name, "rb") as file:
                return file.read(_READ_AT_MOST)
        except FileNotFoundError:
            return b""
        except OSError as error:
            # What cannot be read may still be read by GRUB: nothing may be concluded, and nothing written over it.
            raise HardwareError(
                f"{self._esp / FOLDER / name} cannot be read: {error.strerror}{_remedy(error)}"
            ) from None

    def _write(self, name: str, data: bytes) -> None:
        """Have exactly `data` in a file; durable when it returns. Nothing is written where it is there already."""
        if self._read(name) == data:
            return
        path = self._esp / FOLDER / name
        try:
            self._disk.overwrite(path, data)
        except OSError as error:
            raise HardwareError(f"{path} cannot be written: {error.strerror}{_remedy(error)}") from None
        if self._read(name) != data:
            raise HardwareError(f"{path} does not hold what was written to it; check the ESP with fsck.vfat")


def _known(slot: str) -> None:
    if slot not in SLOTS:
        raise HardwareError(f"{slot!r} is not a slot; slots are a and b")


def _default(data: bytes) -> str | None:
    """The default that a file names; None where GRUB can use nothing of it."""
    default = grubenv.decode(data).get("edge_default")
    return default if default in SLOTS else None


def _environment(default: str, trial: str | None = None) -> bytes:
    tries = "0" if trial is None else "1"
    return grubenv.encode({"edge_default": default, "edge_trial": trial or "", "edge_tries": tries})


def _backup(default: str) -> bytes:
    return grubenv.encode({"edge_default": default})


def _remedy(error: OSError) -> str:
    """What a person can do about it."""
    return _REMEDIES.get(error.errno or 0, "")
