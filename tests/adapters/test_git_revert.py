"""Proposing a revert: what the branch then holds, conflicts, repeats, and what is never touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.adapters.git_source import GitMirror
from reconciler.ports import TerminalError
from tests.support.gitrepo import Repo

WAVES = "waves:\n  - name: lab\n    image: v1\n\n\n\n\n\n  - name: canary\n    image: v1\n"


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    made = Repo(tmp_path / "fleet")
    made.commit("First", {"waves.yaml": WAVES, "sites/a.yaml": "a\n", "sites/b.yaml": "b\n"})
    return made


@pytest.fixture
def mirror(repo: Repo, tmp_path: Path) -> Iterator[GitMirror]:
    made = GitMirror(tmp_path / "state", str(repo.path), "main", timeout_s=20)
    yield made
    made.close()


def propose(mirror: GitMirror, of: str, branch: str = "revert/v2") -> str:
    return mirror.propose_revert(branch, of, "Revert v2 in wave canary", "The canary failed:\n- SITE-1-1 critical")


def test_the_branch_holds_the_head_without_the_commits_change(repo: Repo, mirror: GitMirror) -> None:
    good = repo.head("HEAD^{tree}")
    bad = repo.commit("Raise", {"waves.yaml": WAVES.replace("v1", "v2"), "sites/a.yaml": None, "sites/c.yaml": "c\n"})
    sha = propose(mirror, bad)
    assert repo.head("revert/v2") == sha and repo.head("revert/v2^{tree}") == good and repo.head("revert/v2^") == bad
    assert repo.head("main") == bad
    message = repo.git("log", "-1", "--format=%an <%ae>%n%B", "revert/v2")
    assert message.startswith("reconciler <reconciler@localhost>\nRevert v2 in wave canary\n\nThe canary failed:\n")
    assert f"This reverts commit {bad}." in message


def test_later_changes_stay(repo: Repo, mirror: GitMirror) -> None:
    bad = repo.commit("Raise", {"waves.yaml": WAVES.replace("lab\n    image: v1", "lab\n    image: v2")})
    later = WAVES.replace("lab\n    image: v1", "lab\n    image: v2").replace("canary", "first")
    repo.commit("Rename", {"waves.yaml": later, "sites/d.yaml": "d\n"})
    propose(mirror, bad)
    assert repo.git("show", "revert/v2:waves.yaml") + "\n" == WAVES.replace("canary", "first")
    assert repo.git("show", "revert/v2:sites/d.yaml") == "d"


def test_a_merge_is_reverted_against_its_first_parent(repo: Repo, mirror: GitMirror) -> None:
    repo.git("checkout", "-q", "-b", "topic")
    repo.commit("Topic", {"waves.yaml": WAVES.replace("v1", "v2")})
    repo.git("checkout", "-q", "main")
    repo.commit("Beside", {"sites/d.yaml": "d\n"})
    good = repo.head("HEAD^{tree}")
    repo.git("merge", "-q", "--no-ff", "-m", "Merge topic", "topic")
    propose(mirror, repo.head())
    assert repo.head("revert/v2^{tree}") == good


def test_a_conflict_names_the_paths_and_pushes_nothing(repo: Repo, mirror: GitMirror) -> None:
    bad = repo.commit("Raise", {"waves.yaml": WAVES.replace("v1", "v2"), "sites/a.yaml": "A\n", "sites/b.yaml": "B\n"})
    repo.commit("Again", {"waves.yaml": WAVES.replace("v1", "v3"), "sites/a.yaml": None})
    with pytest.raises(TerminalError, match=r"sites/a\.yaml, waves\.yaml changed since") as caught:
        propose(mirror, bad)
    assert "by hand" in caught.value.remedy
    assert repo.git("branch", "--list", "revert/*") == ""


def test_a_path_that_became_a_folder_conflicts(repo: Repo, mirror: GitMirror) -> None:
    bad = repo.commit("Remove", {"sites/a.yaml": None})
    repo.commit("Folder", {"sites/a.yaml/x": "x"})
    with pytest.raises(TerminalError, match="does not apply"):
        propose(mirror, bad)


def test_a_folder_that_was_a_file_becomes_one_again(repo: Repo, mirror: GitMirror) -> None:
    good = repo.head("HEAD^{tree}")
    repo.write({"sites/a.yaml": None})
    bad = repo.commit("Folder", {"sites/a.yaml/x": "x"})
    propose(mirror, bad)
    assert repo.head("revert/v2^{tree}") == good


def test_what_is_undone_already_is_said(repo: Repo, mirror: GitMirror) -> None:
    bad = repo.commit("Raise", {"waves.yaml": WAVES.replace("v1", "v2")})
    repo.git("revert", "--no-edit", bad)
    with pytest.raises(TerminalError, match="already undone"):
        propose(mirror, bad)


def test_a_repeat_returns_the_branch_as_it_is(repo: Repo, mirror: GitMirror, tmp_path: Path) -> None:
    bad = repo.commit("Raise", {"waves.yaml": WAVES.replace("v1", "v2")})
    sha = propose(mirror, bad)
    repo.commit("Later", {"sites/z.yaml": "z\n"})
    assert propose(mirror, bad) == sha
    other = GitMirror(tmp_path / "other", str(repo.path), "main")
    assert propose(other, bad) == sha
    other.close()
    repo.git("branch", "-f", "revert/v2", "HEAD")
    assert propose(mirror, bad) == repo.head()


def test_a_lost_commit_is_made_again_the_same(repo: Repo, mirror: GitMirror, tmp_path: Path) -> None:
    """Killed between commit and push, or by two controllers: the same inputs make the same commit."""
    bad = repo.commit("Raise", {"waves.yaml": WAVES.replace("v1", "v2")})
    first = propose(mirror, bad, "revert/one")
    other = GitMirror(tmp_path / "other", str(repo.path), "main")
    assert propose(other, bad, "revert/two") == first
    other.close()


def test_the_branch_in_force_is_never_pushed_to(repo: Repo, mirror: GitMirror) -> None:
    bad = repo.commit("Raise", {"waves.yaml": WAVES.replace("v1", "v2")})
    with pytest.raises(TerminalError, match="the branch in force"):
        propose(mirror, bad, "main")
    for branch in ("-f", "refs/heads/main", "a:main", "HEAD"):
        with pytest.raises(TerminalError, match="is refused"):
            propose(mirror, bad, branch)
    assert repo.head("main") == bad


def test_root_and_foreign_commits_are_refused(repo: Repo, mirror: GitMirror) -> None:
    root = repo.head()
    repo.commit("Next")
    with pytest.raises(TerminalError, match="first of its repo"):
        propose(mirror, root)
    with pytest.raises(TerminalError, match="not in the mirror"):
        propose(mirror, "1" * 40)
    old = repo.commit("Old", {"x": "1"})
    mirror.refresh()
    repo.git("reset", "-q", "--hard", "HEAD~1")
    with pytest.raises(TerminalError, match="not on branch"):
        propose(mirror, old)


def test_odd_paths_and_modes_come_back(repo: Repo, mirror: GitMirror) -> None:
    repo.commit("Odd", {"a b\tc": "1", 'q"': "2", "run.sh": "x"})
    good = repo.head("HEAD^{tree}")
    (repo.path / "run.sh").chmod(0o755)
    bad = repo.commit("Bad", {"a b\tc": "11", 'q"': None})
    propose(mirror, bad)
    assert repo.head("revert/v2^{tree}") == good


def test_a_remote_that_rejects_is_terminal(repo: Repo, mirror: GitMirror) -> None:
    bad = repo.commit("Raise", {"waves.yaml": WAVES.replace("v1", "v2")})
    repo.git("branch", "revert")  # a branch named like the folder: no revert/… can stand beside it
    with pytest.raises(TerminalError, match="rejected"):
        propose(mirror, bad)
