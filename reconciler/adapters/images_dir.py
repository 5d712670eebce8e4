"""The image store as a directory: the local twin of `images_s3`, and a store in its own right for one machine.

Every write goes to a temporary file in the same folder, is synced and renamed; create-only writes and the index are
serialised by a lock file in the root, so that several processes may share the directory. Needs a POSIX file system
with `flock`. Files are made world-readable (0644): an artifact holds nothing site-specific, and the HTTP server may
run as another user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from reconciler.adapters import durable, image_index
from reconciler.adapters.image_folders import FolderImageStore, Told, utc_now
from reconciler.adapters.image_index import INDEX, Index, Listing, Stored
from reconciler.ports import TerminalError

_LOCK = ".lock"
_LOCK_S = 30.0
_LEFTOVER_S = 86400.0


class DirectoryImageStore(FolderImageStore):
    """`ports.ImageStore` in `root` (made if absent).

    `base_url`: where the controller's HTTP service serves `/v1/artifacts/{folder}/{file}`; without it `url` gives
    `file:` addresses, which only a device on this machine can use. `expires_s` has no meaning here: the server asks
    for the device's token instead.
    """

    def __init__(
        self,
        root: Path,
        *,
        base_url: str | None = None,
        family: str | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(family=family, now=now)
        self._root, self._base_url = root.absolute(), base_url.rstrip("/") if base_url else None
        with durable.os_errors(f"make {root}", needed_for="the image store"):
            durable.make_folder(self._root)

    @property
    def root(self) -> Path:
        """Where the folders are."""
        return self._root

    def path(self, folder: str, name: str) -> Path:
        """The path of an artifact's file, for a server that sends it. TerminalError: absent, or no such name."""
        image_index.check_file_name(name)
        path = self._root / folder / name
        if image_index.folder_release(folder) is None or not path.is_file():
            raise TerminalError(
                f"{folder}/{name} is not in the image store",
                needed_for="sending an artifact",
                remedy="ask for a file of an artifact that is there",
            )
        return path

    def _listing(self) -> Listing:
        out: dict[str, dict[str, Stored]] = {}
        with durable.os_errors(f"list {self._root}", needed_for="knowing what the image store holds"):
            for folder in self._root.iterdir():
                if folder.name.startswith(".") or not folder.is_dir():
                    continue
                files = {}
                for path in folder.iterdir():
                    if not path.name.startswith(".") and path.is_file():
                        stat = path.stat()
                        files[path.name] = Stored(stat.st_size, str(stat.st_mtime_ns))
                out[folder.name] = files
        return out

    def _stream(self, folder: str, name: str) -> Iterator[bytes]:
        path = self._root / folder / name
        purpose = f"reading {name} of {folder}"
        if not path.is_file():
            remedy = "put it back, or ask for a file that is there"
            raise TerminalError(f"{self._where(folder, name)} is absent", needed_for=purpose, remedy=remedy)
        with durable.os_errors(f"read {path}", needed_for=purpose):
            yield from durable.chunks(path)

    def _create(self, folder: str, name: str, source: Path, told: Told) -> None:
        path = self._root / folder / name
        purpose = f"staging {folder}"
        with durable.os_errors(f"write {path}", needed_for=purpose):
            durable.make_folder(path.parent)
            durable.sweep_parts(path.parent, _LEFTOVER_S)
            part, _ = durable.write_beside(path, _counted(durable.chunks(source), told))
            with durable.locked(self._root / _LOCK, timeout_s=_LOCK_S, needed_for=purpose):
                if path.exists():
                    part.unlink()
                else:
                    durable.put_in_place(part, path)

    def _delete(self, folder: str, name: str) -> None:
        path = self._root / folder / name
        with durable.os_errors(f"remove {path}", needed_for=f"removing {folder}"):
            path.unlink(missing_ok=True)
            durable.sync_folder(path.parent)

    def _delete_folder(self, folder: str) -> None:
        path = self._root / folder
        with durable.os_errors(f"remove {path}", needed_for=f"removing {folder}"):
            durable.sweep_parts(path, 0)
            # What somebody else put there, a folder or a hidden file, is not ours to delete, and counts for nothing.
            with suppress(OSError):
                path.rmdir()
            durable.sync_folder(self._root)

    def _replace(self, folder: str, name: str, data: bytes) -> None:
        path = self._root / folder / name
        with durable.os_errors(f"write {path}", needed_for=f"writing {name} of {folder}"):
            durable.write_atomic(path, [data])

    def _index(self) -> Index:
        path = self._root / INDEX
        with durable.os_errors(f"read {path}", needed_for="knowing which releases are published"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return Index()
        return Index.from_bytes(data, where=str(path))

    def _update_index(self, change: Callable[[Index], Index]) -> None:
        path, purpose = self._root / INDEX, "updating the index of images"
        with (
            durable.os_errors(f"write {path}", needed_for=purpose),
            durable.locked(self._root / _LOCK, timeout_s=_LOCK_S, needed_for=purpose),
        ):
            before = self._index()
            after = change(before)
            if after != before:
                durable.write_atomic(path, [after.to_bytes()])

    def _address(self, folder: str, name: str, expires_s: int) -> str:
        if self._base_url is None:
            return (self._root / folder / name).as_uri()
        return f"{self._base_url}/v1/artifacts/{quote(folder)}/{quote(name)}"

    def _where(self, folder: str, name: str = "") -> str:
        return str(self._root / folder / name)


def _counted(parts: Iterable[bytes], told: Told) -> Iterator[bytes]:
    """The same parts; `told` hears how many bytes have gone by."""
    done = 0
    for part in parts:
        yield part
        done += len(part)
        told(done)
