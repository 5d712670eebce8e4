"""Unpacks an artifact's image: as a stream, or to a file, hashing as it goes, and never beyond the size that its manifest gives.

For whoever looks into an image that somebody else has packed: the signer (`image.recheck`), `image check`
(`image.gate_file`), and who makes an install disk (`image.disk_slot`). Devices have their own writer. Zeros are left out
of the file, so that a sparse image stays sparse.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Generator
from pathlib import Path

from reconciler.image.process import PATH, program
from reconciler.ports import TerminalError
from reconciler.protocol.manifest import Manifest

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)
_AGAIN = "build the release again"


def unpacked(packed: Path, to: Path, manifest: Manifest, *, needed_for: str) -> str:
    """Write the raw image to `to` and return its digest, `sha256:…`. TerminalError: not that format, or another size.

    OSError: no room for it.
    """
    digest, size = hashlib.sha256(), 0
    with to.open("wb") as out:
        for chunk in stream(packed, manifest.compression == "zstd", needed_for=needed_for, remedy=_AGAIN):
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
            remedy=_AGAIN,
        )
    return f"sha256:{digest.hexdigest()}"


def stream(image: Path, packed: bool, *, needed_for: str, remedy: str) -> Generator[bytes, None, None]:
    """The raw image's bytes, 1 MiB at most at once. TerminalError: zstd is missing, or the file is damaged (`remedy`).

    Stopping early ends zstd. OSError: the file cannot be read.
    """
    with image.open("rb") as file:
        if not packed:
            while chunk := file.read(_CHUNK):
                yield chunk
            return
        # The file is its standard input: a name that begins with a dash stays a name.
        argv = [program("zstd", "zstd", needed_for), "-q", "-d", "-c"]
        child = subprocess.Popen(
            argv, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": PATH, "LC_ALL": "C"}
        )
        with child:
            assert child.stdout is not None and child.stderr is not None
            try:
                while chunk := child.stdout.read(_CHUNK):
                    yield chunk
                said = child.stderr.read(2000).decode("utf-8", "replace").strip()
                if child.wait() != 0:
                    raise TerminalError(
                        f"{image.name} cannot be unpacked ({said[:200] or 'zstd gave no reason'})",
                        needed_for=needed_for,
                        remedy=remedy,
                    )
            finally:
                child.kill()
