"""The sysprep gate: opens a finished image and finds everything in it that no image may hold. All of it, in one run.

Decides from the image's own bytes, not from what sysprep.sh says it did. Reads the file system itself: mounts nothing,
needs no root, follows no symlink on this machine, writes nothing but a keyring's temporary folder. It looks at every
name (through the image's own symlinks too), every inode, every byte of a file that no Debian package of the image ships
unchanged, and every byte that belongs to no file. It guards against what is left behind by mistake: a recipe that hides
a secret on purpose (encrypted, split up) is not found out. Never tells a secret's value. Called by the builder's stage
`gate`, by the signer (`image.recheck`) and by `reconciler image check`. Source: design §1 "Creation", §4.9.
"""

from __future__ import annotations

import hashlib
import re
import stat
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.image import gate_keys
from reconciler.image.gate_ext4 import JOURNAL, RESIZE, Entry, Inode, Unreadable, Volume
from reconciler.image.gate_look import Found
from reconciler.image.gate_packed import unpack
from reconciler.image.gate_rules import BY_NAME, looks_at
from reconciler.image.gate_secrets import SETTINGS, Scanner, whole
from reconciler.image.process import PATH, program
from reconciler.ports import TerminalError

_LARGEST_HOLE = 64 << 20
_LONGEST_LIST = 64 << 20
_LINKS = 40
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """Something in an image that must not be there. `path` is the image's own, from its root, or a place in `<…>`;
    `rule` a name in `gate_rules.RULES`; `what` names the kind and the place, never a secret."""

    path: str
    rule: str
    what: str
    remedy: str


def inspect(image: Path, *, allowed: Collection[str] | None = None, offset: int = 0) -> tuple[Fault, ...]:
    """Every fault of a raw ext4 image (at `offset` bytes of the file), sorted; none: the image may be published.

    `allowed`: fingerprints (40 hex digits) of the keys that may sign this fleet's releases; None: the image's keys are
    checked without them. TerminalError: the file is no ext4 file system that can be read, or a program is missing.
    """
    try:
        faults = set(_structure(image, offset))
        with Volume(image, offset) as volume:
            faults |= set(_Inspection(volume, allowed).run())
        return tuple(sorted(faults))
    except Unreadable as error:
        raise TerminalError(
            f"{image.name} cannot be read as an ext4 file system: {error}",
            needed_for="checking the image",
            remedy="name a raw root-slot image, as the builder makes it",
        ) from None
    except OSError as error:
        raise TerminalError(
            f"{image} cannot be read ({error.strerror or error})",
            needed_for="checking the image",
            remedy="name another file",
        ) from None


def fault(path: bytes | str, rule: str, what: str) -> Fault:
    """A fault with its rule's remedy, its path fit for a terminal."""
    return Fault(shown(path), rule, what, BY_NAME[rule].remedy)


def shown(path: bytes | str) -> str:
    """A path from the root, printable: bytes that are no UTF-8 and control characters as escapes."""
    if isinstance(path, str):
        return path
    text = "/" + path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _structure(image: Path, offset: int) -> Iterator[Fault]:
    """What e2fsck says. A file that is no ext4 at all is for the reader to say."""
    e2fsck = program("e2fsck", "e2fsprogs", "checking the image")
    # A path from the root, so that no name is taken for an option; `?` is e2fsprogs' own sign for options of a file.
    name = str(image.absolute())
    if "?" in name:
        raise TerminalError(
            f"{image} has a question mark in its name", needed_for="checking the image", remedy="rename it"
        )
    argv = [e2fsck, "-fn", f"{name}?offset={offset}" if offset else name]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False, env={"PATH": PATH, "LC_ALL": "C"}
    )
    if done.returncode & 4:
        yield fault("<file system>", "file-system", "e2fsck finds errors in it")


@dataclass(slots=True)
class _Inspection:
    """One run over one volume."""

    volume: Volume
    allowed: Collection[str] | None
    by_path: dict[bytes, Entry] = field(default_factory=dict)
    below: dict[bytes, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    # Inodes whose bytes are those of a file that a package of the image ships.
    packaged: set[int] = field(default_factory=set)

    def run(self) -> Iterator[Fault]:
        """All rules."""
        if self.volume.shape.needs_recovery:
            yield fault("<file system>", "file-system", "it was not unmounted: its journal waits to be replayed")
        for entry in self.volume.entries():
            self.by_path[entry.path] = entry
            self.below[entry.path.rpartition(b"/")[0]].append(entry.path)
        yield from self._contents()
        for entry in self.by_path.values():
            yield from self._modes(entry)
            yield from self._looks(entry.path, entry)
        yield from self._through_links()
        ring, fingerprints = (self._text(path) for path in (gate_keys.RING, gate_keys.FINGERPRINTS))
        for path, what in gate_keys.judge(ring, fingerprints, self.allowed):
            yield fault(path, "release-keys", what)
        pair = (self._text(path) for path in (gate_keys.ASSIGNMENT_RING, gate_keys.ASSIGNMENT_FINGERPRINTS))
        for path, what in gate_keys.judge_assignment(*pair):
            yield fault(path, "assignment-keys", what)
        yield from self._residue()

    # ------------------------------------------------ names

    def _looks(self, path: bytes, entry: Entry) -> Iterator[Fault]:
        """The rules that go by a path; `path` may be another name of the entry."""
        inode = entry.inode
        if inode.number in self.packaged and inode.size:
            return
        kind = _KINDS.get(stat.S_IFMT(inode.mode), "device")
        # A folder is looked at by its own name, and as `name/` where a rule wants folders alone.
        for name in (path, path + b"/") if entry.is_folder else (path,):
            for rule, look in looks_at(name):
                if look.whatever or (entry.is_file and inode.size):
                    for what in look.test(Found(path, kind, inode.size, lambda: self.volume.read(inode))):
                        yield fault(path, rule.name, what)

    def _through_links(self) -> Iterator[Fault]:
        """The same rules by every name that a symlink gives to a file: the link's own, or one below a linked folder."""
        for link in [entry for entry in self.by_path.values() if entry.is_link]:
            target = self.resolve(link.path)
            if target is None:
                continue
            waiting = [target]
            while waiting:
                path = waiting.pop()
                alias = link.path + path[len(target) :] if target else link.path + b"/" + path if path else link.path
                if path and not link.path.startswith(path + b"/"):
                    known = {(found.rule, found.what) for found in self._looks(path, self.by_path[path])}
                    for found in self._looks(alias, self.by_path[path]):
                        if (found.rule, found.what) not in known:
                            yield fault(alias, found.rule, f"{found.what}, through a link to {shown(path)}")
                waiting += self.below.get(path, [])

    def resolve(self, path: bytes) -> bytes | None:
        """Where a path leads inside the image, links followed; None where there is nothing."""
        todo, done, links = path.split(b"/")[::-1], list[bytes](), 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                done = done[:-1]
                continue
            entry = self.by_path.get(b"/".join((*done, part)))
            if entry is None:
                return None
            if not entry.is_link:
                done.append(part)
                continue
            links += 1
            if links > _LINKS:
                return None
            target = self.volume.read(entry.inode, 4096)
            done = [] if target.startswith(b"/") else done
            todo += reversed(target.split(b"/"))
        return b"/".join(done)

    def _text(self, path: bytes) -> bytes | None:
        found = self.resolve(path)
        entry = self.by_path.get(found) if found is not None else None
        return self.volume.read(entry.inode, gate_keys.MAX_BYTES + 1) if entry is not None and entry.is_file else None

    # ------------------------------------------------ modes

    def _modes(self, entry: Entry) -> Iterator[Fault]:
        mode, path = entry.inode.mode, entry.path
        if entry.is_file:
            special = "set-uid" if mode & stat.S_ISUID else "set-gid" if mode & stat.S_ISGID and mode & 0o10 else None
            if special is None and b"capability" in self.volume.xattrs(entry.inode):
                special = "capabilities"
            if special is not None and entry.inode.number not in self.packaged:
                yield fault(path, "setuid", f"a program with {special} that no package ships")
            if mode & stat.S_IWOTH:
                yield fault(path, "world-writable", "a file that anybody may write")
            if mode & stat.S_IROTH and re.fullmatch(rb"etc/g?shadow-?", path):
                yield fault(path, "world-writable", "a password file that anybody may read")
        elif entry.is_folder and mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            yield fault(path, "world-writable", "a folder that anybody may write, without the sticky bit")
        elif (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and not path.startswith(b"dev/"):
            yield fault(path, "device-node", "a device node")

    # ------------------------------------------------ contents

    def _contents(self) -> Iterator[Fault]:
        """Secrets in every file that is not byte for byte one that a package ships. Fills `packaged`."""
        digests = self._shipped()
        names: dict[int, list[bytes]] = defaultdict(list)
        inodes: dict[int, Inode] = {}
        for entry in self.by_path.values():
            if entry.is_file:
                names[entry.inode.number].append(entry.path)
                inodes[entry.inode.number] = entry.inode
            elif entry.is_link:
                self.volume.runs(entry.inode)
        for number, inode in inodes.items():
            # An empty file has nothing to hide; its digest is taken for what lies behind its end.
            if self._digest(inode) in digests and inode.size:
                self.packaged.add(number)
        for number, inode in inodes.items():
            if number in self.packaged or self._compiled(names[number]):
                continue
            found = self._secrets(inode, names[number])
            for path in names[number]:
                for (rule, what), at in found.items():
                    yield fault(path, rule, f"{what} ({at})")
        for number, place in ((JOURNAL, "<journal>"), (RESIZE, "<reserved blocks>")):
            inode = self.volume.inode(number)
            if inode.links and number == JOURNAL:
                for (rule, what), at in self._secrets(inode, [b""]).items():
                    yield fault(place, rule, f"{what} ({at})")
            elif inode.links:
                self.volume.runs(inode)

    def _compiled(self, paths: list[bytes]) -> bool:
        """Whether a file is what Python made of a source that a package ships: it says what the source says."""
        for path in paths:
            match = re.fullmatch(rb"(.*/)__pycache__/([^/]+)\.cpython-\d+(?:\.opt-\d)?\.pyc", path)
            source = self.by_path.get(match[1] + match[2] + b".py") if match else None
            if source is None or source.inode.number not in self.packaged:
                return False
        return True

    def _digest(self, inode: Inode) -> str:
        """MD5 of a file, as dpkg's lists have it; empty for one with a hole that no package would ship."""
        digest, end, sparse = hashlib.md5(usedforsecurity=False), 0, False
        for at, data in self.volume.stream(inode):
            # To its end in any case: what lies behind it is noted on the way.
            sparse = sparse or at - end > _LARGEST_HOLE
            if not sparse:
                digest.update(bytes(at - end))
                digest.update(data)
            end = at + len(data)
        if sparse or inode.size - end > _LARGEST_HOLE:
            return ""
        digest.update(bytes(inode.size - end))
        return digest.hexdigest()

    def _shipped(self) -> frozenset[str]:
        """MD5 of every file that the image's packages ship: dpkg's lists, and the conffiles of its status."""
        found: set[str] = set()
        for path, entry in self.by_path.items():
            if entry.is_file and path.startswith(b"var/lib/dpkg/"):
                if path.endswith(b".md5sums"):
                    text = self.volume.read(entry.inode, _LONGEST_LIST)
                    found.update(match.decode() for match in re.findall(rb"^([0-9a-f]{32})  ", text, re.MULTILINE))
                elif path == b"var/lib/dpkg/status":
                    text = self.volume.read(entry.inode, _LONGEST_LIST)
                    found.update(match.decode() for match in re.findall(rb"^ /\S+ ([0-9a-f]{32})", text, re.MULTILINE))
        return frozenset(found)

    def _secrets(self, inode: Inode, paths: list[bytes]) -> dict[tuple[str, str], str]:
        """(rule, what) → where, of an inode's bytes, what is packed in them, and its extended attributes."""
        strict = all(path.startswith(b"usr/") for path in paths)
        settings = any(SETTINGS.fullmatch(path) for path in paths)
        found: dict[tuple[str, str], str] = {}
        scanner = Scanner(strict, settings)
        head = b""
        for at, data in self.volume.stream(inode):
            head = data if at == 0 else head
            scanner.feed(at, data)
        found.update({key: f"byte {at}" for key, at in scanner.found.items()})
        binary = whole(head)
        if binary is not None:
            found[binary] = "the whole file"
        for key, place in unpack(head, lambda: self.volume.stream(inode), strict).items():
            found.setdefault(key, place)
        extra = self.volume.xattrs(inode)
        if extra:
            scanner = Scanner(strict)
            scanner.feed(0, extra)
            found.update({key: "an extended attribute" for key in scanner.found if key not in found})
        return found

    # ------------------------------------------------ what no file owns

    def _residue(self) -> Iterator[Fault]:
        """Bytes of free blocks, of unused inodes, and behind the ends of files."""
        volume, used, size = self.volume, self.volume.used, self.volume.shape.block_size
        at, free = used.find(0), 0
        while at >= 0:
            end = used.find(1, at)
            end = len(used) if end < 0 else end
            free += volume.dirty(at, end)
            at = used.find(0, end)
        if free:
            yield fault("<free blocks>", "residue", f"{free} blocks of {size} bytes that no file uses are not empty")
        for entry in self.by_path.values():
            if entry.inode.number in volume.slack:
                yield fault(entry.path, "residue", "bytes behind the end of the file")
        unused = volume.unused_inodes({entry.inode.number for entry in self.by_path.values()})
        if unused:
            yield fault("<inodes>", "residue", f"{unused} inodes that no file uses are not empty")
        for where in volume.around():
            yield fault("<file>", "residue", f"bytes {where}")
