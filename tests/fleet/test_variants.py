"""The recipe's two variants: what differs between them is data, in a form that builder and setup.sh read alike."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconciler.image import recipe
from reconciler.model.desired import ImageSpec

RECIPE = Path(__file__).parents[2] / "fleet" / "images" / "edge-golden"
VARIANTS = sorted(RECIPE.glob("*.yaml"))
SCRIPTS = [path for path in RECIPE.rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!")]


def words(file: Path) -> list[str]:
    """The first word of each line that says something."""
    lines = [line.split() for line in file.read_text().splitlines()]
    return [line[0] for line in lines if line and not line[0].startswith("#")]


def load(variant: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(variant.read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_there_are_the_two() -> None:
    assert [path.name for path in VARIANTS] == ["debian-12.yaml", "ubuntu-22.04.yaml"]
    assert [(load(path)["distribution"], load(path)["suite"]) for path in VARIANTS] == [
        ("debian", "bookworm"),
        ("ubuntu", "jammy"),
    ]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda path: path.stem)
def test_the_builder_reads_it_with_everything_that_is_shared(variant: Path) -> None:
    base = {key: load(variant)[key] for key in ("distribution", "suite")}
    made = recipe.read(RECIPE, ImageSpec.model_validate({"recipe": "edge-golden/", "base": base}))
    assert made.file == variant
    assert set(made.packages) == set(words(RECIPE / "packages.txt")) | set(load(variant)["packages"])
    for source in made.variant.sources:
        assert source.key.startswith("/usr/share/keyrings/") or (RECIPE / source.key).is_file(), source.key


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("key", ["packages", "modules", "variables"])
def test_setup_reads_in_it_what_the_builder_reads(variant: Path, key: str) -> None:
    text = (RECIPE / "setup.sh").read_text()
    function = text[text.index("entries() {") : text.index("\n}\n", text.index("entries() {")) + 3]
    script = f'VARIANT=$1\n{function}\nentries "$2"'
    done = subprocess.run(["bash", "-c", script, "-", variant, key], capture_output=True, text=True, check=True)
    said = load(variant)[key]
    expected = [f"{name}: {value}" for name, value in said.items()] if isinstance(said, dict) else said
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda path: path.stem)
def test_a_variant_says_nothing_twice(variant: Path) -> None:
    shared = words(RECIPE / "packages.txt")
    assert len(set(shared)) == len(shared)
    assert not set(shared) & set(load(variant)["packages"])
    patterns = words(RECIPE / "modules.txt")
    assert len(set(patterns)) == len(patterns)
    assert not set(patterns) & set(load(variant)["modules"])
    assert all(
        re.search(r"\S {2,}\S", line)
        for line in (RECIPE / "modules.txt").read_text().splitlines()
        if line[:1].isalpha()
    )


def test_no_script_asks_which_distribution_it_is_on() -> None:
    for script in SCRIPTS:
        code = [line for line in script.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert not re.findall(r"ubuntu|debian\b|jammy|bookworm", "\n".join(code)), script


def test_what_the_preset_starts_is_there_or_a_packages() -> None:
    folder = RECIPE / "rootfs/etc/systemd"
    preset = [line.split() for line in (folder / "system-preset/10-edge.preset").read_text().splitlines()]
    units = {line[1]: line[0] for line in preset if line and not line[0].startswith("#")}
    assert set(units.values()) == {"enable", "disable"}
    own = {path.name for path in (folder / "system").glob("*.service")}
    # What nobody enables is started by another unit, or by the agent.
    enabled = {unit for unit in own if "[Install]" in (folder / "system" / unit).read_text()}
    assert {unit for unit in enabled if units.get(unit) != "enable"} == set()
    assert own - enabled == {"edge-trial.service", "edge-configure.service"}
    # Every word of a unit's command that is a file of ours exists and runs.
    for unit in own:
        for program in re.findall(r"^Exec\w+=-?(/usr/local/\S+)", (folder / "system" / unit).read_text(), re.MULTILINE):
            assert (RECIPE / "rootfs" / program.lstrip("/")).stat().st_mode & 0o111, program
