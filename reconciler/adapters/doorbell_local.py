"""The doorbell as files: the local twin of `doorbell_ssm`, for devices on this machine (the demo, tests, a lab).

A device's bell is the file `folder/<device>`. The agent makes it and waits until its modification time changes (or a
watcher tells it); `ring` touches it. A callback can stand in for an agent of the same process. Nothing is sent and
nothing can be lost but the hint: a device that misses it calls in by itself. States: `delivered` once the file was
touched and every callback returned, `timed-out` where one raised, `unknown` where there is no bell.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from reconciler.adapters import durable
from reconciler.model.scalars import NAME_PATTERN

_NAME = re.compile(NAME_PATTERN)


class LocalDoorbell:
    """`ports.Doorbell` over `folder` (made if absent). Safe from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._callbacks: dict[str, list[Callable[[str], object]]] = {}
        self._lock = threading.Lock()
        with durable.os_errors(f"make {folder}", needed_for="the doorbell"):
            durable.make_folder(self._folder)

    def listen(self, device: str, callback: Callable[[str], object] | None = None) -> Path:
        """Hang a device's bell: make its file, and remember a callback of this process. Returns the file to watch."""
        if not _NAME.match(device):
            raise ValueError(f"{device!r} is not a device's name")
        bell = self._folder / device
        with durable.os_errors(f"make {bell}", needed_for=f"the doorbell of {device}"):
            bell.touch()
        if callback is not None:
            with self._lock:
                self._callbacks.setdefault(device, []).append(callback)
        return bell

    def ring(self, devices: Sequence[str]) -> Mapping[str, str]:
        """Device → `delivered`, `timed-out` or `unknown`."""
        return {device: self._ring(device) for device in dict.fromkeys(devices)}

    def _ring(self, device: str) -> str:
        if not _NAME.match(device):
            return "unknown"
        bell = self._folder / device
        try:
            before = bell.stat().st_mtime_ns
            os.utime(bell)
            if bell.stat().st_mtime_ns == before:  # two rings within one tick of the file system's clock
                os.utime(bell, ns=(before + 1_000_000, before + 1_000_000))
        except FileNotFoundError:
            return "unknown"
        except OSError:
            return "timed-out"
        with self._lock:
            callbacks = tuple(self._callbacks.get(device, ()))
        for callback in callbacks:
            try:
                callback(device)
            except Exception:  # noqa: BLE001 - a listener's fault is that device's alone; the others must hear the bell
                return "timed-out"
        return "delivered"


class SilentDoorbell:
    """`ports.Doorbell` where devices call in by themselves."""

    def ring(self, devices: Sequence[str]) -> Mapping[str, str]:
        """Nobody is asked."""
        return dict.fromkeys(devices, "unknown")
