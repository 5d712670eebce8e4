"""A settings file for tests: every place a folder beside it, no key that is ever used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_settings(folder: Path, **changes: Any) -> Path:
    """Write `reconciler.yaml` into `folder` and return its path; `changes` are keys of the file."""
    settings: dict[str, Any] = {
        "git": {"url": str(folder / "fleet")},
        "images": {"type": "directory", "path": "images"},
        "registry": {"type": "layout", "path": "registry"},
        "secrets": {"type": "directory", "path": "secrets"},
        "keys": {
            "assignment": {"home": "home", "fingerprint": "A" * 40},
            "releases": ["B" * 40],
            "releaseKeyring": "keys.gpg",
        },
        "allowed": {"images": ["file:///images/"], "registries": ["registry.example"]},
        **changes,
    }
    path = folder / "reconciler.yaml"
    # JSON is YAML.
    path.write_text(json.dumps(settings, indent=2))
    return path
