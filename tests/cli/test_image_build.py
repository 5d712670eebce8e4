"""`reconciler image build`: what it says before it builds. The build itself: tests/image, tests/fleet."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from reconciler.cli.main import cli
from reconciler.ports import TerminalError
from reconciler.repo.problem import InvalidInput


@pytest.mark.parametrize("named", [False, True])
def test_outside_a_fleet_repo_it_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["image", "build", "v1.0.0", *(["--fleet", str(tmp_path)] if named else [])])
    assert isinstance(done.exception, TerminalError) and done.stdout == ""
    assert f"{tmp_path} is no fleet repo" in str(done.exception) and "--fleet" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_fleet_repo_with_half_of_its_files_is_one(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").touch()
    done = CliRunner().invoke(cli, ["image", "build", "v1.0.0", "--fleet", str(tmp_path)])
    assert isinstance(done.exception, InvalidInput) and "there is no waves.yaml" in str(done.exception)


def test_a_size_without_its_unit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").touch()
    done = CliRunner().invoke(cli, ["image", "build", "v1.0.0", "--slot-size", "8GB", "--fleet", str(tmp_path)])
    assert done.exit_code == 2 and "--slot-size" in done.stderr and "8GiB" in done.stderr
