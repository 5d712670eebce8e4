"""The program that is recorded: one scenario of a device, to its end.

`python -m tests.agent.power.record WORKSHOP ROOT SCENARIO [MUTANT]`, run by `record` under strace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from reconciler.agent import writer
from tests.agent.power.bench import END, SCENARIOS, Desk, SweptHardware, Workshop, live
from tests.agent.power.mutants import MUTANTS
from tests.agent.power.trace import traced

HERE = Path(__file__).parents[3]


def record(workshop: Workshop, root: Path, scenario: str, strace: str, mutant: str = "") -> Path:
    """Run a scenario on the device at `root`, a new one where there is none, under strace; the log. `root`/begin and end are the
    disk before and after it."""
    if not root.exists():
        workshop.new_device(root, SCENARIOS[scenario])
    shutil.copytree(root / "disk", root / "begin", symlinks=True)
    log = root / "log"
    program = [sys.executable, "-m", "tests.agent.power.record", str(workshop.root), str(root), scenario, mutant]
    # What counts lines in this process has no business in that one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV_")}
    done = subprocess.run(
        traced(log, program, strace),
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the recorded run ended with {done.returncode}: {done.stderr[-2000:]}")
    return log


def main(workshop: Path, root: Path, scenario: str, mutant: str) -> None:
    # One write is one mark.
    marks = os.open(root / "marks", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def mark(text: str) -> None:
        os.write(marks, f"{text}\n".encode())

    # A small image is to be synced and read back in stretches too.
    writer.STRETCH = writer.CHUNK
    if mutant:
        MUTANTS[mutant].apply()
    made = Workshop(workshop)
    hardware = SweptHardware(made, root, mark)
    mark("begins")
    device = live(made, hardware, Desk(made, scenario, mark), END)
    device.end()
    mark("ended")
    # What the whole log has to lead to.
    shutil.copytree(root / "disk", root / "end", symlinks=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else "")
