"""The two sides: what is compared is what the merge makes, and every problem points at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.repo.problem import InvalidInput
from reconciler.review.sides import changed_files, from_folders, new_warnings
from tests.review.repos import document, fleet_files, repo, sides, site, waves
from tests.support.gitrepo import Repo


def test_the_work_tree_is_compared_as_it_is(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.write({"fleet/waves.yaml": waves("v1.4.2"), "fleet/sites/SITE-9.yaml": site("SITE-9", "Europe/Berlin")})
    both = sides(made)
    assert both.relation == "follows"
    assert both.base is not None
    assert {wave.image for wave in both.base.desired.waves.waves} == {"v1.4.1"}
    assert {wave.image for wave in both.head.desired.waves.waves} == {"v1.4.2"}
    assert list(changed_files(both.base.files, both.head.files)) == ["sites/SITE-9.yaml", "waves.yaml"]
    assert both.shown("waves.yaml") == str(made.path / "fleet/waves.yaml")


def test_a_site_that_did_not_change_is_not_parsed_again(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.commit("Promote", {"fleet/waves.yaml": waves("v1.4.2")})
    both = sides(made, "HEAD~1", "HEAD")
    assert both.base is not None
    assert both.base.desired.sites["SITE-2"] is both.head.desired.sites["SITE-2"]


def test_a_branch_that_is_behind_is_merged_and_undoes_nothing(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.git("checkout", "-q", "-b", "promote")
    made.commit("Promote", {"fleet/waves.yaml": waves("v1.4.2")})
    made.git("checkout", "-q", "main")
    made.commit("Add a site", {"fleet/sites/SITE-9.yaml": site("SITE-9", "Europe/Berlin")})
    both = sides(made, "main", "promote")
    assert both.relation == "merged"
    assert "SITE-9" in both.head.desired.sites
    assert both.head.desired.waves.waves[0].image == "v1.4.2"


def test_what_the_base_removed_meanwhile_stays_removed(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.git("checkout", "-q", "-b", "promote")
    made.commit("Promote", {"fleet/waves.yaml": waves("v1.4.2")})
    made.git("checkout", "-q", "main")
    made.commit("Remove a site", {"fleet/sites/SITE-4.yaml": None})
    assert "SITE-4" not in sides(made, "main", "promote").head.desired.sites


def test_both_sides_of_one_file_are_merged_where_they_meet_nowhere(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.git("checkout", "-q", "-b", "promote")
    made.commit("Promote the lab", {"fleet/waves.yaml": waves("v1.4.2", "v1.4.1", "v1.4.1")})
    made.git("checkout", "-q", "main")
    paused = waves("v1.4.1").replace("soak: 1h\n", "soak: 1h\n      paused: true\n", 1)
    made.commit("Pause the lab", {"fleet/waves.yaml": paused})
    made.git("checkout", "-q", "promote")
    for head in ("promote", None):
        both = sides(made, "main", head)
        assert both.relation == "merged"
        wave = both.head.desired.waves.waves[0]
        assert (wave.image, wave.paused) == ("v1.4.2", True)


def test_a_merge_that_would_conflict_is_told_at_its_file(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.commit("Third", {"fleet/images/v1.4.3.yaml": document("Image", "v1.4.3", "family: edge")})
    made.git("checkout", "-q", "-b", "promote")
    made.commit("Promote", {"fleet/waves.yaml": waves("v1.4.2")})
    made.git("checkout", "-q", "main")
    made.commit("Promote another", {"fleet/waves.yaml": waves("v1.4.3")})
    with pytest.raises(InvalidInput, match=r"^fleet/waves.yaml:1:1: changed here and in .* would conflict"):
        sides(made, "main", "promote")


def test_a_head_before_the_base_goes_back(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.commit("Promote", {"fleet/waves.yaml": waves("v1.4.2")})
    both = sides(made, "HEAD", "HEAD~1")
    assert both.relation == "back"
    assert both.head.desired.waves.waves[0].image == "v1.4.1"


def test_a_work_tree_behind_the_base_only_brings_its_own_changes(tmp_path: Path) -> None:
    made = repo(tmp_path)
    first = made.head()
    made.commit("Promote", {"fleet/waves.yaml": waves("v1.4.2")})
    made.git("checkout", "-q", first)
    both = sides(made, "main")
    assert both.base is not None
    assert not changed_files(both.base.files, both.head.files)
    made.write({"fleet/sites/SITE-9.yaml": site("SITE-9", "Europe/Berlin")})
    both = sides(made, "main")
    assert "SITE-9" in both.head.desired.sites
    assert both.head.desired.waves.waves[0].image == "v1.4.2"


@pytest.mark.parametrize("base", ["4b825dc642cb6eb9a060e54bf8d69288fbee4904", "0" * 40])
def test_a_first_commit_is_compared_with_nothing(tmp_path: Path, base: str) -> None:
    both = sides(repo(tmp_path), base, "HEAD")
    assert (both.base, both.relation) == (None, "first")


def test_a_base_without_a_fleet_is_nothing_too(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.git("checkout", "-q", "--orphan", "empty")
    made.git("rm", "-rqf", ".")
    made.commit("Nothing yet", {"README": "x"})
    made.commit("The fleet", fleet_files())
    both = sides(made, "HEAD~1", "HEAD")
    assert both.base is None
    assert len(both.head.desired.sites) == 5


def test_two_folders_are_compared_as_they_are(tmp_path: Path) -> None:
    made = repo(tmp_path)
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        made.git("--work-tree", str(folder), "checkout", "-f", "HEAD", "--", "fleet")
    (new / "fleet/waves.yaml").write_text(waves("v1.4.2"))
    both = from_folders(old / "fleet", new / "fleet")
    assert both.relation == "folders"
    assert both.base is not None
    assert list(changed_files(both.base.files, both.head.files)) == ["waves.yaml"]


def test_problems_of_both_sides_point_at_their_place(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.commit("Break it", {"fleet/waves.yaml": waves("v9.9.9")})
    with pytest.raises(InvalidInput, match=r"fleet/waves.yaml:10:14: wave 'lab' asks for image v9.9.9"):
        sides(made, "HEAD~1", "HEAD")


def test_a_base_that_does_not_load_stands_for_the_last_that_did(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.commit("Promote the lab", {"fleet/waves.yaml": waves("v1.4.2", "v1.4.1", "v1.4.1")})
    good = made.head()
    made.commit("Break it", {"fleet/waves.yaml": waves("v9.9.9")})
    made.commit("Break it again", {"fleet/waves.yaml": waves("v9.9.8")})
    made.commit("Mend it", {"fleet/waves.yaml": waves("v1.4.2")})
    both = sides(made, "HEAD~1", "HEAD")
    assert both.base is not None and both.base.commit is not None
    assert both.base.commit.sha == good
    assert both.base.label == f"HEAD~1~2 ({good[:10]}), in force since HEAD~1 does not load"


def test_where_nothing_before_the_base_loads_its_problems_are_told(tmp_path: Path) -> None:
    made = Repo(tmp_path / "r")
    made.commit("Broken from the start", {**fleet_files(), "fleet/waves.yaml": waves("v9.9.9")})
    made.commit("Mend it", {"fleet/waves.yaml": waves("v1.4.1")})
    with pytest.raises(InvalidInput, match=r"^HEAD~1:fleet/waves.yaml:10:14: "):
        sides(made, "HEAD~1", "HEAD")


def test_only_warnings_that_are_new_are_told(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.commit("Warned of", {"fleet/images/v1.4.1.yaml": document("Image", "v1.4.1", "family: edge\nwithdrawn: bad")})
    assert new_warnings(sides(made, "HEAD")) == []
    made.write({"fleet/waves.yaml": waves("v1.4.1", "v1.4.1", "v1.4.2")})
    codes = [problem.code for problem in new_warnings(sides(made, "HEAD"))]
    assert "release-order" in codes


def test_a_repository_at_its_top_is_a_fleet_too(tmp_path: Path) -> None:
    made = repo(tmp_path)
    made.git("mv", "-k", "fleet/fleet.yaml", "fleet/waves.yaml", "fleet/images", "fleet/apps", "fleet/sites", ".")
    made.commit("Move up")
    from reconciler.adapters.git_trees import GitTrees
    from reconciler.review.sides import from_revisions

    both = from_revisions(GitTrees(made.path), "HEAD", None, made.path)
    assert both.base is not None
    assert not changed_files(both.base.files, both.head.files)
