"""The command as a process: where its output goes is not always a UTF-8 terminal with room."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FLEET = Path(__file__).resolve().parents[1] / "contract" / "fleet"


def run(
    tmp_path: Path, *words: str, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    observed = tmp_path / "observed.json"
    observed.write_text('{"devices": [{"name": "SITE-2847-1", "image": "v1.4.1"}]}', encoding="utf-8")
    inputs = ["--fleet", str(FLEET), "--observed", str(observed), "--at", "2026-01-15T01:30:00Z"]
    command = [sys.executable, "-c", "from reconciler.cli.main import main; main()", *words, *inputs]
    return subprocess.run(
        command, check=False, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment}, timeout=60
    )


@pytest.mark.slow
def test_a_terminal_that_knows_no_arrow_is_shown_how_it_is_written(tmp_path: Path) -> None:
    done = run(tmp_path, "explain", "SITE-2847-1", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"v1.4.1 \\u2192 v1.4.2" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [("plan",), ("plan", "--output", "json")])
def test_a_result_that_finds_no_room_is_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = run(tmp_path, *words, stdout=full.fileno())
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "error: the result cannot be written (No space left on device); make room, or write it elsewhere"
    ]
