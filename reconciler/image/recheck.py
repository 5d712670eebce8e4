"""What the signer checks by itself before it signs a release: commit, manifest and bytes. Trusts nobody who asks.

Rules, in order: the asked commit is the branch's head or an ancestor of it; its Image document of that release exists
and is not withdrawn; the manifest's commit is that commit or an ancestor of it; the manifest's inputs digest equals the
one computed here from the commit's own Image document and recipe; every file's bytes, streamed from the store, are as
SHA256SUMS says, and the manifest agrees with it. Returns the bytes to sign and signs nothing. Called by the signer's
process (`cli.signer`). Source: design §6, "three identities".
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from reconciler.image.inputs import RecipeFile, inputs_digest
from reconciler.image.pack import hashed
from reconciler.model.desired import ImageSpec
from reconciler.ports import GitSource, ImageStore, TerminalError
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import NAME, SUMS, Manifest
from reconciler.protocol.sums import parse_sums
from reconciler.repo.load import load_tree


class Recheck:
    """Over the signer's own mirror and its own access to the store.

    `accepts` says why a commit may not be acted on (its signature), or None; without it every commit of the branch may.
    """

    def __init__(
        self,
        source: GitSource,
        store: ImageStore,
        *,
        accepts: Callable[[str], str | None] | None = None,
        scratch: Path | None = None,
    ) -> None:
        self._source, self._store, self._scratch = source, store, scratch
        self._accepts = accepts

    def sums(self, release: str, commit: str) -> bytes:
        """The bytes of SHA256SUMS to be signed. TerminalError: something does not agree, and what."""
        head = self._source.refresh().sha
        if not self._source.is_ancestor(commit, head):
            raise refused(release, f"commit {commit[:12]} is not on the branch, whose head is {head[:12]}")
        why_not = self._accepts(commit) if self._accepts is not None else None
        if why_not is not None:
            raise refused(release, why_not)
        spec = self._specs(release, commit).get(release)
        if spec is None:
            raise refused(release, f"commit {commit[:12]} names no image {release}")
        if spec.withdrawn is not None:
            raise refused(release, f"{release} is withdrawn: {spec.withdrawn}")
        sums = self._store.read(release, SUMS)
        manifest, listed = self._documents(release, sums)
        if manifest.release != release:
            raise refused(release, f"its manifest is of {manifest.release}")
        built_at = manifest.extra.get("commit")
        if not isinstance(built_at, str) or not self._source.is_ancestor(built_at, commit):
            raise refused(release, f"its manifest names commit {built_at!r}, which {commit[:12]} does not follow from")
        inputs = inputs_digest(release, spec, self._recipe(release, spec, commit))
        if manifest.extra.get("inputs") != inputs:
            raise refused(
                release, f"it was built from {manifest.extra.get('inputs')}, and commit {commit[:12]} names {inputs}"
            )
        self._bytes(release, manifest, listed)
        return sums

    def _specs(self, release: str, commit: str) -> Mapping[str, ImageSpec]:
        loaded = load_tree(self._source.files(commit), self._source.blob)
        if loaded.desired is None:
            raise refused(release, f"commit {commit[:12]} does not load: {loaded.errors[0]}")
        return loaded.desired.images

    def _documents(self, release: str, sums: bytes) -> tuple[Manifest, dict[str, str]]:
        data = self._store.read(release, NAME)
        try:
            listed, manifest = parse_sums(sums), Manifest.from_bytes(data)
        except Malformed as error:
            raise refused(release, str(error)) from None
        if set(listed) != manifest.files:
            raise refused(
                release, f"{SUMS} lists {', '.join(sorted(listed))}, not {', '.join(sorted(manifest.files))}"
            )
        if hashlib.sha256(data).hexdigest() != listed[NAME]:
            raise refused(release, f"{NAME} is not the one that {SUMS} lists")
        return manifest, listed

    def _recipe(self, release: str, spec: ImageSpec, commit: str) -> list[RecipeFile]:
        """The recipe as git holds it: the same list that the builder made of its folder."""
        if spec.recipe is None:
            raise refused(release, f"commit {commit[:12]} names no recipe for it")
        prefix = f"images/{spec.recipe.rstrip('/')}/"
        files = [entry for entry in self._source.files(commit) if entry.path.startswith(prefix)]
        odd = [entry.path for entry in files if entry.mode not in ("100644", "100755")]
        if odd or not files:
            raise refused(release, f"recipe file {odd[0]} is not a regular file" if odd else f"there is no {prefix}")
        return [
            RecipeFile(
                entry.path.removeprefix(prefix),
                entry.mode == "100755",
                hashlib.sha256(self._source.blob(entry.blob)).hexdigest(),
            )
            for entry in files
        ]

    def _bytes(self, release: str, manifest: Manifest, listed: Mapping[str, str]) -> None:
        """Fetch the packed image and hash it here: what the store says of itself proves nothing."""
        with tempfile.TemporaryDirectory(prefix="reconciler-sign-", dir=self._scratch) as folder:
            copy = Path(folder) / "image"
            self._store.download(release, manifest.file, copy)
            size, digest = hashed(copy)
        if (size, digest) != (manifest.size, listed[manifest.file]):
            raise refused(
                release,
                f"{manifest.file} has {size} bytes with sha256 {digest}, not the {manifest.size} with {listed[manifest.file]}",
            )


def refused(release: str, why: str) -> TerminalError:
    """The signer's refusal."""
    return TerminalError(why, needed_for=f"signing {release}", remedy="build it again from the commit in force")
