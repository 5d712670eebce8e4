"""The power goes at every write and every sync of an update. What is left boots a good slot, and the next try completes it.

A whole update of the real agent is recorded by strace: every call that changes a file, zstd's among them, from the report over
download, slot, record, arming, reboot, trial and mark to the configuration after it (`power.record`). The log is done again on a
model of a disk that keeps what was synced and nothing else for certain (`power.disk`). At every change and every sync, and at
every sector within a write, it gives the states that a power cut may leave: all that was written; only what was synced; the write
torn; and seeded parts of what was not synced, by sector and by name, in any order. Each is judged from its bytes
(`power.oracle`, which knows docs/reference/boot.md and asks no part of the agent), and the agent is started on it.

States are of a kind where they differ in nothing but bytes of a slot that no record and no flag names, and in how much of the
artifact is here. The whole sweep (marker `full`) judges every state, starts the agent on every kind, and on each 40th state
besides, which is what samples the thousands within a slot's write. It then cuts a second time, in runs that begin with what a
cut has left. The short one takes each 64th sector of large writes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.agent.power.bench import SCENARIOS, Workshop
from tests.agent.power.disk import Disk
from tests.agent.power.mutants import MUTANTS
from tests.agent.power.record import record
from tests.agent.power.replay import NotUnderstood, Replay
from tests.agent.power.sweep import FULL, JUDGED, SAMPLE, SECOND, Depth, Sweep, differences
from tests.agent.power.trace import traced
from tests.agent.world import Keys
from tests.support.system import need

pytestmark = [pytest.mark.slow, pytest.mark.system]


@pytest.fixture(scope="session")
def strace() -> str:
    """strace, where it may trace."""
    program = need("strace")
    done = subprocess.run([program, "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = f"strace may not trace here (a container takes --cap-add SYS_PTRACE): {done.stderr.strip()[:200]}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return program


@pytest.fixture(scope="module")
def workshop(keys: Keys) -> Iterator[Workshop]:
    need("mke2fs", "e2fsprogs")
    with _folder() as root:
        yield Workshop.make(Path(root), keys)


@pytest.fixture
def device(workshop: Workshop) -> Iterator[Path]:
    with _folder() as root:
        yield Path(root) / "device"


def _folder() -> tempfile.TemporaryDirectory[str]:
    """In memory where there is some: nothing here has to outlive a real power cut, and thousands of disks are written."""
    memory = Path("/dev/shm")
    has_room = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    return tempfile.TemporaryDirectory(prefix="sweep-", dir=memory if has_room else None)


def _swept(workshop: Workshop, name: str, device: Path, strace: str, depth: Depth) -> Sweep:
    log = record(workshop, device, name, strace)
    sweep = Sweep(workshop, SCENARIOS[name], device, depth)
    tally = sweep.run(log)
    print(f"{name}: {tally}")
    assert not tally.wrong, "\n".join([str(tally), *tally.wrong])
    # Nothing is proven of a log that has missed a write.
    assert differences(sweep.disk, device / "end") == []
    return sweep


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_a_cut_at_some_sectors_of_every_write(workshop: Workshop, device: Path, strace: str, name: str) -> None:
    tally = _swept(workshop, name, device, strace, replace(SAMPLE, every_kind=2 if name == "update" else 4)).tally
    assert tally.points > (100 if name == "revert" else 400)
    assert tally.started > 6
    assert tally.fell_back or name == "bad"


@pytest.mark.vm
@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_a_cut_at_every_sector_of_every_write_and_a_second_one_after_it(
    workshop: Workshop, device: Path, strace: str, name: str
) -> None:
    sweep = _swept(workshop, name, device, strace, FULL)
    assert sweep.tally.points > (4000 if name == "revert" else 15000)
    assert len(sweep.kept) == FULL.second
    for number, (root, known, what) in enumerate(sweep.kept):
        log = record(workshop, root, name, strace)
        again = Sweep(workshop, SCENARIOS[name], root, SECOND)
        tally = again.run(log, known)
        print(f"{name}, second cuts {number}, after {what}: {tally}")
        assert not tally.wrong, "\n".join([f"after {what}", *tally.wrong])
        assert differences(again.disk, root / "end") == []
        shutil.rmtree(root)


def _faults() -> Iterator[object]:
    """Those that only a started agent shows take longer."""
    for fault, mutant in MUTANTS.items():
        yield pytest.param(fault, marks=[pytest.mark.vm, pytest.mark.full] if mutant.starts else [])


@pytest.mark.parametrize("fault", list(_faults()))
def test_the_sweep_finds_an_agent_with(workshop: Workshop, device: Path, strace: str, fault: str) -> None:
    mutant = MUTANTS[fault]
    log = record(workshop, device, mutant.scenario, strace, fault)
    depth = replace(JUDGED, every_kind=1) if mutant.starts else JUDGED
    wrong = Sweep(workshop, SCENARIOS[mutant.scenario], device, depth, until=mutant.found).run(log).wrong
    assert any(mutant.found in sentence for sentence in wrong), wrong


_WAYS = {
    "a map": "import mmap; f = open(path, 'r+b'); m = mmap.mmap(f.fileno(), 4); m[0:4] = b'new!'; m.flush()",
    "sendfile": "import os; os.sendfile(os.open(path, os.O_RDWR), os.open('/etc/hostname', os.O_RDONLY), 0, 2)",
    "a second name": "import os; os.link(path, path + '2')",
    "truncate by name": "import os; os.truncate(path, 1)",
    "a vector": "import os; os.writev(os.open(path, os.O_RDWR), [b'a', b'b'])",
}


@pytest.mark.parametrize("way", list(_WAYS))
def test_a_way_to_write_that_is_not_understood_is_not_overlooked(tmp_path: Path, strace: str, way: str) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_bytes(b"before")
    model, log = Disk(tmp_path / "disk"), tmp_path / "log"
    program = f"path = {str(tmp_path / 'disk' / 'file')!r}; {_WAYS[way]}"
    subprocess.run(traced(log, [sys.executable, "-c", program], strace), check=True, timeout=240)
    with pytest.raises(NotUnderstood):
        list(Replay(log, tmp_path / "disk", tmp_path / "marks", model).moments())
