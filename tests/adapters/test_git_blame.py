"""Who wrote a line, from real repositories."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reconciler.adapters.git_blame import GitBlame, work_tree_of
from reconciler.model.history import LineOrigin, PastFile
from reconciler.ports import LineHistory, TerminalError, TransientError
from tests.support.gitrepo import Repo


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    made = Repo(tmp_path / "repo")
    made.commit("First", {"fleet/a.yaml": "one: 1\ntwo: 2\n"})
    return made


def test_lines_have_their_commits(repo: Repo) -> None:
    first = repo.head()
    second = repo.commit("Second, with a\ttab", {"fleet/a.yaml": "one: 1\ntwo: 3\n"})
    history: LineHistory = GitBlame(repo.path / "fleet")
    found = history.lines("a.yaml", [1, 2])
    assert found[1] == LineOrigin(first, "Ada", datetime(2026, 1, 1, 0, 1, tzinfo=UTC), "First")
    before = PastFile(first, "fleet/a.yaml")
    assert found[2] == LineOrigin(
        second, "Ada", datetime(2026, 1, 1, 0, 2, tzinfo=UTC), "Second, with a\ttab", False, before
    )
    assert history.text(before) == b"one: 1\ntwo: 2\n"
    assert history.lines(before, [2])[2].sha == first
    assert history.lines("a.yaml", []) == {}


def test_spaces_alone_change_no_line(repo: Repo) -> None:
    first = repo.head()
    repo.commit("Indent", {"fleet/a.yaml": "one:   1\ntwo: 2\n"})
    assert GitBlame(repo.path / "fleet").lines("a.yaml", [1])[1].sha == first


def test_what_is_not_committed_has_no_commit(repo: Repo) -> None:
    repo.write({"fleet/a.yaml": "one: 1\ntwo: 9\n", "fleet/b.yaml": "x: 1\n"})
    history = GitBlame(repo.path / "fleet")
    assert history.lines("a.yaml", [2])[2] == LineOrigin(None, before=PastFile(repo.head(), "fleet/a.yaml"))
    assert history.lines("b.yaml", [1]) == {1: LineOrigin(None)}


def test_nothing_at_all_is_committed(tmp_path: Path) -> None:
    empty = Repo(tmp_path / "empty")
    empty.write({"a.yaml": "x: 1\n"})
    assert GitBlame(empty.path).lines("a.yaml", [1]) == {1: LineOrigin(None)}


def test_a_bare_mirror_is_asked_at_a_commit(repo: Repo, tmp_path: Path) -> None:
    first = repo.head()
    repo.commit("Second", {"fleet/a.yaml": "one: 5\n"})
    repo.git("clone", "-q", "--bare", ".", str(tmp_path / "mirror.git"))
    history = GitBlame(tmp_path, tmp_path / "mirror.git", first)
    assert history.lines("fleet/a.yaml", [1])[1].sha == first
    with pytest.raises(TerminalError, match="git blame failed"):
        history.lines("fleet/none.yaml", [1])


def test_a_work_tree_beside_its_repository(repo: Repo, tmp_path: Path) -> None:
    repo.git("worktree", "add", "-q", str(tmp_path / "side"), "-b", "side")
    assert GitBlame(tmp_path / "side/fleet").lines("a.yaml", [1])[1].sha == repo.head()
    assert work_tree_of(tmp_path / "side/fleet") == tmp_path / "side"
    assert work_tree_of(tmp_path) is None


def test_the_environment_and_the_repositorys_programs_steer_nothing(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {trap}\ncat\n")
    program.chmod(0o755)
    repo.commit("Attributes", {".gitattributes": "*.yaml diff=evil\n"})
    for key in ("core.fsmonitor", "diff.evil.textconv", "core.pager"):
        repo.git("config", key, str(program))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_PAGER", str(program))
    assert GitBlame(repo.path / "fleet").lines("a.yaml", [1])[1].author == "Ada"
    assert not trap.exists()


def test_git_that_does_not_end_is_given_up(repo: Repo, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    with pytest.raises(TransientError, match="did not end within"):
        GitBlame(repo.path / "fleet", timeout_s=0.2, program=(str(slow),)).lines("a.yaml", [1])


def test_without_git_it_says_what_to_install(repo: Repo) -> None:
    with pytest.raises(TerminalError, match="git program was not found"):
        GitBlame(repo.path / "fleet", program=("/nonexistent/git",)).lines("a.yaml", [1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_trusted(repo: Repo) -> None:
    for place in (repo.path, *repo.path.rglob("*")):
        os.chown(place, 12345, 12345)
    with pytest.raises(TerminalError, match="belongs to another user"):
        GitBlame(repo.path / "fleet").lines("a.yaml", [1])
