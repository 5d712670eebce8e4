"""Whether the papers of an artifact agree with each other: SHA256SUMS, manifest.json, and what that says of the files beside it.

Judges what was parsed and reads nothing; whether the files have those hashes is their reader's to see. Called by the signer
(`image.recheck`), which refuses at the first contradiction, and by `image check` (`image.gate_file`), which names them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from reconciler.protocol.manifest import NAME, SUMS, Manifest


def contradictions(listed: Mapping[str, str], data: bytes, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What does not agree, as (the paper's name, what is wrong with it). `listed` is SHA256SUMS, file → sha256; `data` the
    manifest's bytes, which `manifest` was parsed from."""
    if set(listed) != manifest.files:
        yield SUMS, f"it lists {', '.join(sorted(listed))}, not {', '.join(sorted(manifest.files))}"
    if NAME in listed and hashlib.sha256(data).hexdigest() != listed[NAME]:
        yield NAME, f"it is not the one that {SUMS} lists"
    if "sha256" in manifest.extra and manifest.extra["sha256"] != listed.get(manifest.file):
        yield NAME, f"its sha256 of {manifest.file} is not the one in {SUMS}"
    for key in ("chunks", "sbom"):
        beside = manifest.extra.get(key)
        if isinstance(beside, Mapping) and beside.get("sha256") != listed.get(str(beside.get("file"))):
            yield NAME, f"its sha256 of {beside.get('file')} is not the one in {SUMS}"
