"""The apt sources' public keys are the ones that their README names, sound by themselves, and nothing more."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.house.tree import ROOT
from tests.support.system import need

pytestmark = pytest.mark.system
KEYS = ROOT / "fleet/images/edge-golden/keys"


def shown(home: Path, *arguments: str) -> list[list[str]]:
    """gpg's records of a command, in a home that nothing else uses."""
    home.mkdir(mode=0o700, exist_ok=True)
    command = ["gpg", "--homedir", str(home), "--no-autostart", "--batch", "--quiet", "--with-colons", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split(":") for line in done.stdout.splitlines()]


def test_each_file_holds_the_one_key_that_the_readme_names(tmp_path: Path) -> None:
    need("gpg", "gnupg")
    rows = re.findall(
        r"^\| `([\w-]+\.asc)` \| .+ \| `([0-9A-F]{40})` \|$", (KEYS / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(name for name, _ in rows) == sorted(path.name for path in KEYS.glob("*.asc"))
    for name, fingerprint in rows:
        records = shown(tmp_path, "--show-keys", str(KEYS / name))
        assert [record[0] for record in records].count("pub") == 1, name
        assert next(record[9] for record in records if record[0] == "fpr") == fingerprint, name
        assert not [record for record in records if record[0] in ("pub", "sub") and record[1] in ("e", "r")], name


def test_every_signature_in_them_is_good(tmp_path: Path) -> None:
    """A damaged file may keep its fingerprint: what binds the name and the subkeys to the key is checked too."""
    need("gpg", "gnupg")
    shown(tmp_path, "--import", *map(str, sorted(KEYS.glob("*.asc"))))
    signatures = [record for record in shown(tmp_path, "--check-sigs") if record[0] == "sig"]
    assert len(signatures) == 4
    assert all(record[1] == "!" for record in signatures)
