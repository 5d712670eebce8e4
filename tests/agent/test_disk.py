"""Durable writes ask for durability, in the right order, and leave the old content when they fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler.agent.disk import Disk


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(descriptor: int) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def watched_rename(source: Path, target: Path) -> None:
        calls.append(f"rename {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr("os.fsync", watched_fsync)
    monkeypatch.setattr("os.rename", watched_rename)
    return calls


def test_a_file_is_synced_before_its_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _watched(monkeypatch)
    Disk().replace(tmp_path / "state", b"x", 0o600)
    assert calls == ["fsync state.new", "rename state", f"fsync {tmp_path.name}"]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600


def test_a_link_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    disk.link("one", tmp_path / "running")
    calls = _watched(monkeypatch)
    disk.link("two", tmp_path / "running")
    assert os.readlink(tmp_path / "running") == "two"
    assert calls == ["rename running", f"fsync {tmp_path.name}"]


def test_a_temporary_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "state.new").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="state"):
        Disk().replace(tmp_path / "state", b"x")
    assert (tmp_path / "victim").read_text() == "precious"


def test_removing_a_link_leaves_what_it_points_at(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    Disk().remove(tmp_path / "link")
    Disk().remove(tmp_path / "link")
    assert (tmp_path / "kept").is_dir()
    Disk().remove(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_new_folder_and_those_above_it_have_their_names_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _watched(monkeypatch)
    Disk().folder(tmp_path / "one" / "two", 0o700)
    assert calls == [f"fsync {tmp_path.name}", "fsync one"]
    assert (tmp_path / "one" / "two").stat().st_mode & 0o777 == 0o700
    Disk().folder(tmp_path / "one" / "two")
    assert len(calls) == 2
