"""The fleet repo in memory against real git: the same history, pushed to both, reads and reverts alike."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.adapters.git_source import GitMirror
from reconciler.ports import TerminalError, TransientError
from reconciler.simulate.memory_git import MemoryGit, merge
from reconciler.simulate.memory_ports import VirtualClock
from tests.adapters.test_images import NOW
from tests.support.gitrepo import Repo

HOUR = timedelta(hours=1)
WAVES = "waves:\n  - name: lab\n    image: v1\n\n\n\n\n\n  - name: canary\n    image: v1\n"
Changes = dict[str, str | None]


class Both:
    """A real repository and one in memory, with one history."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock(NOW)
        self.memory, self.repo = MemoryGit(self.clock.now), Repo(folder / "fleet")
        self.mirror = GitMirror(folder / "state", str(self.repo.path), "main")
        self.pairs: list[tuple[str, str]] = []

    def push(self, **changes: str | None) -> int:
        """Commit files to both; returns the commit's number. `__` in a name is a slash, `_` a dot."""
        files = {name.replace("__", "/").replace("_", "."): text for name, text in changes.items()}
        real = self.repo.commit("Change", dict(files))
        mine = self.memory.push(
            {path: None if text is None else text.encode() for path, text in files.items()}, self.clock.at
        )
        self.pairs.append((real, mine))
        self.mirror.refresh()
        return len(self.pairs) - 1

    def compare(self) -> None:
        """Every question of the port, asked of both about every commit."""
        assert self.mirror.refresh().sha == self.pairs[-1][0]
        assert self.memory.refresh().sha == self.pairs[-1][1]
        for real, mine in self.pairs:
            ours = [(e.path, e.blob, e.mode, e.size) for e in self.memory.files(mine)]
            assert [(path, blob, mode) for path, blob, mode, _ in ours] == [
                (e.path, e.blob, e.mode) for e in self.mirror.files(real)
            ]
            for _, blob, _, size in ours:
                assert self.memory.blob(blob) == self.mirror.blob(blob) and size == len(self.memory.blob(blob))
            for other_real, other_mine in self.pairs:
                assert self.memory.is_ancestor(mine, other_mine) is self.mirror.is_ancestor(real, other_real)
                changed = {path: e and e.blob for path, e in self.memory.changed(mine, other_mine).items()}
                assert changed == {path: e and e.blob for path, e in self.mirror.changed(real, other_real).items()}

    def revert(self, number: int) -> str | None:
        """Propose a revert to both, and compare what the branches hold; the error's first words where both refuse."""
        real, mine = self.pairs[number]
        branch = f"revert/{number}"
        try:
            theirs = self.mirror.propose_revert(branch, real, "Revert", "It failed")
        except TerminalError as error:
            with pytest.raises(TerminalError) as caught:
                self.memory.propose_revert(branch, mine, "Revert", "It failed")
            return f"{error.wrong.replace(real, 'X').replace(real[:12], 'X')[:40]} | {caught.value.wrong[:20]}"
        ours = self.memory.propose_revert(branch, mine, "Revert", "It failed")
        assert {e.path: e.blob for e in self.memory.files(ours)} == {
            path: self.repo.git("rev-parse", f"{theirs}:{path}")
            for path in self.repo.git("ls-tree", "-r", "--name-only", theirs).splitlines()
        }
        assert self.memory.branches[branch] == ours
        assert f"This reverts commit {mine}." in self.memory.commit(ours).message
        return None


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    made = Both(tmp_path)
    yield made
    made.mirror.close()


def test_a_history_is_read_alike(both: Both) -> None:
    both.push(fleet_yaml="kind: Fleet\n", sites__a_yaml="a\n", sites__b_yaml="b\n")
    both.push(sites__a_yaml="A\n", sites__b_yaml=None, x_sh="#!/bin/sh\n")
    both.push(sites__b_yaml="b\n")
    both.compare()


@pytest.mark.slow
def test_reverts_are_alike(both: Both) -> None:
    both.push(waves_yaml=WAVES, sites__a_yaml="a\n")
    raised = both.push(
        waves_yaml=WAVES.replace("lab\n    image: v1", "lab\n    image: v2"), sites__a_yaml=None, sites__c_yaml="c\n"
    )
    assert both.revert(raised) is None
    later = WAVES.replace("lab\n    image: v1", "lab\n    image: v2").replace("canary", "first")
    renamed = both.push(waves_yaml=later, sites__d_yaml="d\n")
    assert both.memory.propose_revert("revert/again", both.pairs[raised][1], "Revert", "") is not None
    both.repo.git("branch", "-D", f"revert/{raised}")
    del both.memory.branches[f"revert/{raised}"]
    assert both.revert(raised) is None
    assert both.revert(renamed) is None
    again = both.push(waves_yaml=WAVES.replace("v1", "v3"))
    assert again and "changed since" in str(_refused(both, raised, "revert/conflict"))
    both.push(waves_yaml=WAVES, sites__a_yaml="a\n", sites__c_yaml=None)
    assert "already undone" in str(_refused(both, raised, "revert/undone"))


def _refused(both: Both, number: int, branch: str) -> TerminalError:
    """Both refuse a revert with the same words but for the hashes."""
    real, mine = both.pairs[number]
    head_real, head_mine = both.pairs[-1]
    with pytest.raises(TerminalError) as theirs:
        both.mirror.propose_revert(branch, real, "Revert", "x")
    with pytest.raises(TerminalError) as ours:
        both.memory.propose_revert(branch, mine, "Revert", "x")
    words = theirs.value.wrong.replace(real[:12], "X").replace(head_real[:12], "H")
    assert ours.value.wrong.replace(mine[:12], "X").replace(head_mine[:12], "H") == words
    return ours.value


def test_root_foreign_and_forbidden_reverts_are_refused(both: Both) -> None:
    both.push(a="1")
    both.push(a="2")
    memory, (first, second) = both.memory, (pair[1] for pair in both.pairs)
    for branch, of, words in (
        ("revert/x", first, "first of its repo"),
        ("main", second, "the branch in force"),
        ("revert/x", "1" * 40, "not in the mirror"),
    ):
        with pytest.raises(TerminalError, match=words):
            memory.propose_revert(branch, of, "Revert", "x")
    rewritten = memory.push({"a": b"3"}, NOW, onto=first)
    assert not memory.is_ancestor(second, rewritten) and memory.head == rewritten
    with pytest.raises(TerminalError, match="not on branch"):
        memory.propose_revert("revert/x", second, "Revert", "x")
    sha = memory.propose_revert("revert/y", rewritten, "Revert", "x")
    assert memory.propose_revert("revert/y", first, "Other", "y") == sha
    memory.move(sha, NOW)
    assert memory.head == sha and memory.blob(memory.files(sha)[0].blob) == b"1"


def test_a_push_is_there_from_its_instant_on() -> None:
    clock = VirtualClock(NOW)
    git = MemoryGit(clock.now)
    with pytest.raises(TerminalError, match="no branch"):
        git.refresh()
    first = git.push({"a": b"1"}, NOW - HOUR)
    second = git.push({"a": b"2"}, NOW + HOUR, "Second", author="Ada <ada@example.org>", signer="A" * 40)
    assert (git.refresh().sha, git.next_push_at(NOW), git.next_push_at(NOW + HOUR)) == (first, NOW + HOUR, None)
    clock.at = NOW + HOUR
    head = git.refresh()
    assert (head.sha, head.message, head.author, head.signer) == (second, "Second", "Ada <ada@example.org>", "A" * 40)
    assert (head.parents, head.committed_at) == ((first,), NOW + HOUR)
    with pytest.raises(ValueError, match="in the order of time"):
        git.push({}, NOW)
    again = MemoryGit(clock.now)
    assert again.push({"a": b"1"}, NOW - HOUR) == first


def test_a_remote_that_is_down_answers_nobody_and_what_was_read_stays() -> None:
    clock = VirtualClock(NOW)
    git = MemoryGit(clock.now)
    sha = git.push({"a": b"1"}, NOW)
    git.reach.cut(NOW, NOW + HOUR)
    with pytest.raises(TransientError, match="git remote"):
        git.refresh()
    assert len(git.files(sha)) == 1
    clock.at = NOW + HOUR
    assert git.refresh().sha == sha


def test_a_recipe_is_exported_and_a_missing_one_is_refused_unless_only_documents_are_held(tmp_path: Path) -> None:
    tree: dict[str, bytes | None] = {
        "images/r/setup.sh": b"#!/bin/sh\n",
        "images/r/etc/motd": b"hi\n",
        "images/rx": b"no",
    }
    git = MemoryGit(lambda: NOW)
    sha = git.push(tree, NOW)
    git.export(sha, "images/r", tmp_path)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["etc/motd", "setup.sh"]
    with pytest.raises(TerminalError, match="no folder"):
        git.export(sha, "images/none", tmp_path)
    partial = MemoryGit(lambda: NOW, documents_only=True)
    partial.export(partial.push({"a": b""}, NOW), "images/none", tmp_path)


LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "d\n"]), max_size=8)


@settings(max_examples=200, deadline=None)
@given(LINES, LINES)
def test_a_merge_of_one_side_is_that_side(base: list[str], text: list[str]) -> None:
    old, new = "".join(base).encode(), "".join(text).encode()
    assert merge(old, old, new) == new
    assert merge(new, old, old) == new
    assert merge(new, old, new) == new


def test_changes_apart_are_merged_and_changes_that_touch_are_not() -> None:
    base = b"1\n2\n3\n4\n5\n"
    assert merge(b"one\n2\n3\n4\n5\n", base, b"1\n2\n3\n4\nfive\n") == b"one\n2\n3\n4\nfive\n"
    assert merge(b"one\n2\n3\n4\n5\n", base, b"uno\n2\n3\n4\n5\n") is None
    assert merge(b"one\n2\n3\n4\n5\n", base, b"1\ntwo\n3\n4\n5\n") is None
    assert merge(b"0\n" + base, base, b"00\n" + base) is None
    assert merge(base[2:], base, base[2:] + b"6\n") == base[2:] + b"6\n"
