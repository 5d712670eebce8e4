"""Pulls an app's release by digest from an OCI registry over HTTP, or from an image layout on disk.

Python 3.10, standard library only: runs as root on a device. Only digests are trusted: the manifest must hash to the
assigned digest, every blob to the digest and size that the manifest names. A release gets its folder's name when all
of it is there and synced. Source: OCI distribution-spec (pull), image-spec (manifest, index, layout).
"""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reconciler.agent.disk import Disk
from reconciler.agent.transport import NotFound, Transport, TransportError, split
from reconciler.protocol.assignment import AppTarget
from reconciler.protocol.canonical import Fields, Malformed, load
from reconciler.protocol.signature import Refused

MAX_MANIFEST = 4 * 1024 * 1024
MAX_BLOB = 16 * 1024**3
MAX_LAYERS = 512
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class _Place:
    """One address of a registry: `http(s)://host[/prefix]` speaks the registry API, `file:///folder` is a folder of
    layouts."""

    def __init__(self, base: str, repository: str, transport: Transport, token: str | None) -> None:
        self._base, self._transport = base.rstrip("/"), transport
        self._layout = split(base).scheme == "file"
        self._repository = repository
        self._headers = {"Authorization": _authorization(token)} if token and not self._layout else {}

    def _url(self, kind: str, digest: str) -> str:
        if self._layout:
            return f"{self._base}/{self._repository}/blobs/sha256/{digest.replace('sha256:', '')}"
        return f"{self._base}/v2/{self._repository}/{kind}/{digest}"

    def manifest(self, digest: str) -> bytes:
        """A manifest's bytes, which hash to `digest`."""
        accept = {"Accept": ", ".join(_INDEXES + _MANIFESTS)}
        data = self._transport.read(self._url("manifests", digest), MAX_MANIFEST, {**self._headers, **accept})
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise Refused("app-digest", f"the registry sent another manifest than {digest}")
        return data

    def blob(self, digest: str, offset: int, size: int) -> tuple[int, Iterator[bytes]]:
        """A blob's bytes from `offset` on, unchecked."""
        return self._transport.stream(self._url("blobs", digest), offset, size, self._headers)


def pull(
    app: AppTarget, bases: Sequence[str], transport: Transport, token: str | None, folder: Path, disk: Disk
) -> Iterator[float]:
    """Fetch a release below `folder`; yields between chunks. Ends at once where it is there.

    Raises Refused (bytes that are not what a digest names) or TransportError (what was fetched stays and is resumed).
    """
    final = folder / _hex(app.digest)
    if final.is_dir():
        return
    if not bases:
        raise NotFound("no registry's address was given", status=404)
    staging = disk.folder(folder / f".{_hex(app.digest)}.part")
    for base in bases:
        try:
            yield from _pull_from(_Place(base, app.repository, transport, token), app.digest, staging, disk)
        except TransportError:
            if base == bases[-1]:
                raise
            continue
        except Refused:
            # Wrong bytes are not kept for the next try; those of a broken connection are.
            disk.remove(staging)
            raise
        break
    disk.sync_folder(staging)
    disk.rename(staging, final)


def _pull_from(place: _Place, digest: str, staging: Path, disk: Disk) -> Iterator[float]:
    data = place.manifest(digest)
    disk.replace(staging / _hex(digest), data)
    document = _document(data)
    if document.get("mediaType") in _INDEXES or isinstance(document.get("manifests"), list):
        digest = _choose(document)
        data = place.manifest(digest)
        disk.replace(staging / _hex(digest), data)
        document = _document(data)
    yield 0.0
    for blob_digest, size in _blobs(document):
        yield from _fetch_blob(place, blob_digest, size, staging, disk)


def _fetch_blob(place: _Place, digest: str, size: int, staging: Path, disk: Disk) -> Iterator[float]:
    target, part = staging / _hex(digest), staging / f"{_hex(digest)}.part"
    if target.is_file() and target.stat().st_size == size:
        return
    found, have = hashlib.sha256(), 0
    if part.exists() and part.stat().st_size <= size:
        with open(part, "rb") as file:
            while data := file.read(1024 * 1024):
                found.update(data)
                have += len(data)
                yield 0.0
    else:
        disk.remove(part)
    if have < size or size == 0:
        start, chunks = place.blob(digest, have, size)
        if start != have:
            found, have = hashlib.sha256(), 0
        with open(part, "r+b" if have else "wb") as file:
            file.seek(have)
            for data in chunks:
                disk.on_step("write blob")
                file.write(data)
                found.update(data)
                have += len(data)
                yield 0.0
            disk.sync(file)
    if have != size or "sha256:" + found.hexdigest() != digest:
        disk.remove(part)
        raise Refused("app-digest", f"the registry sent other bytes than {digest}")
    disk.rename(part, target)


def _authorization(token: str) -> str:
    """`user:password` is HTTP Basic's; a bearer token holds no colon (RFC 6750)."""
    return f"Basic {base64.b64encode(token.encode()).decode('ascii')}" if ":" in token else f"Bearer {token}"


def _document(data: bytes) -> Mapping[str, Any]:
    try:
        document = load(data, MAX_MANIFEST, "manifest")
    except Malformed as error:
        raise Refused("app-malformed", error.reason) from None
    if document.get("schemaVersion") != 2:
        raise Refused("app-malformed", "the manifest is not of schema version 2")
    return document


def _choose(index: Mapping[str, Any]) -> str:
    """The digest of this machine's manifest in an index of platforms."""
    machine = _MACHINES.get(platform.machine(), platform.machine())
    try:
        for item in Fields(index, "index").items("manifests", MAX_LAYERS):
            fields = Fields(item, "index entry")
            kind = fields.value.get("platform")
            if not isinstance(kind, dict) or (kind.get("os"), kind.get("architecture")) == ("linux", machine):
                return fields.digest("digest")
    except Malformed as error:
        raise Refused("app-malformed", error.reason) from None
    raise Refused("app-platform", f"the release has no part for linux/{machine}")


def _blobs(manifest: Mapping[str, Any]) -> list[tuple[str, int]]:
    try:
        fields = Fields(manifest, "manifest")
        parts = [fields.value.get("config"), *fields.items("layers", MAX_LAYERS)]
        found = [Fields(part, "manifest entry") for part in parts]
        return [(part.digest("digest"), part.whole("size", 0, MAX_BLOB)) for part in found]
    except Malformed as error:
        raise Refused("app-malformed", error.reason) from None


def _hex(digest: str) -> str:
    return digest.replace("sha256:", "")
