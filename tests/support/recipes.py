"""A recipe that is built in a second by builder type `files`, and passes every check: for tests of what comes after it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.gitrepo import Repo
from tests.support.gpg import Home

SETUP = """#!/bin/sh
set -e
mkdir -p "$ROOT/etc/edge/keys"
echo "RELEASE=$RELEASE" > "$ROOT/etc/edge-release"
cp "${0%/*}/rootfs/etc/edge/keys/"* "$ROOT/etc/edge/keys/"
"""
HEALTH = """#!/bin/sh
echo '{"checks": [{"name": "disk", "status": "ok", "message": "room"}], "status": "ok"}'
"""
CRITICAL = """#!/bin/sh
echo '{"checks": [{"name": "nvidia", "status": "critical", "message": "no driver"}], "status": "critical"}'
exit 2
"""


def recipe(home: Home, keys: Sequence[str], folder: str = "images/golden") -> dict[str, str | bytes | None]:
    """Files of the recipe in a fleet repo, whose image trusts these keys."""
    return {
        f"{folder}/setup.sh": SETUP,
        f"{folder}/healthcheck.sh": HEALTH,
        f"{folder}/rootfs/etc/edge/keys/release.gpg": home.export(keys),
        f"{folder}/rootfs/etc/edge/keys/release.fpr": "".join(f"{key}\n" for key in keys),
    }


def commit(repo: Repo, message: str, files: dict[str, str | bytes | None]) -> str:
    """Commit files with the scripts among them executable; the hash."""
    repo.write(files)
    for name, content in files.items():
        if name.endswith(".sh") and content is not None:
            (repo.path / name).chmod(0o755)
    return repo.commit(message)
