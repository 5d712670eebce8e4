"""The page about the device names every code that the agent can report, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import reconciler
from reconciler.agent.directory import KEYS_IN_IMAGE

ROOT = Path(reconciler.__file__).parent
PAGE = (ROOT.parent / "docs" / "reference" / "device.md").read_text()
CODE = re.compile(r'"((?:[a-z]+-)+[a-z]+)"')


def _codes() -> set[str]:
    found: set[str] = set()
    for path in [*(ROOT / "agent").glob("*.py"), ROOT / "protocol" / "signature.py", ROOT / "protocol" / "bundle.py"]:
        for call in re.findall(r"(?:Refused|refuse|refuse_once)\((?:[^()]|\([^()]*\))*\)", path.read_text()):
            found |= set(CODE.findall(call))
    refusing = (ROOT / "protocol" / "signature.py").read_text().split("_REFUSING = (")[1].split("\n)\n")[0]
    found |= set(re.findall(r'"[A-Z_]+", "([a-z-]+)"', refusing))
    # What a registry says is sorted by a table.
    found |= set(re.findall(r'^    "([a-z]+-[a-z-]+)": "', (ROOT / "agent" / "runtime.py").read_text(), re.M))
    # Made of a part and what is the matter with it.
    return found | {"keyring-unreadable", "keyring-too-large", "data-too-large", "status-too-large"}


def test_the_page_names_every_code_and_no_other() -> None:
    table = PAGE.split("## What it refuses")[1]
    named = {code for row in re.findall(r"^\| (`.*?) \|", table, re.M) for code in re.findall(r"`([a-z-]+)`", row)}
    assert named == _codes()


def test_the_page_names_the_paths_that_the_code_uses() -> None:
    assert f"{KEYS_IN_IMAGE}/" in PAGE
    for name in ("boot/flags.json", "run/boot.json", "slots.json", "etc/edge-image-version"):
        assert name in (ROOT / "agent" / "directory.py").read_text()
        assert f"`{name}`" in PAGE
