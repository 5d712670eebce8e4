"""What continuous integration makes of a failed test: `.ci/suite.py`, on small suites of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).parents[2] / ".ci" / "suite.py"
STEADY = "def test_steady(): pass\n"
UNSTEADY = """
from pathlib import Path

def test_unsteady():
    seen = Path("seen").exists()
    Path("seen").touch()
    assert seen
"""
WRONG = "def test_wrong(): assert False\n"


def run(folder: Path, *, ci: bool = True, **files: str) -> subprocess.CompletedProcess[str]:
    """The suite's end on these test files."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    return subprocess.run(
        [sys.executable, SUITE, "-p", "no:schemathesis", "-p", "no:randomly", "-m", "not vm"],
        cwd=folder,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST")},
            "CI": str(ci).lower(),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_what_passes_alone_is_named_as_unsteady(tmp_path: Path) -> None:
    ended = run(tmp_path, steady=STEADY, unsteady=UNSTEADY)
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.rstrip().endswith("mend these:\n  test_unsteady.py::test_unsteady")
    assert ended.stdout.count("1 passed") == 2, "the other file is not run again"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ci", "files", "again"),
    [
        (False, {"unsteady": UNSTEADY}, False),
        (True, {"wrong": WRONG, "steady": STEADY}, True),
        (True, {"one": WRONG, "two": WRONG, "three": UNSTEADY}, False),
        (True, {"unread": "import nothing_of_this_name\n"}, False),
    ],
    ids=["by hand", "a defect fails twice", "more than two files", "a module that cannot be read"],
)
def test_the_rest_fails(tmp_path: Path, ci: bool, files: dict[str, str], again: bool) -> None:
    ended = run(tmp_path, ci=ci, **files)
    assert ended.returncode in (1, 2) and ("once more" in ended.stdout) is again, ended.stdout
    assert "UNSTEADY" not in ended.stdout


@pytest.mark.slow
def test_a_suite_without_tests_is_not_green(tmp_path: Path) -> None:
    assert run(tmp_path, empty="").returncode == 5
