"""Unpacks an artifact's image to a file, hashing as it goes, and never beyond the size that its manifest gives.

For whoever looks into an image that somebody else has packed: the signer (`image.recheck`). Devices have their own
writer. Zeros are left out of the file, so that a sparse image stays sparse.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from reconciler.image.process import PATH
from reconciler.ports import TerminalError
from reconciler.protocol.manifest import Manifest

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)


def unpacked(packed: Path, to: Path, manifest: Manifest, *, needed_for: str) -> str:
    """Write the raw image to `to` and return its digest, `sha256:…`. TerminalError: not that format, or another size.

    OSError: no room for it.
    """
    digest, size = hashlib.sha256(), 0
    with to.open("wb") as out:
        for chunk in _stream(packed, manifest.compression, needed_for):
            size += len(chunk)
            if size > manifest.image_size:
                break
            digest.update(chunk)
            if chunk == _ZEROS[: len(chunk)]:
                out.seek(len(chunk), 1)
            else:
                out.write(chunk)
        out.truncate(min(size, manifest.image_size))
    if size != manifest.image_size:
        raise TerminalError(
            f"{manifest.file} unpacks to {'more' if size > manifest.image_size else 'only'} "
            f"{min(size, manifest.image_size)} bytes, and its manifest says {manifest.image_size}",
            needed_for=needed_for,
            remedy="build the release again",
        )
    return f"sha256:{digest.hexdigest()}"


def _stream(packed: Path, compression: str, needed_for: str) -> Iterator[bytes]:
    """The raw image's bytes."""
    if compression == "none":
        with packed.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
        return
    argv = ["zstd", "-q", "-d", "-c", "--no-progress", "--", str(packed)]
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
    except OSError:
        raise TerminalError("zstd cannot be run", needed_for=needed_for, remedy="apt-get install zstd") from None
    with child:
        assert child.stdout is not None and child.stderr is not None
        try:
            while chunk := child.stdout.read(_CHUNK):
                yield chunk
            said = child.stderr.read(2000).decode("utf-8", "replace").strip()
            if child.wait() != 0:
                raise TerminalError(
                    f"{packed.name} is not whole ({said or 'zstd gave no reason'})",
                    needed_for=needed_for,
                    remedy="build the release again",
                )
        finally:
            child.kill()
