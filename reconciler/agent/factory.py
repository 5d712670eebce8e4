"""What a factory or an installer does once: puts an image into a slot of a new device, as its good and default one.

Python 3.10, standard library only. For new devices alone: a device that has run never gets an image past its
signature check.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from reconciler.agent.directory import CHUNK, DirectoryHardware
from reconciler.agent.hardware import HardwareError, ImageVersion
from reconciler.protocol.report import Slot


def install(hardware: DirectoryHardware, image: Path, release: str) -> str:
    """Install a raw image as `release` and boot it; returns its digest. HardwareError: the device holds an image
    already."""
    if any(slot != Slot() for slot in hardware.slots().values()):
        raise HardwareError(f"{hardware.root} holds an image already; only a new device is installed")
    slot = "b" if hardware.booted() == "a" else "a"
    digest = hashlib.sha256()
    try:
        with open(image, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            writer = hardware.open_slot(slot, size)
            try:
                while data := file.read(CHUNK):
                    digest.update(data)
                    writer.write(data)
                writer.finish()
            finally:
                writer.abandon()
    except OSError as error:
        raise HardwareError(f"{image} cannot be read: {error}") from None
    name = f"sha256:{digest.hexdigest()}"
    hardware.record_slot(slot, release, name, size)
    hardware.mark_good(slot)
    hardware.set_version(ImageVersion(release))
    hardware.boot()
    return name
