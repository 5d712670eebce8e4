"""Proves an artifact that lies in a folder, against the image's own keys: what `edge-agent verify` does. Writes nothing.

Python 3.10, standard library, gpgv and zstd: runs as root on a device. The same functions judge that judge a download,
in the same order: signature, sums, manifest, packed file, unpacked image. Beyond a download's, every file is hashed
that lies there and stands in SHA256SUMS. What is assigned is not asked: it tells what an artifact is. Called by
`console`. Source: design, section 5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from reconciler.agent import artifact, writer
from reconciler.agent.judge import Keyring, Verify
from reconciler.agent.transport import CHUNK, NotFound, TransportError
from reconciler.protocol import manifest as manifests
from reconciler.protocol.assignment import ImageTarget
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import Manifest
from reconciler.protocol.signature import Refused, Verified
from reconciler.protocol.sums import parse_sums

_PAPERS = (manifests.NAME, manifests.SUMS, manifests.SUMS_SIGNATURE)


@dataclass(frozen=True)
class Found:
    """What an artifact was proven to be. `others` are further files that fit SHA256SUMS, `absent` those that it names and
    that are not here."""

    manifest: Manifest
    sha256: str
    """Of the packed file."""
    primary: str
    """Fingerprint of the primary key that signed, 40 hexadecimal digits."""
    signed_at: datetime
    others: tuple[str, ...]
    absent: tuple[str, ...]


class _Folder:
    """`transport.Transport` for small files of one folder, each read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, bytes] = {}

    def read(self, url: str, limit: int, headers: Mapping[str, str] | None = None) -> bytes:
        name = url.rsplit("/", 1)[-1]
        if name not in self._files:
            try:
                with open(self._folder / name, "rb") as file:
                    data = file.read(limit + 1)
            except FileNotFoundError:
                raise NotFound(f"there is no {name} in {self._folder}", status=404) from None
            except OSError as error:
                raise TransportError(f"{self._folder / name} cannot be read: {error.strerror}") from None
            if len(data) > limit:
                raise TransportError(f"{self._folder / name} has more than {limit} bytes")
            self._files[name] = data
        return self._files[name]

    def exchange(self, report: bytes) -> bytes:
        raise TransportError("a folder is no server")

    def config(self) -> bytes:
        raise TransportError("a folder is no server")

    def stream(
        self, url: str, offset: int, limit: int, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Iterator[bytes]]:
        raise TransportError("a folder is no server")


def inspect(path: Path, keyring: Keyring, verify: Verify, slot_bytes: int, now: datetime) -> Found:
    """Prove the artifact in the folder `path`, or the packed image `path` with the papers beside it.

    Raises Refused (a code and a reason), TransportError (a file is missing or cannot be read, or `path` is neither), or
    HardwareError (zstd).
    """
    folder = path if path.is_dir() else path.parent
    papers = _Folder(folder)
    if not (folder / manifests.NAME).is_file():
        raise NotFound(
            f"there is no {manifests.NAME} in {folder}; give an artifact's folder, or the packed image in it"
        )
    try:
        claimed = Manifest.from_bytes(papers.read(manifests.NAME, manifests.MAX_MANIFEST_BYTES))
    except Malformed as error:
        raise Refused("artifact-malformed", error.reason) from None
    if path.is_file() and path.name != claimed.file and (path.name in _PAPERS or _is_named(path.name, papers)):
        raise TransportError(
            f"{path} is a file of an artifact, and not its packed image; give the folder {folder}, or {folder / claimed.file}"
        )
    target = ImageTarget(claimed.release, claimed.digest, folder.name)
    signed: list[Verified] = []

    def note(*arguments: object) -> Verified:
        signed.append(verify(*arguments))  # type: ignore[arg-type]
        return signed[-1]

    proven = artifact.prove(target, ["folder:/"], papers, keyring, note, slot_bytes, now)
    packed = folder / proven.manifest.file if path.is_dir() else path
    if not packed.is_file():
        raise NotFound(f"there is no {packed.name} in {folder}", status=404)
    for _ in writer.prove_image(proven, packed):
        pass
    sums = parse_sums(papers.read(manifests.SUMS, manifests.MAX_MANIFEST_BYTES))
    rest = [name for name in sums if name not in (manifests.NAME, proven.manifest.file)]
    here = [name for name in rest if (folder / name).is_file()]
    for name in here:
        if _sha256(folder / name) != sums[name]:
            raise Refused("artifact-digest", f"{name} is not the file that SHA256SUMS names")
    absent = tuple(name for name in rest if name not in here)
    return Found(proven.manifest, proven.sha256, signed[0].primary, signed[0].created_at, tuple(here), absent)


def _is_named(name: str, papers: _Folder) -> bool:
    """Whether SHA256SUMS names this file; not where it is none."""
    with suppress(Malformed, TransportError):
        return name in parse_sums(papers.read(manifests.SUMS, manifests.MAX_MANIFEST_BYTES))
    return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while data := file.read(CHUNK):
                digest.update(data)
    except OSError as error:
        raise TransportError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()
