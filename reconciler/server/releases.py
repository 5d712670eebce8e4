"""Releases: what git, the image store and devices know of each, and what differs between the packages of two. Reads only.

A published artifact never changes, so what was read of one is kept, a few of them. A store that does not answer takes nothing from
what is known without it: the answer says what the trouble is. Called by `server.api`, in worker threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.controller.board import Board
from reconciler.model.observed import ArtifactState
from reconciler.model.scalars import release_key, version_key
from reconciler.ports import PortError, TerminalError
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import NAME, SUMS, SUMS_SIGNATURE, Manifest
from reconciler.server.answers import Refusal, refusal_of
from reconciler.server.facts import reading
from reconciler.server.options import Options
from reconciler.server.paging import page_of

_KEPT = 32
_TEXTS = {"commit": "commit", "committedAt": "committedAt", "inputs": "inputs", "builder": "builder"}


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of an artifact: its folder, its manifest, and what was found about its signature."""

    folder: str
    manifest: Manifest
    signature: Mapping[str, str | None]

    @property
    def packages(self) -> dict[str, str]:
        """Name → version."""
        found = self.manifest.extra.get("packages")
        if not isinstance(found, Mapping):
            return {}
        return {str(name): str(version) for name, version in sorted(found.items())}


class Releases:
    """Answers for the releases of one service. Safe from any thread."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._read: OrderedDict[tuple[str, str, str | None], Read] = OrderedDict()
        self._lock = threading.Lock()

    def listed(self, board: Board, cursor: str | None = None, limit: int | None = None) -> dict[str, Any]:
        """`GET /v1/releases`: a page of them, or without a limit all."""
        known = names(board)
        page, onward = page_of(known, cursor, len(known) if limit is None else limit)
        return {
            **reading(board, "Releases"),
            "releases": [entry(board, release) for release in known[page]],
            "next": onward,
        }

    def one(self, board: Board, release: str) -> dict[str, Any]:
        """`GET /v1/releases/{release}`. Refusal 404: nothing knows it."""
        if release not in names(board):
            raise _unknown(release)
        read, trouble = None, None
        try:
            read = self._artifact(board, release)
        except PortError as error:
            # The cause may name a bucket's address; it is an operator who reads this, and their own store.
            trouble = str(error)
        return {
            **reading(board, "Release"),
            "release": entry(board, release),
            "running": dict(board.running_in(release)),
            "signature": None if read is None else dict(read.signature),
            "artifact": None if read is None else _artifact(read),
            "trouble": trouble,
        }

    def diff(self, board: Board, before: str, after: str) -> dict[str, Any]:
        """`GET /v1/releases/{a}/diff/{b}`. Refusal 404: one has no artifact; 503: the store does not answer now."""
        packages = []
        for release in (before, after):
            if release not in names(board) or "@" in release:
                raise _unknown(release)
            try:
                read = self._artifact(board, release)
            except PortError as error:
                raise refusal_of(error) from None
            if read is None:
                raise Refusal(404, f"{release} has no artifact", "its packages are known once it has been built")
            packages.append(read.packages)
        return {**reading(board, "PackageDiff"), "before": before, "after": after, **differ(*packages)}

    def _artifact(self, board: Board, release: str) -> Read | None:
        """What the store holds of a release; None: nothing. PortError: it does not answer, or holds what is no artifact."""
        artifact, images = board.observed.artifacts.get(release), self._options.images
        if artifact is None or images is None or artifact.state is ArtifactState.ABSENT:
            return None
        key = (release, artifact.state.value, artifact.digest)
        with self._lock:
            if key in self._read:
                self._read.move_to_end(key)
                return self._read[key]
        folder = images.folder(release)
        if folder is None:
            return None
        try:
            manifest = Manifest.from_bytes(images.read(release, NAME))
        except Malformed as error:
            raise TerminalError(
                f"the manifest of {release} cannot be read: {error.reason}", needed_for="showing the release"
            ) from None
        read = Read(folder, manifest, self._signature(release, artifact.state))
        if read.signature["state"] != "unknown":
            with self._lock:
                self._read[key] = read
                while len(self._read) > _KEPT:
                    self._read.popitem(last=False)
        return read

    def _signature(self, release: str, state: ArtifactState) -> dict[str, str | None]:
        images, judge = self._options.images, self._options.signed_by
        if state is ArtifactState.BUILT:
            return {"state": "absent", "key": None, "message": "it waits for its signature"}
        if images is None or judge is None:
            return {"state": "unknown", "key": None, "message": "this service does not know the release keys"}
        try:
            key = judge(release, images.read(release, SUMS), images.read(release, SUMS_SIGNATURE))
        except TerminalError as error:
            return {"state": "refused", "key": None, "message": str(error)}
        except PortError as error:
            return {"state": "unknown", "key": None, "message": str(error)}
        return {"state": "accepted", "key": key, "message": "signed by a release key, over every file of the artifact"}


def names(board: Board) -> list[str]:
    """Every release that is known, image releases first, the newest first."""
    images = {*board.observed.artifacts, *board.images()}
    if board.desired is not None:
        images |= set(board.desired.images)
    known = sorted((name for name in images if _is_release(name)), key=release_key, reverse=True)
    strange = sorted(name for name in images if not _is_release(name))
    return [*known, *strange, *_apps(board)]


def _is_release(name: str) -> bool:
    try:
        release_key(name)
    except ValueError:
        return False
    return True


def _apps(board: Board) -> Iterator[str]:
    for app, spec in sorted(board.desired.apps.items()) if board.desired is not None else ():
        for version in sorted(spec.releases, key=version_key, reverse=True):
            yield f"{app}@{version}"


def entry(board: Board, release: str) -> dict[str, Any]:
    """A release as lists show it."""
    app, at_sign, version = release.partition("@")
    desired, observed = board.desired, board.observed
    artifact = observed.artifacts.get(release)
    image = desired.images.get(release) if desired is not None else None
    spec = desired.apps.get(app) if at_sign and desired is not None else None
    return {
        "release": release,
        "app": app if at_sign else None,
        "state": None if at_sign else (artifact.state if artifact is not None else ArtifactState.ABSENT).value,
        "digest": spec.releases.get(version) if spec is not None else (artifact.digest if artifact else None),
        "size": artifact.size if artifact is not None else None,
        "named": image is not None or (spec is not None and version in spec.releases),
        "withdrawn": image.withdrawn if image is not None else None,
        "waves": [wave.name for wave in board.waves if release in _asked(wave)],
        "proofs": _verdicts(observed.proofs, release),
        "failures": _verdicts(observed.failures, release),
        "devices": board.running(release),
    }


def _asked(wave: Any) -> set[str | None]:
    return {wave.image, *(f"{app}@{status.release}" for app, status in wave.apps.items())}


def _verdicts(verdicts: Any, release: str) -> list[str]:
    """Waves with a verdict on record that counts, each once, in the order of the record."""
    return list(dict.fromkeys(verdict.wave for verdict in verdicts if verdict.key == release and not verdict.closed))


def _artifact(read: Read) -> dict[str, Any]:
    manifest = read.manifest
    return {
        "folder": read.folder,
        "file": manifest.file,
        "size": manifest.size,
        "compression": manifest.compression,
        "imageSize": manifest.image_size,
        "digest": manifest.digest,
        **{name: _text(manifest.extra.get(key)) for name, key in _TEXTS.items()},
        "builderType": _text(manifest.extra.get("builderType")),
        "packages": read.packages,
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def differ(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    """What differs between two sets of packages, by name."""
    both = [name for name in sorted(before) if name in after]
    moved = [name for name in both if before[name] != after[name]]
    return {
        "added": [{"name": name, "version": after[name]} for name in sorted(after.keys() - before.keys())],
        "removed": [{"name": name, "version": before[name]} for name in sorted(before.keys() - after.keys())],
        "changed": [{"name": name, "before": before[name], "after": after[name]} for name in moved],
        "same": len(both) - len(moved),
    }


def _unknown(release: str) -> Refusal:
    return Refusal(404, "no such release", "GET /v1/releases lists those that are known")
