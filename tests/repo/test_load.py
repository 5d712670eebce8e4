"""Loading a fleet repo: which files count, what is refused, and that a reload of what changed equals a load of it all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.model.scalars import Budget
from reconciler.repo.folder import Files, _add, _walk
from reconciler.repo.load import LoadCache, LoadResult, load_changed, load_folder, load_tree, with_config

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "tests/contract/fleet"
BASE = Path(__file__).parent / "corpus/base"


@dataclass(frozen=True)
class File:
    path: str
    blob: str
    mode: str = "100644"
    size: int | None = None


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def load(files: Mapping[str, bytes], cache: LoadCache | None = None, mode: str = "100644") -> LoadResult:
    blobs = {f"{path}={hash(data)}": data for path, data in files.items()}
    entries = [File(path, f"{path}={hash(data)}", mode) for path, data in files.items()]
    return load_tree(entries, blobs.__getitem__, cache)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    shutil.copytree(BASE, tmp_path / "fleet")
    return tmp_path / "fleet"


def test_the_contracts_fleet_loads_without_a_problem() -> None:
    result = load_folder(CONTRACT)
    assert result.problems == ()
    desired = result.desired
    assert desired is not None
    assert sorted(desired.sites) == ["LAB-0001", "SITE-1033", "SITE-1034", "SITE-1035", "SITE-2847"]
    assert desired.releases_in_order() == ("v1.4.1", "v1.4.2")
    assert desired.waves.waves[2].max_failed == Budget(percent=2)
    assert desired.apps["video-ingest"].releases["2.7.0"].endswith("1" * 64)
    assert desired.sites["LAB-0001"].lab
    assert desired.config == {}


def test_the_example_fleet_loads_without_an_error() -> None:
    result = load_folder(ROOT / "fleet")
    assert result.errors == ()
    assert result.desired is not None
    assert len(result.desired.sites) == 52
    assert result.scenarios


def test_a_folder_and_its_tree_load_alike() -> None:
    assert load(files_of(CONTRACT)).desired == load_folder(CONTRACT).desired


def test_paths_in_problems_are_as_given(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fleet / "sites/SITE-0001.yaml").write_text("kind: Site\n")
    monkeypatch.chdir(fleet.parent)
    assert {problem.path for problem in load_folder("fleet").problems} == {"fleet/sites/SITE-0001.yaml"}
    monkeypatch.chdir(fleet)
    assert {problem.path for problem in load_folder(".").problems} == {"sites/SITE-0001.yaml"}


def test_a_folder_that_is_none_is_told() -> None:
    assert [problem.code for problem in load_folder("/nonexistent/fleet").problems] == ["no-folder"]
    assert [problem.code for problem in load_folder(__file__).problems] == ["no-folder"]


def test_links_pipes_and_files_for_folders_are_refused_and_not_opened(fleet: Path) -> None:
    outside = fleet.parent / "outside.yaml"
    outside.write_bytes((fleet / "sites/SITE-0003.yaml").read_bytes().replace(b"0003", b"0004"))
    (fleet / "sites/SITE-0004.yaml").symlink_to(outside)
    (fleet / "sites/SITE-0005.yaml").symlink_to("/nonexistent")
    os.mkfifo(fleet / "sites/SITE-0006.yaml")
    shutil.move(fleet / "apps", fleet.parent / "apps")
    (fleet / "apps").symlink_to(fleet.parent / "apps")
    (fleet / "tests").write_text("")
    (fleet / "docs").symlink_to("/etc")
    told = {
        problem.path.removeprefix(f"{fleet}/"): problem.message
        for problem in load_folder(fleet).problems
        if problem.code == "path"
    }
    assert set(told) == {"sites/SITE-0004.yaml", "sites/SITE-0005.yaml", "sites/SITE-0006.yaml", "apps", "tests"}
    assert "symbolic link" in told["sites/SITE-0004.yaml"]
    assert "symbolic link" in told["apps"]
    assert "not a regular file" in told["sites/SITE-0006.yaml"]
    assert "where a folder of Scenario documents is expected" in told["tests"]


def test_a_folder_with_the_name_of_a_document_is_refused(fleet: Path) -> None:
    (fleet / "sites" / "SITE-9.yaml").mkdir()
    found = [str(problem) for problem in load_folder(fleet).problems]
    assert len(found) == 1
    assert found[0].startswith(f"{fleet}/sites/SITE-9.yaml:1:1: is a folder, where a document (Site) is expected")


def test_a_large_file_is_refused_unread(fleet: Path) -> None:
    with (fleet / "sites/SITE-0001.yaml").open("ab") as file:
        file.truncate(1 << 40)
    problems = load_folder(fleet).problems
    assert [(problem.code, problem.path) for problem in problems if problem.code == "size"] == [
        ("size", str(fleet / "sites/SITE-0001.yaml"))
    ]


def test_odd_file_names_are_told_on_one_line(fleet: Path) -> None:
    for name in (b"SITE\n9.yaml", b"SITE\xff.yaml", b"a\\b.yaml"):
        (fleet / "sites" / os.fsdecode(name)).write_bytes(b"")
    problems = load_folder(fleet).problems
    assert [problem.code for problem in problems] == ["path"] * 3
    assert all(str(problem).isprintable() for problem in problems)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    """As when a file or a folder goes away, or is closed to us, while the fleet is read."""
    files = Files()
    (tmp_path / "none.yaml").touch()
    (gone,) = os.scandir(tmp_path)
    (tmp_path / "none.yaml").unlink()
    _add(gone, "sites/none.yaml", files)
    _walk(tmp_path, "images", 1, True, files)
    assert [(problem.code, problem.path) for problem in files.problems] == [
        ("unreadable", "sites/none.yaml"),
        ("unreadable", "images"),
    ]
    assert files.read("unknown") == b""


def test_other_files_are_nobodys_business(fleet: Path) -> None:
    (fleet / "README.md").write_text("kind: Site")
    (fleet / ".github").mkdir()
    (fleet / ".github/ci.yaml").write_text("apiVersion: fleet/v1\nkind: Site\n")
    (fleet / "sites/.SITE-0001.yaml").write_text("[")
    (fleet / "images/edge-golden").mkdir()
    (fleet / "images/edge-golden/config.yaml").write_text("packages: [a]\n")
    (fleet / "sites/notes.txt").write_text("[")
    (fleet / "sites/.SITE-0009").write_text("apiVersion: fleet/v1\nkind: Site\n")
    assert load_folder(fleet).problems == ()


@pytest.mark.parametrize(
    ("path", "piece"),
    [
        ("sites/eu/SITE-0009.yaml", "move it to sites/"),
        ("sites/SITE-0009.ymal", "its name does not end in .yaml"),
        ("Site/SITE-0009.json", "move it to sites/"),
        ("SITE-0009.yml", "move it to sites/"),
    ],
)
def test_a_document_where_none_is_read_is_named(fleet: Path, path: str, piece: str) -> None:
    (fleet / path).parent.mkdir(exist_ok=True)
    (fleet / path).write_text('{"apiVersion": "fleet/v1",\n "kind": "Site"}\n')
    told = load_folder(fleet)
    assert [(problem.severity, problem.path) for problem in told.problems] == [("warning", str(fleet / path))]
    assert piece in told.problems[0].message


def test_a_flood_of_problems_is_cut(fleet: Path) -> None:
    (fleet / "sites/SITE-0001.yaml").write_text(
        "apiVersion: fleet/v1\nkind: Site\nmetadata: {name: SITE-0001}\nspec:\n  timezone: UTC\n"
        + "".join(f"  key{number}: 1\n" for number in range(2000))
    )
    (fleet / "sites/SITE-0002.yaml").write_text("".join("a: &b 1\n" for _ in range(2000)))
    problems = load_folder(fleet).problems
    assert 500 < len(problems) < 1100
    assert any("2001 problems in this file" in problem.message for problem in problems)


@pytest.mark.parametrize("path", ["/sites/a.yaml", "../sites/a.yaml", "sites/../../a.yaml", "./sites/a.yaml"])
def test_paths_out_of_the_tree_are_refused(path: str) -> None:
    files = files_of(BASE)
    result = load({**files, path: b"apiVersion: fleet/v1\nkind: Site\n"})
    if path.startswith("./"):
        assert [problem.code for problem in result.problems] in ([], ["path"], ["misplaced"])
    else:
        assert [problem.code for problem in result.problems] == ["path"]
        assert result.desired is None


def test_submodules_and_links_of_a_tree_are_refused() -> None:
    files = files_of(BASE)
    blobs = dict(files)
    entries = [File(path, path) for path in files]
    for mode, word in (("120000", "symbolic link"), ("160000", "submodule")):
        result = load_tree([*entries, File("sites", "x", mode)], blobs.__getitem__, None)
        assert [word in problem.message for problem in result.problems] == [True]


def test_scenarios_can_be_left_unread(fleet: Path) -> None:
    (fleet / "tests").mkdir()
    (fleet / "tests/bad.yaml").write_text("[")
    assert load_folder(fleet, scenarios=False).problems == ()
    assert load_folder(fleet).problems != ()


def test_a_blob_is_parsed_once() -> None:
    asked: list[str] = []
    files = files_of(BASE)

    def blob(name: str) -> bytes:
        asked.append(name)
        return files[name]

    cache = LoadCache()
    entries = [File(path, path) for path in files]
    first = load_tree(entries, blob, cache)
    assert sorted(asked) == sorted(files)
    asked.clear()
    assert load_tree(entries, blob, cache).desired == first.desired
    assert asked == []
    cache.turn()
    cache.turn()
    load_tree(entries, blob, cache)
    assert len(asked) == len(files)


def test_a_reload_looks_at_nothing_but_what_changed() -> None:
    files = files_of(BASE)
    first = load(files)
    asked: list[str] = []
    new = files["sites/SITE-0002.yaml"].replace(b"Europe/Berlin", b"Asia/Tokyo")

    def blob(name: str) -> bytes:
        asked.append(name)
        return new

    second = load_changed(first, {"sites/SITE-0002.yaml": File("sites/SITE-0002.yaml", "new")}, blob)
    assert asked == ["new"]
    assert second.desired is not None
    assert second.desired.sites["SITE-0002"].timezone == "Asia/Tokyo"
    assert first.desired is not None
    assert first.desired.sites["SITE-0002"].timezone == "Europe/Berlin", "the load before is left as it was"


SITE = b"apiVersion: fleet/v1\nkind: Site\nmetadata: {name: %s}\nspec: {timezone: UTC, devices: [%s]%s}\n"
contents = st.one_of(
    st.none(),
    st.just(b"["),
    st.builds(
        lambda name, device, more: SITE % (name, device, more),
        st.sampled_from([b"SITE-0001", b"SITE-0002", b"SITE-0009"]),
        st.sampled_from([b"D-1", b"D-2", b"D-1, D-2"]),
        st.sampled_from(
            [b"", b", lab: true", b", suspended: true", b", pin: {image: v1, why: x}", b", pin: {image: v9, why: x}"]
        ),
    ),
)
paths = st.sampled_from(
    ["sites/SITE-0001.yaml", "sites/SITE-0002.yaml", "sites/SITE-0003.yml", "sites/x.json", "sites/eu/a.yaml"]
)
others = st.sampled_from(["waves.yaml", "fleet.yaml", "images/v1.yaml", "waves.yml", "tests"])
steps = st.lists(st.dictionaries(paths, contents, max_size=3), min_size=1, max_size=5)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(steps, st.lists(st.dictionaries(others, st.sampled_from([None, b"["]), max_size=1), max_size=5))
def test_a_reload_of_what_changed_equals_a_load_of_it_all(
    site_steps: list[dict[str, bytes | None]], other: list[dict[str, bytes | None]]
) -> None:
    files = files_of(BASE)
    blobs: dict[str, bytes] = {}
    result = load(files)
    for number, step in enumerate(site_steps):
        changed: dict[str, File | None] = {}
        for path, data in {**step, **(other[number] if number < len(other) else {})}.items():
            if data is None:
                files.pop(path, None)
                changed[path] = None
            else:
                files[path] = data
                blobs[f"{path}={hash(data)}"] = data
                changed[path] = File(path, f"{path}={hash(data)}")
        blobs |= {f"{path}={hash(data)}": data for path, data in files.items()}
        result = load_changed(result, changed, blobs.__getitem__)
        whole = load(files)
        assert result.problems == whole.problems
        assert result.desired == whole.desired


@pytest.mark.parametrize("shuffle", range(3))
def test_the_order_of_entries_never_matters(shuffle: int) -> None:
    files = files_of(BASE)
    files["sites/SITE-0009.yaml"] = SITE % (b"SITE-0001", b"SITE-0002-1", b"")
    ordered = list(files.items())
    turned = dict(ordered[shuffle * 2 :] + ordered[: shuffle * 2])
    assert load(turned).problems == load(files).problems


def test_configuration_digests_are_filled_in_on_request() -> None:
    desired = load_folder(CONTRACT).desired
    assert desired is not None
    done = with_config(desired, {f"edge/{site}/vpn": "1" for site in desired.sites})
    assert done.config
    assert set(done.config) <= set(desired.sites)
    assert all(digest.startswith("sha256:") for digest in done.config.values())
