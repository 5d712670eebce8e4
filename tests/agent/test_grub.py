"""GRUB's variables: a good slot boots whatever tears, whatever is missing, and whenever the power goes."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from reconciler.agent.disk import Disk
from reconciler.agent.grub import GrubLoader, mounted
from reconciler.agent.hardware import BootFlags, HardwareError
from tests.agent.firmware import (
    BACKUP,
    ENVIRONMENT,
    FOLDER,
    armed,
    backup,
    choose,
    default_of,
    environment,
    new_esp,
    variables,
)


class PowerCut(BaseException):
    """Nothing in the agent may catch it."""


def anywhere(_esp: Path) -> None:
    """A folder does for an ESP."""


def loader_at(esp: Path, disk: Disk | None = None) -> GrubLoader:
    return GrubLoader(esp, disk or Disk(), check=anywhere)


@pytest.fixture
def esp(tmp_path: Path) -> Path:
    return new_esp(tmp_path / "esp")


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)


# ------------------------------------------------------------ what it writes


def test_a_trial_boots_once_and_a_mark_makes_it_the_default(esp: Path) -> None:
    loader = loader_at(esp)
    assert loader.flags() == BootFlags("a")
    loader.arm("b")
    assert loader.flags() == BootFlags("a", "b", 1)
    assert (esp / FOLDER / ENVIRONMENT).read_bytes() == environment("a", "b", "1")
    assert choose(esp, lambda _slot: True) == "b"
    assert loader.flags() == BootFlags("a", "b", 0)
    assert choose(esp, lambda _slot: True) == "a"
    loader.mark_good("b")
    assert loader.flags() == BootFlags("b")
    assert (esp / FOLDER / ENVIRONMENT).read_bytes() == environment("b")
    assert (esp / FOLDER / BACKUP).read_bytes() == backup("b")
    loader.arm("a")
    loader.disarm()
    assert (loader.flags(), choose(esp, lambda _slot: True)) == (BootFlags("b"), "b")


def test_nothing_is_written_where_all_is_well(esp: Path) -> None:
    steps: list[str] = []
    loader = loader_at(esp, Disk(steps.append))
    loader.disarm()
    loader.mend("a")
    loader.mark_good("a")
    assert steps == []


def test_a_whole_file_is_written_in_place_and_the_copy_comes_first(esp: Path) -> None:
    steps: list[str] = []
    loader = loader_at(esp, Disk(steps.append))
    numbers = [(esp / FOLDER / name).stat().st_ino for name in (ENVIRONMENT, BACKUP)]
    loader.arm("b")
    assert steps == ["write grubenv"]
    loader.mark_good("b")
    assert steps == ["write grubenv", "write grubenv.bak", "write grubenv"]
    assert [(esp / FOLDER / name).stat().st_ino for name in (ENVIRONMENT, BACKUP)] == numbers


def test_each_write_is_on_the_disk_before_the_next_step(esp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int]] = []
    real = os.open

    def watched(path: Path, flags: int, mode: int = 0o777) -> int:
        opened.append((Path(path).name, flags & os.O_SYNC))
        return real(path, flags, mode)

    monkeypatch.setattr("os.open", watched)
    loader_at(esp).mark_good("b")
    assert opened == [(BACKUP, os.O_SYNC), (ENVIRONMENT, os.O_SYNC)]


@pytest.mark.parametrize("act", ["arm", "mark_good"])
def test_a_slot_that_is_none_is_refused(esp: Path, act: str) -> None:
    with pytest.raises(HardwareError, match="slots are a and b"):
        getattr(loader_at(esp), act)("c")


# ------------------------------------------------------------ torn, missing, foreign

STATES: dict[str, bytes | None] = {
    "whole-a": environment("a"),
    "whole-b": environment("b"),
    "armed": environment("a", "b", "1"),
    "spent": environment("a", "b", "0"),
    "missing": None,
    "empty": b"",
    "short": environment("b")[:30],
    "without-fill": environment("b").rstrip(b"#"),
    "long": environment("b") + b"#\nedge_default=a\nedge_tries=1\n",
    "zeros": bytes(1024),
    "no-default": environment("a", "b", "1").replace(b"edge_default=a", b"edge_default=#"),
}
COPIES: dict[str, bytes | None] = {
    "whole-a": backup("a"),
    "whole-b": backup("b"),
    "missing": None,
    "short": backup("b")[:28],
    "long": backup("b") + b"#\nedge_default=a\n",
    "zeros": bytes(1024),
}


def put(esp: Path, name: str, data: bytes | None) -> None:
    path = esp / FOLDER / name
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)


@pytest.mark.parametrize(("first", "second"), list(product(STATES, COPIES)))
def test_whatever_stands_there_the_agent_reads_what_grub_reads_and_mends_both(
    esp: Path, first: str, second: str
) -> None:
    put(esp, ENVIRONMENT, STATES[first])
    put(esp, BACKUP, COPIES[second])
    loader, default, trial = loader_at(esp), default_of(esp), armed(esp)
    flags = loader.flags()
    assert (flags.default, flags.trial if flags.tries else None) == (default, trial)
    loader.mend()
    assert (default_of(esp), armed(esp)) == (default, trial)
    assert variables(esp, BACKUP) == {"edge_default": default}
    assert variables(esp, ENVIRONMENT)["edge_default"] == default
    loader.disarm()
    assert [(esp / FOLDER / name).read_bytes() for name in (ENVIRONMENT, BACKUP)] == [
        environment(default),
        backup(default),
    ]


def test_a_folder_that_is_gone_is_made_again(esp: Path) -> None:
    for path in (esp / FOLDER).iterdir():
        path.unlink()
    (esp / FOLDER).rmdir()
    loader_at(esp).mark_good("b")
    assert (esp / FOLDER / ENVIRONMENT).read_bytes() == environment("b")
    assert (esp / FOLDER / BACKUP).read_bytes() == backup("b")


def test_where_neither_file_tells_a_slot_that_was_good_and_runs_is_the_default(esp: Path) -> None:
    for name in (ENVIRONMENT, BACKUP):
        put(esp, name, bytes(1024))
    assert loader_at(esp).flags() == BootFlags("a")
    loader_at(esp).mend("b")
    assert default_of(esp) == "b"
    # Nobody asks it where the files do tell.
    loader_at(esp).mend("a")
    assert default_of(esp) == "b"
    put(esp, ENVIRONMENT, None)
    loader_at(esp).mend("a")
    assert default_of(esp) == "b"


# ------------------------------------------------------------ power

ACTS: dict[str, Callable[[GrubLoader], None]] = {
    "arm a": lambda loader: loader.arm("a"),
    "arm b": lambda loader: loader.arm("b"),
    "disarm": lambda loader: loader.disarm(),
    "mark a": lambda loader: loader.mark_good("a"),
    "mark b": lambda loader: loader.mark_good("b"),
    "mend": lambda loader: loader.mend(),
}


class TearingDisk(Disk):
    """Cuts the power at the n-th step; where that is a write over a file in place, a part of it got there."""

    def __init__(self, at: int, kept: Callable[[bytes, bytes], bytes]) -> None:
        super().__init__(self._step)
        self.at, self.kept, self.passed = at, kept, 0
        self._now: tuple[Path, bytes] | None = None

    def _step(self, name: str) -> None:
        self.passed += 1
        if self.passed <= self.at:
            return
        if self._now is not None and name == f"write {self._now[0].name}":
            path, data = self._now
            path.write_bytes(self.kept(path.read_bytes() if path.exists() else b"", data))
        raise PowerCut

    def overwrite(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        self._now = path, data
        super().overwrite(path, data, mode)
        self._now = None


def tears() -> Iterator[Callable[[bytes, bytes], bytes]]:
    """What a disk may hold of a write that was cut short."""
    yield lambda old, _new: old
    yield lambda _old, new: bytes(len(new))
    yield lambda _old, new: b"\xff" * len(new)
    yield lambda _old, new: new
    yield lambda old, new: bytes(512) + (old or new)[512:]
    for count in range(20, 90, 14):
        yield lambda old, new, count=count: new[:count] + old[count:]  # type: ignore[misc]
        yield lambda old, new, count=count: old[:count] + new[count:]  # type: ignore[misc]


KNOWN = {"whole-a": "a", "whole-b": "b", "armed": "a", "spent": "a"}
# Where both files are lost at once, nothing tells what was good.
BEFORE = [
    (first, second)
    for first, second in product([*KNOWN, "missing", "zeros"], ["whole-a", "whole-b", "missing", "zeros"])
    if first in KNOWN or second in KNOWN
]


# The inner loop cuts what is done to one of the two slots.
@pytest.mark.slow
@pytest.mark.parametrize("act", [pytest.param(a, marks=[pytest.mark.slow] * a.endswith(" b")) for a in ACTS])
def test_power_may_go_at_any_instant_of_any_write(esp: Path, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    # No test waits for a real disk; that it is waited for is another test's to see.
    monkeypatch.setattr("os.O_SYNC", 0)
    for first, second in BEFORE:
        for number, tear in enumerate(tears()):
            where = f"{act} on {first} and {second}, tear {number}"
            assert any(_cut(esp, act, (STATES[first], COPIES[second]), at, tear, where) for at in range(12)), where


def _cut(
    esp: Path,
    act: str,
    files: tuple[bytes | None, bytes | None],
    at: int,
    tear: Callable[[bytes, bytes], bytes],
    where: str,
) -> bool:
    """Cut the power at one step; whether the act ended before it came to that."""
    marks = {act[-1]} if act.startswith("mark") else set()
    arms = {act[-1]} if act.startswith("arm") else set()
    put(esp, ENVIRONMENT, files[0])
    put(esp, BACKUP, files[1])
    good, trial = default_of(esp), armed(esp)
    disk = TearingDisk(at, tear)
    try:
        ACTS[act](loader_at(esp, disk))
    except PowerCut:
        assert default_of(esp) in {good} | marks, f"{where}, step {at}"
        # Beside what is asked for, nothing is tried that was not to be tried before.
        assert armed(esp) in {None, trial} | arms | marks, f"{where}, step {at}"
        # And the same, done again, ends where it should.
        ACTS[act](loader_at(esp))
    assert default_of(esp) in (marks or {good}), where
    assert variables(esp, BACKUP) == {"edge_default": default_of(esp)}, where
    return disk.passed <= at


def test_no_copy_names_another_default_once_it_is_mended(esp: Path) -> None:
    """A mark that was cut short leaves two defaults; before a slot is written, both name the one in force."""
    put(esp, BACKUP, backup("b"))
    loader_at(esp).mend()
    assert (esp / FOLDER / BACKUP).read_bytes() == backup("a")


# ------------------------------------------------------------ an ESP that does not serve


def test_an_esp_that_is_not_mounted_is_named_and_nothing_is_written_below_its_place(tmp_path: Path) -> None:
    (tmp_path / "esp").mkdir()
    loader = GrubLoader(tmp_path / "esp", Disk())
    for act in (loader.flags, loader.disarm, loader.mend, lambda: loader.arm("b"), lambda: loader.mark_good("b")):
        with pytest.raises(HardwareError, match=r"not mounted at .*edge-esp\.service"):
            act()
    assert list((tmp_path / "esp").iterdir()) == []
    mounted(Path("/proc"))


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.EROFS, "fsck"), (errno.ENOSPC, "full"), (errno.EIO, "SMART"), (errno.EPERM, "not permitted")],
)
def test_an_esp_that_cannot_be_written_is_named_with_its_remedy(
    esp: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    def refused(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    loader = loader_at(esp)
    monkeypatch.setattr("os.write", refused)
    with pytest.raises(HardwareError, match=f"grubenv cannot be written.*{says}"):
        loader.arm("b")
    assert loader.flags().default == "a"


def test_a_write_that_comes_up_short_is_no_success(esp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(esp, ENVIRONMENT, None)
    real = os.write
    monkeypatch.setattr("os.write", lambda descriptor, data: real(descriptor, data[:512]))
    with pytest.raises(HardwareError, match="full"):
        loader_at(esp).arm("b")


def test_a_disk_that_does_not_keep_what_it_took_is_named(esp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.write", lambda _descriptor, data: len(data))
    with pytest.raises(HardwareError, match="does not hold what was written"):
        loader_at(esp).arm("b")


def test_what_cannot_be_read_is_not_taken_for_missing(esp: Path) -> None:
    put(esp, ENVIRONMENT, None)
    (esp / FOLDER / ENVIRONMENT).mkdir()
    with pytest.raises(HardwareError, match="cannot be read"):
        loader_at(esp).arm("b")


def test_random_files_never_raise_and_read_alike(esp: Path) -> None:
    chance = random.Random(7)
    for _ in range(300):
        data = bytearray(environment("a", "b", "1"))
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(90)] = chance.choice(b"#\n=ab01\0\xff")
        put(esp, ENVIRONMENT, bytes(data))
        flags = loader_at(esp).flags()
        assert (flags.default, flags.trial if flags.tries else None) == (default_of(esp), armed(esp))
