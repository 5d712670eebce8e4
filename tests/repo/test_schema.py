"""The generated schemas: never stale, complete, and their examples are documents that load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from reconciler.cli.main import cli
from reconciler.repo.documents import FILES, FOLDERS, KINDS
from reconciler.repo.parse import parse
from reconciler.repo.schema import EXAMPLES, file_name, schema_of, schemas
from tests.support.schema import jsonschema

ROOT = Path(__file__).parents[2]


def place(kind: str, name: str) -> str:
    folder = next((folder for folder, of in FOLDERS.items() if of == kind), None)
    return f"{folder}/{name}.yaml" if folder else next(f"{stem}.yaml" for stem, of in FILES.items() if of == kind)


def test_the_schemas_in_the_project_are_those_of_the_models() -> None:
    stale = "run `reconciler schema --write schemas`"
    assert {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "schemas").glob("*.json")} == schemas(), (
        stale
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_of_2020_12_and_says_what_everything_is(kind: str) -> None:
    schema = schema_of(kind)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema().Draft202012Validator.check_schema(schema)
    assert schema["title"] == kind
    assert schema["description"]
    for model in ({"properties": schema["properties"]}, *schema["$defs"].values()):
        for key, field in model.get("properties", {}).items():
            assert "title" in field or "$ref" in field or "anyOf" in field, key
            if kind != "Scenario":
                assert field.get("description"), key


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_a_schema_is_accepted_by_both(kind: str) -> None:
    example = EXAMPLES[kind]
    jsonschema().validate(example, schema_of(kind), jsonschema().Draft202012Validator)
    parsed = parse(place(kind, example["metadata"]["name"]), "blob", json.dumps(example).encode())
    assert parsed.problems == ()
    assert parsed.spec is not None


HEAD = "apiVersion: fleet/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n"


@pytest.mark.parametrize(
    ("kind", "name", "spec"),
    [
        (
            "Fleet",
            "10",
            "{paused: true, attempts: 3, rollback: {ignoreWindow: true}, releaseKeys: [" + "1" * 40 + "]}",
        ),
        ("Fleet", "x", "{paused: 'true', attempts: '3', rollback: {ignoreWindow: 'false'}}"),
        ("Fleet", "x", "{window: {start: 22:00, end: 04:00}}"),
        ("Fleet", "x", "{freezes: [{from: '2026-01-01T00:00:00Z', to: '2026-01-01 00:00:00-00:01', why: 7}]}"),
        ("Waves", "w", "{order: 7, waves: [{name: 1, percent: 10%, soak: 1h, maxOffline: 1, apps: {a: 2.8}}]}"),
        ("Waves", "w", "{waves: [{name: true, percent: 100, soak: 0s, maxOffline: 3, sites: ~}]}"),
        ("Waves", "w", "{waves: [{name: a, sites: [10, true], percent: ~, image: ~, soak: 1h, maxFailed: '3'}]}"),
        ("Site", "8421", "{timezone: UTC, devices: [8421, 1e3], labels: {rack: 12, v: 1.5}, pin: ~, lab: false}"),
        ("Site", "a", "{timezone: Etc/GMT-14, devices: [a], window: {start: '00:00', end: '24:00'}, cameras: []}"),
        ("Image", "v1", "{packages: {a: 1.10, b: 2026}, base: {distribution: 1, suite: 2}, withdrawn: true}"),
        ("App", "a", "{repository: a/b, releases: {2.7.0: sha256:" + "1" * 64 + ", 1.10: sha256:" + "2" * 64 + "}}"),
    ],
)
def test_what_the_loader_accepts_a_schema_accepts_of_an_ordinary_reader(kind: str, name: str, spec: str) -> None:
    text = HEAD.format(kind=kind, name=name) + f"  {spec}\n"
    parsed = parse(place(kind, name), "blob", text.encode())
    assert [str(problem) for problem in parsed.problems if problem.severity == "error"] == []
    ordinary: Any = json.loads(json.dumps(yaml.safe_load(text)))
    jsonschema().validate(ordinary, schema_of(kind), jsonschema().Draft202012Validator)


def test_the_command_prints_one_and_writes_all(tmp_path: Path) -> None:
    runner = CliRunner()
    printed = runner.invoke(cli, ["schema", "site"])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout)["title"] == "Site"
    written = runner.invoke(cli, ["schema", "--write", str(tmp_path / "new")])
    assert written.exit_code == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {file_name(kind) for kind in KINDS}
    assert runner.invoke(cli, ["schema"]).exit_code == 2
    assert runner.invoke(cli, ["schema", "sit"]).exit_code == 2
    (tmp_path / "file").write_text("")
    assert runner.invoke(cli, ["schema", "--write", str(tmp_path / "file/below")]).exit_code == 2
