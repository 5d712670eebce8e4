"""A small signed apt repository in a folder: what apt reads of one, without the packages themselves.

apt decides on versions by the index alone, so an index is all that is written: `dists/SUITE/COMPONENT/binary-ARCH/Packages` (beside
Release where the suite is `/`, a flat repository), a Release that holds its hash, and the inline signature over it. Served as
`file:` address; real apt reads it.
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

    def __init__(
        self, folder: Path, home: Home, suite: str = "bookworm", components: Sequence[str] = ("main",), signer: str = ""
    ) -> None:
        self.folder, self.suite, self._home = folder, suite, home
        self.components = () if suite == "/" else tuple(components)
        self.signer = signer or home.generate(f"{suite} archive <archive@mirror.example>")
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
        return f"deb [signed-by={self.key}] {self.address} {self.suite} {' '.join(self.components)}"

    def offer(self, packages: Mapping[str, Sequence[str]], *, signed_by: str | None = None, more: str = "") -> None:
        """Write the index anew: package → versions. `signed_by` is another key, or empty for none; `more` goes into Release."""
        index = "".join(
            f"Package: {name}\nVersion: {version}\nArchitecture: {ARCHITECTURE}\nMaintainer: x <x@mirror.example>\n"
            f"Filename: pool/{name}_{number}.deb\nSize: 1\nSHA256: {hashlib.sha256(version.encode()).hexdigest()}\n"
            f"Description: {name}\n\n"
            for name, versions in packages.items()
            for number, version in enumerate(versions)
        ).encode()
        suite = self.folder if self.suite == "/" else self.folder / "dists" / self.suite
        paths = [f"{component}/binary-{ARCHITECTURE}/Packages" for component in self.components] or ["Packages"]
        hashes = ""
        # All of it is in the first component; the others are empty.
        for path, data in zip(paths, [index, *[b""] * (len(paths) - 1)], strict=True):
            (suite / path).parent.mkdir(parents=True, exist_ok=True)
            (suite / path).write_bytes(data)
            hashes += f" {hashlib.sha256(data).hexdigest()} {len(data)} {path}\n"
        names = f"Suite: {self.suite}\nCodename: {self.suite}\nComponents: {' '.join(self.components)}\n"
        release = (
            f"Origin: test\n{names if self.components else ''}Architectures: {ARCHITECTURE}\n"
            f"Date: {formatdate(usegmt=True).replace('GMT', 'UTC')}\n{more}SHA256:\n{hashes}"
        ).encode()
        for old in ("Release", "InRelease"):
            (suite / old).unlink(missing_ok=True)
        if signed_by == "":
            (suite / "Release").write_bytes(release)
        else:
            (suite / "InRelease").write_bytes(self._home.clearsign(release, signed_by or self.signer))
