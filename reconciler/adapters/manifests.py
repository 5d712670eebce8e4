"""What the registry adapters share: the media types of manifests, and checks of names. Pure.

Names are checked before they enter a path or a request. A digest is the sha256 of a manifest's exact bytes, so these
are never parsed and printed again, only passed on. Both the image manifest and the multi-platform index, in OCI's and
in Docker's form, can stand under a tag. Source: OCI distribution-spec, "Pulling manifests"; Docker "Image Manifest
V2, Schema 2". Schema 1 is refused: its digest is not that of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import re

from reconciler.model.scalars import DIGEST_PATTERN
from reconciler.ports import TerminalError

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)

MAX_MANIFEST = 4 << 20
"""The size that registries must take, and ours refuse to exceed (distribution-spec)."""

_DIGEST = re.compile(DIGEST_PATTERN)
_REPOSITORY = re.compile(r"^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$")
_TAG = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")


def sha256_digest(data: bytes) -> str:
    """`sha256:…` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def manifest_type(data: bytes) -> str | None:
    """The media type of a manifest or index from its bytes, or None where they are neither."""
    try:
        document = json.loads(data)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        return None
    said = document.get("mediaType")
    if said is not None:
        return said if said in MANIFEST_TYPES else None
    if isinstance(document.get("manifests"), list):
        return OCI_INDEX
    return OCI_MANIFEST if isinstance(document.get("config"), dict) else None


def check_digest(digest: object) -> str:
    """TerminalError: not `sha256:` and 64 lower-case hexadecimal digits."""
    if isinstance(digest, str) and _DIGEST.match(digest):
        return digest
    raise TerminalError(
        f"{digest!r} is not a digest",
        needed_for="naming a manifest",
        remedy="write sha256: and 64 lower-case hex digits",
    )


def check_tag(tag: str) -> str:
    """TerminalError: no registry takes this tag."""
    if _TAG.match(tag):
        return tag
    remedy = "use letters, digits and _ . -, 128 at most, beginning with a letter, digit or _"
    raise TerminalError(f"{tag!r} is not a tag", needed_for="moving a tag", remedy=remedy)


def check_repository(repository: str) -> str:
    """TerminalError: no registry takes this repository name; it may be a path out of the folder or into another API."""
    if len(repository) <= 255 and _REPOSITORY.match(repository):
        return repository
    remedy = "use lower-case letters and digits, with . _ - between them and / between parts, as edge/video-ingest"
    raise TerminalError(f"{repository!r} is not a repository", needed_for="asking the registry", remedy=remedy)
