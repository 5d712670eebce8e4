"""`image bump --refresh` on a real clone: pins from a signed apt repository, proposed once, and nothing where nothing is newer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Self

import pytest
import yaml
from click.testing import CliRunner, Result

from reconciler.cli.main import cli
from reconciler.ports import TerminalError, TransientError
from reconciler.repo.problem import InvalidInput
from tests.house.tree import ROOT
from tests.propose.fleets import files, waves
from tests.support.apt import Repository
from tests.support.github import GithubServer
from tests.support.gitrepo import Repo
from tests.support.gpg import Home, make_home
from tests.support.settings import write_settings
from tests.support.system import need

pytestmark = [pytest.mark.slow, pytest.mark.system]

IMAGE = """\
# The pins, and why.
apiVersion: fleet/v1
kind: Image
metadata: {name: v1.2.0}
spec:
  recipe: golden/
  base: {distribution: debian, suite: bookworm, snapshot: 20251115T000000Z}
  packages:
    docker-ce: 5:27.1.2-1  # qualified
    curl: 7.9-1
"""
VARIANT = """\
distribution: debian
suite: bookworm
sources:
  - {mirror: main, suites: [bookworm], key: keys/archive.asc}
"""
FLEET = ROOT / "fleet"
AT = datetime.now(UTC)
TODAY = f"{AT:%Y%m%d}T000000Z"


class Still(datetime):
    """The day on which these tests began: it may end while they go on."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls.fromtimestamp(AT.timestamp(), tz)


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.cli.image_bump.datetime", Still)


@dataclass
class Place:
    """A clone with its bare remote, and the mirror of its recipe."""

    clone: Repo
    mirror: Repository

    def run(self, *words: str, code: int = 0, mirror: bool = True, env: dict[str, str] | None = None) -> Result:
        """`image bump` in the clone."""
        where = ("--mirror", f"main={self.mirror.address}") if mirror else ()
        result = CliRunner().invoke(cli, ["image", "bump", *words, *where, "--fleet", "fleet"], env=env)
        known = (SystemExit, InvalidInput, TerminalError, TransientError)
        if result.exception is not None and not isinstance(result.exception, known):
            raise result.exception
        assert result.exit_code == code, f"{result.output}{result.exception}"
        return result

    def refused(self, *words: str, mirror: bool = True) -> str:
        """What is said where it is refused."""
        result = self.run(*words, code=1, mirror=mirror)
        return f"{result.output}{result.exception}"

    def branches(self) -> set[str]:
        return set(self.clone.git("ls-remote", "--heads", "origin").replace("refs/heads/", "").split()[1::2])

    def proposed(self, branch: str, release: str) -> str:
        return self.clone.git("show", f"refs/remotes/origin/{branch}:fleet/images/{release}.yaml")


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with make_home() as made:
        yield made


@pytest.fixture
def place(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Place:
    need("apt-get", "apt")
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    mirror = Repository(tmp_path / "mirror", home)
    mirror.offer({"docker-ce": ["5:27.1.2-1", "5:28.0-1"], "curl": ["7.9-1"]})
    recipe = {
        "fleet/images/golden/debian-12.yaml": VARIANT,
        "fleet/images/golden/packages.txt": "curl asks\n",
        "fleet/images/golden/keys/archive.asc": mirror.key.read_text(),
    }
    fleet = {f"fleet/{path}": data.decode() for path, data in files(waves=waves("v1.0.0")).items()}
    clone = Repo(tmp_path / "clone")
    clone.git("init", "-q", "--bare", "-b", "main", str(tmp_path / "remote.git"))
    clone.commit("Begin", fleet | recipe | {"fleet/images/v1.2.0.yaml": IMAGE})
    clone.git("remote", "add", "origin", str(tmp_path / "remote.git"))
    clone.git("push", "-q", "origin", "main")
    monkeypatch.chdir(clone.path)
    return Place(clone, mirror)


def test_pins_and_snapshot_are_refreshed_and_the_series_stays(place: Place) -> None:
    result = place.run("--refresh")
    assert "docker-ce: 5:27.1.2-1 → 5:28.0-1" in result.stdout and f"20251115T000000Z → {TODAY}" in result.stdout
    assert "curl: 7.9-1 →" not in result.stdout
    text = place.proposed("image/v1.2.1", "v1.2.1")
    assert "    docker-ce: 5:28.0-1  # qualified\n    curl: 7.9-1" in text and f"snapshot: {TODAY}}}" in text
    assert text.startswith("# The pins, and why.\n") and "metadata: {name: v1.2.1}" in text


def test_a_repeat_proposes_nothing_twice_and_nothing_where_nothing_is_newer(place: Place) -> None:
    place.run("--refresh")
    assert "is there already" in place.run("--refresh").stdout
    assert place.branches() == {"main", "image/v1.2.1"}
    place.clone.git("fetch", "-q", "origin")
    place.clone.git("push", "-q", "origin", "refs/remotes/origin/image/v1.2.1:refs/heads/main")
    place.clone.git("push", "-q", "origin", ":refs/heads/image/v1.2.1")
    result = place.run("--refresh")
    assert f"nothing is newer than what v1.2.1 holds: 2 pins and the snapshot {TODAY}" in result.stdout
    told = json.loads(place.run("--refresh", "--output", "json").stdout)
    assert told["files"] == [] and "nothing is newer" in told["says"][0]
    assert place.branches() == {"main"}
    assert "Add release v1.2.2" in place.run("--refresh", "--snapshot", "20990101T000000Z").stdout


def test_what_was_proposed_before_is_taken_as_it_is_and_newer_versions_are_no_second_one(place: Place) -> None:
    place.run("--refresh")
    place.mirror.offer({"docker-ce": ["5:29.0-1"], "curl": ["7.9-1"]})
    result = place.run("--refresh")
    assert "it was proposed before" in result.stdout and "delete image/v1.2.1" in result.stdout
    assert place.branches() == {"main", "image/v1.2.1"}
    assert "5:28.0-1" in place.proposed("image/v1.2.1", "v1.2.1")


def test_a_branch_that_holds_something_else_is_not_taken_for_it(place: Place) -> None:
    place.clone.commit("Begin something", {"fleet/images/v1.2.1.yaml": "x", "fleet/README.md": "y"})
    place.clone.git("push", "-q", "origin", "HEAD:refs/heads/image/v1.2.1")
    assert "exists with other content" in place.refused("--refresh")


def test_named_pins_win_and_are_not_asked_for(place: Place) -> None:
    place.mirror.offer({"curl": ["7.10-1"]})
    result = place.run("--refresh", "--package", "docker-ce=5:27.1.3-1", "--snapshot", "20251201T000000Z")
    assert "docker-ce: 5:27.1.2-1 → 5:27.1.3-1" in result.stdout and "curl: 7.9-1 → 7.10-1" in result.stdout
    assert "20251115T000000Z → 20251201T000000Z" in result.stdout


def test_nothing_is_proposed_where_a_pin_cannot_be_had(place: Place) -> None:
    place.mirror.offer({"curl": ["7.8-1"]})
    said = place.refused("--refresh")
    assert "docker-ce (5:27.1.2-1 is pinned) is offered by none" in said
    assert "curl: 7.9-1 is pinned and gone, and the newest, 7.8-1, is lower" in said and "--downgrade" in said
    assert place.branches() == {"main"}
    place.mirror.offer({"curl": ["7.8-1"], "docker-ce": ["5:28.0-1"]})
    assert "curl: 7.9-1 → 7.8-1" in place.run("--refresh", "--downgrade", "--dry-run").stdout


def test_a_mirror_that_is_not_known_is_named_with_its_place_in_the_recipe(place: Place) -> None:
    assert "fleet/images/golden/debian-12.yaml:4:" in place.refused(
        "--refresh", "--mirror", "main=nowhere", mirror=False
    )
    place.mirror.offer({"curl": ["7.9-1"], "docker-ce": ["5:28.0-1"]}, signed_by="")
    assert "is not signed" in place.refused("--refresh")
    broken = IMAGE.replace("v1.2.0", "v1.3.0").replace("bookworm,", "trixie,")
    place.clone.commit("Another suite", {"fleet/images/v1.3.0.yaml": broken})
    place.clone.git("push", "-q", "origin", "main")
    assert "debian/trixie" in place.refused("--refresh")


def test_mirrors_come_from_the_settings_and_go_with_refresh_alone(place: Place, tmp_path: Path) -> None:
    config = write_settings(tmp_path, builder={"mirrors": {"main": "http://127.0.0.1:9/x", "other": "/nowhere"}})
    assert "5:28.0-1" in place.run("--refresh", "--dry-run", "--config", str(config)).stdout
    assert "127.0.0.1:9" in place.refused("--refresh", "--dry-run", "--config", str(config), mirror=False)
    for words in (
        ("--downgrade",),
        ("--mirror", "main=/x"),
        ("--config", str(config)),
        ("--refresh", "--mirror", "main"),
    ):
        place.run(*words, code=2, mirror=False)
    place.run("--refresh", "--mirror", "main=/x", code=2)


def test_a_mirror_that_does_not_answer_is_no_fault_of_the_pins(place: Place) -> None:
    result = place.run("--refresh", "--mirror", "main=http://127.0.0.1:9/x", mirror=False, code=1)
    assert isinstance(result.exception, TransientError) and "did not answer" in str(result.exception)


def test_the_products_own_release_is_refreshed_over_all_its_sources(place: Place, home: Home, tmp_path: Path) -> None:
    """The Ubuntu variant and the newest document of this project, with the keys of mirrors that stand in for the real ones."""
    variant = (FLEET / "images/edge-golden/ubuntu-22.04.yaml").read_text()
    sources = yaml.safe_load(variant)["sources"]
    assert {source["mirror"] for source in sources} >= {"ubuntu", "docker", "nvidia-container-toolkit"}
    newer = {
        "nvidia-driver-535-server": "535.247.01-0ubuntu0.22.04.1",
        "nvidia-utils-535-server": "535.247.01-0ubuntu0.22.04.1",
        "nvidia-container-toolkit": "1.17.8-1",
        "docker-ce": "5:28.1.1-1~ubuntu.22.04~jammy",
        "docker-ce-cli": "5:28.1.1-1~ubuntu.22.04~jammy",
        "containerd.io": "1.7.27-1",
    }
    # The next line, which has names of its own: it stays where it is.
    offers = {name: [version] for name, version in newer.items()} | {"nvidia-driver-550-server": ["550.1-0ubuntu1"]}
    mirrors: list[str] = []
    for source in sources:
        folder = tmp_path / source["mirror"] / "20251201T000000Z"
        for suite in source["suites"]:
            Repository(folder, home, suite, source["components"], place.mirror.signer).offer(offers)
        mirrors += ["--mirror", f"{source['mirror']}=file:{tmp_path / source['mirror']}/{{snapshot}}"]
    document = (FLEET / "images/v1.4.2.yaml").read_text()
    place.clone.commit(
        "Add the product",
        {
            "fleet/images/golden/ubuntu-22.04.yaml": re.sub(r"key: [^,}]+", "key: keys/archive.asc", variant),
            "fleet/images/v1.4.2.yaml": document.replace("edge-golden/", "golden/"),
        },
    )
    place.clone.git("push", "-q", "origin", "main")
    result = place.run("--refresh", "--snapshot", "20251201T000000Z", "--output", "json", *mirrors, mirror=False)
    told = json.loads(result.stdout)
    assert {move["what"]: move["new"] for move in told["moves"]} == {"snapshot": "20251201T000000Z", **newer}
    assert told["branch"] == "image/v1.4.3"


def test_the_pull_request_has_the_pins_as_a_table_and_is_opened_once(place: Place) -> None:
    with GithubServer() as hub:
        where = ("--github-api", hub.url, "--repository", hub.repository)
        place.run("--refresh", "--no-pull-request")
        place.mirror.offer({"docker-ce": ["5:29.0-1"], "curl": ["7.9-1"]})
        hub.push("image/v1.2.1")
        # A run that was killed between the push and the pull request: the branch's own words are told.
        for _ in range(2):
            place.run("--refresh", *where, env={"GITHUB_TOKEN": "ghp_secret"})
        (pull,) = hub.pulls
        assert pull["title"] == "Add release v1.2.1" and "5:28.0-1" in pull["body"] and "29.0" not in pull["body"]
        pull["state"] = "closed"
        hub.push("image/v1.2.1-2")
        place.run("--refresh", *where, env={"GITHUB_TOKEN": "ghp_secret"})
        assert place.branches() == {"main", "image/v1.2.1", "image/v1.2.1-2"}
        body = hub.pulls[1]["body"]
        assert "| what | from | to |\n| --- | --- | --- |\n" in body
        assert "| `docker-ce` | `5:27.1.2-1` | `5:29.0-1` |\n" in body and f"| `20251115T000000Z` | `{TODAY}` |" in body
