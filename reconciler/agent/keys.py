"""Public keys on a device: those of the booted image, else those that it was enrolled with.

Python 3.10, standard library only: runs as root on a device. Reads two files; whom to trust is their content, what to do
with it is `judge`'s and `protocol.signature`'s. Called by every hardware. Source: docs/reference/device.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from reconciler.agent.hardware import HardwareError
from reconciler.agent.judge import Keyring

IN_IMAGE = "etc/edge/keys"
_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{40}")


def read_keyring(kind: str, folders: Sequence[Path]) -> Keyring:
    """`KIND.gpg` and `KIND.fpr` of the first folder that has the former. `kind` is assignment or release.

    HardwareError: no folder has it, or it cannot be read; no other folder is asked then.
    """
    for folder in folders:
        if not (folder / f"{kind}.gpg").is_file():
            continue
        try:
            data = (folder / f"{kind}.gpg").read_bytes()
            words = (folder / f"{kind}.fpr").read_text("ascii").split()
        except (OSError, UnicodeDecodeError) as error:
            raise HardwareError(f"the {kind} keys cannot be read: {error}") from None
        if not words or not all(_FINGERPRINT.fullmatch(word) for word in words):
            raise HardwareError(f"{kind}.fpr must hold fingerprints of 40 hexadecimal digits, one a line")
        return Keyring(data, tuple(words))
    raise HardwareError(f"there is no {kind}.gpg in the image or in keys/; put it there with {kind}.fpr")
