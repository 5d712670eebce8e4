"""promote, rollback and their sisters on real clones with bare remotes: what is pushed, and what is left alone."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reconciler.adapters.git_clone import without_password
from reconciler.cli.main import cli
from reconciler.ports import TerminalError, TransientError
from reconciler.propose.publish import github_repository
from reconciler.repo.problem import InvalidInput
from tests.support.github import GithubServer
from tests.support.gitrepo import Repo

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

FLEET = Path(__file__).resolve().parents[2] / "fleet"
WAVES = "fleet/waves.yaml"


@dataclass
class Place:
    """A clone whose fleet repo is a subfolder, and its bare remote."""

    clone: Repo
    remote: Path

    def run(self, *words: str, fails: bool = False) -> Result:
        """A command in the clone; with `fails` it must not succeed."""
        result = CliRunner().invoke(cli, [*words, "--fleet", "fleet"])
        known = (SystemExit, InvalidInput, TerminalError, TransientError)
        if result.exception is not None and not isinstance(result.exception, known):
            raise result.exception
        assert (result.exit_code != 0) is fails, f"{result.output}{result.exception}"
        return result

    def refused(self, *words: str) -> str:
        """What is said where a command is refused."""
        result = self.run(*words, fails=True)
        return f"{result.output}{result.exception}"

    def at_remote(self, name: str, path: str = WAVES) -> str:
        return self.clone.git("show", f"refs/remotes/origin/{name}:{path}")

    def branches(self) -> set[str]:
        return set(self.clone.git("ls-remote", "--heads", "origin").replace("refs/heads/", "").split()[1::2])

    def merge(self, branch: str) -> str:
        """Merge a branch on the remote's main, as a forge does."""
        other = self.clone.path.parent / "other"
        shutil.rmtree(other, ignore_errors=True)
        repo = Repo(other)
        repo.git("fetch", "-q", str(self.remote), "+refs/heads/*:refs/remotes/o/*")
        repo.git("reset", "-q", "--hard", "refs/remotes/o/main")
        repo.git("merge", "-q", "--no-ff", "-m", f"Merge {branch}", f"refs/remotes/o/{branch}")
        repo.git("push", "-q", str(self.remote), "HEAD:refs/heads/main")
        return repo.head()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone and its remote, made once and copied for each test."""
    top = tmp_path_factory.mktemp("propose")
    clone = Repo(top / "clone")
    clone.git("init", "-q", "--bare", "-b", "main", str(top / "remote.git"))
    for item in ("fleet.yaml", "waves.yaml", "apps", "images/v1.4.1.yaml", "images/v1.4.2.yaml", "sites"):
        source, target = FLEET / item, clone.path / "fleet" / item
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for site in sorted((clone.path / "fleet/sites").glob("SITE-[34]*")):
        site.unlink()
    clone.write({"other.txt": "no part of the fleet\n"})
    clone.git("remote", "add", "origin", "../remote.git")
    clone.git("config", "user.name", "Ada")
    clone.git("config", "user.email", "ada@example.org")
    clone.commit("Start")
    clone.git("push", "-q", "origin", "main")
    return top


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    shutil.copytree(template, tmp_path / "p")
    clone = Repo.__new__(Repo)
    clone.path, clone._minute = tmp_path / "p/clone", 1
    for name, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    monkeypatch.chdir(clone.path)
    yield Place(clone, tmp_path / "p/remote.git")


def test_a_promotion_is_one_line_on_a_branch_and_nothing_else_changes(place: Place) -> None:
    # Work in progress: another branch is checked out, a file is changed, another is staged.
    place.clone.git("switch", "-q", "-c", "mine")
    place.clone.write({WAVES: "broken: [", "other.txt": "mine\n"})
    place.clone.git("add", "other.txt")
    before = (
        place.clone.git("status", "--porcelain"),
        place.clone.head(),
        (place.clone.path / ".git/index").read_bytes(),
    )
    result = place.run("promote", "v1.4.2", "--wave", "lab")
    assert (
        place.clone.git("status", "--porcelain"),
        place.clone.head(),
        (place.clone.path / ".git/index").read_bytes(),
    ) == before
    assert place.branches() == {"main", "promote/v1.4.2-lab"}
    diff = place.clone.git("diff", "-U0", "origin/main", "origin/promote/v1.4.2-lab")
    assert [line for line in diff.splitlines() if line[:1] in "+-"][2:] == [
        "-      image: v1.4.1",
        "+      image: v1.4.2",
    ]
    assert place.clone.git("log", "-1", "--format=%an|%s|%P", "origin/promote/v1.4.2-lab") == (
        f"Ada|Promote v1.4.2 to wave lab|{place.clone.git('rev-parse', 'origin/main')}"
    )
    assert place.clone.git("branch", "--list").split() == ["main", "*", "mine"]
    assert "reconciler diff origin/main origin/promote/v1.4.2-lab --fleet fleet" in result.stdout
    assert "git merge --no-ff origin/promote/v1.4.2-lab" in result.stdout
    assert "diff --git a/fleet/waves.yaml b/fleet/waves.yaml" in result.stdout


def test_the_base_is_the_remotes_branch_as_it_is_now(place: Place) -> None:
    place.run("promote", "v1.4.2")
    place.merge("promote/v1.4.2-lab")
    assert "in wave 'canary'" in place.run("promote", "v1.4.2").stdout
    assert "in wave 'lab'" not in place.run("promote", "v1.4.2", "--all", "--dry-run").stdout


@pytest.mark.slow
def test_a_repeat_finds_its_branch_and_makes_no_second(place: Place) -> None:
    first = json.loads(place.run("promote", "v1.4.2", "--output", "json").stdout)
    again = json.loads(place.run("promote", "v1.4.2", "--output", "json").stdout)
    assert (first["existed"], again["existed"], first["pushed"]) == (False, True, True)
    assert first["commit"] == again["commit"]
    # Also where main has moved on meanwhile.
    place.run("pause", "--wave", "all")
    place.merge("pause/all")
    moved = json.loads(place.run("promote", "v1.4.2", "--output", "json").stdout)
    assert (moved["commit"], moved["existed"]) == (first["commit"], True)


def test_a_branch_with_other_content_is_left_alone(place: Place) -> None:
    place.run("promote", "v1.4.2")
    tip = place.clone.git("rev-parse", "origin/promote/v1.4.2-lab")
    said = place.refused("promote", "v1.4.2", "--wave", "lab", "--all")
    assert "exclude each other" in said
    said = place.refused("pause", "--branch", "promote/v1.4.2-lab")
    assert "'promote/v1.4.2-lab' exists with other content" in said
    assert "Promote v1.4.2 to wave lab' by Ada" in said
    assert place.clone.git("ls-remote", "origin", "refs/heads/promote/v1.4.2-lab").split()[0] == tip
    assert "'main', the branch in force" in place.refused("pause", "--branch", "main")
    assert "branch name '-x' is refused" in place.refused("pause", "--branch=-x")


def test_two_at_once_make_one_branch(place: Place) -> None:
    """Somebody pushes the same change while ours is on its way."""
    hook = place.clone.path / ".git/hooks/pre-push"
    other = place.clone.path.parent / "other.git"
    shutil.copytree(place.remote, other)
    place.run("pause", "--no-pull-request")
    place.clone.git("push", "-q", str(other), "refs/remotes/origin/pause/fleet:refs/heads/pause/fleet")
    first = place.clone.git("rev-parse", "origin/pause/fleet")
    place.clone.git("push", "-q", "origin", ":pause/fleet")
    hook.write_text(
        f"#!/bin/sh\ngit --git-dir={place.remote} fetch -q {other} 'refs/heads/pause/*:refs/heads/pause/*'\n"
    )
    hook.chmod(0o755)
    place.clone.git("config", "user.name", "Grace")
    found = json.loads(place.run("pause", "--output", "json").stdout)
    assert (found["commit"], found["existed"]) == (first, True)
    place.clone.git("push", "-q", "--no-verify", "origin", ":pause/fleet")
    assert "exists with other content" in place.refused("pause", "--wave", "lab", "--branch", "pause/fleet")


def test_a_folder_that_is_no_fleet_repo_is_said_to_be_none(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.clone.path / "fleet/sites")
    for words in (["pause"], ["promote", "v1.4.2"], ["pause", "--write"]):
        result = CliRunner().invoke(cli, words)
        assert "this folder is no fleet repo: it has no fleet.yaml" in str(result.exception)
    assert place.branches() == {"main"}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("clone/.git/hooks/pre-push", "a hook of this clone refused (not today"),
        ("remote.git/hooks/pre-receive", "'pause/fleet' was not accepted (remote: not today"),
    ],
)
def test_a_hook_that_refuses_is_quoted_and_nothing_is_pushed(place: Place, where: str, said: str) -> None:
    hook = place.clone.path.parent / where
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not   today >&2\nexit 1\n")
    hook.chmod(0o755)
    assert said in place.refused("pause")
    assert place.branches() == {"main"}


def test_what_documents_say_steers_no_terminal(place: Place) -> None:
    path = "fleet/images/v1.4.2.yaml"
    text = (place.clone.path / path).read_text()
    place.clone.commit("Ban", {path: text.replace("  family:", '  withdrawn: "a\\u001b[2Jb"\n  family:')})
    place.clone.git("push", "-q", "origin", "main")
    result = place.run("withdraw", "v1.4.2", "--why", "stalls", "--dry-run")
    assert "another reason: a\\x1b[2Jb" in result.stdout
    assert "\x1b" not in result.output


@pytest.mark.slow
def test_a_merged_branch_gives_way_to_the_next_number(place: Place) -> None:
    place.run("pause")
    place.merge("pause/fleet")
    place.run("pause", "--off")
    place.merge("resume/fleet")
    assert "branch pause/fleet-2 pushed" in place.run("pause").stdout
    assert "is merged, or" in place.refused("pause", "--branch", "pause/fleet")


def test_dry_run_no_push_and_write(place: Place) -> None:
    result = place.run("withdraw", "v1.4.2", "--why", "stalls", "--dry-run")
    assert "+  withdrawn: stalls" in result.stdout
    assert "nothing was written" in result.stdout
    assert place.branches() == {"main"}
    result = place.run("withdraw", "v1.4.2", "--why", "stalls", "--no-push")
    assert "git push origin withdraw/v1.4.2" in result.stdout
    assert place.branches() == {"main"}
    kept = place.clone.git("rev-parse", "withdraw/v1.4.2")
    place.run("withdraw", "v1.4.2", "--why", "stalls", "--no-push")
    place.run("withdraw", "v1.4.2", "--why", "stalls")
    assert place.clone.git("rev-parse", "origin/withdraw/v1.4.2") == kept
    path = place.clone.path / "fleet/images/v1.4.2.yaml"
    path.chmod(0o755)
    result = place.run("withdraw", "v1.4.2", "--why", "stalls", "--write")
    assert "wrote fleet/images/v1.4.2.yaml; nothing is committed" in result.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    diff = place.clone.git("-c", "core.fileMode=false", "diff", "--numstat")
    assert diff == "1\t0\tfleet/images/v1.4.2.yaml"


def test_write_needs_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: Path) -> None:
    shutil.copytree(template / "clone/fleet", tmp_path / "fleet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    result = CliRunner().invoke(cli, ["promote", "v1.4.2", "--all", "--write"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / WAVES).read_text().count("image: v1.4.2") == 5
    result = CliRunner().invoke(cli, ["rollback", "--to", "v1.4.1", "--write"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / WAVES).read_bytes() == (template / "clone" / WAVES).read_bytes()
    result = CliRunner().invoke(cli, ["promote", "v1.4.2"])
    assert "is in no git repository" in str(result.exception)


@pytest.mark.slow
def test_a_rollback_is_the_revert_of_the_promotions(place: Place) -> None:
    start = place.at_remote("main")
    place.run("promote", "v1.4.2")
    place.merge("promote/v1.4.2-lab")
    place.run("promote", "v1.4.2")
    place.merge("promote/v1.4.2-canary")
    result = place.run("rollback")
    assert "Roll v1.4.2 back to v1.4.1 in waves lab, canary" in result.stdout
    assert "fast lane" in result.stdout
    assert place.at_remote("rollback/v1.4.2-all") == start
    place.run("rollback", "--wave", "canary")
    assert place.at_remote("rollback/v1.4.2-canary").count("v1.4.2") == 1
    place.merge("rollback/v1.4.2-all")
    assert "went back already, from v1.4.2 to v1.4.1" in place.refused("rollback")
    # The work tree's own history counts for --write.
    place.clone.git("fetch", "-q", "origin")
    place.clone.git("merge", "-q", "origin/main~1")
    place.run("rollback", "--write")
    assert (place.clone.path / WAVES).read_text().rstrip("\n") == start


def test_one_commit_is_taken_back_though_the_file_went_on(place: Place) -> None:
    place.run("promote", "video-ingest@2.8.0", "--wave", "lab")
    merged = place.merge("promote/video-ingest-2.8.0-lab")
    place.run("pause", "--wave", "all")
    place.merge("pause/all")
    place.run("rollback", "--commit", merged)
    text = place.at_remote(f"revert/{merged[:12]}")
    assert "2.8.0" not in text
    assert "paused: true" in text
    message = place.clone.git("log", "-1", "--format=%B", f"origin/revert/{merged[:12]}")
    assert f"This reverts commit {merged}." in message
    place.merge(f"revert/{merged[:12]}")
    assert "is undone already" in place.refused("rollback", "--commit", merged)
    assert "names no commit" in place.refused("rollback", "--commit", "nonsense")
    first = place.clone.git("rev-list", "--max-parents=0", "origin/main")
    assert "first of its repository" in place.refused("rollback", "--commit", first)


@pytest.mark.slow
def test_a_conflict_names_the_files(place: Place) -> None:
    place.run("promote", "v1.4.2", "--wave", "lab")
    merged = place.merge("promote/v1.4.2-lab")
    place.run("image", "bump", "v1.4.3")
    place.merge("image/v1.4.3")
    place.run("promote", "v1.4.3", "--wave", "lab")
    place.merge("promote/v1.4.3-lab")
    said = place.refused("rollback", "--commit", merged)
    assert "cannot be taken back: waves.yaml changed since" in said


def test_what_would_not_be_valid_is_named_with_its_place_and_not_pushed(place: Place) -> None:
    said = place.refused("site", "add", "SITE-9", "--timezone", "Europe/Berlim", "--device", "LAB-0001-1")
    assert "fleet/sites/SITE-9.yaml:7:13: " in said
    assert "Europe/Berlin" in said
    assert place.branches() == {"main"}
    place.clone.commit("Break it", {WAVES: "apiVersion: fleet/v1\n"})
    place.clone.git("push", "-q", "origin", "main")
    assert f"{WAVES}:1:1: " in place.refused("promote", "v1.4.2")


def test_a_new_site_a_pin_and_a_bump(place: Place) -> None:
    result = place.run(
        "site", "add", "SITE-9", "--timezone", "Europe/Berlin", "--device", "SITE-9-1", "--device", "SITE-9-2",
        "--vpn-type", "wireguard", "--secret-ref", "edge/SITE-9/vpn", "--camera", "192.0.2.9", "--label", "region=eu",
        "--wave", "canary",
    )  # fmt: skip
    text = place.at_remote("site/SITE-9", "fleet/sites/SITE-9.yaml")
    assert text.startswith("# yaml-language-server: $schema=../../schemas/site.schema.json\napiVersion: fleet/v1\n")
    assert "sites: [SITE-1033, SITE-2847, SITE-9]" in place.at_remote("site/SITE-9")
    assert "reconciler device enrol SITE-9-2 --out enrol-SITE-9-2" in result.stdout
    place.run("pin", "SITE-2847", "v1.4.2", "--device", "SITE-2847-1", "--why", "a driver, under test")
    assert "why: a driver, under test" in place.at_remote("pin/SITE-2847-v1.4.2", "fleet/sites/SITE-2847.yaml")
    place.run("image", "bump", "v1.5.0", "--from", "v1.4.1", "--package", "docker-ce=5:28.0-1")
    bumped = place.at_remote("image/v1.5.0", "fleet/images/v1.5.0.yaml")
    assert "docker-ce: 5:28.0-1\n" in bumped
    assert "# The October 2025 rebuild." in bumped


def test_words_that_do_not_go_together_are_wrong_usage(place: Place) -> None:
    for words in (
        ("pin", "SITE-2847", "v1.4.2"),
        ("pin", "SITE-2847", "v1.4.2", "--remove"),
        ("pause", "--write", "--branch", "x"),
        ("rollback", "v1.4.2", "--commit", "abc"),
        ("image", "bump", "v1.5.0", "--package", "docker-ce"),
        ("site", "add", "S-1", "--timezone", "UTC", "--device", "x", "--vpn-type", "ipsec"),
        ("site", "add", "../S", "--timezone", "UTC", "--device", "x"),
        ("pause", "--repository", "a/b"),
    ):
        assert place.run(*words, fails=True).exit_code == 2, words


def test_a_remote_that_does_not_answer_is_said_and_can_be_done_without(place: Place) -> None:
    shutil.rmtree(place.remote)
    assert "there is no repository" in place.refused("promote", "v1.4.2")
    assert "made in this clone" in place.run("promote", "v1.4.2", "--no-fetch", "--no-push").stdout
    assert "no remote 'upstream'" in place.refused("pause", "--remote", "upstream")
    assert "no name of a remote" in place.refused("pause", "--remote=--upload-pack=x")
    assert "no branch 'origin/prod'" in place.refused("pause", "--base", "prod", "--no-fetch", "--no-push")


def test_who_commits_must_be_known(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.clone.git("config", "--unset", "user.email")
    place.clone.git("config", "user.useConfigOnly", "true")
    assert "git does not know who commits" in place.refused("pause")
    assert place.branches() == {"main"}


def test_a_password_in_the_remotes_address_is_never_shown(place: Place) -> None:
    place.clone.git("remote", "set-url", "origin", "https://ada:hunter2@127.0.0.1:9/fleet.git")
    said = place.refused("pause")
    assert "127.0.0.1" in said
    assert "hunter2" not in said


def test_the_address_of_github_leads_to_the_form(place: Place) -> None:
    # What the user's git makes of the address is the user's; what is shown is the address as it is known.
    place.clone.git("remote", "set-url", "origin", "git@github.com:acme/fleet.git")
    ssh = place.clone.path / "ssh"
    ssh.write_text(f'#!/bin/sh\nshift $(($# - 1)); eval "${{1%% *}} {place.remote}"\n')
    ssh.chmod(0o755)
    place.clone.git("config", "core.sshCommand", str(ssh))
    result = place.run("pause")
    assert place.clone.git("ls-remote", "--heads", "origin").count("pause/fleet") == 1
    assert "https://github.com/acme/fleet/compare/main...pause/fleet?expand=1" in result.stdout


@pytest.fixture
def hub(place: Place) -> Iterator[GithubServer]:
    """A GitHub on loopback that shows the branches of the remote as it looks."""
    place.clone.git("config", "credential.helper", "")
    with GithubServer() as server:
        yield server


def github(place: Place, hub: GithubServer, *words: str) -> list[str]:
    token = place.clone.path.parent / "token"
    token.write_text("ghp_secret\n")
    return [*words, "--github-api", hub.url, "--repository", hub.repository, "--token-file", str(token)]


def test_the_pull_request_is_opened_once_and_says_what_the_merge_will_do(place: Place, hub: GithubServer) -> None:
    hub.push("promote/v1.4.2-lab")
    words = github(place, hub, "promote", "v1.4.2")
    result = place.run(*words)
    [pull] = hub.pulls
    assert (pull["title"], pull["base"]["ref"]) == ("Promote v1.4.2 to wave lab", "main")
    assert pull["head"]["ref"] == "promote/v1.4.2-lab"
    assert "v1.4.1 → v1.4.2 in wave 'lab'" in pull["body"]
    assert "LAB-0001" in pull["body"]
    assert f"pull request {pull['number']}: {pull['html_url']}" in result.stdout
    again = json.loads(place.run(*words, "--output", "json").stdout)
    assert again["pullRequest"] == {"number": pull["number"], "url": pull["html_url"]}
    assert len(hub.pulls) == 1
    assert "ghp_secret" not in result.output


def test_a_pull_request_holds_nothing_that_acts(place: Place, hub: GithubServer) -> None:
    path = "fleet/images/v1.4.2.yaml"
    text = (place.clone.path / path).read_text()
    place.clone.commit("Ban", {path: text.replace("  family:", '  withdrawn: "@all ``` </details> #1"\n  family:')})
    place.clone.git("push", "-q", "origin", "main")
    hub.push("withdraw/v1.4.2")
    place.run(*github(place, hub, "withdraw", "v1.4.2", "--why", "[x](y) @team"))
    body = hub.pulls[0]["body"]
    assert "another reason" in body and "Why:" in body
    for bad in ("@all", "@team", "[x](y)", "reason: ```", "withdrawn (@"):
        assert bad not in body
    assert body.count("</details>") == body.count("<details>")


def test_a_closed_pull_request_gives_way_to_the_next_number(place: Place, hub: GithubServer) -> None:
    hub.push("pause/fleet")
    hub.push("pause/fleet-2")
    place.run(*github(place, hub, "pause", "--no-pull-request"))
    assert hub.pulls == []
    place.run(*github(place, hub, "pause"))
    hub.pulls[0]["state"] = "closed"
    place.run(*github(place, hub, "pause"))
    assert [pull["head"]["ref"] for pull in hub.pulls] == ["pause/fleet", "pause/fleet-2"]
    assert "its pull request is closed" in place.refused(*github(place, hub, "pause", "--branch", "pause/fleet"))


def test_what_the_forge_refuses_leaves_the_branch_and_says_so(place: Place, hub: GithubServer) -> None:
    hub.push("pause/fleet")
    hub.fail(403, method="POST", path="pulls", body={"message": "Resource not accessible by personal access token"})
    said = place.refused(*github(place, hub, "pause"))
    assert "branch pause/fleet is pushed; run the same command again" in said
    assert "ghp_secret" not in said
    place.run(*github(place, hub, "pause"))
    assert len(hub.pulls) == 1


def test_a_commit_that_cannot_be_signed_is_not_made(place: Place) -> None:
    place.clone.git("config", "commit.gpgSign", "true")
    place.clone.git("config", "gpg.format", "ssh")
    place.clone.git("config", "user.signingKey", str(place.clone.path / "no-key"))
    assert "the commit could not be signed" in place.refused("pause")
    assert place.branches() == {"main"}


@pytest.mark.parametrize(
    ("address", "shown", "repository"),
    [
        ("https://github.com/acme/fleet", "https://github.com/acme/fleet", "acme/fleet"),
        ("https://ghp_x@github.com/acme/fleet.git", "https://github.com/acme/fleet.git", "acme/fleet"),
        ("https://a:b@git.example/acme/fleet.git", "https://git.example/acme/fleet.git", None),
        ("git@github.com:acme/fleet.git", "git@github.com:acme/fleet.git", "acme/fleet"),
        ("ssh://git@github.com/acme/fleet.git/", "ssh://git@github.com/acme/fleet.git/", "acme/fleet"),
        ("ssh://ada:pw@git.example/fleet", "ssh://ada@git.example/fleet", None),
        ("https://github.com.example/acme/fleet", "https://github.com.example/acme/fleet", None),
        ("../fleet.git", "../fleet.git", None),
    ],
)
def test_addresses_lose_their_secrets_and_keep_their_repository(
    address: str, shown: str, repository: str | None
) -> None:
    assert without_password(address) == shown
    assert github_repository(shown) == repository
