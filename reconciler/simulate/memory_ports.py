"""The world around the loop, in memory and in virtual time: clock, image store, registry, secrets, builder, signer, doorbell.

Each implements its port and keeps its contract; what is stored are names, digests and sizes, and of a made-up artifact no byte of
its image. Each can be told to be down between two instants. Called by the real loop inside `simulate.controller`. The fleet
repo is in `memory_git`, the store in `memory_store`. Source: design §6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from reconciler.model.desired import ImageSpec
from reconciler.model.observed import Snapshot
from reconciler.ports import AssignmentSigner, Built, TerminalError, TransientError
from reconciler.protocol.manifest import NAME as MANIFEST
from reconciler.protocol.manifest import SUMS, Manifest
from reconciler.protocol.sums import format_sums

Now = Callable[[], datetime]
_SIGNED = b"signed in virtual time "


def made_digest(of: str) -> str:
    """A digest for what is only imagined, always the same for the same words."""
    return "sha256:" + hashlib.sha256(of.encode()).hexdigest()


def signature_over(data: bytes) -> bytes:
    """What stands for a detached signature in virtual time: it proves that somebody signed just these bytes, and no key."""
    return _SIGNED + hashlib.sha256(data).hexdigest().encode()


def image_digest(release: str) -> str:
    """Digest of a release's raw image in virtual time: what a slot that holds it has."""
    return made_digest(f"image {release}")


class VirtualClock:
    """`ports.Clock`. Time stands where it is set; nobody waits."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def now(self) -> datetime:
        """The instant that was set last."""
        return self.at

    def wait(self, until: datetime | None) -> bool:
        """Virtual time passes at once, up to `until`. A wait without an end would never end: that is a defect."""
        if until is None:
            raise AssertionError("nothing would ever wake this wait")
        self.at = max(self.at, until)
        return False

    def wake(self) -> None:
        """Nobody waits."""


class Reach:
    """When a system is reached. `needed_for` is said in the error."""

    def __init__(self, now: Now, name: str, needed_for: str) -> None:
        self._now, self._name, self._needed_for = now, name, needed_for
        self._down: list[tuple[datetime, datetime]] = []

    def cut(self, start: datetime, end: datetime) -> None:
        """The system does not answer in [start, end)."""
        self._down.append((start, end))

    def check(self) -> None:
        """TransientError: it does not answer now."""
        if self._down and any(start <= self._now() < end for start, end in self._down):
            raise TransientError(f"the {self._name} does not answer", needed_for=self._needed_for)


class MemoryRegistry:
    """`ports.Registry`. `holds_all`: every digest that is asked for counts as pushed, as app releases that git names are."""

    def __init__(self, now: Now, *, holds_all: bool = False) -> None:
        self.reach = Reach(now, "registry", "knowing and moving tags")
        self._holds_all = holds_all
        self._tags: dict[str, dict[str, str]] = {}
        self._digests: dict[str, set[str]] = {}

    def push(self, repository: str, digest: str, tag: str | None = None) -> None:
        """Put a manifest there, as somebody's build pipeline does, and move a tag to it."""
        self._digests.setdefault(repository, set()).add(digest)
        if tag is not None:
            self._tags.setdefault(repository, {})[tag] = digest

    def tags(self, repository: str) -> Mapping[str, str]:
        """Tag → digest, all of the repository's. TerminalError: no such repository."""
        self.reach.check()
        if repository not in self._digests and not self._holds_all:
            raise TerminalError(
                f"there is no repository {repository}",
                needed_for=f"reading the tags of {repository}",
                remedy="create it, or correct `App.spec.repository`",
            )
        return dict(self._tags.get(repository, {}))

    def retag(self, repository: str, tag: str, digest: str) -> None:
        """Point `tag` at `digest`. TerminalError: the digest is not in the repository."""
        self.reach.check()
        if not self.exists(repository, digest):
            raise TerminalError(
                f"{repository} holds no manifest {digest}",
                needed_for=f"moving the tag {tag}",
                remedy="push the app's release there first",
            )
        self.push(repository, digest, tag)

    def exists(self, repository: str, digest: str) -> bool:
        """Whether the repository holds the manifest."""
        self.reach.check()
        return self._holds_all or digest in self._digests.get(repository, ())


class MemorySecrets:
    """`ports.Secrets`. Only versions matter to a rollout; a value is kept where somebody puts one, and never shown.

    `holds_all`: a reference nobody put has a version all the same, as in a fleet whose snapshot does not list them.
    """

    def __init__(self, now: Now, versions: Mapping[str, str] | None = None, *, holds_all: bool = False) -> None:
        self.reach = Reach(now, "secret store", "the versions of secrets")
        self._versions, self._holds_all = dict(versions or {}), holds_all
        self._values: dict[str, str] = {}
        self._puts = 0

    def put(self, reference: str, value: str) -> None:
        """Set a secret. Another value gets another version, the same keeps its own."""
        if self._values.get(reference) != value:
            self._puts += 1
            self._values[reference], self._versions[reference] = value, f"version-{self._puts}"

    def remove(self, reference: str) -> None:
        """Forget a secret."""
        self._values.pop(reference, None)
        self._versions.pop(reference, None)

    def versions(self, references: Iterable[str]) -> Mapping[str, str]:
        """Reference → version; those that do not exist are left out."""
        self.reach.check()
        if self._holds_all:
            return {reference: self._versions.get(reference, "version-0") for reference in references}
        return {reference: self._versions[reference] for reference in references if reference in self._versions}

    def value(self, reference: str) -> str:
        """The current value. TerminalError: no such secret."""
        self.reach.check()
        if reference not in self._values:
            raise TerminalError(
                f"there is no secret {reference}", needed_for="a site's configuration", remedy="store the secret"
            )
        return self._values[reference]


class MemoryDoorbell:
    """`ports.Doorbell`. `heard` is told of each device that is rung; where it raises, that device was not reached."""

    def __init__(self, heard: Callable[[str], object], known: Callable[[str], bool] = lambda _: True) -> None:
        self._heard, self._known = heard, known

    def ring(self, devices: Sequence[str]) -> Mapping[str, str]:
        """Device → `delivered`, `timed-out` or `unknown`."""
        return {device: self._ring(device) for device in dict.fromkeys(devices)}

    def _ring(self, device: str) -> str:
        if not self._known(device):
            return "unknown"
        try:
            self._heard(device)
        except ConnectionError:
            return "timed-out"
        return "delivered"


class MemoryBuilder:
    """`ports.Builder`: the files of an artifact whose image is its release's name. How long that takes is the jobs' business."""

    def __init__(self, now: Now, folder: Path, *, image_bytes: int) -> None:
        self._now, self._folder, self._bytes = now, folder, image_bytes

    def build(self, release: str, spec: ImageSpec, recipe: Path, commit: str) -> Built:
        """Write manifest, image and sums below the folder. Same inputs on the same day, same bytes."""
        name = f"{spec.family}-{release}-{self._now():%Y%m%d}"
        out = self._folder / name
        out.mkdir(parents=True, exist_ok=True)
        image = release.encode()
        digest = image_digest(release)
        manifest = Manifest(release, f"{name}.img", self._bytes, "none", self._bytes, digest)
        files = {f"{name}.img": image, MANIFEST: manifest.to_bytes()}
        files[SUMS] = format_sums({file: hashlib.sha256(data).hexdigest() for file, data in files.items()})
        for file, data in files.items():
            (out / file).write_bytes(data)
        return Built(release, name, out, digest)


class MemorySigner:
    """`ports.Signer` and `ports.AssignmentSigner`, and the judge of release signatures. `roots` signs assignments; `sums` reads
    the SHA256SUMS of a release."""

    def __init__(self, now: Now, sums: Callable[[str], bytes], roots: AssignmentSigner) -> None:
        self.reach = Reach(now, "signer", "signatures")
        self._sums, self._roots = sums, roots

    def sign_release(self, release: str, commit: str) -> bytes:
        """Over the release's SHA256SUMS. TerminalError: it is not in the image store."""
        self.reach.check()
        return signature_over(self._sums(release))

    def sign_root(self, root: bytes) -> bytes:
        """Over a tick's root."""
        self.reach.check()
        return self._roots.sign_root(root)

    @staticmethod
    def judge(release: str, sums: bytes, signature: bytes, keys: Collection[str]) -> None:
        """TerminalError: not signed."""
        if signature != signature_over(sums):
            raise TerminalError(f"SHA256SUMS.gpg of {release} is refused", needed_for=f"publishing {release}")


def put_tags(registry: MemoryRegistry, observed: Snapshot, repositories: Mapping[str, str]) -> None:
    """Bring the tags of a snapshot into a registry. `repositories` maps an app to its repository."""
    for app, tags in observed.tags.items():
        for tag, digest in tags.items():
            if digest is not None and app in repositories:
                registry.push(repositories[app], digest, tag)
