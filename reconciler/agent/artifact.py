"""Fetches an image's artifact and proves it: SHA256SUMS by signature, manifest and image by SHA256SUMS, all by the
assignment.

Python 3.10, standard library only: runs as root on a device. The order is that of design section 5. Until the
signature, the manifest and the sizes have been judged, nothing is written. The image itself goes to a cache file, is
resumed after a break, is never larger than the signed manifest says, and gets its name only when its digest is right.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast
from urllib.parse import unquote

from reconciler.agent.disk import Disk
from reconciler.agent.judge import Keyring, Verify
from reconciler.agent.transport import NotFound, Transport, TransportError, split
from reconciler.protocol import manifest as manifests
from reconciler.protocol.assignment import ImageTarget
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import Manifest
from reconciler.protocol.signature import MAX_SIGNATURE_BYTES, Refused
from reconciler.protocol.sums import MAX_SUMS_BYTES, parse_sums

READ = 1024 * 1024
SPARE_BYTES = 32 * READ
"""What a download leaves free."""


@dataclass(frozen=True)
class Proven:
    """What was proven of an artifact: its manifest, and the sha256 of its packed file (64 hex digits)."""

    manifest: Manifest
    sha256: str


class Cache:
    """Where the packed image waits for its window: one file, named by its own digest, with its manifest beside it."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk = folder, disk

    def find(self, target: ImageTarget) -> tuple[Proven, Path] | None:
        """The proven artifact of `target`, if it is here in full. Its bytes are hashed again before they are used."""
        manifest = self._folder / _hex(target.digest) / "manifest.json"
        try:
            value = Manifest.from_bytes(manifest.read_bytes())
            (sha256,) = (path.name for path in manifest.parent.iterdir() if len(path.name) == 64)
            path = manifest.parent / sha256
            if value.digest != target.digest or path.stat().st_size != value.size:
                return None
        except (OSError, ValueError, Malformed):
            return None
        return Proven(value, sha256), path

    def open(self, target: ImageTarget) -> Path:
        """The folder for one artifact. Artifacts of other images are removed: there is room for one."""
        self._disk.folder(self._folder, 0o700)
        for other in sorted(self._folder.iterdir()):
            if other.name != _hex(target.digest):
                self._disk.remove(other)
        return self._disk.folder(self._folder / _hex(target.digest), 0o700)

    def clear(self) -> None:
        """Remove everything, durably."""
        if self._folder.exists():
            self._disk.remove(self._folder)
            # The intent is closed next, and nobody looks here again after that.
            self._disk.sync_folder(self._folder.parent)


def addresses(sources: Sequence[str], name: str) -> list[str]:
    """Where a file may be had: below every folder address, and at every address that ends with its name. One that
    cannot be read gives nothing: addresses are not signed."""
    found = []
    for url in sources:
        try:
            parts = split(url)
        except TransportError:
            continue
        path = unquote(parts.path)
        if path.endswith("/"):
            found.append(url + name if not parts.query else url.replace("?", name + "?", 1))
        elif path.rsplit("/", 1)[-1] == name:
            found.append(url)
    return found


def prove(
    target: ImageTarget,
    sources: Sequence[str],
    transport: Transport,
    keyring: Keyring,
    verify: Verify,
    slot_bytes: int,
    now: datetime,
) -> Proven:
    """As `proving`, in one go: for whoever has nothing else to do."""
    steps = proving(target, sources, transport, keyring, verify, slot_bytes, now)
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            return cast(Proven, ended.value)


def proving(
    target: ImageTarget,
    sources: Sequence[str],
    transport: Transport,
    keyring: Keyring,
    verify: Verify,
    slot_bytes: int,
    now: datetime,
) -> Generator[float, None, Proven]:
    """Fetch and judge everything but the image itself; writes nothing. Yields between requests: each may take minutes, and many
    addresses must not keep the agent from its reports. Raises Refused, or TransportError to try later."""
    sums_bytes = yield from _small(sources, manifests.SUMS, MAX_SUMS_BYTES, transport)
    signature = yield from _small(sources, manifests.SUMS_SIGNATURE, MAX_SIGNATURE_BYTES, transport)
    verify(sums_bytes, signature, keyring.data, keyring.fingerprints, now)
    try:
        sums = parse_sums(sums_bytes)
        if manifests.NAME not in sums:
            raise Refused("artifact-incomplete", "SHA256SUMS names no manifest.json")
        data = yield from _small(sources, manifests.NAME, manifests.MAX_MANIFEST_BYTES, transport)
        if hashlib.sha256(data).hexdigest() != sums[manifests.NAME]:
            raise Refused("manifest-digest", "manifest.json is not the one that SHA256SUMS names")
        manifest = Manifest.from_bytes(data)
    except Malformed as error:
        raise Refused("artifact-malformed", error.reason) from None
    if manifest.release != target.release or manifest.digest != target.digest:
        raise Refused(
            "artifact-mismatch",
            f"the artifact is {manifest.release} {manifest.digest}, assigned is {target.release} {target.digest}",
        )
    if manifest.file not in sums:
        raise Refused("artifact-incomplete", f"SHA256SUMS does not name {manifest.file}")
    if manifest.image_size > slot_bytes:
        raise Refused("artifact-too-large", f"{manifest.image_size} bytes do not fit into a slot of {slot_bytes}")
    return Proven(manifest, sums[manifest.file])


def download(
    proven: Proven, target: ImageTarget, sources: Sequence[str], transport: Transport, cache: Cache, disk: Disk
) -> Iterator[float]:
    """Fetch the image into the cache, resuming what is there; yields between chunks.

    Raises Refused (the bytes are wrong; what was fetched is removed) or TransportError (what was fetched stays). Addresses are
    not signed, so one that gives wrong bytes, or a part left behind that has gone bad, does not speak for the others: each is
    then asked for the whole, alone.
    """
    folder, urls = cache.open(target), addresses(sources, proven.manifest.file)
    part = folder / "part"
    _look_for_room(folder, proven.manifest.size - (part.stat().st_size if part.is_file() else 0))
    origins = yield from _fetch(proven, part, urls, transport, disk)
    for url in urls if origins else ():
        if origins == [url]:
            continue
        try:
            if not (yield from _fetch(proven, part, [url], transport, disk)):
                origins = []
                break
        except TransportError:
            # Whatever it would have given: what another gave was wrong, and stays refused.
            disk.remove(part)
    if origins:
        raise Refused("artifact-digest", f"{proven.manifest.file} is not the file that SHA256SUMS names")
    # The same image packed another way, or what a repair of the file system left of one: with it nothing would be found.
    for other in sorted(folder.iterdir()):
        if other.name not in (part.name, proven.sha256):
            disk.remove(other)
    disk.replace(folder / "manifest.json", proven.manifest.to_bytes())
    disk.rename(part, folder / proven.sha256)


def _fetch(
    proven: Proven, part: Path, urls: Sequence[str], transport: Transport, disk: Disk
) -> Generator[float, None, list[str]]:
    """Complete `part` from addresses that take turns; yields between chunks. Where its bytes then are wrong, it is removed, and
    where they came from is returned: addresses, and the part's own name for what was there before."""
    size, origins = proven.manifest.size, list[str]()
    digest, have = hashlib.sha256(), 0
    if part.exists() and part.stat().st_size <= size:
        with open(part, "rb") as file:
            while data := file.read(READ):
                digest.update(data)
                have += len(data)
                yield 0.0
        origins += [part.name] if have else []
    else:
        disk.remove(part)
    if have < size:
        for url in urls:
            try:
                start, chunks = transport.stream(url, have, size)
                if start != have:
                    digest, have = hashlib.sha256(), 0
                    origins.clear()
                origins.append(url)
                with open(part, "r+b" if have else "wb") as file:
                    file.seek(have)
                    for data in chunks:
                        disk.on_step("write part")
                        file.write(data)
                        digest.update(data)
                        have += len(data)
                        yield 0.0
                    disk.sync(file)
            except TransportError:
                if url == urls[-1]:
                    raise
                # Each address may take minutes; many of them must not keep the agent from its reports.
                yield 0.0
                continue
            if have == size:
                break
        else:
            raise NotFound(f"no address of {proven.manifest.file} gives all of it", status=404)
    if digest.hexdigest() == proven.sha256:
        return []
    disk.remove(part)
    return origins


def _look_for_room(folder: Path, needed: int) -> None:
    """Refuse to begin what would fill the disk: the agent's own memory is on it, and what apps write."""
    at = os.statvfs(folder)
    free = at.f_bavail * at.f_frsize
    if needed > 0 and needed + SPARE_BYTES > free:
        raise Refused(
            "no-room", f"{needed} bytes more are needed below {folder}, and {free} are free; make room, see `df`"
        )


def _small(sources: Sequence[str], name: str, limit: int, transport: Transport) -> Generator[float, None, bytes]:
    urls = addresses(sources, name)
    if not urls:
        raise NotFound(f"no address of {name} was given", status=404)
    for url in urls[:-1]:
        try:
            data = transport.read(url, limit)
        except TransportError:
            yield 0.0
            continue
        yield 0.0
        return data
    data = transport.read(urls[-1], limit)
    yield 0.0
    return data


def _hex(digest: str) -> str:
    return digest.replace("sha256:", "")
