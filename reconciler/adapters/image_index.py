"""What an image store's bytes mean: folder names, SHA256SUMS, `index.json`, and the state that follows from them. Pure.

Layout, the same in a bucket and in a directory:

    <prefix>/index.json           the published releases; written last, and only as a whole
    <prefix>/<folder>/SHA256SUMS  written after every other built file, so its presence means `built`
    <prefix>/<folder>/…           SHA256SUMS.gpg, manifest.json, the image file, and what else SHA256SUMS lists

where a folder is named <family>-<release>-<YYYYMMDD>, as edge-golden-v1.4.2-20251115.

`Artifact.digest` is the sha256 of the release's *image file* (the compressed image, where it is compressed) exactly
as SHA256SUMS lists it: the released identity, which the signature covers and a device checks. An artifact has exactly
one image file (`IMAGE_FILE`). States: `built` (SHA256SUMS and all it lists are there), `signed` (SHA256SUMS.gpg too),
`published` (in the index, and every file is there in its size), `broken` (the index, SHA256SUMS and the files
disagree, or reading back at publish found other bytes). A removal is noted in the index before a file is deleted, so that
what is left of a release after a kill is never taken for `built`.

Called by `image_folders`. Reads no file and no clock. Source: design §4.9, contract "Observed snapshot".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from reconciler.model.observed import Artifact, ArtifactState, Holding
from reconciler.model.scalars import Digest, Instant, Release
from reconciler.ports import ArtifactFile, TerminalError, TransientError
from reconciler.protocol import sums

INDEX = "index.json"
SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.gpg"
MANIFEST = "manifest.json"

SMALL = 1 << 20
"""Bytes that `read` and the index's readers take at most: these files list tens of names, not content."""

FILE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$")
IMAGE_FILE = re.compile(r"\.(?:img|raw|ext4|squashfs)(?:\.(?:zst|xz|gz|bz2))?$")
_FOLDER = re.compile(
    r"^(?P<family>[A-Za-z0-9][A-Za-z0-9-]{0,62})-(?P<release>v\d{1,9}(?:\.\d{1,9}){0,2})-(?P<day>\d{8})$"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored file as a listing shows it: bytes, and a mark that changes with the content (ETag, or time)."""

    size: int
    mark: str


Listing = Mapping[str, Mapping[str, Stored]]
"""Folder → file name → what the listing shows of it."""


class _Document(BaseModel):
    # Unknown keys are kept: an older reconciler must not drop what a newer one wrote.
    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)


class PublishedFile(_Document):
    """A file of a published release, as it was read back."""

    name: str
    size: int
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Published(_Document):
    """A release in the index. `digest` is its image file's, `sums` that of SHA256SUMS itself."""

    release: Release
    folder: str
    digest: Digest
    sums: Digest
    published_at: Instant
    files: tuple[PublishedFile, ...]


class Broken(_Document):
    """A folder that did not survive reading back. Stands as long as the folder's listing is the one that was seen."""

    release: Release
    folder: str
    seen: str
    why: str
    at: Instant


class Removed(_Document):
    """A release that was taken out of the store. While `removing`, files may still lie in `folders`, and none of them counts.

    The note stays where the release was published: its name stands for `digest`, its image file's, for good.
    """

    release: Release
    folders: tuple[str, ...] = ()
    digest: Digest | None = None
    removing: bool = False
    at: Instant


class Index(_Document):
    """`index.json`: the published releases, the folders found broken, the releases removed. Sorted by release."""

    api_version: Literal["images/v1"] = "images/v1"
    releases: tuple[Published, ...] = ()
    broken: tuple[Broken, ...] = ()
    removed: tuple[Removed, ...] = ()

    def published(self, release: str) -> Published | None:
        """The index entry of a release, or None."""
        return next((entry for entry in self.releases if entry.release == release), None)

    def with_published(self, entry: Published) -> Index:
        """Add a release (its notes go). TerminalError: it is or was there with another digest or folder, or is being removed."""
        there = self.published(entry.release)
        self.check_name(entry.release, entry.digest, f"publishing {entry.release}")
        if there is not None:
            if (there.digest, there.sums, there.folder) == (entry.digest, entry.sums, entry.folder):
                return self
            raise TerminalError(
                f"{entry.release} is published already as {there.folder} with {there.digest}, not {entry.digest}",
                needed_for=f"publishing {entry.release}",
                remedy="a published release never changes; give the new bytes a new release",
            )
        releases = sorted((*self.releases, entry), key=lambda each: each.release)
        notes = tuple(note for note in self.broken if note.release != entry.release)
        gone = tuple(note for note in self.removed if note.release != entry.release)
        return self.model_copy(update={"releases": tuple(releases), "broken": notes, "removed": gone})

    def with_broken(self, note: Broken) -> Index:
        """Note a broken folder, in place of an earlier note on it."""
        rest = tuple(each for each in self.broken if each.folder != note.folder)
        return self.model_copy(update={"broken": (*rest, note)})

    def removal(self, release: str) -> Removed | None:
        """The note on a release that was removed, or is being removed."""
        return next((note for note in self.removed if note.release == release), None)

    def being_removed(self) -> frozenset[str]:
        """Folders whose files do not count any more."""
        return frozenset(folder for note in self.removed if note.removing for folder in note.folders)

    def with_removing(self, release: str, folders: Iterable[str], at: datetime) -> Index:
        """Begin a removal: the release is in the index no more, and what lies in these folders does not count."""
        there, noted = self.published(release), self.removal(release)
        known = noted.digest if noted is not None else None
        note = Removed(
            release=release,
            folders=tuple(sorted({*folders, *(noted.folders if noted is not None else ())})),
            digest=there.digest if there is not None else known,
            removing=True,
            at=at,
        )
        return self.model_copy(
            update={
                "releases": tuple(entry for entry in self.releases if entry.release != release),
                "broken": tuple(each for each in self.broken if each.release != release),
                "removed": self._removed_but(release, note),
            }
        )

    def with_removed(self, release: str) -> Index:
        """End a removal: its files are gone. The note stays where the release was published once."""
        note = self.removal(release)
        if note is None or not note.removing:
            return self
        left = note.model_copy(update={"folders": (), "removing": False})
        return self.model_copy(update={"removed": self._removed_but(release, left if note.digest else None)})

    def _removed_but(self, release: str, note: Removed | None) -> tuple[Removed, ...]:
        rest = (each for each in self.removed if each.release != release)
        return tuple(sorted((*rest, *((note,) if note is not None else ())), key=lambda each: each.release))

    def check_name(self, release: str, digest: str, purpose: str) -> None:
        """TerminalError: the release was published with another digest than this, and removed since. TransientError: its
        removal is under way."""
        note = self.removal(release)
        if note is not None and note.removing:
            raise TransientError(
                f"{release} is being removed from the image store",
                needed_for=purpose,
                remedy="if nobody is at it any more, end it with `reconciler image prune`; it is tried again",
                retry_after_s=60,
            )
        if note is not None and note.digest is not None and note.digest != digest:
            raise TerminalError(
                f"{release} was published with {note.digest} and removed since; this is {digest}",
                needed_for=purpose,
                remedy="a published release never changes, also after it was removed; give the new bytes a new release",
            )

    def to_bytes(self) -> bytes:
        """The file's bytes; the same index gives the same bytes."""
        return (json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Index:
        """Parse the file. TerminalError: it is not an index; nothing is then published or overwritten."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "document"
            raise TerminalError(
                f"{where} is not an index of images: {place}: {first['msg']}",
                needed_for="knowing which releases are published",
                remedy=f"restore the last good {INDEX} (object versions, backup); it is never rebuilt by guessing",
            ) from None


def folder_release(folder: str) -> tuple[str, str, str] | None:
    """`edge-golden-v1.4.2-20251115` → (family, release, day), or None for any other name."""
    match = _FOLDER.match(folder)
    return (match["family"], match["release"], match["day"]) if match else None


def check_folder(release: str, folder: str) -> None:
    """TerminalError: `folder` is not a name for an artifact of `release`."""
    parts = folder_release(folder)
    if parts is None or parts[1] != release:
        raise TerminalError(
            f"{folder!r} does not name an artifact of {release}",
            needed_for=f"staging {release}",
            remedy=f"name the folder FAMILY-{release}-YYYYMMDD, as edge-golden-{release}-20251115",
        )


def check_file_name(name: str) -> None:
    """TerminalError: `name` is a path, hidden, or otherwise no plain file name."""
    if not FILE_NAME.match(name):
        raise TerminalError(
            f"{name!r} is not a file name of an artifact",
            needed_for="reading or writing an artifact",
            remedy="use letters, digits and . _ + - only, beginning with a letter or digit",
        )


def parse_sums(data: bytes, *, where: str) -> dict[str, str]:
    """SHA256SUMS → file name → 64 hex digits. TerminalError: malformed, or it lists itself or its signature."""
    purpose, remedy = (
        "knowing what the artifact consists of",
        "write it as `sha256sum FILE…` does, over plain file names",
    )
    try:
        found = sums.parse_sums(data)
    except sums.SumsError as error:
        raise TerminalError(f"{where}: {error}", needed_for=purpose, remedy=remedy) from None
    for name in (SUMS, SIGNATURE):
        if name in found:
            raise TerminalError(
                f"{where} lists {name}, which cannot be signed by itself", needed_for=purpose, remedy=remedy
            )
    return found


def image_file(listed: Mapping[str, str], *, where: str) -> str:
    """The name of the artifact's one image file. TerminalError: none, or more than one."""
    images = sorted(name for name in listed if IMAGE_FILE.search(name))
    if len(images) == 1:
        return images[0]
    raise TerminalError(
        f"{where} lists {'no image file' if not images else 'several image files: ' + ', '.join(images)}",
        needed_for="knowing the release's digest",
        remedy="an artifact has exactly one file named *.img, *.raw, *.ext4 or *.squashfs, plain or compressed",
    )


def image_digest(listed: Mapping[str, str], *, where: str) -> str:
    """`sha256:…` of the image file: the release's identity."""
    return "sha256:" + listed[image_file(listed, where=where)]


def seen_listing(files: Mapping[str, Stored]) -> str:
    """One word for a folder's listing, so that a note on a broken folder lapses when somebody replaces its files."""
    rows = [[name, files[name].size, files[name].mark] for name in sorted(files)]
    return "sha256:" + hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def candidates(index: Index, listing: Listing, family: str | None) -> dict[str, str]:
    """Release → its folder that holds SHA256SUMS; of several, the one of the latest day (then the last by name).

    A folder whose removal has begun is none, whatever it still holds.
    """
    best: dict[str, tuple[str, str]] = {}
    gone = index.being_removed()
    for folder, files in listing.items():
        parts = folder_release(folder)
        if parts is None or SUMS not in files or (family is not None and parts[0] != family) or folder in gone:
            continue
        best[parts[1]] = max(best.get(parts[1], ("", "")), (parts[2], folder))
    return {release: folder for release, (_, folder) in best.items()}


def judge(
    index: Index, listing: Listing, family: str | None, read_sums: Callable[[str, Stored], bytes]
) -> dict[str, Artifact]:
    """Every release's state, digest and size. `read_sums` gives SHA256SUMS of a folder that is not published yet."""
    out: dict[str, Artifact] = {}
    for entry in index.releases:
        parts = folder_release(entry.folder)
        if family is not None and (parts is None or parts[0] != family):
            continue
        state = ArtifactState.BROKEN if published_fault(entry, listing) else ArtifactState.PUBLISHED
        size = next((file.size for file in entry.files if IMAGE_FILE.search(file.name)), None)
        out[entry.release] = Artifact(state=state, digest=entry.digest, size=size)
    notes = {note.folder: note.seen for note in index.broken}
    for release, folder in candidates(index, listing, family).items():
        if release in out:
            continue
        files = listing[folder]
        try:
            listed = parse_sums(read_sums(folder, files[SUMS]), where=f"{folder}/{SUMS}")
            name = image_file(listed, where=f"{folder}/{SUMS}")
        except TerminalError:
            out[release] = Artifact(state=ArtifactState.BROKEN)
            continue
        digest, stored = "sha256:" + listed[name], files.get(name)
        size = stored.size if stored is not None else None
        noted = folder in notes and notes[folder] == seen_listing(files)
        if noted or any(name not in files for name in listed):
            out[release] = Artifact(state=ArtifactState.BROKEN, digest=digest, size=size)
        else:
            state = ArtifactState.SIGNED if SIGNATURE in files else ArtifactState.BUILT
            out[release] = Artifact(state=state, digest=digest, size=size)
    return out


def published_fault(entry: Published, listing: Listing) -> str | None:
    """Why a published release is broken, as far as a listing shows (files and sizes), or None."""
    files = listing.get(entry.folder, {})
    for file in entry.files:
        stored = files.get(file.name)
        if stored is None:
            return f"{entry.folder}/{file.name} is missing"
        if stored.size != file.size:
            return f"{entry.folder}/{file.name} has {stored.size} bytes instead of {file.size}"
    return None


def holdings(index: Index, listing: Listing, family: str | None, judged: Mapping[str, Artifact]) -> list[Holding]:
    """What is there of each release, by release; `judged` is `judge`'s answer. Other families' folders are left out."""
    folders: dict[str, dict[str, str]] = {}
    noted = {folder for note in index.removed if note.removing for folder in note.folders}
    for folder in (*listing, *(entry.folder for entry in index.releases), *noted):
        parts = folder_release(folder)
        if parts is not None and family in (None, parts[0]):
            folders.setdefault(parts[1], {})[folder] = parts[2]
    chosen = {**candidates(index, listing, family), **{entry.release: entry.folder for entry in index.releases}}
    out = []
    for release, days in sorted(folders.items()):
        entry, note = index.published(release), index.removal(release)
        artifact = judged.get(release, Artifact())
        day = days[chosen[release]] if release in chosen else max(days.values())
        out.append(
            Holding(
                release=release,
                state=artifact.state,
                folders=tuple(sorted(days)),
                size=sum(file.size for folder in days for file in listing.get(folder, {}).values()),
                day=_day(day),
                digest=artifact.digest,
                published_at=entry.published_at if entry is not None else None,
                removing=note is not None and note.removing,
            )
        )
    return out


def _day(digits: str) -> date:
    """A folder's day. One that no calendar has counts as the last of all: nothing is old for a name that is wrong."""
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return date.max


def as_published(file: ArtifactFile) -> PublishedFile:
    """A file that was read back, as the index keeps it."""
    return PublishedFile(name=file.name, size=file.size, sha256=file.sha256)
