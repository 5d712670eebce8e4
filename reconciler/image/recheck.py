"""What the signer checks by itself before it signs a release: commit, papers, bytes and image. Trusts nobody who asks.

Rules, in order: the asked commit is the branch's head or an ancestor of it; its Image document of that release exists
and is not withdrawn; the build's own papers say that it passed (healthcheck.sh, the sysprep gate); the manifest's
commit is that commit or an ancestor of it; the manifest's inputs digest equals the one computed here from the commit's
own Image document and recipe; every file's bytes, streamed from the store, are as SHA256SUMS says, and the packed
image's parts as the manifest says; the unpacked image has the manifest's digest; and the sysprep gate, run here over
that image, finds nothing, the rule among them that the image trusts a key of this fleet. Returns what may be signed and
signs nothing. Called by the signer's process (`cli.signer`), by the loop's own signer, and by a person with the key
(`cli.image_sign`). Source: design §6, "three identities".
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from reconciler.image.gate import inspect
from reconciler.image.inputs import BUILDER_VERSION, RecipeFile, inputs_digest
from reconciler.image.pack import hashed, wrong_parts
from reconciler.image.papers import contradictions
from reconciler.image.unpack import unpacked
from reconciler.model.desired import Desired, ImageSpec
from reconciler.ports import ArtifactFile, GitSource, TerminalError
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import NAME, SUMS, Manifest
from reconciler.protocol.sums import parse_sums
from reconciler.repo.load import load_tree

_FAULTS = 3
_AGAIN = "build it again from the commit in force"


class Shelf(Protocol):
    """Where an artifact lies: the image store, or a folder that somebody carried here."""

    def read(self, release: str, name: str) -> bytes:
        """A small file. TerminalError: absent."""

    def download(self, release: str, name: str, to: Path) -> ArtifactFile:
        """Copy a file to `to`, hashing as it goes."""


@dataclass(frozen=True, slots=True)
class Papers:
    """SHA256SUMS as it is to be signed, what it lists, and the manifest that it binds."""

    sums: bytes
    listed: Mapping[str, str]
    manifest: Manifest

    def text(self, key: str) -> str:
        """A text of the manifest's `extra`; empty where it has none."""
        found = self.manifest.extra.get(key)
        return found if isinstance(found, str) else ""

    @property
    def packages(self) -> dict[str, str]:
        """What is installed: name → version."""
        found = self.manifest.extra.get("packages")
        return {str(name): str(version) for name, version in found.items()} if isinstance(found, Mapping) else {}


class Recheck:
    """Over the signer's own mirror and its own access to the store.

    `accepts` says why a commit may not be acted on (its signature), or None; without it every commit of the branch may.
    `keys` are the primary fingerprints that may sign releases: the image must trust one of them. `scratch` must have
    room for the image, packed and unpacked; the system's folder for temporary files unless said. `builder_type` is the one
    that releases are built by here (settings, `builder.type`).
    """

    def __init__(
        self,
        source: GitSource,
        store: Shelf,
        *,
        builder_type: str,
        keys: Collection[str] = (),
        accepts: Callable[[str], str | None] | None = None,
        scratch: Path | None = None,
    ) -> None:
        self._source, self._store, self._scratch = source, store, scratch
        self._builder_type = builder_type
        self._keys, self._accepts = frozenset(key.upper() for key in keys), accepts

    def sums(self, release: str, commit: str) -> bytes:
        """The bytes of SHA256SUMS to be signed. TerminalError: something does not agree, and what."""
        named = named_by(self._source, release, commit, self._accepts)
        papers = read_papers(self._store, release)
        check_origin(self._source, release, commit, named.spec, papers, self._builder_type)
        check_image(self._store, release, papers, named.narrowed(self._keys), self._scratch)
        return papers.sums


@dataclass(frozen=True, slots=True)
class Named:
    """What an accepted commit says of a release: its Image document, and the fleet's own choice of release keys."""

    spec: ImageSpec
    keys: frozenset[str]

    def narrowed(self, allowed: Collection[str]) -> frozenset[str]:
        """Of the keys that are allowed, those that the fleet has chosen; all where it has chosen none."""
        return frozenset(allowed) & self.keys if self.keys else frozenset(allowed)


def named_by(source: GitSource, release: str, commit: str, accepts: Callable[[str], str | None] | None = None) -> Named:
    """The release's document in an accepted commit. TerminalError: not on the branch, not accepted, not named, withdrawn."""
    head = source.refresh().sha
    if not source.is_ancestor(commit, head):
        raise refused(release, f"commit {commit[:12]} is not on the branch, whose head is {head[:12]}")
    why_not = accepts(commit) if accepts is not None else None
    if why_not is not None:
        raise refused(release, why_not)
    desired = _loaded(source, release, commit)
    spec = desired.images.get(release)
    if spec is None:
        raise refused(release, f"commit {commit[:12]} names no image {release}")
    now = _loaded(source, release, head).images.get(release) if commit != head else spec
    for found in (spec, now):
        if found is not None and found.withdrawn is not None:
            raise refused(release, f"{release} is withdrawn: {found.withdrawn}", "build another release")
    return Named(spec, frozenset(key.upper() for key in desired.fleet.release_keys))


def _loaded(source: GitSource, release: str, commit: str) -> Desired:
    loaded = load_tree(source.files(commit), source.blob)
    if loaded.desired is None:
        raise refused(release, f"commit {commit[:12]} does not load: {loaded.errors[0]}")
    return loaded.desired


def read_papers(store: Shelf, release: str) -> Papers:
    """SHA256SUMS and the manifest, which agree with each other and say that the build passed its checks."""
    sums, data = store.read(release, SUMS), store.read(release, NAME)
    try:
        listed, manifest = parse_sums(sums), Manifest.from_bytes(data)
    except Malformed as error:
        raise refused(release, str(error)) from None
    for name, what in contradictions(listed, data, manifest):
        raise refused(release, f"{name}: {what}")
    if manifest.release != release:
        raise refused(release, f"its manifest is of {manifest.release}")
    _passed(release, manifest.extra)
    return Papers(sums, listed, manifest)


def _passed(release: str, extra: Mapping[str, Any]) -> None:
    """The healthcheck's report is there, and nothing in it is critical."""
    report = extra.get("healthcheck")
    checks = report.get("checks") if isinstance(report, Mapping) else None
    if not isinstance(report, Mapping) or not isinstance(checks, list):
        raise refused(release, "its manifest has no healthcheck report, so nothing says that it passed its checks")
    bad = [
        str(check.get("name")) if isinstance(check, Mapping) else "?"
        for check in checks
        if not isinstance(check, Mapping) or check.get("status") not in _GOOD
    ]
    if bad or report.get("status") not in _GOOD:
        raise refused(release, f"its healthcheck is {report.get('status')}: {', '.join(bad[:5]) or 'no check named'}")


_GOOD = ("ok", "warning", "skipped")
"""What a check of healthcheck.sh may say in a build that passed: site checks are skipped under `golden`."""


def check_origin(
    source: GitSource, release: str, commit: str, spec: ImageSpec, papers: Papers, builder_type: str
) -> None:
    """The artifact was made from what the commit names, by this program. TerminalError: from something else."""
    built_at = papers.text("commit")
    if not built_at or not source.is_ancestor(built_at, commit):
        raise refused(release, f"its manifest names commit {built_at!r}, which {commit[:12]} does not follow from")
    for key, wanted in (("builder", BUILDER_VERSION), ("builderType", builder_type)):
        if papers.text(key) != wanted:
            raise refused(
                release,
                f"it was built by {key} {papers.text(key) or 'unknown'!r}, and {wanted!r} is expected here",
                "let builder and signer run the same version of this program, with the same builder.type in their settings",
            )
    inputs = inputs_digest(release, spec, _recipe(source, release, spec, commit), builder_type)
    if papers.text("inputs") != inputs:
        raise refused(
            release,
            f"it was built from {papers.text('inputs') or 'unknown inputs'}, and commit {commit[:12]} names {inputs}",
            "give the changed recipe a release of its own (`reconciler image bump`), or remove the unpublished folder"
            " from the image store: it is then built again",
        )


def _recipe(source: GitSource, release: str, spec: ImageSpec, commit: str) -> list[RecipeFile]:
    """The recipe as git holds it: the same list that the builder made of its folder."""
    if spec.recipe is None:
        raise refused(release, f"commit {commit[:12]} names no recipe for it")
    prefix = f"images/{spec.recipe.rstrip('/')}/"
    files = [entry for entry in source.files(commit) if entry.path.startswith(prefix)]
    odd = [entry.path for entry in files if entry.mode not in ("100644", "100755")]
    if odd or not files:
        raise refused(release, f"recipe file {odd[0]} is not a regular file" if odd else f"there is no {prefix}")
    return [
        RecipeFile(
            entry.path.removeprefix(prefix),
            entry.mode == "100755",
            hashlib.sha256(source.blob(entry.blob)).hexdigest(),
        )
        for entry in files
    ]


def check_image(store: Shelf, release: str, papers: Papers, keys: Collection[str], scratch: Path | None = None) -> None:
    """Fetch every file and hash it here, unpack the image, and run the gate over it: what others say proves nothing."""
    manifest = papers.manifest
    with tempfile.TemporaryDirectory(prefix="reconciler-sign-", dir=scratch) as folder:
        packed, raw = Path(folder) / "packed", Path(folder) / "raw.img"
        for name in sorted(papers.listed.keys() - {NAME}, key=lambda name: (name == manifest.file, name)):
            store.download(release, name, packed)
            size, digest = hashed(packed)
            if digest != papers.listed[name] or (name == manifest.file and size != manifest.size):
                raise refused(release, f"{name} has {size} bytes with sha256 {digest}, not {papers.listed[name]}")
        # The image was the last to be fetched: it is still in the system's cache.
        if (why_not := wrong_parts(packed, manifest)) is not None:
            raise refused(release, f"{why_not}: devices would refuse the file")
        found = unpacked(packed, raw, manifest, needed_for=f"signing {release}")
        if found != manifest.digest:
            raise refused(release, f"the unpacked image has digest {found}, and its manifest says {manifest.digest}")
        faults = inspect(raw, allowed=keys or None)
    if faults:
        shown = ", ".join(f"{fault.path}: {fault.what}" for fault in faults[:_FAULTS])
        more = f", and {len(faults) - _FAULTS} more" if len(faults) > _FAULTS else ""
        remedy = (
            f"{faults[0].remedy}; then give it a release of its own, or remove the unpublished folder from the store"
        )
        raise refused(release, f"the sysprep gate finds {len(faults)} faults in the image: {shown}{more}", remedy)


def refused(release: str, why: str, remedy: str = _AGAIN) -> TerminalError:
    """The signer's refusal."""
    return TerminalError(why, needed_for=f"signing {release}", remedy=remedy)
