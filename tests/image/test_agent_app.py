"""The agent as one file: it runs by itself, and is the same whoever packs it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from reconciler.agent import VERSION
from reconciler.image import agent_app


def test_it_runs_without_this_project_in_reach(tmp_path: Path) -> None:
    file = tmp_path / "edge-agent.pyz"
    file.write_bytes(agent_app.application())
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(file), "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == f"edge-agent {VERSION}"


def test_it_holds_the_agent_and_the_protocol_alone_without_a_trace_of_the_packer(tmp_path: Path) -> None:
    file = tmp_path / "edge-agent.pyz"
    file.write_bytes(agent_app.application())
    agent_app.application.cache_clear()
    assert agent_app.application() == file.read_bytes()
    with zipfile.ZipFile(file) as packed:
        entries = packed.infolist()
    names = [entry.filename for entry in entries]
    assert names == sorted(names) and {"__main__.py", "reconciler/agent/main.py", "reconciler/protocol/sums.py"} <= set(
        names
    )
    assert {name.split("/")[1] for name in names if name.count("/") > 1} == {"agent", "protocol"}
    assert {(entry.date_time, entry.external_attr >> 16) for entry in entries} == {((1980, 1, 1, 0, 0, 0), 0o100644)}
