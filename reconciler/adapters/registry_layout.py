"""The container registry as folders: the local twin of `registry_ecr` and `registry_oci`. Needs no server.

One OCI image layout (version 1.0.0) a repository, at `root/<repository>/`: `oci-layout`, `blobs/sha256/…`, and
`index.json`, whose descriptors carry the tag in the annotation `org.opencontainers.image.ref.name`. Tools that read
layouts (skopeo, podman, crane) read these. `index.json` is replaced as a whole under a lock; blobs are
content-addressed and never change, so a reader needs no lock. Deleting what nothing refers to is not done here.
Source: OCI image-spec, "Image Layout".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.adapters import durable
from reconciler.adapters.manifests import check_digest, check_repository, check_tag, manifest_type, sha256_digest
from reconciler.ports import TerminalError

REF_NAME = "org.opencontainers.image.ref.name"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_LOCK_S = 30.0


class LayoutRegistry:
    """`ports.Registry` in `root` (made if absent)."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        with durable.os_errors(f"make {root}", needed_for="the container registry"):
            durable.make_folder(self._root)

    def tags(self, repository: str) -> Mapping[str, str]:
        """Tag → digest. TerminalError: no such repository."""
        rows = self._descriptors(repository)
        return {tag: row["digest"] for row in rows if (tag := row.get("annotations", {}).get(REF_NAME))}

    def exists(self, repository: str, digest: str) -> bool:
        """Whether the repository holds the manifest with its own bytes."""
        self._descriptors(repository)
        return self.manifest(repository, digest) is not None

    def retag(self, repository: str, tag: str, digest: str) -> None:
        """Point `tag` at `digest` and read it back. TerminalError: the digest is not in the repository."""
        check_tag(tag)
        self._descriptors(repository)
        manifest = self.manifest(repository, digest)
        if manifest is None:
            raise TerminalError(
                f"{repository} holds no manifest {digest}",
                needed_for=f"pointing {repository}:{tag} at it",
                remedy="push the app release first, or correct its digest in git",
            )
        self._point(repository, tag, manifest)
        if self.tags(repository).get(tag) != digest:
            raise TerminalError(
                f"{repository}:{tag} is not {digest} after it was set",
                needed_for=f"pointing {repository}:{tag} at it",
                remedy="look for another writer on this layout",
            )

    # ------------------------------------------------ beyond the port: what fills and reads a layout

    def manifest(self, repository: str, digest: str) -> bytes | None:
        """A manifest's bytes by digest; None where absent, damaged, or a blob that is no manifest."""
        data = self.blob(repository, digest)
        if data is None or sha256_digest(data) != digest or manifest_type(data) is None:
            return None
        return data

    def blob(self, repository: str, digest: str) -> bytes | None:
        """A blob's bytes as stored, or None."""
        path = self._blob(repository, digest)
        with durable.os_errors(f"read {path}", needed_for=f"reading {repository}"):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def put_blob(self, repository: str, data: bytes) -> str:
        """Add a blob (the repository is made if absent); returns its digest."""
        check_repository(repository)
        folder = self._root / repository
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        path = self._blob(repository, digest)
        with durable.os_errors(f"write {path}", needed_for=f"filling {repository}"):
            durable.make_folder(path.parent)
            if not (folder / "oci-layout").exists():
                durable.write_atomic(folder / "oci-layout", [b'{"imageLayoutVersion": "1.0.0"}\n'])
            if not path.exists():
                durable.write_atomic(path, [data])
        return digest

    def put_manifest(self, repository: str, manifest: bytes, tag: str | None = None) -> str:
        """Add a manifest, with a tag or without; returns its digest. TerminalError: not a manifest."""
        if tag is not None:
            check_tag(tag)
        if manifest_type(manifest) is None:
            raise TerminalError(
                "these bytes are no image manifest or index",
                needed_for=f"filling {repository}",
                remedy="give an OCI or Docker manifest, schema version 2",
            )
        digest = self.put_blob(repository, manifest)
        self._point(repository, tag, manifest)
        return digest

    # ------------------------------------------------ parts

    def _blob(self, repository: str, digest: str) -> Path:
        check_repository(repository)
        check_digest(digest)
        return self._root / repository / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def _descriptors(self, repository: str) -> list[dict[str, Any]]:
        check_repository(repository)
        path = self._root / repository / "index.json"
        with durable.os_errors(f"read {path}", needed_for=f"reading the tags of {repository}"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                raise TerminalError(
                    f"there is no repository {repository} in {self._root}",
                    needed_for=f"reading the tags of {repository}",
                    remedy="push the app's first release, or correct App.spec.repository",
                ) from None
        return _parse_index(data, str(path))

    def _point(self, repository: str, tag: str | None, manifest: bytes) -> None:
        digest, path = sha256_digest(manifest), self._root / repository / "index.json"
        purpose = f"updating the tags of {repository}"
        with (
            durable.os_errors(f"write {path}", needed_for=purpose),
            durable.locked(path.with_name(".lock"), timeout_s=_LOCK_S, needed_for=purpose),
        ):
            before = _parse_index(path.read_bytes(), str(path)) if path.exists() else []
            after = [row for row in before if tag is None or row.get("annotations", {}).get(REF_NAME) != tag]
            # What loses its tag stays listed, so that it can be tagged again and no cleaner takes it for litter.
            for row in before:
                bare = {key: value for key, value in row.items() if key != "annotations"}
                if row not in after and all(other["digest"] != row["digest"] for other in after):
                    after.append(bare)
            row = {"mediaType": manifest_type(manifest), "digest": digest, "size": len(manifest)}
            if tag is not None:
                after = [
                    each for each in after if each["digest"] != digest or each.get("annotations", {}).get(REF_NAME)
                ]
                after.append(row | {"annotations": {REF_NAME: tag}})
            elif all(other["digest"] != digest for other in after):
                after.append(row)
            after.sort(key=lambda each: (each.get("annotations", {}).get(REF_NAME, ""), each["digest"]))
            document = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": after}
            durable.write_atomic(path, [(json.dumps(document, indent=2) + "\n").encode()])


def _parse_index(data: bytes, where: str) -> list[dict[str, Any]]:
    """The descriptors of an OCI `index.json`. TerminalError: it is not one."""
    try:
        rows = json.loads(data)["manifests"]
        for row in rows:
            check_digest(row["digest"])
            if not isinstance(row.get("annotations", {}), dict):
                raise TypeError
    except (ValueError, KeyError, TypeError, TerminalError):
        raise TerminalError(
            f"{where} is not the index of an OCI image layout",
            needed_for="reading the tags of a repository",
            remedy="restore it from a backup, or push the app's releases again into an empty folder",
        ) from None
    return list(rows)
