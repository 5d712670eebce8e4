"""From recorded calls to a disk: does to the model what the programs did to the files, one change at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.agent.power.disk import Disk, File, Folder, Link, Naming, Node, Write
from tests.agent.power.trace import SYNCS, Call, Descriptors, Open, path, read, text

UNMOUNTED = "unmounted"
"""The mark after which all that was written is on the disk: an orderly reboot unmounts."""
_RENAMES = frozenset(("rename", "renameat", "renameat2"))
_REMOVALS = frozenset(("unlink", "unlinkat", "rmdir"))
_FOREIGN = frozenset(("writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "splice", "truncate"))
_FOREIGN |= {"link", "linkat", "mknod", "mknodat", "sync_file_range"}


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant at which the power may go. With `write`, it is under way, and nothing of it is in the model yet; else
    `label` has just happened. A `mark` is what the recorded program said of itself."""

    label: str
    file: File | None = None
    write: Write | None = None
    mark: str | None = None


class NotUnderstood(Exception):
    """A call changed the disk in a way that the model does not know."""


class Replay:
    """One log over one disk. `moments` may be walked once."""

    def __init__(self, log: Path, root: Path, marks: Path, disk: Disk) -> None:
        """`root` is where the recorded program had the disk, `marks` the file it wrote its marks to."""
        self.disk = disk
        self.partitions = [node for name, node in disk.root.now.items() if name.startswith("slot-")]
        self._log, self._root, self._marks = log, f"{root}/", str(marks)
        self._open = Descriptors()
        self._syncing: dict[int, tuple[File, Write | None] | list[Naming] | None] = {}

    def moments(self) -> Iterator[Moment]:
        """Every change, as it is made."""
        for call in read(self._log):
            self._open.follow(call)
            if call.name in SYNCS:
                yield from self._sync(call)
            elif call.result is not None and call.result >= 0:
                yield from self._done(call)

    def _done(self, call: Call) -> Iterator[Moment]:
        match call.name:
            case "open" | "openat" | "creat" | "openat2":
                yield from self._opened(call)
            case "write" | "pwrite64":
                yield from self._write(call)
            # To ask for the place is none, and may be logged after what another process has moved meanwhile.
            case "lseek" if call.arguments[1:] != ("0", "SEEK_CUR"):
                if found := self._open.get(call.process, call.arguments[0]):
                    found.at = call.result or 0
            case "ftruncate" | "fallocate":
                yield from self._sized(call)
            case "mkdir" | "mkdirat" | "symlink" | "symlinkat":
                yield from self._made(call)
            case name if name in _RENAMES | _REMOVALS:
                yield from self._moved(call)
            case name if name in _FOREIGN or (
                name == "mmap" and "MAP_SHARED" in call.arguments[3] and "PROT_WRITE" in call.arguments[2]
            ):
                self._must_not_touch(call)
            case _:
                pass

    def _must_not_touch(self, call: Call) -> None:
        for argument in call.arguments:
            found = self._open.get(call.process, argument)
            inside = argument.startswith('"') and path(argument).startswith(self._root)
            if inside or (found is not None and found.node is not None and found.flags & {"O_WRONLY", "O_RDWR"}):
                raise NotUnderstood(f"{call.name}({', '.join(call.arguments)[:200]})")

    def _inside(self, place: str) -> str | None:
        """A path relative to the disk's root; None: elsewhere."""
        return place[len(self._root) :] if place.startswith(self._root) else None

    # ------------------------------------------------------------ files

    def _opened(self, call: Call) -> Iterator[Moment]:
        at = 0 if call.name in ("open", "creat") else 1
        place = self._open.place(call, call.arguments[0] if at else None, call.arguments[at])
        flags = (
            frozenset(call.arguments[at + 1].split("|")) if call.name != "creat" else frozenset(("O_CREAT", "O_TRUNC"))
        )
        inside, node = self._inside(place), None
        if inside is not None:
            if call.name == "openat2":
                raise NotUnderstood(f"openat2 of {inside}")
            node = self._followed(inside)
            if node is None and "O_CREAT" in flags:
                node = self.disk.new_file()
                folder, name = self.disk.folder(inside)
                self.disk.name(Naming(((folder, name, node),)))
                yield Moment(f"create {inside}")
            elif isinstance(node, File) and "O_TRUNC" in flags and node.now:
                yield from self._change(inside, node, Write(0, None), flags)
        self._open.opened(call, call.result or 0, Open(place, flags, node))

    def _followed(self, inside: str) -> Node | None:
        node = self.disk.find(inside)
        while isinstance(node, Link):
            inside = os.path.normpath(f"{os.path.dirname(inside)}/{node.target}".lstrip("/"))
            node = self.disk.find(inside)
        return node

    def _write(self, call: Call) -> Iterator[Moment]:
        found = self._open.get(call.process, call.arguments[0])
        if found is None or (found.node is None and found.path != self._marks):
            return
        data = text(call.arguments[1])[: call.result]
        if found.path == self._marks:
            mark = data.decode().strip()
            if mark == UNMOUNTED:
                self.disk.keep_all()
            yield Moment(f"mark {mark}", mark=mark)
            return
        assert isinstance(found.node, File)
        if "O_APPEND" in found.flags:
            found.at = len(found.node.now)
        at = int(call.arguments[3]) if call.name == "pwrite64" else found.at
        yield from self._change(self._inside(found.path) or "", found.node, Write(at, data), found.flags)
        if call.name == "write":
            found.at += len(data)

    def _sized(self, call: Call) -> Iterator[Moment]:
        found = self._open.get(call.process, call.arguments[0])
        if found is None or not isinstance(found.node, File):
            return
        if call.name == "fallocate" and call.arguments[1] != "0":
            raise NotUnderstood(f"fallocate({', '.join(call.arguments)})")
        size = int(call.arguments[1]) if call.name == "ftruncate" else int(call.arguments[2]) + int(call.arguments[3])
        if size == 0 and found.node in self.partitions:
            # A file stands for a partition, which has one size: making it empty is writing zeros, sector by sector.
            zeros = Write(0, bytes(len(found.node.now)))
            yield from self._change(self._inside(found.path) or "", found.node, zeros, found.flags)
            return
        if call.name == "ftruncate" or size > len(found.node.now):
            yield from self._change(self._inside(found.path) or "", found.node, Write(size, None), found.flags)

    def _change(self, name: str, file: File, write: Write, flags: frozenset[str]) -> Iterator[Moment]:
        label = f"write {name}" if write.data is not None else f"truncate {name}"
        yield Moment(label, file, write)
        file.do(write)
        yield Moment(label)
        if flags & {"O_SYNC", "O_DSYNC"}:
            file.keep(file.pending.index(write) + 1)
            yield Moment(f"{label}, synced")

    # ------------------------------------------------------------ names

    def _made(self, call: Call) -> Iterator[Moment]:
        """A folder or a symbolic link."""
        is_link, at = call.name.startswith("symlink"), call.name.endswith("at")
        arguments = call.arguments[1:] if is_link else call.arguments
        place = self._open.place(call, arguments[0] if at else None, arguments[1 if at else 0])
        inside = self._inside(place)
        if inside is not None:
            node: Node = Link(path(call.arguments[0])) if is_link else self.disk.new_folder()
            folder, name = self.disk.folder(inside)
            self.disk.name(Naming(((folder, name, node),)))
            yield Moment(f"make {inside}")

    def _moved(self, call: Call) -> Iterator[Moment]:
        at, arguments = call.name not in ("rename", "unlink", "rmdir"), call.arguments
        source = self._inside(self._open.place(call, arguments[0] if at else None, arguments[1 if at else 0]))
        is_rename = call.name in _RENAMES
        target = (
            self._inside(self._open.place(call, arguments[2] if at else None, arguments[3 if at else 1]))
            if is_rename
            else None
        )
        if source is None and target is None:
            return
        if source is None or (is_rename and target is None):
            raise NotUnderstood(f"{call.name} to or from the disk")
        folder, name = self.disk.folder(source)
        node = folder.now[name]
        edits: list[tuple[Folder, str, Node | None]] = [(folder, name, None)]
        if target is not None:
            edits.append((*self.disk.folder(target), node))
        self.disk.name(Naming(tuple(edits), node))
        yield Moment(f"rename {target}" if target is not None else f"remove {source}")

    # ------------------------------------------------------------ syncs

    def _sync(self, call: Call) -> Iterator[Moment]:
        """What was written before a sync begins lasts when it has ended; what comes meanwhile may not."""
        if call.name in ("sync", "syncfs"):
            if call.result is not None:
                self.disk.keep_all()
                yield Moment(call.name)
            return
        found = self._open.get(call.process, call.arguments[0])
        if found is None or not isinstance(found.node, File | Folder):
            return
        name = self._inside(found.path) or "."
        if call.process not in self._syncing:
            node = found.node
            last = (
                (node, node.pending[-1] if node.pending else None)
                if isinstance(node, File)
                else self.disk.touching(node)
            )
            self._syncing[call.process] = last
        if call.result is None:
            yield Moment(f"sync {name} begins")
            return
        covered = self._syncing.pop(call.process)
        if call.result == 0:
            if isinstance(covered, list):
                self.disk.keep_names(covered)
            elif covered is not None and covered[1] is not None:
                file, last_write = covered
                numbers = [number for number, write in enumerate(file.pending) if write is last_write]
                file.keep(numbers[0] + 1 if numbers else 0)
        yield Moment(f"sync {name}")
