"""Small artifacts of image releases, packed as the builder packs them, for the suites of this package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from reconciler.protocol.sums import format_sums

SIGNATURE = b"-----BEGIN PGP SIGNATURE-----\nnot judged by the store\n-----END PGP SIGNATURE-----\n"
FOLDER = "edge-golden-v1.4.2-20251115"
IMAGE = FOLDER + ".img.zst"


def pack(
    folder: Path, release: str = "v1.4.2", image: bytes = b"an image" * 100, name: str | None = None
) -> list[Path]:
    """Write an artifact's files below `folder`; SHA256SUMS is the last of the list."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        f"{name or FOLDER}.img.zst": image,
        "manifest.json": json.dumps({"release": release}).encode(),
        "packages.txt": b"chrony 4.2\n",
    }
    sums = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    for file, data in {**files, "SHA256SUMS": format_sums(sums)}.items():
        (folder / file).write_bytes(data)
    return [folder / file for file in (*files, "SHA256SUMS")]


def digest_of(data: bytes) -> str:
    """`sha256:…` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
