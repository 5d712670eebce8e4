"""The pages about the fleet repo are true: their examples are in `fleet/`, their tables name every key, their steps work."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from reconciler.cli.main import cli
from reconciler.model import desired
from reconciler.repo.load import load_folder
from reconciler.repo.render import render_site

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference/fleet-repo.md").read_text()
HOW_TO = (ROOT / "docs/how-to/add-a-site.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", REFERENCE.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_every_example_of_the_reference_is_in_the_file_it_names() -> None:
    examples = re.findall(r"From `([^`]+)`:\n\n```yaml\n(.*?)```", REFERENCE, re.DOTALL)
    assert len(examples) == REFERENCE.count("```yaml")
    assert len(examples) == 6
    for path, text in examples:
        assert text in (ROOT / path).read_text(), path


@pytest.mark.parametrize(
    ("title", "models"),
    [
        ("Fleet", [desired.FleetSpec, desired.RollbackPolicy, desired.Freeze, desired.Window]),
        ("Waves", [desired.WavesSpec, desired.WaveSpec]),
        ("Site", [desired.SiteSpec, desired.Pin, desired.Vpn]),
        ("Image", [desired.ImageSpec, desired.Base]),
        ("App", [desired.AppSpec]),
    ],
)
def test_the_reference_names_every_key(title: str, models: list[type[BaseModel]]) -> None:
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", section(title)))))
    for model in models:
        keys = {field.alias or name for name, field in model.model_fields.items()}
        assert keys <= words, keys - words


def test_the_reference_names_every_file_that_is_rendered() -> None:
    result = load_folder(ROOT / "fleet")
    assert result.desired is not None
    for name, spec in result.desired.sites.items():
        for file in render_site(name, spec, result.desired.fleet).tree["write_files"]:
            row = next((line for line in REFERENCE.splitlines() if f"`{file['path']}`" in line), None)
            assert row is not None and row.endswith(f"| {file['permissions']} |")


@pytest.mark.parametrize("page", ["docs/reference/fleet-repo.md", "docs/how-to/add-a-site.md", "fleet/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_steps_for_a_new_site_work(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", HOW_TO, re.DOTALL)
    assert block is not None
    fleet = tmp_path / "fleet"
    shutil.copytree(ROOT / "fleet", fleet)
    (fleet / "sites/SITE-2855.yaml").write_text(re.sub(r"^   ", "", block[1], flags=re.MULTILINE))
    run = CliRunner()
    assert run.invoke(cli, ["validate", str(fleet)]).exit_code == 0
    shown = run.invoke(cli, ["site", "render", "SITE-2855", "--fleet", str(fleet), "--device", "SITE-2855-2"])
    assert shown.exit_code == 0
    assert "site-2855-2" in shown.stdout
