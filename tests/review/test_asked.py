"""What a commit in force asked for, read from the mirror: what the review of its merge told, at the cost of what changed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from reconciler.adapters.git_source import GitMirror
from reconciler.ports import PortError
from reconciler.review.asked import askers
from reconciler.review.changes import changes_of
from reconciler.review.sides import from_folders
from tests.review.repos import fleet_files, site, waves
from tests.support.gitrepo import Repo

FILES = {path.removeprefix("fleet/"): data for path, data in fleet_files().items()}
CANARY = waves("v1.4.2", "v1.4.2", "v1.4.1").replace("sites: [SITE-1]", "sites: [SITE-1, SITE-2]")


@pytest.fixture
def made(tmp_path: Path) -> Repo:
    repo = Repo(tmp_path / "fleet")
    repo.commit("The fleet", FILES)
    return repo


def mirror(tmp_path: Path, made: Repo) -> GitMirror:
    one = GitMirror(tmp_path / "state", str(made.path), "main", timeout_s=120)
    one.refresh()
    return one


def test_each_commit_is_told_as_its_review_was(made: Repo, tmp_path: Path) -> None:
    commits = [made.head()]
    for files in (
        {"waves.yaml": CANARY},
        {"sites/SITE-9.yaml": site("SITE-9", "UTC"), "sites/SITE-4.yaml": None},
        {"images/golden/setup.sh": "#!/bin/bash\n", "README.md": "no document"},
        {"README.md": "nor is this"},
    ):
        commits.append(made.commit("Change", files))
    git = mirror(tmp_path, made)
    ask = askers(git)
    told = [[one.sentence for one in ask(before, sha) or ()] for before, sha in itertools.pairwise(commits)]
    assert told == [
        [
            "wave lab: image v1.4.1 → v1.4.2",
            "wave canary: sites SITE-1 → SITE-1, SITE-2",
            "wave canary: image v1.4.1 → v1.4.2",
        ],
        ["site SITE-4 removed", "site SITE-9 added"],
        ["recipe images/golden: setup.sh changed"],
        [],
    ]
    for number, (before, sha) in enumerate(itertools.pairwise(commits)):
        folders = [tmp_path / f"{number}-{name}" for name in ("old", "new")]
        for folder, commit in zip(folders, (before, sha), strict=True):
            for entry in git.files(commit):
                (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
                (folder / entry.path).write_bytes(git.blob(entry.blob))
        reviewed = changes_of(from_folders(folders[0], folders[1]))
        assert [one.sentence for one in reviewed] == told[number], "as the review has it"
        assert [one.line for one in reviewed] == [one.line for one in ask(before, sha) or ()]
    git.close()


def test_only_what_differs_is_read_and_only_once(made: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, sha = made.head(), made.commit("Promote", {"waves.yaml": CANARY})
    git, read = mirror(tmp_path, made), list[str]()
    blob = git.blob
    monkeypatch.setattr(git, "blob", lambda wanted: read.append(wanted) or blob(wanted))
    ask = askers(git)
    assert ask(before, sha)
    assert len(set(read)) == 2, "the waves before and after"
    read.clear()
    assert ask(before, sha) and read == []
    git.close()


def test_what_git_does_not_know_or_this_version_cannot_read_is_not_told(made: Repo, tmp_path: Path) -> None:
    before = made.head()
    broken = made.commit(
        "Broken", {"waves.yaml": "apiVersion: fleet/v1\nkind: Waves\nmetadata: {name: w}\nspec: {waves: 3}\n"}
    )
    mended = made.commit("Mended", {"waves.yaml": CANARY})
    git = mirror(tmp_path, made)
    ask = askers(git)
    assert ask(before, broken) is None and ask(broken, mended) is None and ask(before, mended)
    with pytest.raises(PortError):
        ask("d" * 40, mended)
    git.close()
