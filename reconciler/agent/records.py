"""What is recorded of the two slots of a device, in one file that is replaced as a whole.

Python 3.10, standard library only: runs as root on a device. Keeps records; what a slot really holds is not looked at here.
A file that is damaged or missing is one without records: a slot whose record is lost holds nothing usable, and the booted
one is recognised again (`partitioned`). Called by `partitioned`.

    {"a": {"release": "v1.4.2", "digest": "sha256:…", "good": true, "size": 1610612736}, "b": {…}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError
from reconciler.protocol.canonical import clip, dump, is_digest
from reconciler.protocol.report import Slot

SLOTS = ("a", "b")
MAX_BYTES = 64 * 1024
RELEASE_CHARS = 128


class Records:
    """The records below one path. What cannot be read for another reason than damage raises HardwareError."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path, self._disk = path, disk

    def slots(self) -> Mapping[str, Slot]:
        """What is recorded of `a` and of `b`; an empty Slot where nothing usable is."""
        items = self._load()
        return {name: _slot(items[name]) if name in items else Slot() for name in SLOTS}

    def size(self, slot: str) -> int:
        """Bytes of the image recorded in a slot; 0 where nothing is."""
        item = self._load().get(slot)
        return int(item["size"]) if item else 0

    def put(self, slot: str, held: Slot, size: int) -> None:
        """Record what a slot holds from now on; durable when it returns."""
        items = dict(self._load())
        items[slot] = {"release": held.release, "digest": held.digest, "good": held.good, "size": size}
        try:
            self._disk.replace(self._path, dump(items) + b"\n", 0o600)
        except OSError as error:
            raise HardwareError(f"{self._path} cannot be written: {error.strerror}") from None

    def forget(self, slot: str) -> None:
        """Record that a slot holds nothing usable; nothing is written where nothing is recorded."""
        if slot in self._load():
            self.put(slot, Slot(), 0)

    def _load(self) -> Mapping[str, Mapping[str, Any]]:
        """The records that are whole, by slot. Every other one is as if it were absent."""
        try:
            with open(self._path, "rb") as file:
                value = json.loads(file.read(MAX_BYTES))
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError):
            return {}
        except OSError as error:
            raise HardwareError(
                f"{self._path} cannot be read: {error.strerror}; nothing is begun before it can be. Restore it, or move it away:"
                " what runs is then found out again, and the other slot holds nothing usable"
            ) from None
        items = value if isinstance(value, dict) else {}
        return {name: items[name] for name in SLOTS if _is_whole(items.get(name))}


def _is_whole(item: object) -> bool:
    if not isinstance(item, dict) or not is_digest(item.get("digest")):
        return False
    release, size = item.get("release"), item.get("size")
    return isinstance(release, str) and release != "" and type(size) is int and size > 0


def _slot(item: Mapping[str, Any]) -> Slot:
    return Slot(clip(item["release"], RELEASE_CHARS), item["digest"], item.get("good") is True)
