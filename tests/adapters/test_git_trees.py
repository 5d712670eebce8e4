"""Commits read as a reviewer has them: by argv git, without filters, configuration, network or a revision in the argv."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from reconciler.adapters.git_trees import GitTrees
from reconciler.ports import TerminalError
from tests.support.gitrepo import Repo


@pytest.fixture
def made(tmp_path: Path) -> Repo:
    repo = Repo(tmp_path / "r")
    repo.commit("First", {"fleet/a.yaml": "a\n", "fleet/sites/b.yaml": "b\n", "other/c": "c\n"})
    return repo


def test_files_are_those_of_the_folder_with_their_sizes(made: Repo) -> None:
    trees = GitTrees(made.path / "fleet")
    assert trees.below == "fleet/"
    files = trees.files(made.head())
    assert [(entry.path, entry.size, entry.mode) for entry in files] == [
        ("a.yaml", 2, "100644"),
        ("sites/b.yaml", 2, "100644"),
    ]
    assert trees.blobs([entry.blob for entry in files]) == {files[0].blob: b"a\n", files[1].blob: b"b\n"}
    assert {entry.path for entry in GitTrees(made.path).files(made.head())} == {
        "fleet/a.yaml",
        "fleet/sites/b.yaml",
        "other/c",
    }


def test_a_commit_without_the_folder_has_no_files(made: Repo) -> None:
    trees = GitTrees(made.path / "fleet")
    made.git("rm", "-rq", "--cached", "fleet")
    made.record("Without it")
    assert trees.files(made.head()) == []


@pytest.mark.parametrize("name", ["HEAD", "main", "v1", "HEAD~0", "main@{0}", "HEAD^{/First}"])
def test_revisions_as_a_person_writes_them(made: Repo, name: str) -> None:
    made.git("tag", "-a", "v1", "-m", "x")
    commit = GitTrees(made.path).resolve(name)
    assert (commit.sha, commit.author, commit.message) == (made.head(), "Ada <ada@example.org>", "First\n")


@pytest.mark.parametrize(
    "name", ["", "-x", "--upload-pack=touch x", "a\nb", "nowhere", "HEAD~9", "HEAD:fleet", "x" * 2000]
)
def test_what_is_no_revision_is_refused_with_a_remedy(made: Repo, name: str) -> None:
    with pytest.raises(TerminalError, match=r"git revision|names no commit here"):
        GitTrees(made.path).resolve(name)


def test_a_shallow_clone_says_so(made: Repo, tmp_path: Path) -> None:
    made.commit("Second", {"x": "y"})
    subprocess.run(["git", "clone", "-q", "--depth=1", f"file://{made.path}", str(tmp_path / "s")], check=True)
    with pytest.raises(TerminalError, match="fetch-depth: 0"):
        GitTrees(tmp_path / "s").resolve("HEAD~1")


def test_no_repository_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="is in no git repository"):
        GitTrees(tmp_path)
    with pytest.raises(TerminalError, match="there is no folder"):
        GitTrees(tmp_path / "none")


def test_a_blob_that_is_not_there(made: Repo) -> None:
    with pytest.raises(TerminalError, match="cannot give object"):
        GitTrees(made.path).blobs(["0" * 40])
    with pytest.raises(TerminalError, match="is no object's hash"):
        GitTrees(made.path).blobs(["--batch"])


def test_no_filter_alias_or_variable_of_the_user_takes_part(
    made: Repo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    made.git("config", "filter.evil.smudge", f"touch {mark}")
    made.git("config", "filter.evil.clean", f"touch {mark}")
    made.git("config", "core.fsmonitor", f"touch {mark}")
    made.git("config", "core.pager", f"touch {mark}")
    (made.path / ".git/info").mkdir(exist_ok=True)
    (made.path / ".git/info/attributes").write_text("* filter=evil\n")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", f"touch {mark}")
    trees = GitTrees(made.path)
    files = trees.files(trees.resolve("HEAD").sha)
    assert trees.blobs([files[0].blob]) == {files[0].blob: b"a\n"}
    assert not mark.exists()


def test_merge_bases_and_merged_texts(made: Repo) -> None:
    first = made.head()
    made.git("checkout", "-q", "-b", "side")
    side = made.commit("Side", {"s": "s"})
    made.git("checkout", "-q", "main")
    main = made.commit("Main", {"m": "m"})
    trees = GitTrees(made.path)
    assert trees.merge_base(side, main) == first
    made.git("checkout", "-q", "--orphan", "alone")
    assert trees.merge_base(made.record("Alone"), main) is None
    assert trees.merged(b"1\n2\n3\n4\n5\n", b"0\n2\n3\n4\n5\n", b"1\n2\n3\n4\n6\n") == b"0\n2\n3\n4\n6\n"
    assert trees.merged(b"1\n", b"2\n", b"3\n") is None


def test_branches_that_are_not_merged(made: Repo) -> None:
    main = made.head()
    for name in ("promote/a", "fix/b"):
        made.git("checkout", "-q", "-b", name, main)
        made.commit(name, {name: name})
    made.git("update-ref", "refs/remotes/origin/promote/a", "promote/a")
    made.git(
        "update-ref",
        "refs/remotes/origin/promote/c",
        made.git("commit-tree", "-m", "c", "-p", main, f"{main}^{{tree}}"),
    )
    made.git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/promote/c")
    made.git("branch", "-q", "merged", main)
    trees = GitTrees(made.path)
    assert {branch.name for branch in trees.unmerged([main], "*")} == {"promote/a", "fix/b", "origin/promote/c"}
    assert {branch.name for branch in trees.unmerged([main], "promote/*")} == {"promote/a", "origin/promote/c"}
    assert {branch.name for branch in trees.unmerged([main, made.head("fix/b")], "*")} == {
        "promote/a",
        "origin/promote/c",
    }


def test_a_branch_is_not_beside_what_was_pushed_of_it_before(made: Repo) -> None:
    main = made.head()
    made.git("checkout", "-q", "-b", "promote/a", main)
    made.commit("as it was pushed", {"x": "x"})
    made.git("update-ref", "refs/remotes/origin/promote/a", "promote/a")
    made.git("commit", "-q", "--amend", "-m", "as it is now")
    trees, head = GitTrees(made.path), made.head()
    assert [branch.name for branch in trees.unmerged([main, head], "*")] == ["origin/promote/a"]
    assert not trees.unmerged([main, head], "*", [head])
    made.git("update-ref", "refs/remotes/origin/other", "refs/remotes/origin/promote/a")
    assert [branch.name for branch in trees.unmerged([main, head], "*", [head])] == ["origin/other"]


def test_nothing_is_written(made: Repo) -> None:
    def state() -> str:
        digest = hashlib.sha256()
        for path in sorted((made.path / ".git").rglob("*")):
            digest.update(f"{path} {path.stat().st_mtime_ns}".encode() + (path.read_bytes() if path.is_file() else b""))
        return digest.hexdigest()

    before = state()
    trees = GitTrees(made.path / "fleet")
    sha = trees.resolve("HEAD").sha
    trees.blobs(entry.blob for entry in trees.files(sha))
    trees.unmerged([sha], "*")
    assert state() == before


def test_without_git(made: Repo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(TerminalError, match="the git program was not found"):
        GitTrees(made.path)
