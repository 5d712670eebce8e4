"""What firmware, GRUB, kernel and initrd do of a device, played on files: the other side of what the agent writes.

`choose` follows the grub.cfg of `image.disk_boot` line by line; the real one is tried by tests/vm/test_boot_loader.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from reconciler.protocol import grubenv

FOLDER, ENVIRONMENT, BACKUP = Path("EFI/edge"), "grubenv", "grubenv.bak"


def environment(default: str, trial: str = "", tries: str = "0") -> bytes:
    """`grubenv` as the agent and `image disk` write it."""
    return grubenv.encode({"edge_default": default, "edge_trial": trial, "edge_tries": tries})


def backup(default: str) -> bytes:
    """`grubenv.bak`."""
    return grubenv.encode({"edge_default": default})


def new_esp(esp: Path, default: str = "a") -> Path:
    """An ESP as `image disk` leaves it."""
    (esp / FOLDER).mkdir(parents=True)
    (esp / FOLDER / ENVIRONMENT).write_bytes(environment(default))
    (esp / FOLDER / BACKUP).write_bytes(backup(default))
    return esp


def variables(esp: Path, name: str) -> Mapping[str, str]:
    """What GRUB finds in a file of the ESP; a missing one holds nothing."""
    path = esp / FOLDER / name
    return grubenv.decode(path.read_bytes()) if path.is_file() else {}


def default_of(esp: Path) -> str:
    """The slot that boots where no trial is armed."""
    for name in (ENVIRONMENT, BACKUP):
        found = variables(esp, name).get("edge_default")
        if found in ("a", "b"):
            return found
    return "a"


def armed(esp: Path) -> str | None:
    """The slot that the next boot tries first."""
    found = variables(esp, ENVIRONMENT)
    trial = found.get("edge_trial")
    whole = found.get("edge_default") in ("a", "b")
    return trial if whole and found.get("edge_tries") == "1" and trial in ("a", "b") else None


def choose(esp: Path, loads: Callable[[str], bool]) -> str | None:
    """Boot: the slot whose kernel starts, or None. Spends an armed try before it, as GRUB's save_env does."""
    default, trial = default_of(esp), armed(esp)
    order = [default, "b" if default == "a" else "a"]
    if trial is not None:
        path = esp / FOLDER / ENVIRONMENT
        path.write_bytes(path.read_bytes().replace(b"\nedge_tries=1\n", b"\nedge_tries=0\n"))
        order.insert(0, trial)
    return next((slot for slot in order if loads(slot)), None)
