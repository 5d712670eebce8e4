"""Runs pytest: `python .ci/suite.py -m MARKS [option …]`. Called by the Makefile and `.ci/test-vm`.

In continuous integration (CI=true) the files of failed tests, two at most, run once more, by themselves. Tests of real processes
on a shared machine fail now and then on the machine alone; a defect fails twice. What passes only then is named as unsteady,
for somebody to mend. By hand nothing is run twice: who sees it red is the one who can find out why.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path("build/pytest")
MOST = 2
"""Files that are run again. More is no accident."""


def failed() -> list[str]:
    """The tests that failed in the run before, by their ids; a module that could not be read by its path."""
    try:
        return sorted(json.loads((CACHE / "v/cache/lastfailed").read_text()))
    except FileNotFoundError:
        return []


def main(arguments: list[str]) -> int:
    """pytest's exit code: of the first run, or of the second where there is one."""
    shutil.rmtree(CACHE, ignore_errors=True)
    pytest = [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={CACHE}"]
    code = subprocess.run([*pytest, *arguments], check=False).returncode
    tests = failed()
    files = sorted({test.partition("::")[0] for test in tests})
    if code != 1 or os.environ.get("CI") != "true" or not 1 <= len(files) <= MOST:
        return code
    marks = arguments[arguments.index("-m") :][:2] if "-m" in arguments else []
    print(f"suite: once more, by themselves: {' '.join(files)}", flush=True)
    code = subprocess.run([*pytest, *marks, *files], check=False).returncode
    if code == 0:
        print("suite: UNSTEADY, failed in the whole run and passed alone; mend these:", *tests, sep="\n  ", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
