"""Finished artifacts on the builder's disk, by what they were made from: what was built is not built again.

An artifact counts only if its papers parse and the sha256 of every file is as SHA256SUMS says, each time anew: hashing
300 MB takes a quarter of a second, a build minutes. Called by `image.builder`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from reconciler.image import pack
from reconciler.ports import Built
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import NAME, SUMS, Manifest
from reconciler.protocol.sums import parse_sums


class Kept:
    """The folder of finished artifacts."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def find(self, release: str, inputs: str, tools: Mapping[str, str]) -> Built | None:
        """An earlier artifact from the same inputs with the same tools, if all its bytes are as its sums say."""
        kept = self._place(inputs, tools)
        folders = [path for path in kept.iterdir() if path.is_dir()] if kept.is_dir() else []
        if len(folders) != 1:
            return None
        folder = folders[0]
        try:
            sums = parse_sums((folder / SUMS).read_bytes())
            manifest = Manifest.from_bytes((folder / NAME).read_bytes())
            whole = all(pack.hashed(folder / name)[1] == digest for name, digest in sums.items())
        except (OSError, Malformed):
            return None
        if not whole or manifest.release != release or {path.name for path in folder.iterdir()} != {*sums, SUMS}:
            return None
        return Built(release, folder.name, folder, manifest.digest)

    def clear(self, release: str) -> None:
        """Remove what a build of a release left half copied. The caller holds the release's lock."""
        for left in self._output.glob(f".{release}-*"):
            shutil.rmtree(left, ignore_errors=True)

    def keep(self, part: Path, release: str, inputs: str, tools: Mapping[str, str]) -> Path:
        """Move the folder `part`, which holds one artifact's folder, to its place, in one step; its new path.

        OSError: no room there, or no right to write; `clear` removes what is there of it.
        """
        kept = self._place(inputs, tools)
        self._output.mkdir(parents=True, exist_ok=True)
        # Work and output may lie on two file systems: copy first, so that the last step is a rename.
        staged = self._output / f".{release}-{kept.name}"  # one at a time: the release is locked
        # File by file: copytree would go on after an error, and hide its number.
        for source in (part, *sorted(part.rglob("*"))):
            to = staged / source.relative_to(part)
            if source.is_dir():
                to.mkdir()
            else:
                shutil.copyfile(source, to)
                pack.sync(to)
        for folder in (*staged.iterdir(), staged):
            pack.sync(folder)
        if kept.exists():  # damaged, or another builder was faster
            shutil.rmtree(kept)
        staged.rename(kept)
        pack.sync(self._output)
        return kept

    def _place(self, inputs: str, tools: Mapping[str, str]) -> Path:
        """Where an artifact is kept: named by what it was made from, and with."""
        text = inputs + json.dumps(dict(sorted(tools.items())))
        return self._output / hashlib.sha256(text.encode()).hexdigest()[:40]
