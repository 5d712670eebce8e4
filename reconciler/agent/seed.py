"""The site configuration of a device: a folder that cloud-init reads as its NoCloud seed, with the one before it.

Python 3.10, standard library only: runs as root on a device. Keeps the folder, flips it in one step, and has its
content put in force; never looks into the files, and never judges what follows. Used by every hardware. Source: design,
section 5, and docs/reference/device.md, "The site's configuration".

    FOLDER/user-data … digest   what is in force, each a link through `.current`; or plain files, as an installation or
                                a person put them there
    FOLDER/.current             link to the version in force; flipping it is one rename
    FOLDER/.previous            link to the version before
    FOLDER/.v-…                 versions, whole or absent, named by their content

At every instant the folder's names lead to all files of one version. The folder lies outside the slots and its path
never changes, so that either slot finds it whatever the other one did. Files are 0600 and folders 0700: they hold
secrets.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError
from reconciler.protocol.canonical import is_digest
from reconciler.protocol.exchange import CONFIG_FILES, SiteConfig

DIGEST = "digest"
CURRENT, PREVIOUS = ".current", ".previous"
# What cloud-init's NoCloud reads, and the digest that goes with it. A person's seed may have vendor-data.
_NAMES = (*CONFIG_FILES, "vendor-data", DIGEST)
_MAKE_A_SEED = ("user-data", "meta-data")
_VERSION = ".v-"

POLL_S = 0.5
LONGEST_S = 600.0
"""After this long nobody waits for a configuration any more. The image's own limit is shorter: it ends what it runs."""


class NotInForce(HardwareError):
    """A configuration is stored, and the machine failed to put it in force. `status` is the exit status of what should
    have done it; -1 where it never ended."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Activation(Protocol):
    """Puts in force what stands in the folder. May be begun again at any time; what is in force already stays."""

    def begin(self) -> None:
        """Start it, and return at once. Raises HardwareError."""

    def ended(self) -> int | None:
        """None while it runs, else its exit status. Raises HardwareError."""

    def meaning(self, status: int) -> str:
        """What an exit status says, in a few words."""


class Seed:
    """The seed below `folder`, which is made when there is something to store."""

    def __init__(self, folder: Path, disk: Disk, activation: Activation | None = None) -> None:
        """Without an `activation`, what is stored is in force."""
        self.folder = folder
        self._disk, self._activation = disk, activation

    def digest(self) -> str | None:
        """Digest of the configuration in the folder. None: there is none, it came without (from a person's hands), or a file
        that makes a seed is gone or empty, as after the repair of a file system: then it is sent again."""
        return _digest_in(self.folder)

    def store(self, config: SiteConfig) -> None:
        """Make `config` the current version, durably and in one step, and what was current the previous one.

        Does nothing where it is current. Nothing is put in force by it: see `activate`. Raises HardwareError.
        """
        if self.digest() == config.digest:
            return
        try:
            self._disk.folder(self.folder, 0o700)
            before = self._adopt()
            version = self._keep({**config.files, DIGEST: config.digest.encode() + b"\n"})
            self._disk.link(before, self.folder / PREVIOUS)
            self._flip(version)
        except OSError as error:
            raise HardwareError(f"the configuration cannot be stored: {error}") from None
        if self.digest() != config.digest:
            raise HardwareError(f"{self.folder} does not give back the configuration that was stored in it")

    def put_back(self, digest: str | None) -> None:
        """Make the version before current again, where it has this digest (None: it had none, or there was none).

        Does nothing where the current one has it. Raises HardwareError.
        """
        if self.digest() == digest:
            return
        before = self.folder / PREVIOUS
        try:
            if not before.is_dir() or _digest_in(before) != digest:
                raise HardwareError(f"the configuration {digest or 'before'} is not on the device any more")
            self._flip(os.readlink(before))
        except OSError as error:
            raise HardwareError(f"the configuration cannot be put back: {error}") from None

    def activate(self) -> Iterator[float]:
        """Have the current version put in force, as a job (`supply.Job`): yields how long to let pass, ends when it is
        in force, and may be begun again at any time. Raises NotInForce."""
        activation = self._activation
        if activation is None:
            return
        ends = time.monotonic() + LONGEST_S
        try:
            activation.begin()
            while (status := activation.ended()) is None:
                if time.monotonic() >= ends:
                    raise NotInForce(-1, f"the configuration was not in force after {LONGEST_S:.0f} s")
                yield POLL_S
        except NotInForce:
            raise
        except HardwareError as error:
            raise NotInForce(-1, f"the configuration was not put in force: {error}") from None
        if status != 0:
            said = activation.meaning(status)
            raise NotInForce(status, f"the configuration was not put in force: exit status {status}, {said}")

    # ------------------------------------------------------------ versions

    def _adopt(self) -> str:
        """The name of the version that the folder shows, kept as such first where it is not one yet: plain files become
        links to a copy of theirs, each in one step, so that the folder says the same all the while."""
        shown = _files_in(self.folder)
        version = self._keep(shown)
        link = self.folder / CURRENT
        if not link.is_symlink() or os.readlink(link) != version:
            self._disk.link(version, link)
        self._show(shown)
        return version

    def _keep(self, files: Mapping[str, bytes]) -> str:
        """Store files as a version, and return its name. The same files are the same version."""
        content = hashlib.sha256()
        for name, data in sorted(files.items()):
            content.update(b"%s %d\n%s" % (name.encode(), len(data), data))
        folder = self.folder / f"{_VERSION}{content.hexdigest()[:32]}"
        while folder.is_dir() and _files_in(folder) != files:
            # It was damaged since, and may be what the folder shows: it is left to be swept, not mended in place.
            folder = folder.with_name(f"{folder.name}x")
        if not folder.is_dir():
            temporary = self.folder / ".new"
            self._disk.remove(temporary)
            self._disk.folder(temporary, 0o700)
            for name, data in sorted(files.items()):
                self._disk.replace(temporary / name, data, 0o600)
            self._disk.rename(temporary, folder)
        return folder.name

    def _flip(self, version: str) -> None:
        """Show `version`, in one step; then remove what nobody needs any more, secrets first of all."""
        self._show(_files_in(self.folder / version))
        self._disk.link(version, self.folder / CURRENT)
        kept = {version}
        with suppress(OSError):
            kept.add(os.readlink(self.folder / PREVIOUS))
        for path in sorted(self.folder.iterdir()):
            old = path.name.startswith(_VERSION) and path.name not in kept
            # Links to a file that this version lacks, and what a power cut left.
            if old or path.name.endswith(".new") or (path.name in _NAMES and not path.exists()):
                self._disk.remove(path)

    def _show(self, files: Mapping[str, bytes]) -> None:
        """Let every name lead through `.current`. One that the version lacks leads nowhere, as if it were absent."""
        for name in sorted(files):
            path, target = self.folder / name, f"{CURRENT}/{name}"
            if not path.is_symlink() or os.readlink(path) != target:
                self._disk.link(target, path)


def _digest_in(folder: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        digest = (folder / DIGEST).read_text("ascii").strip()
        if is_digest(digest) and all(os.path.getsize(folder / name) for name in _MAKE_A_SEED):
            return digest
    return None


def _files_in(folder: Path) -> dict[str, bytes]:
    """The seed's files in a folder. A name that is not there, or leads nowhere, is left out."""
    found = {}
    for name in _NAMES:
        with suppress(FileNotFoundError):
            found[name] = (folder / name).read_bytes()
    return found
