"""What one command costs as a whole process: `reconciler plan` on the example fleet, against importing what it stands on."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from reconciler.repo.load import load_folder

FLEET = Path(__file__).parents[2] / "fleet"
ROUNDS = 15
AT = "2026-01-15T01:30:00Z"
YARDSTICK = "import yaml, numpy; from pydantic import BaseModel"


def snapshot() -> str:
    """The example fleet as it stands: every device on the release that its wave asks for."""
    desired = load_folder(FLEET, scenarios=False).desired
    assert desired is not None
    devices = [
        {
            "name": name,
            "site": site,
            "image": "v1.4.1",
            "imageSince": "2026-01-01T00:00:00Z",
            "health": "ok",
            "healthSince": "2026-01-01T00:00:00Z",
            "lastSeen": AT,
        }
        for site, spec in desired.sites.items()
        for name in spec.devices
    ]
    return json.dumps({"devices": devices, "artifacts": {"v1.4.1": "published"}})


def measure() -> Iterator[tuple[str, float, str, float, float]]:
    """(work, ours in s, yardstick, its s, bar). The two take turns, so that a busy machine slows both."""
    with tempfile.TemporaryDirectory() as folder:
        observed = Path(folder) / "observed.json"
        observed.write_text(snapshot())
        program = Path(sys.executable).with_name("reconciler")
        ours = [
            str(program),
            "plan",
            "--fleet",
            str(FLEET),
            "--observed",
            str(observed),
            "--at",
            AT,
            "--output",
            "json",
        ]
        theirs = [sys.executable, "-c", YARDSTICK]
        _once(ours), _once(theirs)
        pairs = [(_once(ours), _once(theirs)) for _ in range(ROUNDS)]
    first, second = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    yield "`reconciler plan` on the example fleet, whole process", first, f'python -c "{YARDSTICK}"', second, 2.0


def _once(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in measure():
        print(row)
