"""The agent as one file that a device runs: a zip application of `reconciler.agent` and `reconciler.protocol`.

Same bytes for the same sources, whoever packs them: entries sorted, times and modes fixed, stored uncompressed (zlib's
output may differ from version to version). The builder puts it into the image as `PLACE`; its digest is among the inputs
of an image, so that a new agent is a new image. Called by `image.inputs` and `image.rootfs`.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

PLACE = "usr/lib/edge-agent/edge-agent.pyz"
_PARTS = ("agent", "protocol")
_SHEBANG = b"#!/usr/bin/python3\n"
_MAIN = """import sys

from reconciler.agent import lean

lean.defer()

from reconciler.agent.main import main

sys.exit(main())
"""
# The earliest time that a zip can hold.
_TIME = (1980, 1, 1, 0, 0, 0)


@cache
def application() -> bytes:
    """The application's bytes: an executable zip for Python 3.10 or newer."""
    files = {"__main__.py": _MAIN.encode(), "reconciler/__init__.py": b""}
    top = Path(__file__).parents[1]
    for part in _PARTS:
        for path in (top / part).glob("**/*.py"):
            files[f"reconciler/{path.relative_to(top).as_posix()}"] = path.read_bytes()
    packed = io.BytesIO()
    packed.write(_SHEBANG)
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            archive.writestr(entry, data)
    return packed.getvalue()


def digest() -> str:
    """sha256 (64 hex digits) of the application."""
    return hashlib.sha256(application()).hexdigest()
