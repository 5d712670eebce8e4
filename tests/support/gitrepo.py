"""Small real git repositories for tests, made by the git program with an identity and configuration of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_ENV = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}


class Repo:
    """A repository with a work tree, on branch `main`. Commits are dated one minute apart from a fixed start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._minute = 0
        path.mkdir(parents=True)
        self.git("init", "-q", "-b", "main", ".")

    def git(self, *arguments: str, data: bytes | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run git here; its output. CalledProcessError: it failed."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            input=data,
            capture_output=True,
            check=True,
            env={**{k: v for k, v in os.environ.items() if not k.startswith("GIT_")}, **_ENV, **(env or {})},
        )
        return done.stdout.decode("utf-8", "replace").strip()

    def write(self, files: Mapping[str, str | bytes | None]) -> None:
        """Write files into the work tree, removing those that are None."""
        for name, content in files.items():
            path = self.path / name
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(
        self, message: str = "Change", files: Mapping[str, str | bytes | None] | None = None, *options: str
    ) -> str:
        """Commit everything (and `files`) and return the hash."""
        self.write(files or {})
        self.git("add", "-A")
        return self.record(message, *options)

    def record(self, message: str, *options: str, env: Mapping[str, str] | None = None) -> str:
        """Commit what is staged, also where nothing is, and return the hash."""
        self._minute += 1
        date = f"2026-01-01T00:{self._minute:02d}:00+00:00"
        dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date, **(env or {})}
        self.git("commit", "-q", "--allow-empty", "-m", message, *options, env=dates)
        return self.head()

    def head(self, ref: str = "HEAD") -> str:
        """The hash of a ref."""
        return self.git("rev-parse", ref)
