"""The image store in memory: folders of named bytes, and the states that follow from them. Implements `ports.ImageStore`.

Artifacts that a snapshot or a builder names are put as names, digests and sizes alone: no image is held. What is staged as files
is held as given, and judged as the real stores judge it. Called by the loop inside `simulate.controller`. Source: design §4.9.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

from reconciler.model.observed import Artifact, ArtifactState, Holding
from reconciler.ports import ArtifactFile, TerminalError, UploadProgress
from reconciler.protocol.manifest import NAME as MANIFEST
from reconciler.protocol.manifest import SUMS, SUMS_SIGNATURE, Manifest
from reconciler.protocol.sums import SumsError, format_sums, parse_sums
from reconciler.simulate.memory_ports import Reach, image_digest, signature_over

_SMALL = 1 << 20
_FILE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$")
_IMAGE = re.compile(r"\.(?:img|raw|ext4|squashfs)(?:\.(?:zst|xz|gz|bz2))?$")
_FOLDER = re.compile(r"^[A-Za-z0-9][A-Za-z0-9-]{0,62}-(?P<release>v\d{1,9}(?:\.\d{1,9}){0,2})-(?P<day>\d{8})$")
_MOST_URL_S = 7 * 86400


@dataclass(slots=True)
class Shelf:
    """What an image store holds: whoever opens it again finds it as it was left."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Folder → file → bytes."""
    published: dict[str, tuple[str, str, Mapping[str, int]]] = field(default_factory=dict)
    """Release → its folder, the sha256 of SHA256SUMS, and the size of each file when it was published."""
    broken: dict[str, str] = field(default_factory=dict)
    """Folder → its content when reading it back failed: the note lapses when somebody replaces a file."""
    published_at: dict[str, datetime] = field(default_factory=dict)
    """Release → when it was published."""
    retired: dict[str, str] = field(default_factory=dict)
    """Release that was published and removed since → the digest of its image file: its name stands for that for good."""
    known: dict[str, Artifact] = field(default_factory=dict)
    """What a snapshot said of a release: its digest and size are shown as they were given."""


class MemoryImages:
    """`ports.ImageStore` over a shelf."""

    def __init__(self, now: Callable[[], datetime], shelf: Shelf | None = None) -> None:
        self.reach, self._now = Reach(now, "image store", "artifacts"), now
        self.shelf = shelf or Shelf()

    def put(self, release: str, artifact: Artifact, image_bytes: int, family: str = "edge-golden") -> None:
        """Bring in a release as a snapshot knows it. A device unpacks it to `image_digest(release)`, whatever digest is shown."""
        if artifact.state is ArtifactState.ABSENT:
            return
        name = f"{family}-{release}-20000101"
        size = artifact.size or image_bytes
        files = {f"{name}.img": release.encode()}
        files[MANIFEST] = Manifest(release, f"{name}.img", size, "none", size, image_digest(release)).to_bytes()
        files[SUMS] = format_sums({file: hashlib.sha256(data).hexdigest() for file, data in files.items()})
        self.shelf.files[name] = files
        self.shelf.known[release] = artifact
        if artifact.state in (ArtifactState.SIGNED, ArtifactState.PUBLISHED):
            files[SUMS_SIGNATURE] = signature_over(files[SUMS])
        if artifact.state is ArtifactState.PUBLISHED:
            self._note_published(release, name)
        if artifact.state is ArtifactState.BROKEN:
            self.shelf.broken[name] = _content(files)

    def spoil(self, release: str) -> None:
        """The artifact's image is lost or damaged: the release is broken from now on."""
        folder = self._folder(release)
        if folder is not None:
            for name in [name for name in self.shelf.files[folder] if _IMAGE.search(name)]:
                del self.shelf.files[folder][name]

    # ------------------------------------------------ reading

    def artifacts(self) -> Mapping[str, Artifact]:
        """Release → state and digest."""
        self.reach.check()
        return {release: self._judged(release, folder) for release, folder in sorted(self._folders().items())}

    def folder(self, release: str) -> str | None:
        """The folder's name of a release, or None."""
        self.reach.check()
        return self._folder(release)

    def read(self, release: str, name: str) -> bytes:
        """A small file. TerminalError: absent, or larger than a mebibyte."""
        self.reach.check()
        data = self._file(release, name, f"reading {name}")
        if len(data) > _SMALL:
            raise TerminalError(f"{name} of {release} is larger than {_SMALL} bytes", needed_for=f"reading {name}")
        return data

    def download(self, release: str, name: str, to: Path) -> ArtifactFile:
        """Copy one file to `to`. TerminalError: absent, or other bytes than SHA256SUMS says."""
        self.reach.check()
        purpose = f"downloading {name} of {release}"
        data = self._file(release, name, purpose)
        own = hashlib.sha256(data).hexdigest()
        listed = _sums(self._file(release, SUMS, purpose), purpose)
        if name not in (SUMS, SUMS_SIGNATURE) and listed.get(name) != own:
            raise TerminalError(f"{name} has sha256 {own}, SHA256SUMS says {listed.get(name)}", needed_for=purpose)
        to.write_bytes(data)
        return ArtifactFile(name, len(data), own)

    def url(self, release: str, name: str, expires_s: int = 3600) -> str:
        """An address that stands for the file."""
        self.reach.check()
        _plain(name)
        if not 1 <= expires_s <= _MOST_URL_S:
            raise ValueError(f"expires_s is {expires_s}; write 1 to {_MOST_URL_S} seconds")
        return f"https://images.invalid/{self._must(release, f'the address of {name}')}/{name}"

    def holdings(self) -> Sequence[Holding]:
        """Everything on the shelf, by release."""
        judged, chosen = self.artifacts(), self._folders()
        days: dict[str, dict[str, str]] = {}
        for folder in self.shelf.files:
            if (match := _FOLDER.match(folder)) is not None:
                days.setdefault(match["release"], {})[folder] = match["day"]
        return tuple(
            Holding(
                release=release,
                state=judged[release].state if release in judged else ArtifactState.ABSENT,
                folders=tuple(sorted(folders)),
                size=sum(len(data) for folder in folders for data in self.shelf.files[folder].values()),
                day=_day(folders.get(chosen.get(release, "")) or max(folders.values())),
                digest=judged[release].digest if release in judged else None,
                published_at=self.shelf.published_at.get(release),
            )
            for release, folders in sorted(days.items())
        )

    # ------------------------------------------------ writing

    def remove(self, release: str) -> None:
        """Take a release off the shelf, every folder of it."""
        self.reach.check()
        if release in self.shelf.published and (image := self._listed_image(self.shelf.published[release][0])):
            self.shelf.retired[release] = image
        for held in (self.shelf.published, self.shelf.published_at, self.shelf.known):
            held.pop(release, None)
        for folder in [name for name in self.shelf.files if (m := _FOLDER.match(name)) and m["release"] == release]:
            del self.shelf.files[folder]
            self.shelf.broken.pop(folder, None)

    def stage(self, release: str, name: str, files: Sequence[Path], progress: UploadProgress | None = None) -> None:
        """Put built files under folder `name`. TerminalError: not exactly those of SHA256SUMS, or others are there already."""
        self.reach.check()
        purpose = f"staging {release}"
        match = _FOLDER.match(name)
        if match is None or match["release"] != release:
            raise TerminalError(f"{name!r} does not name an artifact of {release}", needed_for=purpose)
        given = {path.name: path.read_bytes() for path in files}
        _must_agree(given, purpose)
        if release in self.shelf.published:
            folder, sums, _ = self.shelf.published[release]
            if (folder, sums) != (name, hashlib.sha256(given[SUMS]).hexdigest()):
                raise TerminalError(f"{release} is published already as {folder}", needed_for=purpose)
        image = next(sha256 for file, sha256 in _sums(given[SUMS], purpose).items() if _IMAGE.search(file))
        if self.shelf.retired.get(release, image) != image:
            raise TerminalError(f"{release} was published with other bytes and removed since", needed_for=purpose)
        there = self.shelf.files.get(name, {})
        odd = sorted(file for file, data in given.items() if there.get(file, data) != data)
        if odd:
            raise TerminalError(
                f"{name}/{odd[0]} holds other bytes", needed_for=purpose, remedy="stage under another day"
            )
        self.shelf.files.setdefault(name, {}).update(given)
        for file, data in given.items():
            if progress is not None:
                progress(file, len(data), len(data))

    def attach_signature(self, release: str, signature: bytes) -> None:
        """Put SHA256SUMS.gpg."""
        self.reach.check()
        purpose = f"signing {release}"
        if not signature or len(signature) > _SMALL:
            raise TerminalError(f"the signature has {len(signature)} bytes", needed_for=purpose)
        files = self.shelf.files[self._must(release, purpose)]
        if release in self.shelf.published and files.get(SUMS_SIGNATURE) != signature:
            raise TerminalError(f"{release} is published with another signature", needed_for=purpose)
        files[SUMS_SIGNATURE] = signature

    def publish(self, release: str) -> None:
        """Compare everything with SHA256SUMS, then add the release to the index. TerminalError: unsigned, or it does not match."""
        self.reach.check()
        purpose = f"publishing {release}"
        folder = self._must(release, purpose)
        files = self.shelf.files[folder]
        if SUMS_SIGNATURE not in files:
            raise TerminalError(f"{folder}/{SUMS_SIGNATURE} is missing", needed_for=purpose, remedy="sign it first")
        try:
            _must_agree(
                {name: data for name, data in files.items() if name != SUMS_SIGNATURE}, f"{purpose} in {folder}"
            )
        except TerminalError:
            self.shelf.broken[folder] = _content(files)
            raise
        self._note_published(release, folder)

    # ------------------------------------------------ parts

    def _note_published(self, release: str, folder: str) -> None:
        files = self.shelf.files[folder]
        sizes = {name: len(data) for name, data in files.items()}
        self.shelf.published[release] = (folder, hashlib.sha256(files[SUMS]).hexdigest(), sizes)
        self.shelf.published_at.setdefault(release, self._now())
        self.shelf.retired.pop(release, None)
        self.shelf.broken.pop(folder, None)

    def _listed_image(self, folder: str) -> str | None:
        """sha256 of a folder's image file as SHA256SUMS has it; None where that is lost."""
        try:
            listed = _sums(self.shelf.files.get(folder, {}).get(SUMS, b""), f"removing {folder}")
        except TerminalError:
            return None
        return next((sha256 for name, sha256 in listed.items() if _IMAGE.search(name)), None)

    def _judged(self, release: str, folder: str) -> Artifact:
        files, known = self.shelf.files.get(folder, {}), self.shelf.known.get(release, Artifact())
        try:
            listed = _sums(files.get(SUMS, b""), folder)
            digest = known.digest or "sha256:" + next(value for name, value in listed.items() if _IMAGE.search(name))
        except (TerminalError, StopIteration):
            return Artifact(state=ArtifactState.BROKEN, digest=known.digest, size=known.size)
        if release in self.shelf.published:
            whole = all(len(files.get(name, b"")) == size for name, size in self.shelf.published[release][2].items())
            state = ArtifactState.PUBLISHED if whole else ArtifactState.BROKEN
        elif any(name not in files for name in listed) or self.shelf.broken.get(folder) == _content(files):
            state = ArtifactState.BROKEN
        else:
            state = ArtifactState.SIGNED if SUMS_SIGNATURE in files else ArtifactState.BUILT
        return Artifact(state=state, digest=digest, size=known.size)

    def _folders(self) -> dict[str, str]:
        """Release → its folder: where it was published, else the latest day's that holds SHA256SUMS."""
        best: dict[str, tuple[str, str]] = {}
        for folder, files in self.shelf.files.items():
            match = _FOLDER.match(folder)
            if match is not None and SUMS in files:
                best[match["release"]] = max(best.get(match["release"], ("", "")), (match["day"], folder))
        found = {release: folder for release, (_, folder) in best.items()}
        return found | {release: entry[0] for release, entry in self.shelf.published.items()}

    def _folder(self, release: str) -> str | None:
        return self._folders().get(release)

    def _must(self, release: str, purpose: str) -> str:
        folder = self._folder(release)
        if folder is None:
            raise TerminalError(
                f"{release} is not in the image store", needed_for=purpose, remedy="build and stage it first"
            )
        return folder

    def _file(self, release: str, name: str, purpose: str) -> bytes:
        _plain(name)
        folder = self._must(release, purpose)
        if name not in self.shelf.files[folder]:
            raise TerminalError(f"{folder}/{name} is absent", needed_for=purpose)
        return self.shelf.files[folder][name]


def _day(digits: str) -> date:
    """A folder's day; the last of all for one that no calendar has, as the real stores say it."""
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return date.max


def _plain(name: str) -> None:
    if not _FILE.match(name):
        raise TerminalError(f"{name!r} is not a file name of an artifact", needed_for="reading or writing an artifact")


def _sums(data: bytes, purpose: str) -> dict[str, str]:
    try:
        return dict(parse_sums(data))
    except SumsError as error:
        raise TerminalError(f"SHA256SUMS: {error}", needed_for=purpose) from None


def _content(files: Mapping[str, bytes]) -> str:
    rows = (f"{name} {hashlib.sha256(files[name]).hexdigest()}" for name in sorted(files))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _must_agree(files: Mapping[str, bytes], purpose: str) -> None:
    """TerminalError: the files are not exactly SHA256SUMS and what it lists, with one image and a manifest."""
    remedy = "stage exactly the files that SHA256SUMS lists"
    if SUMS not in files:
        raise TerminalError(f"{SUMS} is not among the files", needed_for=purpose, remedy=remedy)
    listed = _sums(files[SUMS], purpose)
    if sum(bool(_IMAGE.search(name)) for name in listed) != 1:
        raise TerminalError("SHA256SUMS lists no image file, or several", needed_for=purpose, remedy=remedy)
    if MANIFEST not in listed:
        raise TerminalError(f"SHA256SUMS does not list {MANIFEST}", needed_for=purpose, remedy=remedy)
    for name in sorted((set(files) - {SUMS}) ^ set(listed)):
        odd = "is not listed in SHA256SUMS" if name in files else "is listed in SHA256SUMS but not given"
        raise TerminalError(f"{name} {odd}", needed_for=purpose, remedy=remedy)
    for name, sha256 in listed.items():
        own = hashlib.sha256(files[name]).hexdigest()
        if own != sha256:
            raise TerminalError(f"{name} has sha256 {own}, SHA256SUMS says {sha256}", needed_for=purpose, remedy=remedy)
