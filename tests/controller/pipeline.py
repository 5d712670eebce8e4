"""The whole program on real parts, from a merged commit to a published release: builder and signer are processes of their own.

A git repository, the loop with SQLite, the image store in a folder or in a bucket, `reconciler builder` and `reconciler
signer` with real keys. Only time is by hand, so that a delay before the next attempt takes no time.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reconciler.controller.bootstrap import Program
from reconciler.controller.settings import Settings, load_settings
from tests.controller.harness import HandClock, document
from tests.support.gitrepo import Repo
from tests.support.gpg import Home
from tests.support.recipes import commit, recipe

RECONCILER = str(Path(sys.executable).parent / "reconciler")
FPR = "fingerprint"


class Keys:
    """A home with the release keys, and one with the assignment key."""

    def __init__(self, release: Home, assignment: Home) -> None:
        self.release, self.assignment = release, assignment
        self.key = release.generate("Release <release@example.org>")
        self.other = release.generate("Other <other@example.org>")
        self.assigning = assignment.generate("Assignments <a@example.org>")


class Pipeline:
    """One fleet whose single wave asks for v1; `signer` is the settings' (None: a process of its own)."""

    def __init__(
        self,
        root: Path,
        keys: Keys,
        *,
        signer: Mapping[str, Any] | None = None,
        images: Mapping[str, Any] | None = None,
        builder: list[str] | None = None,
        changes: Mapping[str, str | bytes | None] | None = None,
    ) -> None:
        self.root, self.keys = root, keys
        self.clock = HandClock(datetime.now(UTC).replace(microsecond=0))
        self.repo = Repo(root / "fleet")
        for name in ("secrets", "registry"):
            (root / name).mkdir(mode=0o700)
        (root / "ring.gpg").write_bytes(keys.release.export([keys.key]))
        self.images = dict(images or {"type": "directory", "path": str(root / "images")})
        self.builder = builder or [RECONCILER, "builder", "--work", str(root / "builder")]
        self._write("signer.yaml", {"type": "key", "home": str(keys.release.path), FPR: keys.key}, "signer")
        process = {"type": "process", "command": [RECONCILER, "signer", "--config", str(root / "signer.yaml")]}
        self.config = self._write("reconciler.yaml", signer or process, "state")
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.commit("First", {**self.files(), **(changes or {})})
        self.program: Program | None = None

    def _write(self, name: str, signer: Mapping[str, Any], state: str) -> Path:
        place = self.images["url"] if self.images["type"] == "s3" else "file:///"
        tree = {
            "state": str(self.root / state),
            "git": {"url": str(self.root / "fleet"), "watch": "false"},
            "images": self.images,
            "registry": {"type": "layout", "path": str(self.root / "registry")},
            "secrets": {"type": "directory", "path": str(self.root / "secrets")},
            "keys": {
                "assignment": {"home": str(self.keys.assignment.path), FPR: self.keys.assigning},
                "releases": [self.keys.key],
                "releaseKeyring": str(self.root / "ring.gpg"),
                "signer": dict(signer),
            },
            "allowed": {"images": [place], "registries": ["registry.example"]},
            "builder": {"type": "files", "command": self.builder},
            "loop": {"interval": "1s", "storesPoll": "5s"},
            "debug": "true",
        }
        path = self.root / name
        path.write_text(json.dumps(tree, indent=2))
        return path

    def files(self) -> dict[str, str | bytes | None]:
        """The fleet repo."""
        waves = {"waves": [{"name": "all", "percent": 100, "image": "v1", "soak": "1h"}]}
        place = self.images["url"] if self.images["type"] == "s3" else "file:///images/"
        return {
            "fleet.yaml": document("Fleet", "fleet", images=place, registry="registry.example"),
            "waves.yaml": document("Waves", "waves", **waves),
            "sites/SITE-1.yaml": document("Site", "SITE-1", timezone="Europe/Berlin", devices=["SITE-1-1"]),
            "images/v1.yaml": document("Image", "v1", recipe="golden/"),
            **recipe(self.keys.release, [self.keys.key]),
        }

    def commit(self, message: str, files: Mapping[str, str | bytes | None]) -> str:
        """Merge a change."""
        return commit(self.repo, message, dict(files))

    # ------------------------------------------------ the loop

    @property
    def settings(self) -> Settings:
        """What the files say."""
        return load_settings(self.config)

    def start(self, *, inline: bool = True) -> Program:
        """A controller, as a new process would be."""
        if self.program is not None:
            self.program.close()
        self.program = Program(self.settings, self.log, (self.clock, nullcontext), inline=inline)
        return self.program

    def log(self, event: str, **fields: Any) -> None:
        """One line of the loop's log."""
        self.lines.append((event, fields))

    def settle(self, most: int = 40) -> None:
        """Tick until nothing more is to be done now."""
        program = self.program or self.start()
        for _ in range(most):
            if not program.loop.tick() and not program.jobs.busy:
                return
        raise AssertionError(f"still busy after {most} ticks: {self.lines[-5:]}")

    def later(self, seconds: float = 2000) -> None:
        """After the longest delay before a next attempt."""
        self.clock.step(seconds)
        self.settle()

    def tick_until(self, done: Callable[[], bool], seconds: float = 120) -> None:
        """Tick until something is so, in real time: for work beside the loop."""
        assert self.program is not None
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.conditions()
            self.program.loop.tick()
            time.sleep(0.02)

    # ------------------------------------------------ what it shows

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Status, reason and message of a condition, as `reconciler status` reads it."""
        return self.conditions()[kind]

    def conditions(self) -> dict[str, tuple[str, str, str]]:
        """All of them."""
        assert self.program is not None
        return {row.type: (row.status, row.reason, row.message) for row in self.program.store.conditions()}

    @property
    def state(self) -> str:
        """How far v1 has come in the store."""
        assert self.program is not None
        artifact = self.program.images.artifacts().get("v1")
        return artifact.state.value if artifact is not None else "absent"

    def stored(self) -> list[str]:
        """Every file of the store's folder, but for locks."""
        folder = self.root / "images"
        return sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != "."
        )

    def close(self) -> None:
        """Stop the loop."""
        if self.program is not None:
            self.program.close()
            self.program = None


def run_command(text: str, home: Home, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a command as it was shown, as the person with the key: with their own gpg."""
    argv = shlex.split(text)
    assert argv[0] == "reconciler"
    return subprocess.run(
        [RECONCILER, *argv[1:], *more],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={
            **{name: text for name, text in os.environ.items() if name.startswith("AWS_")},
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "GNUPGHOME": str(home.path),
            "HOME": str(home.path),
        },
    )
