"""Files without a name and private folders: nobody else's, and gone afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler.protocol import scratch


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_a_nameless_file_is_written_and_read_and_leaves_nothing(tmp_path: Path) -> None:
    with scratch.nameless_file() as file:
        file.write(b"said")
        file.seek(0)
        assert file.read() == b"said"
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
        assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who guesses the name gains nothing: neither file nor link is followed."""
    monkeypatch.setattr(os, "urandom", lambda count: b"\0" * count)
    target = tmp_path / "target"
    (tmp_path / f"edge-{'00' * 8}").symlink_to(target)
    with pytest.raises(FileExistsError, match="no new file"):
        scratch.nameless_file()
    with pytest.raises(FileExistsError, match="no new folder"):
        scratch.new_folder(tmp_path / "edge-")
    assert not target.exists()


def test_a_private_folder_is_removed_with_what_is_in_it_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    with scratch.private_folder("gv-") as folder:
        assert os.stat(folder).st_mode & 0o777 == 0o700
        os.mkdir(f"{folder}/home")
        Path(f"{folder}/home/file").write_text("x")
        os.symlink(outside, f"{folder}/link")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (outside / "kept").read_text() == "kept"


def test_a_folder_for_what_does_not_last_that_is_missing_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(FileNotFoundError):
        scratch.nameless_file()


def test_a_program_is_found_in_the_path_first_and_only_if_it_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f":{tmp_path}")
    (tmp_path / "sh").write_text("#!/bin/sh\n")
    assert scratch.find_program("sh") in ("/usr/bin/sh", "/bin/sh")
    (tmp_path / "sh").chmod(0o755)
    assert scratch.find_program("sh") == str(tmp_path / "sh")
    assert scratch.find_program("no-such-program") is None
