"""The pages are true: what is generated is fresh, and what is written by hand names everything that the code has."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import BaseModel

from reconciler.agent import main as agent
from reconciler.cli.main import cli
from reconciler.controller.conditions import Type
from reconciler.controller.settings import load_settings
from reconciler.model import observed, plan
from reconciler.repo.accept import Refusal
from reconciler.server.access import ROUTES, Need
from reconciler.server.options import Options
from tests.house.tree import ROOT, files, python

DOCS = ROOT / "docs"


def read(name: str) -> str:
    """A page's text."""
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """`.ci/docs.py`, imported by its path, as `make docs` runs it."""
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        spec = importlib.util.spec_from_file_location("generated_docs", ROOT / ".ci/docs.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / ".ci"))


@pytest.mark.slow
def test_generated_pages_and_shown_output_are_fresh(generator: ModuleType) -> None:
    stale = [name for name, text in generator.pages() if (ROOT / name).read_text(encoding="utf-8") != text]
    assert not stale, f"run `make docs`, and commit: {stale}"


@pytest.mark.slow
def test_the_page_about_simulations_shows_what_is_played(generator: ModuleType) -> None:
    stale = [name for name, text in generator.simulated() if (ROOT / name).read_text(encoding="utf-8") != text]
    assert not stale, f"run `make docs`, and commit: {stale}"


def test_a_page_whose_output_is_wrong_is_found(generator: ModuleType) -> None:
    page = "```console\n$ reconciler validate --fleet fleet\nfleet: 3 errors\n```\n"
    assert "valid, 0 warnings" in generator.transcript.fill(page)


def test_a_diff_that_fits_nowhere_is_an_error(generator: ModuleType) -> None:
    with pytest.raises(generator.transcript.PageError, match="0 times"):
        generator.transcript.fill("```diff\n--- fleet/waves.yaml\n-      image: v9\n+      image: v10\n```\n")


def test_every_condition_and_reason_is_on_the_page() -> None:
    page = read("reference/conditions.md")
    for kind in Type:
        assert f"`{kind.value}`" in page
    # A reason is the third argument of a Finding, one CamelCase word.
    sources = [(ROOT / path).read_text(encoding="utf-8") for path in python() if path.parts[1] == "controller"]
    found = {word for text in sources for word in re.findall(r'Finding\(\s*Type\.\w+,\s*\w+,\s*"([A-Za-z]+)"', text)}
    found |= {"".join(part.capitalize() for part in refusal.value.split("-")) for refusal in Refusal}
    assert len(found) > 15
    missing = sorted(word for word in found if f"`{word}`" not in page)
    assert not missing, f"docs/reference/conditions.md lacks {missing}"
    listed = set(re.findall(r"\| (?:True|False|Unknown) \| `(\w+)`", page))
    assert listed == found, "the page names reasons that the code does not have, or the other way round"


def test_whoever_looks_up_a_condition_is_led_to_what_to_do() -> None:
    """A heading for each condition, and for each reason by which it is not as it should be; the table leads there."""
    recover = read("how-to/recover.md").split("\n## By condition\n", 1)[1].split("\n## ", 1)[0]
    headings = set(re.findall(r"^#{3,4} (.+)$", recover, re.MULTILINE))
    rows = re.findall(
        r"^\| (?:`(\w+)`)? ?\| (True|False|Unknown) \| `(\w+)` \| [^|]+ \| ([^|]*)\|$",
        read("reference/conditions.md"),
        re.M,
    )
    expected, condition = set(), ""
    for name, status, reason, remedy in rows:
        condition = name or condition
        if status != ("False" if condition == Type.STALLED else "True"):
            expected.add(f"{condition}: {reason}")
            assert f"recover.md#{condition}-{reason}".lower() in remedy, f"{condition}, {reason}"
    assert headings == expected | {kind.value for kind in Type}
    for title in expected:
        text = recover.split(f"#### {title}\n", 1)[1].split("\n#", 1)[0]
        assert len(text.split()) > 5, f"{title}: nothing is said"


def test_every_route_is_on_the_page() -> None:
    rows = re.findall(r"^\| `([A-Z]+ /[^`]*)` \| ([^|]*) \|", read("reference/http-api.md"), re.MULTILINE)
    assert dict(rows).keys() == ROUTES.keys()
    for route, who in rows:
        # Scopes stand as code; a page and the metrics are anybody's on loopback too.
        need = {Need.PAGE: "`read`; anybody", Need.DEVICE: "devices", Need.ANYBODY: ""}.get(
            ROUTES[route], f"`{ROUTES[route]}`"
        )
        assert need in who, f"{route} is for {ROUTES[route]}"


def test_every_status_of_a_refusal_is_on_the_page() -> None:
    sources = [(ROOT / path).read_text(encoding="utf-8") for path in python() if path.parts[1] == "server"]
    found = {status for text in sources for status in re.findall(r"Refusal\(\s*(\d{3})", text)}
    table = read("reference/http-api.md").split("| status | when |", 1)[1].split("##", 1)[0]
    assert len(found) > 8
    assert found <= set(re.findall(r"\b\d{3}\b", table))


def test_limits_on_the_page_are_those_of_the_code() -> None:
    assert Options.__dataclass_fields__["limits"].default.body_bytes == 256 * 1024
    assert "256 KiB at most" in read("reference/http-api.md")


@pytest.mark.parametrize("model", [observed.Snapshot, observed.DeviceObservation], ids=lambda model: model.__name__)
def test_every_key_of_the_snapshot_is_on_the_page(model: type[BaseModel]) -> None:
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", read("reference/observed-snapshot.md")))))
    keys = {field.alias or name for name, field in model.model_fields.items()}
    assert keys <= words, keys - words


def test_every_word_of_the_plan_is_on_the_page() -> None:
    page = read("reference/plan.md")
    for word in (*plan.ActionKind, *plan.Why, *plan.WaveState):
        assert f"`{word.value}`" in page, word
    example = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert example is not None
    assert set(json.loads(example[1])) == {
        "apiVersion", "kind", "at", "commit", "actions", "holds", "waves", "facts", "nextChangeAt"
    }  # fmt: skip


def test_the_reasons_a_person_must_act_on_exist() -> None:
    named = set(re.findall(r"^\| `([a-z-]+)` \|", read("how-to/recover.md"), re.MULTILINE))
    assert named
    assert named <= {reason.value for reason in plan.Reason}


def test_the_settings_of_the_how_to_are_valid(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", read("how-to/run-the-controller.md"), re.DOTALL)
    assert block is not None
    path = tmp_path / "reconciler.yaml"
    path.write_text(re.sub(r"^ {3}", "", block[1], flags=re.MULTILINE))
    settings = load_settings(path)
    fleet: dict[str, Any] = yaml.safe_load((ROOT / "fleet/fleet.yaml").read_text())["spec"]
    # The example fleet may come into force under these settings.
    assert fleet["images"] in settings.allowed.images
    assert fleet["registry"] in settings.allowed.registries
    assert set(map(str, fleet["releaseKeys"])) <= set(settings.keys.releases)


def test_the_agents_settings_of_the_how_to_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reconciler.agent.settings import read_settings

    block = re.search(r"```json\n(.*?)```", read("how-to/enrol-a-device.md"), re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/LAB-0001-1.token").write_text("x" * 43)
    (tmp_path / "agent.json").write_text(re.sub(r"^ {3}", "", block[1], flags=re.MULTILINE))
    assert read_settings(tmp_path / "agent.json", {}).identity.device == "LAB-0001-1"


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text).name for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    page = read("dependencies.md")
    assert sorted(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)) == sorted(wanted)
    rows = re.findall(r"^\| `[^`]+` \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert len(rows) == len(wanted)


def test_the_architecture_page_and_the_import_test_say_the_same() -> None:
    from tests.house.test_imports import MAY_IMPORT

    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", read("explanation/architecture.md"), re.MULTILINE)
    assert {part for part, _ in rows} == set(MAY_IMPORT) - {"__init__"}
    for part, allowed in rows:
        named = set(re.findall(r"`(\w+)`", allowed))
        if "all but" not in allowed and "what stands above" not in allowed:
            assert named == set(MAY_IMPORT[part]), part


PAGES = [path for path in files() if path.suffix == ".md" and path.parts[0] in ("README.md", "docs", "fleet")]


def shown(program: str) -> list[tuple[str, list[str]]]:
    """Page and words of every call of a program in a console block or in code within a sentence."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        text = re.sub(r"^```text\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        calls = re.findall(rf"^ *\$ {program} (.*)$", text, re.MULTILINE) + re.findall(rf"`{program} ([^`\n]+)`", text)
        found += [(str(page), call.split(" | ")[0].split(" #")[0].split()) for call in calls]
    return found


def test_every_target_of_make_in_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {(page, words[0]) for page, words in shown("make")}
    assert {name for _, name in named} >= {"demo", "test", "check"}
    assert not {(page, name) for page, name in named if name not in targets}


def test_every_command_in_the_pages_exists_with_its_options() -> None:
    calls = shown("reconciler")
    assert len(calls) > 20
    wrong = []
    for page, words in calls:
        command: click.Command = cli
        options = {"--help", "--version"}
        for word in words:
            if isinstance(command, click.Group) and not word.startswith("-"):
                below = command.get_command(click.Context(command), word)
                if below is None:
                    wrong.append(f"{page}: reconciler {' '.join(words)}: no command {word}")
                    break
                command = below
                options |= {name for parameter in command.params for name in parameter.opts}
            elif word.startswith("--") and word.partition("=")[0] not in options:
                wrong.append(f"{page}: reconciler {' '.join(words)}: no option {word}")
    assert not wrong, "\n".join(wrong)


def test_every_option_of_the_agent_in_the_pages_exists() -> None:
    help_text = agent._parser().format_help()
    for page, words in shown("edge-agent"):
        for option in (word.strip("[]") for word in words if "--" in word):
            assert option in help_text, f"{page}: edge-agent {' '.join(words)}"
