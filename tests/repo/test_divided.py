"""Several processes parse what one would, and whatever becomes of them, nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest

from reconciler.repo import divided, load
from reconciler.repo.divided import Task, parse_divided, processes
from reconciler.repo.parse import Parsed, parse
from tests.house.tree import ROOT

PATTERN = (ROOT / "fleet/sites/SITE-2847.yaml").read_text(encoding="utf-8")
ODD = {
    3: "spec: [",
    11: PATTERN.replace("Europe/Berlin", "Europe/Berlim"),
    17: PATTERN.replace("cameras: [", "cameras: [203.0.113.300, "),
    18: PATTERN.replace("cameras: [", "cameras: [203.0.113.41, "),
    19: PATTERN + "  window: {start: '22:00', end: '04:00'}\n  uplink: 20Mbit\n  lab: true\n",
    29: PATTERN + "  pin: {image: v1.4.1, why: a test}\n",
    30: PATTERN.replace("kind: Site", "kind: Image"),
    31: "",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="one process does it all elsewhere")


def tasks(number: int = 40) -> list[Task]:
    """Documents of every sort, good and bad, at any place."""
    made = []
    for n in range(number):
        name = f"SITE-{n:04d}"
        made.append(Task(f"sites/{name}.yaml", f"{n:040x}", ODD.get(n, PATTERN).replace("SITE-2847", name).encode()))
    return made


def in_order(documents: list[Parsed]) -> list[Parsed]:
    return sorted(documents, key=lambda document: document.path)


# At the end as many processes as documents, and one more.
@pytest.mark.slow
@pytest.mark.parametrize(("number", "documents"), [(1, 40), (2, 40), (3, 40), (8, 8), (9, 8)])
def test_the_same_documents_as_one_process_makes(number: int, documents: int) -> None:
    alone = [parse(*task) for task in tasks(documents)]
    made = parse_divided(tasks(documents), number)
    assert made == alone
    assert [d.problems for d in made] == [d.problems for d in alone]
    for document, twin in zip(made, alone, strict=True):
        if twin.spec is not None:
            assert type(document.spec) is type(twin.spec)
            assert document.spec.model_fields_set == twin.spec.model_fields_set
            assert document.spec.model_dump_json() == twin.spec.model_dump_json()
            assert document.spec.model_copy(update={"lab": True}).lab


def test_a_share_that_got_lost_is_left_out() -> None:
    first, own = os.getpid(), tasks()

    def killed(path: str, blob: str, data: bytes) -> Parsed:
        if os.getpid() != first and path == own[-1].path:
            os.kill(os.getpid(), signal.SIGKILL)
        return parse(path, blob, data)

    def raises(path: str, blob: str, data: bytes) -> Parsed:
        if os.getpid() != first:
            raise MemoryError
        return parse(path, blob, data)

    for parsing in (killed, raises):
        made = parse_divided(own, 3, parsing)
        assert 0 < len(made) < len(own)
        assert made == in_order(made) == [d for d in (parse(*task) for task in own) if d in made]


def test_no_process_is_left_behind_where_this_one_is_interrupted() -> None:
    first, own = os.getpid(), tasks()

    def interrupted(path: str, blob: str, data: bytes) -> Parsed:
        if os.getpid() == first:
            raise KeyboardInterrupt
        signal.pause()
        raise AssertionError

    before = {child.pid for child in psutil.Process().children()}
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        parse_divided(own, 3, interrupted)
    assert {child.pid for child in psutil.Process().children()} <= before
    # What an earlier test left to be collected may be closed meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= open_before


def test_where_no_process_can_be_started_this_one_does_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", none)
    made = parse_divided(tasks(), 2)
    assert made == [parse(*task) for task in tasks()][: len(made)]
    assert 0 < len(made) < 40


def test_small_fleets_and_processes_with_threads_fork_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    with monkeypatch.context() as alone:
        alone.setattr(os, "listdir", lambda _: ["1"])
        assert processes(divided.FEWEST) == 3
        assert processes(divided.FEWEST - 1) == 1
    waiting = threading.Event()
    other = threading.Thread(target=waiting.wait)
    other.start()
    try:
        assert processes(divided.FEWEST) == 1
    finally:
        waiting.set()
        other.join()


@pytest.mark.parametrize("number", [2, 3])
def test_a_folder_loads_as_by_one_process(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fleet"
    shutil.copytree(ROOT / "fleet", folder, ignore=shutil.ignore_patterns("tests", "edge-golden"))
    for task in tasks():
        (folder / task.path).write_bytes(task.data)
    alone = load.load_folder(folder)
    counted: list[int] = []

    def always(count: int) -> int:
        counted.append(count)
        return number

    monkeypatch.setattr(load, "_MANY", 0)
    monkeypatch.setattr(divided, "processes", always)
    shared = load.load_folder(folder)
    assert counted and counted[0] >= 40
    assert alone.problems
    assert shared == alone
    assert shared.state.fleet.documents == alone.state.fleet.documents
    assert shared.state.fleet.sites == alone.state.fleet.sites
