"""The tracked files of this project, and the parsed Python among them. Used by the house tests alone."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def files() -> tuple[Path, ...]:
    """Every file that is, or would be, committed, sorted; paths relative to the root. What git ignores is left out."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
    ).stdout
    names = sorted({Path(name) for name in listed.decode().split("\0") if name})
    return tuple(name for name in names if (ROOT / name).is_file())


def python(folder: str = "reconciler") -> tuple[Path, ...]:
    """The modules below a folder."""
    return tuple(path for path in files() if path.suffix == ".py" and path.parts[0] == folder)


@cache
def parsed(path: Path) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))
