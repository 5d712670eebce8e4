"""Whether the image store has a release already, made from the very inputs that a build would be made from.

Reads SHA256SUMS and the manifest, and compares; whose they are is not judged here: what is not signed yet, the signer
rechecks from git, and what is signed, whoever publishes and every device. Called by `execute` before a build. Source:
design §4.9, "keyed by the digest of what it was made from".
"""

from __future__ import annotations

import hashlib

from reconciler.model.observed import ArtifactState
from reconciler.ports import ImageStore, TerminalError
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import NAME, SUMS, Manifest
from reconciler.protocol.sums import parse_sums

_WHOLE = (ArtifactState.BUILT, ArtifactState.SIGNED, ArtifactState.PUBLISHED)


def stored_build(store: ImageStore, release: str, inputs: str) -> str | None:
    """Name of the folder that holds `release` built from `inputs` (`sha256:…`), whole, or None: it has to be built.

    TransientError: the store does not answer. What is there but cannot be read counts as not there; staging beside it tells.
    """
    artifact = store.artifacts().get(release)
    if artifact is None or artifact.state not in _WHOLE:
        return None
    try:
        sums, data = store.read(release, SUMS), store.read(release, NAME)
        listed, manifest = parse_sums(sums), Manifest.from_bytes(data)
    except (Malformed, TerminalError):
        return None
    if listed.get(NAME) != hashlib.sha256(data).hexdigest() or manifest.files != set(listed):
        return None
    if (manifest.release, manifest.extra.get("inputs")) != (release, inputs):
        return None
    return store.folder(release)
