"""What is installed from a wheel works without the checkout: the commands start, and the files that they read are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.house.tree import ROOT, files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from what is or would be committed, with the build backend that is installed: nothing is fetched."""
    place = tmp_path_factory.mktemp("wheel")
    for path in files():
        if path.parts[0] == "reconciler" or str(path) in ("pyproject.toml", "README.md", "LICENSE"):
            (place / "source" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, place / "source" / path)
    command = [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation",
        "--no-index", "--wheel-dir", str(place / "wheels"), str(place / "source"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=place)
    (made,) = (place / "wheels").iterdir()
    return made


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, in a fresh environment with the wheel, and with what it depends on from the environment of the tests."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    command = [
        sys.executable, "-m", "pip", "--python", str(place / "bin/python"), "install", "--quiet",
        "--disable-pip-version-check", "--no-deps", "--no-index", str(wheel),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=place)
    (libraries,) = place.glob("lib/python*/site-packages")
    # A folder that a .pth names is searched, but no .pth in it is read: the checkout, which is installed by one, stays away.
    (libraries / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin/reconciler"


def call(program: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a folder, with nothing of the checkout in its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV", "PYTEST"))}
    return subprocess.run([str(program), *words], cwd=folder, env=kept, capture_output=True, text=True, check=False)


def test_every_file_that_the_program_reads_is_in_the_wheel(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    lacking = {str(path) for path in files() if path.parts[0] == "reconciler" and path.name != "README.md"} - packed
    assert not lacking, f"name their kind in pyproject.toml, package-data: {sorted(lacking)}"
    assert [name for name in packed if name.endswith("/LICENSE")]
    assert not [name for name in packed if name.split("/")[0] in ("tests", "fleet", "docs")]


def test_the_commands_start_elsewhere(program: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [str(program.parent / "python"), "-c", "import reconciler; print(reconciler.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(ROOT) not in where.stdout
    for words in (("--version",), ("--help",), ("demo", "--help"), ("run", "--help"), ("completion", "bash")):
        done = call(program, tmp_path, *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    agent = call(program.with_name("edge-agent"), tmp_path, "--version")
    assert agent.returncode == 0


def test_it_works_on_a_fleet_and_on_a_store(program: Path, tmp_path: Path) -> None:
    """Schemas come from the models, units and migrations from files of the package."""
    shutil.copytree(ROOT / "fleet", tmp_path / "fleet")
    valid = call(program, tmp_path, "validate", "--fleet", "fleet")
    assert (valid.returncode, "valid, 0 warnings" in valid.stderr) == (0, True)
    assert call(program, tmp_path, "schema", "Waves").returncode == 0
    made = call(program, tmp_path, "systemd-units", "--output", "units", "--program", str(program))
    assert f"ExecStart={program} run" in (tmp_path / "units/reconciler.service").read_text()
    assert made.returncode == 0
    code = (
        "from pathlib import Path\n"
        "from reconciler.adapters.sql import open_store\n"
        "open_store(Path('reconciler.db')).close()\n"
    )
    done = subprocess.run(
        [str(program.parent / "python"), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reconciler.db").stat().st_size > 0


def test_the_demo_says_what_it_lacks(program: Path, tmp_path: Path) -> None:
    done = call(program, tmp_path, "demo")
    assert done.returncode == 2
    assert "--fleet CHECKOUT/fleet" in done.stderr
