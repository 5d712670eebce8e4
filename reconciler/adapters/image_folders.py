"""The rules of the image store, over a few primitives that a directory and a bucket both have.

`FolderImageStore` implements `ports.ImageStore`; `images_dir` and `images_s3` give it listing, streams, create-only
writes and a compare-and-set of the index. Order of writes, so that a kill at any point leaves a state that a repeat
completes:

1. `stage`: every file of SHA256SUMS, then SHA256SUMS itself (state `built` from here on);
2. `attach_signature`: SHA256SUMS.gpg (`signed`);
3. `publish`: everything read back and hashed, then the index, last (`published`);
4. `remove`: the index first (the release is out of it, its folders noted as going), then SHA256SUMS, its signature and
   the other files, then the index again.

It hashes and compares; it does not judge signatures: whoever publishes verifies SHA256SUMS.gpg first
(`protocol.signature`), and publish refuses where the signature is missing. A published release is immutable. Who may
call: the one controller that holds the lease; a second one at work is survived (create-only writes, compare-and-set),
not expected. Source: design §4.9.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reconciler.adapters import image_index
from reconciler.adapters.durable import chunks, os_errors, put_in_place, sha256_of, write_beside
from reconciler.adapters.image_index import MANIFEST, SIGNATURE, SMALL, SUMS, Broken, Index, Listing, Published, Stored
from reconciler.model.observed import Artifact, Holding
from reconciler.ports import ArtifactFile, PortError, TerminalError, UploadProgress

MAX_URL_S = 7 * 86400
"""The longest life of a presigned address (Signature Version 4)."""
_REMOVAL = timedelta(hours=1)
"""Longer than it takes to delete the few files of a release: who began it then is there no more."""

Told = Callable[[int], None]
"""Called with the bytes of a file that the store has taken."""


def _silent(name: str, done: int, size: int) -> None:
    """Nobody wants to know."""


def utc_now() -> datetime:
    """The system's clock; a stepped one takes its place in the demo and in tests."""
    return datetime.now(UTC)


class FolderImageStore(ABC):
    """`ports.ImageStore` over folders of files.

    `family`: only folders of this family are this store's (None: all; two families must not share a release then).
    `now`: the clock of `publishedAt`.
    """

    def __init__(self, *, family: str | None = None, now: Callable[[], datetime] = utc_now) -> None:
        self._family, self._now = family, now
        self._sums_seen: dict[tuple[str, str, int], bytes] = {}
        self._published_in: dict[str, str] = {}

    # ------------------------------------------------ primitives

    @abstractmethod
    def _listing(self) -> Listing:
        """Folder → file → size and mark, of the whole store. Files still being written are left out."""

    @abstractmethod
    def _stream(self, folder: str, name: str) -> Iterator[bytes]:
        """A file's bytes. TerminalError: absent."""

    @abstractmethod
    def _create(self, folder: str, name: str, source: Path, told: Told) -> None:
        """Put a file that is not there yet, durably and as a whole. One that appears meanwhile is left as it is."""

    @abstractmethod
    def _replace(self, folder: str, name: str, data: bytes) -> None:
        """Put a small file, durably and as a whole, over an older one."""

    @abstractmethod
    def _delete(self, folder: str, name: str) -> None:
        """Remove a file; nothing where it is absent."""

    @abstractmethod
    def _delete_folder(self, folder: str) -> None:
        """Remove what is left of a folder whose files are gone: temporary files, uploads that were never completed."""

    @abstractmethod
    def _index(self) -> Index:
        """The index; an empty one where there is none yet."""

    @abstractmethod
    def _update_index(self, change: Callable[[Index], Index]) -> None:
        """Read, change, write only if unchanged meanwhile, and else again. `change` may be called more than once."""

    @abstractmethod
    def _address(self, folder: str, name: str, expires_s: int) -> str:
        """An address from which a device can fetch a file."""

    @abstractmethod
    def _where(self, folder: str, name: str = "") -> str:
        """For messages: how a person finds this file."""

    # ------------------------------------------------ reading

    def artifacts(self) -> Mapping[str, Artifact]:
        """Release → state and digest: the index and one listing.

        SHA256SUMS of a folder that is not published yet is read too, once for each content it has had.
        """
        return self._judged()[2]

    def holdings(self) -> Sequence[Holding]:
        """Everything the store holds of its family, by release."""
        index, listing, judged = self._judged()
        return tuple(image_index.holdings(index, listing, self._family, judged))

    def folder(self, release: str) -> str | None:
        """The folder's name of a release (published, or holding SHA256SUMS), or None."""
        if release in self._published_in:
            return self._published_in[release]
        index = self._index()
        entry = index.published(release)
        if entry is not None:
            # Kept until the next reading of all: a published release never moves, and `url` is asked once for each device.
            self._published_in[release] = entry.folder
            return entry.folder
        return image_index.candidates(index, self._listing(), self._family).get(release)

    def read(self, release: str, name: str) -> bytes:
        """A small file of an artifact, at most a mebibyte. TerminalError: absent, or larger."""
        image_index.check_file_name(name)
        return self._small(self._folder_of(release, f"reading {name}"), name)

    def download(self, release: str, name: str, to: Path) -> ArtifactFile:
        """Copy one file to `to`, hashing as it goes. `to` appears only when the bytes are those of SHA256SUMS.

        TerminalError: absent, or other bytes than SHA256SUMS says. TransientError: the transfer broke off.
        """
        image_index.check_file_name(name)
        purpose = f"downloading {name} of {release}"
        folder = self._folder_of(release, purpose)
        expected = image_index.parse_sums(self._small(folder, SUMS), where=self._where(folder, SUMS)).get(name)
        if expected is None and name not in (SUMS, SIGNATURE):
            raise TerminalError(
                f"{self._where(folder, SUMS)} does not list {name}",
                needed_for=purpose,
                remedy="ask for a file that the artifact consists of",
            )
        with os_errors(f"write {to}", needed_for=purpose):
            part, file = write_beside(to, self._stream(folder, name))
            if expected is not None and file.sha256 != expected:
                part.unlink()
                raise TerminalError(
                    f"{self._where(folder, name)} has sha256 {file.sha256}, SHA256SUMS says {expected}",
                    needed_for=purpose,
                    remedy="restore the file's bytes in the store, or withdraw the release",
                )
            put_in_place(part, to)
        return ArtifactFile(name, file.size, file.sha256)

    def url(self, release: str, name: str, expires_s: int = 3600) -> str:
        """An address of a file, good for `expires_s` seconds where the store can limit that (S3)."""
        image_index.check_file_name(name)
        if not 1 <= expires_s <= MAX_URL_S:
            raise ValueError(f"expires_s is {expires_s}; write 1 to {MAX_URL_S} seconds")
        return self._address(self._folder_of(release, f"the address of {name}"), name, expires_s)

    # ------------------------------------------------ writing

    def stage(self, release: str, name: str, files: Sequence[Path], progress: UploadProgress | None = None) -> None:
        """Put built files under folder `name`, SHA256SUMS last. What is there already with the right bytes is skipped.

        TerminalError: the files are not exactly those of SHA256SUMS, the store holds other bytes under one of these
        names, or the release is published with other content. TransientError: a removal of the release is under way.
        """
        purpose = f"staging {release}"
        image_index.check_folder(release, name)
        paths, sums = _checked_files(files, purpose)
        if self._family is not None and image_index.folder_release(name)[0] != self._family:  # type: ignore[index]
            remedy = f"name the folder {self._family}-{release}-YYYYMMDD, or change the store's family"
            raise TerminalError(f"{name} is not of family {self._family}", needed_for=purpose, remedy=remedy)
        self._published_in.pop(release, None)
        self._end_old_removal(release)
        self._refuse_published(release, name, paths[SUMS], sums, purpose)
        listed = self._listing().get(name, {})
        tell = progress or _silent
        for file in sorted(sums):
            self._stage_one(name, paths[file], sums[file], listed.get(file), purpose, tell)
        with os_errors(f"read {paths[SUMS]}", needed_for=purpose):
            own = sha256_of(chunks(paths[SUMS]))[1]
        self._stage_one(name, paths[SUMS], own, listed.get(SUMS), purpose, tell)

    def attach_signature(self, release: str, signature: bytes) -> None:
        """Put SHA256SUMS.gpg. An unpublished release may be signed anew; a published one keeps the signature it has."""
        purpose = f"signing {release}"
        if not signature or len(signature) > SMALL:
            remedy = "sign SHA256SUMS again; the signer gives one detached signature"
            raise TerminalError(f"the signature has {len(signature)} bytes", needed_for=purpose, remedy=remedy)
        folder = self._folder_of(release, purpose)
        if self._index().published(release) is None:
            self._replace(folder, SIGNATURE, signature)
        elif self._small(folder, SIGNATURE) != signature:
            raise TerminalError(
                f"{release} is published with another signature",
                needed_for=purpose,
                remedy="a published release never changes; give it a new release, or withdraw it",
            )

    def publish(self, release: str) -> None:
        """Read everything back, compare with SHA256SUMS, then add the release to the index.

        TerminalError: no signature (the state stays `built`), or the bytes do not match (noted, so the state is
        `broken` until somebody replaces them). The caller has verified the signature.
        """
        purpose = f"publishing {release}"
        listing, index = self._listing(), self._index()
        entry = index.published(release)
        if entry is not None and image_index.published_fault(entry, listing) is None:
            return
        folder = entry.folder if entry else image_index.candidates(index, listing, self._family).get(release)
        if folder is None:
            remedy = "build and stage it first"
            raise TerminalError(f"{release} is not in the image store", needed_for=purpose, remedy=remedy)
        files = listing.get(folder, {})
        if SIGNATURE not in files and entry is None:
            remedy = "sign the release first"
            raise TerminalError(f"{self._where(folder, SIGNATURE)} is missing", needed_for=purpose, remedy=remedy)
        try:
            found = self._read_back(release, folder, files)
        except TerminalError as error:
            self._note_broken(release, folder, files, error.wrong)
            raise
        self._update_index(lambda index: index.with_published(found))

    # ------------------------------------------------ removing

    def remove(self, release: str) -> None:
        """Take a release out, with every folder of it: the index first, then the files, SHA256SUMS before the others.

        From the first write on it is absent, and a kill after it leaves no folder that counts; a repeat deletes the rest.
        """
        index, listing = self._index(), self._listing()
        folders = {folder for folder in listing if self._is_of(folder, release)}
        entry, noted = index.published(release), index.removal(release)
        folders |= {entry.folder} if entry is not None else set()
        if not folders and not (noted is not None and noted.removing):
            return
        self._update_index(lambda index: index.with_removing(release, folders, self._now()))
        self._published_in.pop(release, None)
        self._clear(release)

    def _is_of(self, folder: str, release: str) -> bool:
        parts = image_index.folder_release(folder)
        return parts is not None and parts[1] == release and self._family in (None, parts[0])

    def _clear(self, release: str) -> None:
        """Delete what lies in the folders that the index notes as going, then say in the index that it is gone."""
        note, listing = self._index().removal(release), self._listing()
        for folder in note.folders if note is not None and note.removing else ():
            # SHA256SUMS first: without it a folder is no artifact even to who does not know these notes.
            for name in sorted(listing.get(folder, {}), key=lambda each: (each not in (SUMS, SIGNATURE), each)):
                self._delete(folder, name)
            self._delete_folder(folder)
        self._update_index(lambda index: index.with_removed(release))

    def _end_old_removal(self, release: str) -> None:
        """End a removal whose process was killed long ago; a younger one may be at work, and is left to it."""
        note = self._index().removal(release)
        if note is not None and note.removing and self._now() - note.at > _REMOVAL:
            self._clear(release)

    # ------------------------------------------------ parts

    def _judged(self) -> tuple[Index, Listing, Mapping[str, Artifact]]:
        # The index first: a release that is published in between is then seen as `signed`, never as one that lacks files.
        index, listing = self._index(), self._listing()
        self._published_in = {entry.release: entry.folder for entry in index.releases}
        return index, listing, image_index.judge(index, listing, self._family, self._sums_of)

    def _read_back(self, release: str, folder: str, files: Mapping[str, Stored]) -> Published:
        """Hash every stored file. TerminalError: not exactly what SHA256SUMS says."""

        def refuse(wrong: str) -> TerminalError:
            remedy = "put the signed bytes back, or remove the folder and build the release again"
            return TerminalError(wrong, needed_for=f"publishing {release}", remedy=remedy)

        where = self._where(folder, SUMS)
        own = self._small(folder, SUMS)
        sums = image_index.parse_sums(own, where=where)
        digest = image_index.image_digest(sums, where=where)
        if MANIFEST not in sums:
            raise refuse(f"{where} does not list {MANIFEST}")
        for name in sorted(set(files) - set(sums) - {SUMS, SIGNATURE}):
            raise refuse(f"{self._where(folder, name)} is not listed in {SUMS}")
        back = [ArtifactFile(SUMS, len(own), hashlib.sha256(own).hexdigest())]
        for name in (*sorted(sums), SIGNATURE):
            if name not in files:
                raise refuse(f"{self._where(folder, name)} is missing")
            size, sha256 = sha256_of(self._stream(folder, name))
            if sha256 != sums.get(name, sha256):
                raise refuse(f"{self._where(folder, name)} has sha256 {sha256}, {SUMS} says {sums[name]}")
            back.append(ArtifactFile(name, size, sha256))
        return Published(
            release=release,
            folder=folder,
            digest=digest,
            sums="sha256:" + back[0].sha256,
            published_at=self._now(),
            files=tuple(image_index.as_published(file) for file in sorted(back, key=lambda each: each.name)),
        )

    def _note_broken(self, release: str, folder: str, files: Mapping[str, Stored], why: str) -> None:
        note = Broken(release=release, folder=folder, seen=image_index.seen_listing(files), why=why, at=self._now())
        # Without the note the next publish finds the same fault again; the fault itself is what the caller must see.
        with suppress(PortError):
            self._update_index(lambda index: index.with_broken(note))

    def _stage_one(
        self, folder: str, path: Path, sha256: str, stored: Stored | None, purpose: str, progress: UploadProgress
    ) -> None:
        """Put one file, unless it is there; then make sure that the store holds these bytes."""
        with os_errors(f"read {path}", needed_for=purpose):
            size, own = sha256_of(chunks(path))
        if own != sha256:
            raise TerminalError(
                f"{path.name} has sha256 {own}, {SUMS} says {sha256}",
                needed_for=purpose,
                remedy="build the release again",
            )
        if stored is None:
            self._create(folder, path.name, path, lambda done: progress(path.name, done, size))
        there, held = sha256_of(self._stream(folder, path.name))
        if (there, held) != (size, sha256):
            raise TerminalError(
                f"{self._where(folder, path.name)} holds other bytes (sha256 {held}, not {sha256})",
                needed_for=purpose,
                remedy="remove the folder if nothing uses it, or stage under another day",
            )
        progress(path.name, size, size)

    def _refuse_published(self, release: str, folder: str, sums: Path, listed: Mapping[str, str], purpose: str) -> None:
        index = self._index()
        index.check_name(release, image_index.image_digest(listed, where=str(sums)), purpose)
        entry = index.published(release)
        if entry is None:
            return
        with os_errors(f"read {sums}", needed_for=purpose):
            own = "sha256:" + sha256_of(chunks(sums))[1]
        if (entry.folder, entry.sums) != (folder, own):
            raise TerminalError(
                f"{release} is published already as {entry.folder}",
                needed_for=purpose,
                remedy="a published release never changes; give the new bytes a new release",
            )

    def _folder_of(self, release: str, purpose: str) -> str:
        folder = self.folder(release)
        if folder is None:
            remedy = "build and publish it, or ask for a release that is there"
            raise TerminalError(f"{release} is not in the image store", needed_for=purpose, remedy=remedy)
        return folder

    def _sums_of(self, folder: str, stored: Stored) -> bytes:
        key = (folder, stored.mark, stored.size)
        if key not in self._sums_seen:
            self._sums_seen[key] = self._small(folder, SUMS)
        return self._sums_seen[key]

    def _small(self, folder: str, name: str) -> bytes:
        data = bytearray()
        for part in self._stream(folder, name):
            data += part
            if len(data) > SMALL:
                raise TerminalError(
                    f"{self._where(folder, name)} is larger than {SMALL} bytes",
                    needed_for=f"reading {name} into memory",
                    remedy="download it to a file",
                )
        return bytes(data)


def _checked_files(files: Sequence[Path], purpose: str) -> tuple[dict[str, Path], dict[str, str]]:
    """Name → path and name → sha256. TerminalError: the files given are not exactly SHA256SUMS and what it lists."""
    paths = {path.name: path for path in files}
    for name in paths:
        image_index.check_file_name(name)
    if len(paths) != len(files):
        raise TerminalError("two files have one name", needed_for=purpose, remedy="give every file once")
    if SUMS not in paths:
        raise TerminalError(f"{SUMS} is not among the files", needed_for=purpose, remedy="pack the artifact first")
    with os_errors(f"read {paths[SUMS]}", needed_for=purpose):
        sums = image_index.parse_sums(b"".join(chunks(paths[SUMS])), where=str(paths[SUMS]))
    image_index.image_file(sums, where=str(paths[SUMS]))
    if MANIFEST not in sums:
        remedy = "pack the artifact with its manifest"
        raise TerminalError(f"{SUMS} does not list {MANIFEST}", needed_for=purpose, remedy=remedy)
    given = set(paths) - {SUMS}
    if given != set(sums):
        odd = sorted(given ^ set(sums))[0]
        wrong = f"{odd} is {'not listed in ' + SUMS if odd in given else 'listed in ' + SUMS + ' but not given'}"
        raise TerminalError(wrong, needed_for=purpose, remedy="stage exactly the files that SHA256SUMS lists")
    return paths, sums
