"""Bad input as files: each is refused at the line and column it says, with the words it says; the schema refuses what it can.

A file under corpus/documents/FOLDER says in a comment (or in NAME.expect beside it) `# expect LINE:COLUMN WHO: PIECE`. WHO is
`schema` where an ordinary validator must refuse it too, and `loader` where only ours can (`loader-alone`: the other one
dies of it). A folder under corpus/fleets is
written over corpus/base; its `expect` lists every problem: `SEVERITY PATH:LINE:COLUMN PIECE`, or `remove PATH`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from reconciler.repo.documents import FILES, FOLDERS, KINDS
from reconciler.repo.load import load_folder
from reconciler.repo.parse import parse
from reconciler.repo.schema import file_name
from tests.support.schema import check_jsonschema

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
DOCUMENTS = sorted(path for path in (CORPUS / "documents").rglob("*") if path.suffix in (".yaml", ".json"))
FLEETS = sorted((CORPUS / "fleets").iterdir())
_EXPECT = re.compile(rb"^# expect (\d+):(\d+) (schema|loader|loader-alone): (.+)$", re.MULTILINE)


def expectation(path: Path) -> tuple[int, int, str, str]:
    """Line, column, who refuses it, and a piece of the message."""
    sidecar = path.with_name(path.name + ".expect")
    found = _EXPECT.search((sidecar if sidecar.exists() else path).read_bytes())
    assert found is not None, f"{path} says not what is expected of it"
    line, column, who, piece = (part.decode() for part in found.groups())
    return int(line), int(column), who, piece


def place(path: Path) -> str:
    """The path in a fleet repo that a file of the corpus stands for."""
    folder = path.parent.name
    return f"{folder}{path.suffix}" if folder in FILES else f"{folder}/{path.name}"


def kind_of(path: Path) -> str:
    return FILES.get(path.parent.name) or FOLDERS[path.parent.name]


def test_the_corpus_is_large_enough() -> None:
    assert len(DOCUMENTS) >= 100
    assert len(FLEETS) >= 25


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_bad_document_is_refused_where_it_is_bad(path: Path) -> None:
    line, column, _, piece = expectation(path)
    parsed = parse(place(path), "blob", path.read_bytes())
    assert parsed.spec is None
    told = [str(problem) for problem in parsed.problems]
    assert any(
        (problem.line, problem.column) == (line, column) and piece in problem.message and problem.severity == "error"
        for problem in parsed.problems
    ), told
    assert all("\n" not in one and "Input should" not in one and "Value error" not in one for one in told), told


@pytest.mark.parametrize("case", FLEETS, ids=lambda case: case.name)
def test_a_fleet_has_exactly_the_problems_it_says(case: Path, tmp_path: Path) -> None:
    shutil.copytree(CORPUS / "base", tmp_path, dirs_exist_ok=True)
    shutil.copytree(case, tmp_path, dirs_exist_ok=True)
    (tmp_path / "expect").unlink()
    expected: list[list[str]] = []
    for line in (case / "expect").read_text(encoding="utf-8").splitlines():
        if line.startswith("remove "):
            (tmp_path / line.removeprefix("remove ")).unlink()
        else:
            expected.append(line.split(" ", 2))
    result = load_folder(tmp_path)
    told = [str(problem) for problem in result.problems]
    for severity, where, piece in expected:
        assert any(
            f"{problem.path}:{problem.line}:{problem.column}" == str(tmp_path / where)
            and problem.severity == severity
            and piece in problem.message
            for problem in result.problems
        ), (severity, where, piece, told)
    assert len(told) == len(expected), told
    assert (result.desired is None) == any(severity == "error" for severity, _, _ in expected)
    assert list(result.problems) == sorted(result.problems)


def test_the_base_of_the_fleets_is_good() -> None:
    result = load_folder(CORPUS / "base")
    assert result.problems == ()
    assert result.desired is not None


def refused_by_schema(kind: str, paths: list[Path]) -> set[str]:
    """Which files an independent validator refuses: by the schema, or because they are no YAML at all."""
    schema = str(ROOT / "schemas" / file_name(kind))
    done = check_jsonschema("-o", "json", "--schemafile", schema, *map(str, paths))
    assert done.exit_code in (0, 1), done.output
    answer = json.loads(done.stdout)
    return {error["filename"] for error in (*answer.get("errors", ()), *answer.get("parse_errors", ()))}


@pytest.mark.slow  # another program reads every schema: a second each
@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_refuses_what_a_schema_can_and_accepts_what_is_good(kind: str) -> None:
    bad = [path for path in DOCUMENTS if kind_of(path) == kind and expectation(path)[2] != "loader-alone"]
    folder = next((name for name, of in FOLDERS.items() if of == kind), "")
    good = [
        path
        for base in (ROOT / "fleet", ROOT / "tests/contract/fleet", CORPUS / "base")
        for path in good_files(base, kind, folder)
    ]
    if kind == "Scenario":
        good += sorted((ROOT / "tests/contract/scenarios").glob("*.yaml")) + sorted(
            (ROOT / "tests/scenarios").glob("*.yaml")
        )
    assert good
    refused = refused_by_schema(kind, [*bad, *good])
    missed = [path for path in bad if expectation(path)[2] == "schema" and str(path) not in refused]
    assert missed == []
    assert [path for path in good if str(path) in refused] == []


def good_files(base: Path, kind: str, folder: str) -> list[Path]:
    if folder:
        return sorted((base / folder).glob("*.yaml"))
    return [path for path in (base / f"{kind.lower()}.yaml",) if path.exists()]
