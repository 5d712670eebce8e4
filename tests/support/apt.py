"""A small signed apt repository in a folder: what apt reads of one, without the packages themselves.

apt decides on versions by the index alone, so an index is all that is written: `dists/SUITE/main/binary-ARCH/Packages`, a Release
that holds its hash, and the inline signature over it. Served as `file:` address; real apt reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from pathlib import Path

from tests.support.gpg import Home

ARCHITECTURE = "amd64"


class Repository:
    """One suite. `key` is the armoured public key file that a source names as its `signed-by`."""

    def __init__(self, folder: Path, home: Home, suite: str = "bookworm") -> None:
        self.folder, self.suite, self._home = folder, suite, home
        self.signer = home.generate(f"{suite} archive <archive@mirror.example>")
        self.key = folder / "archive.asc"
        folder.mkdir(parents=True, exist_ok=True)
        self.key.write_bytes(home.run("--armor", "--export", self.signer))

    @property
    def address(self) -> str:
        """The repository's address, as a source names it."""
        return f"file:{self.folder}"

    @property
    def line(self) -> str:
        """The source in one line."""
        return f"deb [signed-by={self.key}] {self.address} {self.suite} main"

    def offer(self, packages: Mapping[str, Sequence[str]], *, signed_by: str | None = None, more: str = "") -> None:
        """Write the index anew: package → versions. `signed_by` is another key, or empty for none; `more` goes into Release."""
        index = "".join(
            f"Package: {name}\nVersion: {version}\nArchitecture: {ARCHITECTURE}\nMaintainer: x <x@mirror.example>\n"
            f"Filename: pool/{name}_{number}.deb\nSize: 1\nSHA256: {hashlib.sha256(version.encode()).hexdigest()}\n"
            f"Description: {name}\n\n"
            for name, versions in packages.items()
            for number, version in enumerate(versions)
        ).encode()
        suite = self.folder / "dists" / self.suite
        path = f"main/binary-{ARCHITECTURE}/Packages"
        (suite / path).parent.mkdir(parents=True, exist_ok=True)
        (suite / path).write_bytes(index)
        release = (
            f"Origin: test\nSuite: {self.suite}\nCodename: {self.suite}\nArchitectures: {ARCHITECTURE}\nComponents: main\n"
            f"Date: {formatdate(usegmt=True).replace('GMT', 'UTC')}\n{more}"
            f"SHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} {path}\n"
        ).encode()
        for old in ("Release", "InRelease"):
            (suite / old).unlink(missing_ok=True)
        if signed_by == "":
            (suite / "Release").write_bytes(release)
        else:
            (suite / "InRelease").write_bytes(self._home.clearsign(release, signed_by or self.signer))
