"""manifest.json of an image artifact: what the files beside it are, and what the image is once unpacked.

Python 3.10, standard library only: runs as root on a device. Holds shape and bounds. SHA256SUMS (signed) binds the
manifest's bytes; the manifest binds the packed file to the raw image whose digest an assignment names. Written by
`reconciler.image`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.protocol import PROTOCOL
from reconciler.protocol.canonical import Fields, Malformed, dump, load

MAX_MANIFEST_BYTES = 1024 * 1024
MAX_IMAGE_BYTES = 64 * 1024**3
COMPRESSIONS = ("none", "zstd")
NAME = "manifest.json"
SUMS = "SHA256SUMS"
SUMS_SIGNATURE = "SHA256SUMS.gpg"

MAX_PARTS = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class ManifestError(Malformed):
    """Bytes are not a manifest."""


@dataclass(frozen=True)
class Manifest:
    """An artifact. `file` is the packed image's name and `size` its bytes (its sha256 stands in SHA256SUMS);
    `image_size` and `digest` are those of the raw image, unpacked: what a slot holds. `extra` are keys for people
    (packages, commit, …)."""

    release: str
    file: str
    size: int
    compression: str
    image_size: int
    digest: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Canonical JSON and a newline."""
        own = {
            "protocol": PROTOCOL,
            "kind": "ImageManifest",
            "release": self.release,
            "file": self.file,
            "size": self.size,
            "compression": self.compression,
            "imageSize": self.image_size,
            "digest": self.digest,
        }
        return dump({**self.extra, **own}) + b"\n"

    @property
    def files(self) -> frozenset[str]:
        """What SHA256SUMS of this artifact lists, no more and no less: the manifest, the packed image, and where `extra`
        names them the chunk index (`chunks`) and the list of software (`sbom`)."""
        beside = (self.extra.get(key) for key in ("chunks", "sbom"))
        names = (entry.get("file") for entry in beside if isinstance(entry, Mapping))
        return frozenset((NAME, self.file, *(name for name in names if isinstance(name, str))))

    @property
    def parts(self) -> tuple[int, tuple[str, ...]] | None:
        """Bytes of a part of the packed file, the last may be short, and the sha256 of each part (64 hex digits): with these a
        device hashes the file on several processors. None: `extra` has no `parts`, or not such that they are all of the
        file; then it is hashed as a whole."""
        value = self.extra.get("parts")
        size, hashes = (value.get("size"), value.get("sha256")) if isinstance(value, Mapping) else (None, None)
        if type(size) is not int or size < 1 or not isinstance(hashes, (list, tuple)):
            return None
        if len(hashes) != -(-self.size // size) or len(hashes) > MAX_PARTS:
            return None
        if not all(isinstance(item, str) and _SHA256.fullmatch(item) for item in hashes):
            return None
        return size, tuple(hashes)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse bytes whose origin was proven, or not. Raises ManifestError. Unknown keys go to `extra`."""
        try:
            fields = Fields(load(data, MAX_MANIFEST_BYTES, "manifest"), "manifest")
            fields.word("kind", ("ImageManifest",))
            if fields.whole("protocol", 1) != PROTOCOL:
                raise fields.bad("protocol", str(PROTOCOL))
            file = fields.text("file", 200)
            if _FILE.fullmatch(file) is None:
                raise fields.bad("file", "a file's name, without slashes")
            manifest = cls(
                release=fields.text("release", 64),
                file=file,
                size=fields.whole("size", 1, MAX_IMAGE_BYTES),
                compression=fields.word("compression", COMPRESSIONS),
                image_size=fields.whole("imageSize", 1, MAX_IMAGE_BYTES),
                digest=fields.digest("digest"),
                extra={key: item for key, item in fields.value.items() if key not in _OWN},
            )
        except Malformed as error:
            raise ManifestError(error.reason) from None
        if manifest.compression == "none" and manifest.size != manifest.image_size:
            raise ManifestError("manifest: `size` and `imageSize` differ, but `compression` is none")
        return manifest


_OWN = frozenset(("protocol", "kind", "release", "file", "size", "compression", "imageSize", "digest"))
