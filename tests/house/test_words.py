"""What no file of this project may hold, and what the device's half may not use."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT, files

# Written in parts, so that this file does not hold them itself.
_HOSTS = (
    ("py" + "pi", "org"),
    ("python" + "hosted", "org"),
    ("registry", "npm" + "js"),
    ("deb", "deb" + "ian"),
    ("archive", "ubu" + "ntu"),
)
FORBIDDEN = {
    "a package registry's host": "|".join(r"\.".join(host) for host in _HOSTS),
    "a path of the machine it was built on": r"/wor" + r"k/(main|shared)|/tmp/" + r"brief",
    "a mark of unfinished work": r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b",
}
BOM = b"\xef\xbb\xbf"
TOP = frozenset(
    {"pyproject.toml", "reconciler", "fleet", "schemas", "tests", "README.md", "Makefile", "docs", "LICENSE", "CHANGELOG.md"}
)  # fmt: skip


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in files():
        data = (ROOT / path).read_bytes()
        # A corpus of bad files may hold anything but what would be wrong about ourselves; images hold no text.
        if b"\0" in data:
            continue
        lines = data.decode("utf-8", "replace").splitlines()
        found += [
            f"{path}:{number}: {line.strip()[:100]}" for number, line in enumerate(lines, 1) if pattern.search(line)
        ]
    assert not found, f"{what}:\n" + "\n".join(found)


def test_no_source_begins_with_a_byte_order_mark() -> None:
    suffixes = {".py", ".md", ".toml", ".sh", ".json", ".yml", ".svg"}
    found = [str(path) for path in files() if path.suffix in suffixes and (ROOT / path).read_bytes()[:3] == BOM]
    assert not found


def test_the_top_level_is_small() -> None:
    extra = {path.parts[0] for path in files() if not path.parts[0].startswith(".")} - TOP
    assert not extra, f"nothing else may stand at the top level: {sorted(extra)}"


def test_every_file_of_text_ends_with_a_line_break() -> None:
    suffixes = {".py", ".md", ".toml", ".sh", ".yml", ".svg"}
    found = [
        str(path)
        for path in files()
        if path.suffix in suffixes and (data := (ROOT / path).read_bytes()) and not data.endswith(b"\n")
    ]
    assert not found


@pytest.mark.parametrize("part", ["agent", "protocol"])
def test_the_devices_half_runs_on_python_3_10(part: str) -> None:
    vermin = shutil.which("vermin", path=str(Path(sys.executable).parent))
    assert vermin is not None, "vermin is a development dependency: .ci/setup installs it"
    command = [vermin, "--target=3.10-", "--no-tips", "--violations", "--eval-annotations", f"reconciler/{part}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow  # mypy from nothing
def test_the_devices_half_has_the_types_of_python_3_10(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "mypy", "--strict", "--python-version", "3.10", "--no-error-summary",
        "--cache-dir", str(tmp_path / "cache"), "-p", "reconciler.agent", "-p", "reconciler.protocol",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
